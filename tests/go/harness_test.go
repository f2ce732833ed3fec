// Package conmonclient drives podinit with the published client of conmon-rs,
// as an engine does: the client is a dependency, nothing of it is changed.
//
// This file is the harness: a root file system, bundles, a pod per test, and the
// check that a pod leaves nothing behind. The tests are in the other files.
package conmonclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containers/conmon-rs/pkg/client"
	"github.com/sirupsen/logrus"
)

// deadline bounds every wait: long enough for a machine under load, never reached by a passing test.
const deadline = 60 * time.Second

// runtimes are what every test of containers runs with.
var runtimes = []string{"crun", "runc"}

// workspace is what all tests share: the binary under its engine-facing name, and a root file system.
var workspace struct{ dir, conmonrs, rootfs string }

var podCount atomic.Uint64

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}

	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	const isPrivate = "PODINIT_TESTS_ARE_PRIVATE"

	if os.Getenv(isPrivate) == "" {
		// Nothing that is mounted from here on is seen by the machine.
		helper := "../../scripts/private-mounts.sh"
		env := append(os.Environ(), isPrivate+"=1")

		return 1, fmt.Errorf("exec %s: %w", helper, syscall.Exec(helper, append([]string{helper}, os.Args...), env))
	}

	binary := os.Getenv("PODINIT_BINARY")
	if binary == "" {
		binary = "../../target/podinit"
	}

	binary, err := filepath.Abs(binary)
	if err != nil {
		return 1, err
	}

	if _, err := os.Stat(binary); err != nil {
		return 1, fmt.Errorf("run `make build` first, or set PODINIT_BINARY: %w", err)
	}

	workspace.dir, err = os.MkdirTemp("", "podinit-go-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(workspace.dir)

	workspace.conmonrs = filepath.Join(workspace.dir, "conmonrs")
	if err := os.Symlink(binary, workspace.conmonrs); err != nil {
		return 1, err
	}

	workspace.rootfs = filepath.Join(workspace.dir, "rootfs")
	if err := makeRootfs(workspace.rootfs); err != nil {
		return 1, err
	}

	return m.Run(), nil
}

// makeRootfs makes a root file system of busybox, small enough to be made for every run.
func makeRootfs(path string) error {
	for _, dir := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o755); err != nil {
			return err
		}
	}

	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}

	content, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}

	if err := os.WriteFile(filepath.Join(path, "bin/busybox"), content, 0o755); err != nil {
		return err
	}

	for _, applet := range strings.Fields("cat echo head kill md5sum seq sh sleep stty tail tr true tty yes") {
		if err := os.Symlink("busybox", filepath.Join(path, "bin", applet)); err != nil {
			return err
		}
	}

	return nil
}

// withRuntimes runs a test once for each OCI runtime, in parallel.
func withRuntimes(t *testing.T, test func(t *testing.T, p *pod)) {
	t.Helper()
	t.Parallel()

	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newPod(t, name))
		})
	}
}

// pod is a running podinit with the client that an engine would have.
type pod struct {
	t       *testing.T
	name    string
	dir     string
	runtime string
	program string
	client  *client.ConmonClient
	stopped bool
}

// newPod starts podinit, and stops it and checks that nothing is left when the test ends. The settings are
// variables of podinit's environment, as an engine's unit file has them.
func newPod(t *testing.T, runtime string, settings ...string) *pod {
	t.Helper()

	p := idlePod(t, runtime)
	if len(settings) > 0 {
		p.program = p.path("conmonrs")
		script := fmt.Sprintf("#!/bin/sh\n%s exec %s \"$@\"\n", strings.Join(settings, " "), workspace.conmonrs)
		must(t, os.WriteFile(p.program, []byte(script), 0o755))
	}

	var err error

	p.client, err = client.New(p.config())
	must(t, err)

	return p
}

// idlePod is a pod that the test starts itself.
func idlePod(t *testing.T, runtime string) *pod {
	t.Helper()

	path, err := exec.LookPath(runtime)
	if err != nil {
		t.Fatalf("the OCI runtime must be installed: %v", err)
	}

	name := fmt.Sprintf("pt%dx%dz", os.Getpid(), podCount.Add(1))
	p := &pod{t: t, name: name, dir: filepath.Join(workspace.dir, name), runtime: path, program: workspace.conmonrs}

	for _, dir := range []string{"run", "root", "logs", "exits", "pins", "bundles"} {
		must(t, os.MkdirAll(filepath.Join(p.dir, dir), 0o755))
	}

	t.Cleanup(func() {
		if p.client == nil {
			return
		}

		p.stop()
		p.deleteContainers()
		p.assertNothingLeft()
	})

	return p
}

