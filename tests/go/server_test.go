package conmonclient

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containers/conmon-rs/pkg/client"
	"go.podman.io/storage/pkg/idtools"
)

// New starts a server that can be used at once, and hands its pid to the engine once.
func TestNewStartsAServer(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")

	if _, err := os.Stat(p.path("run", "pidfile")); !os.IsNotExist(err) {
		t.Errorf("the client takes the pidfile, but: %v", err)
	}

	if !isAlive(p.client.PID()) {
		t.Errorf("no process %d", p.client.PID())
	}

	p.stop()

	if isAlive(p.client.PID()) {
		t.Errorf("process %d is there after Shutdown", p.client.PID())
	}
}

// New with the directory of a running server adopts it; containers of the first client are the second's.
func TestNewAdoptsARunningServer(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	id := p.id("c")
	p.run(container{id: id, args: []string{"sleep", "600"}})

	second, err := client.New(p.config())
	must(t, err)

	if second.PID() != p.client.PID() {
		t.Errorf("a second server: %d beside %d", second.PID(), p.client.PID())
	}

	result, err := second.ExecSyncContainer(context.Background(), &client.ExecSyncConfig{
		ID: id, Command: []string{"sh", "-c", "exit 3"},
	})
	must(t, err)

	if result.ExitCode != 3 {
		t.Errorf("exit code %d", result.ExitCode)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")

	version, err := p.client.Version(context.Background(), &client.VersionConfig{Verbose: true})
	must(t, err)

	if version.ProcessID != p.client.PID() {
		t.Errorf("version names process %d, the pidfile %d", version.ProcessID, p.client.PID())
	}

	for name, value := range map[string]string{
		"version": version.Version, "commit": version.Commit, "build date": version.BuildDate,
		"target": version.Target, "rust version": version.RustVersion, "cargo version": version.CargoVersion,
	} {
		if value == "" {
			t.Errorf("%s is empty", name)
		}
	}

	// What CRI-O asks at its start; stdout and stderr together must be one JSON object.
	said, err := client.Version(workspace.conmonrs)
	must(t, err)

	if said.Version != version.Version || said.Target == "" || said.RustVersion == "" {
		t.Errorf("--version-json says %+v, the server %+v", said, version)
	}
}

// All five kinds come back, in the order of the schema; what was not asked for is the host's.
func TestCreateNamespaces(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	wanted := map[client.Namespace]bool{client.NamespaceIPC: true, client.NamespaceNet: true, client.NamespacePID: true, client.NamespaceUTS: true}

	request := &client.CreateNamespacesConfig{
		Namespaces: []client.Namespace{client.NamespaceNet, client.NamespaceIPC, client.NamespaceUTS, client.NamespacePID},
		BasePath:   p.path("pins"),
		PodID:      p.name,
	}
	created, err := p.client.CreateNamespaces(context.Background(), request)
	must(t, err)
	assertPins(t, p, created, wanted)

	first := inodes(t, created)
	again, err := p.client.CreateNamespaces(context.Background(), request)
	must(t, err)

	for i, inode := range inodes(t, again) {
		if inode != first[i] {
			t.Errorf("the same request again made other namespaces: %v", again.Namespaces[i])
		}
	}
}

func TestCreateNamespacesWithUserNamespace(t *testing.T) {
	t.Parallel()

	for name, host := range map[string]int{"root": 0, "others": 100000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()

			p := newPod(t, "crun")
			size := 1

			if host != 0 {
				size = 65536
			}

			mapping := []idtools.IDMap{{ContainerID: 0, HostID: host, Size: size}}
			created, err := p.client.CreateNamespaces(context.Background(), &client.CreateNamespacesConfig{
				Namespaces: []client.Namespace{client.NamespaceUser, client.NamespaceNet, client.NamespaceIPC, client.NamespaceUTS},
				IDMappings: idtools.NewIDMappingsFromMaps(mapping, mapping),
				BasePath:   p.path("pins"),
				PodID:      p.name,
			})
			must(t, err)
			assertPins(t, p, created, map[client.Namespace]bool{
				client.NamespaceIPC: true, client.NamespaceNet: true, client.NamespaceUser: true, client.NamespaceUTS: true,
			})
		})
	}
}