func (p *pod) config() *client.ConmonServerConfig {
	logger := logrus.New()
	logger.SetLevel(logrus.WarnLevel)

	config := client.NewConmonServerConfig(p.runtime, p.path("root"), p.path("run"))
	config.ClientLogger = logger
	config.ConmonServerPath = p.program
	// The default is debug; conmon-rs then passes a flag that Debian's crun does not know.
	config.LogLevel = client.LogLevelDebug
	config.LogDriver = client.LogDriverNone
	config.CgroupManager = client.CgroupManagerCgroupfs

	return config
}

func (p *pod) path(parts ...string) string {
	return filepath.Join(append([]string{p.dir}, parts...)...)
}

func (p *pod) stop() {
	p.t.Helper()

	if !p.stopped {
		p.stopped = true
		must(p.t, p.client.Shutdown())
	}
}

// container is what a test asks for; the zero value runs `true`.
type container struct {
	id       string
	args     []string
	terminal bool
	stdin    bool
	memory   int64
	logSize  uint64

	annotations map[string]string
}

// id makes a container id that no other test uses.
func (p *pod) id(name string) string { return p.name + "-" + name }

func (p *pod) log(id string) string     { return p.path("logs", id+".log") }
func (p *pod) exit(id string) string    { return p.path("exits", id) }
func (p *pod) oom(id string) string     { return p.path("bundles", id, "oom") }
func (p *pod) private(id string) string { return p.path("bundles", id, "exit") }

// create makes a bundle and creates a container from it, as CRI-O does.
func (p *pod) create(c container) uint32 {
	p.t.Helper()
	p.bundle(c)

	created, err := p.client.CreateContainer(context.Background(), p.request(c))
	must(p.t, err)

	if created.PID == 0 {
		p.t.Fatalf("container %s has no pid", c.id)
	}

	return created.PID
}

func (p *pod) request(c container) *client.CreateContainerConfig {
	return &client.CreateContainerConfig{
		ID:         c.id,
		BundlePath: p.path("bundles", c.id),
		Terminal:   c.terminal,
		Stdin:      c.stdin,
		// The one that is watched comes first, as CRI-O has it.
		ExitPaths:    []string{p.exit(c.id), p.private(c.id)},
		OOMExitPaths: []string{p.oom(c.id)},
		LogDrivers: []client.ContainerLogDriver{{
			Type:    client.LogDriverTypeContainerRuntimeInterface,
			Path:    p.log(c.id),
			MaxSize: c.logSize,
		}},
	}
}

// start starts a created container with the OCI runtime, as engines do.
func (p *pod) start(id string) {
	p.t.Helper()
	p.runtimeCommand("start", id)
}

func (p *pod) run(c container) uint32 {
	p.t.Helper()

	pid := p.create(c)
	p.start(c.id)

	return pid
}

func (p *pod) bundle(c container) {
	p.t.Helper()

	type object = map[string]any

	args := c.args
	if args == nil {
		args = []string{"true"}
	}

	resources := object{}
	if c.memory != 0 {
		resources["memory"] = object{"limit": c.memory}
	}

	config := object{
		"ociVersion": "1.0.2",
		"process": object{
			"terminal": c.terminal,
			"user":     object{"uid": 0, "gid": 0},
			"args":     args,
			"env":      []string{"PATH=/bin", "PODINIT_TEST_POD=" + p.name},
			"cwd":      "/",
		},
		"root":        object{"path": workspace.rootfs, "readonly": true},
		"annotations": c.annotations,
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}},
			{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
		},
		"linux": object{
			// One level, so that the runtime removes all that it made.
			"cgroupsPath": "/" + c.id,
			"resources":   resources,
			"namespaces":  []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}},
		},
	}

	content, err := json.Marshal(config)
	must(p.t, err)
	must(p.t, os.MkdirAll(p.path("bundles", c.id), 0o755))
	must(p.t, os.WriteFile(p.path("bundles", c.id, "config.json"), content, 0o644))
}

// waitExit waits for the watched exit file, and asserts what an engine relies on: the private file was
// there before, with the same text.
func (p *pod) waitExit(id string) int {
	p.t.Helper()
	p.waitFile(p.exit(id), func([]byte) bool { return true })

	watched := p.read(p.exit(id))
	if private := p.read(p.private(id)); private != watched {
		p.t.Fatalf("exit files of %s differ: %q and %q", id, private, watched)
	}

	code, err := strconv.Atoi(watched)
	must(p.t, err)

	return code
}

// runtimeCommand runs a command of the OCI runtime on the pod's containers, as engines do.
func (p *pod) runtimeCommand(args ...string) {
	p.t.Helper()

	out, err := exec.Command(p.runtime, append([]string{"--root", p.path("root")}, args...)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s %v: %v: %s", p.runtime, args, err, out)
	}
}