func TestCreateNamespacesRefusesWhatCouldLeaveItsDirectory(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")

	for _, podID := range []string{"", ".", "..", "../" + p.name, "a/b", "a\x00b", string(make([]byte, 300))} {
		_, err := p.client.CreateNamespaces(context.Background(), &client.CreateNamespacesConfig{
			Namespaces: []client.Namespace{client.NamespaceNet}, BasePath: p.path("pins"), PodID: podID,
		})
		assertError(t, err, "invalid-argument")
	}
}

func assertPins(t *testing.T, p *pod, created *client.CreateNamespacesResponse, wanted map[client.Namespace]bool) {
	t.Helper()

	kinds := []string{"ipc", "pid", "net", "user", "uts"}
	order := []client.Namespace{
		client.NamespaceIPC, client.NamespacePID, client.NamespaceNet, client.NamespaceUser, client.NamespaceUTS,
	}

	if len(created.Namespaces) != len(order) {
		t.Fatalf("%d namespaces instead of %d", len(created.Namespaces), len(order))
	}

	found := inodes(t, created)

	for i, kind := range kinds {
		namespace := created.Namespaces[i]

		path := filepath.Join(p.path("pins"), kind+"ns", p.name)
		if namespace.Type != order[i] || namespace.Path != path {
			t.Errorf("%d is %v at %s instead of %v at %s", i, namespace.Type, namespace.Path, order[i], path)
		}

		isHost := found[i] == inode(t, "/proc/self/ns/"+kind)
		if isHost == wanted[order[i]] {
			t.Errorf("%s: the host's: %v, asked for: %v", kind, isHost, wanted[order[i]])
		}
	}
}

func inodes(t *testing.T, created *client.CreateNamespacesResponse) []string {
	t.Helper()

	var found []string
	for _, namespace := range created.Namespaces {
		found = append(found, inode(t, namespace.Path))
	}

	return found
}

// inode names the namespace behind a path: the number that the kernel shows in /proc/PID/ns.
func inode(t *testing.T, path string) string {
	t.Helper()

	var stat syscall.Stat_t
	must(t, syscall.Stat(path, &stat))

	return fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// Descriptors that the engine hands in come out in the container, in their order, up to as many as the
// client can send at once.
func TestRemoteFDs(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		remote, err := p.client.RemoteFDs(context.Background())
		must(t, err)

		read, write, err := os.Pipe()
		must(t, err)
		defer read.Close()

		const count = 253

		fds := make([]int, count)
		for i := range fds {
			fds[i] = int(write.Fd())
		}

		slots, err := remote.Send(fds...)
		must(t, err)

		if len(slots) != count {
			t.Fatalf("%d slots for %d descriptors", len(slots), count)
		}

		c := container{id: p.id("c"), args: []string{"sh", "-c", "echo first >&3; echo last >&4"}}
		p.bundle(c)

		request := p.request(c)
		request.AdditionalFDs = slots[:2]
		request.LeakFDs = slots[2:3]
		request.CommandArgs = []string{"--preserve-fds", "2"}
		_, err = p.client.CreateContainer(context.Background(), request)
		must(t, err)
		must(t, write.Close())
		p.start(c.id)
		p.waitExit(c.id)

		// They are used up now.
		again := p.request(container{id: p.id("again")})
		again.BundlePath, again.AdditionalFDs = request.BundlePath, slots[:1]

		_, err = p.client.CreateContainer(context.Background(), again)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("no file descriptor in slot %d", slots[0])) {
			t.Errorf("a slot that is used up: %v", err)
		}

		// The rest goes with the connection; then the pipe has no writer left.
		must(t, remote.Close())

		said, err := io.ReadAll(read)
		must(t, err)

		if string(said) != "first\nlast\n" {
			t.Errorf("the container wrote %q", said)
		}
	})
}