// deleteContainers does what the engine does with containers that have ended; the runtime then removes
// their cgroups.
func (p *pod) deleteContainers() {
	p.t.Helper()

	entries, err := os.ReadDir(p.path("root"))
	must(p.t, err)

	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), p.name) {
			p.runtimeCommand("delete", "--force", entry.Name())
		}
	}
}

func (p *pod) read(path string) string {
	p.t.Helper()

	content, err := os.ReadFile(path)
	must(p.t, err)

	return string(content)
}

// waitFile waits until the file exists and its content is as wanted. It is woken by the kernel (inotify).
func (p *pod) waitFile(path string, wanted func([]byte) bool) {
	p.t.Helper()

	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	must(p.t, err)

	changes := os.NewFile(uintptr(fd), "inotify")
	defer changes.Close()

	const mask = syscall.IN_CREATE | syscall.IN_MOVED_TO | syscall.IN_MODIFY | syscall.IN_CLOSE_WRITE

	_, err = syscall.InotifyAddWatch(fd, filepath.Dir(path), mask)
	must(p.t, err)
	must(p.t, changes.SetReadDeadline(time.Now().Add(deadline)))

	buffer := make([]byte, 4096)

	for {
		content, err := os.ReadFile(path)
		if err == nil && wanted(content) {
			return
		}

		if _, err := changes.Read(buffer); err != nil {
			p.t.Fatalf("waiting for %s, which has %q: %v", path, content, err)
		}
	}
}

// records splits a CRI log into its payloads, by stream, with the marks of partial records resolved.
func (p *pod) records(id string) map[string]string {
	p.t.Helper()

	payload := map[string]*strings.Builder{"stdout": {}, "stderr": {}}

	for line := range strings.Lines(p.read(p.log(id))) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 || (fields[2] != "P" && fields[2] != "F") || payload[fields[1]] == nil {
			p.t.Fatalf("no CRI record: %q", line)
		}

		if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			p.t.Fatalf("no time: %q: %v", line, err)
		}

		text := fields[3]
		if fields[2] == "P" {
			text = strings.TrimSuffix(text, "\n")
		}

		payload[fields[1]].WriteString(text)
	}

	return map[string]string{"stdout": payload["stdout"].String(), "stderr": payload["stderr"].String()}
}

// assertNothingLeft finds whatever the stopped pod left behind: processes, mounts, sockets, files, cgroups.
func (p *pod) assertNothingLeft() {
	p.t.Helper()

	var left []string

	left = append(left, p.processesLeft()...)

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(p.t, err)

	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, p.name) {
			left = append(left, "mount: "+strings.TrimSpace(line))
		}
	}

	for _, dir := range []string{"run", "pins"} {
		_ = filepath.WalkDir(p.path(dir), func(path string, entry os.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				left = append(left, fmt.Sprintf("file (%s): %s", entry.Type(), path))
			}

			return nil
		})
	}

	groups := cgroupsOf(p.name, string(mounts))
	temporary, err := filepath.Glob(filepath.Join(os.TempDir(), "*"+p.name+"*"))
	must(p.t, err)

	for _, path := range append(groups, temporary...) {
		left = append(left, "left: "+path)
	}

	if len(left) > 0 {
		p.t.Errorf("the pod left behind:\n  %s", strings.Join(left, "\n  "))
	}
}

// cgroupsOf finds the cgroups of a pod in every tree that is mounted; what lies beneath a hybrid's hidden
// v2 tree is no cgroup.
func cgroupsOf(name, mounts string) []string {
	var found []string

	for line := range strings.Lines(mounts) {
		if fields := strings.Fields(line); strings.Contains(line, " - cgroup") {
			groups, _ := filepath.Glob(filepath.Join(fields[4], name+"*"))
			found = append(found, groups...)
		}
	}

	return found
}

// processesLeft finds the processes whose command line or environment names the pod's directory or a
// container of it.
func (p *pod) processesLeft() []string {
	var left []string

	entries, err := os.ReadDir("/proc")
	must(p.t, err)

	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}

		command, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		environ, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "environ"))

		if bytes.Contains(command, []byte(p.name)) || bytes.Contains(environ, []byte(p.name)) {
			left = append(left, fmt.Sprintf("process %d: %q", pid, command))
		}
	}

	return left
}

func must(t *testing.T, err error) {
	t.Helper()

	if err != nil {
		t.Fatal(err)
	}
}

// assertError asserts that a call was refused with the code that a program can switch on.
func assertError(t *testing.T, err error, code string) {
	t.Helper()

	if err == nil || !strings.Contains(err.Error(), code+": ") {
		t.Fatalf("wanted an error with the code %q, got: %v", code, err)
	}
}

func isAlive(pid uint32) bool { return !errors.Is(syscall.Kill(int(pid), 0), syscall.ESRCH) }
