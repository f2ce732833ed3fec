package conmonclient

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containers/conmon-rs/pkg/client"
	"go.podman.io/common/pkg/resize"
)

const execOutputMax = 16 << 20

func TestContainer(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		pid := p.create(container{id: id, args: []string{"sh", "-c", "echo out; echo err >&2; printf tail; exit 42"}})

		if !isAlive(pid) {
			t.Errorf("no process %d of a created container", pid)
		}

		p.start(id)

		if code := p.waitExit(id); code != 42 {
			t.Errorf("exit code %d", code)
		}

		// The exit file says that the log is complete.
		got := p.records(id)
		if got["stdout"] != "out\ntail" || got["stderr"] != "err\n" {
			t.Errorf("log: %q", got)
		}

		if _, err := os.Stat(p.oom(id)); !os.IsNotExist(err) {
			t.Errorf("an OOM file for a container that was not killed: %v", err)
		}

	})
}

func TestContainerDiesOfASignal(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, args: []string{"sleep", "600"}})
		p.runtimeCommand("kill", id, "KILL")

		if code := p.waitExit(id); code != 128+9 {
			t.Errorf("exit code %d", code)
		}
	})
}

func TestContainerWithTerminal(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, terminal: true, args: []string{
			"sh", "-c", "trap 'stty size; exit 7' WINCH; tty; while :; do sleep 0.1; done",
		}})
		p.waitFile(p.log(id), func(log []byte) bool { return bytes.Contains(log, []byte("/dev/")) })
		must(t, p.client.SetWindowSizeContainer(context.Background(), &client.SetWindowSizeContainerConfig{
			ID: id, Size: &resize.TerminalSize{Width: 132, Height: 43},
		}))

		if code := p.waitExit(id); code != 7 {
			t.Errorf("exit code %d", code)
		}

		if got := p.records(id)["stdout"]; !strings.HasSuffix(got, "43 132\r\n") {
			t.Errorf("log: %q", got)
		}

	})
}

func TestSetWindowSizeNeedsATerminal(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	id := p.id("c")
	p.run(container{id: id, args: []string{"sleep", "600"}})

	size := &resize.TerminalSize{Width: 80, Height: 24}
	err := p.client.SetWindowSizeContainer(context.Background(), &client.SetWindowSizeContainerConfig{ID: id, Size: size})
	assertError(t, err, "wrong-state")

	err = p.client.SetWindowSizeContainer(context.Background(), &client.SetWindowSizeContainerConfig{ID: p.id("no"), Size: size})
	assertError(t, err, "not-found")
}

func TestOutOfMemory(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id, other := p.id("hog"), p.id("other")
		p.run(container{id: other, args: []string{"sleep", "600"}})
		p.run(container{id: id, memory: 32 << 20, args: []string{"tail", "/dev/zero"}})

		if code := p.waitExit(id); code != 128+9 {
			t.Errorf("exit code %d", code)
		}

		// Written before the exit files, so it is there now or never.
		if _, err := os.Stat(p.oom(id)); err != nil {
			t.Errorf("no OOM file: %v", err)
		}

		p.runtimeCommand("delete", "--force", other)
		p.waitExit(other)

		if _, err := os.Stat(p.oom(other)); !os.IsNotExist(err) {
			t.Errorf("an OOM file for the neighbour: %v", err)
		}

	})
}

func TestExecSync(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, args: []string{"sleep", "600"}})

		exec := func(config client.ExecSyncConfig) *client.ExecContainerResult {
			t.Helper()

			config.ID = id
			result, err := p.client.ExecSyncContainer(context.Background(), &config)
			must(t, err)

			return result
		}

		plain := exec(client.ExecSyncConfig{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 5"}})
		if plain.ExitCode != 5 || string(plain.Stdout) != "out\n" || string(plain.Stderr) != "err\n" || plain.TimedOut {
			t.Errorf("plain: %+v", plain)
		}

		terminal := exec(client.ExecSyncConfig{Command: []string{"sh", "-c", "tty >&2; echo out"}, Terminal: true})
		if out := string(terminal.Stdout); !strings.HasPrefix(out, "/dev/") || !strings.HasSuffix(out, "\r\nout\r\n") || len(terminal.Stderr) > 0 {
			t.Errorf("terminal: %+v", terminal)
		}

		killed := exec(client.ExecSyncConfig{Command: []string{"sh", "-c", "kill -15 $$"}})
		if killed.ExitCode != 128+15 {
			t.Errorf("killed by TERM: %+v", killed)
		}

		missing := exec(client.ExecSyncConfig{Command: []string{"no-such-command"}})
		if missing.ExitCode != -2 || !bytes.Contains(missing.Stderr, []byte("no-such-command")) {
			t.Errorf("missing: %d, %q", missing.ExitCode, missing.Stderr)
		}
	})
}

func TestExecSyncTimesOut(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, args: []string{"sleep", "600"}})

		began := time.Now()
		result, err := p.client.ExecSyncContainer(context.Background(), &client.ExecSyncConfig{
			ID: id, Command: []string{"sh", "-c", "echo before; exec sleep 600"}, Timeout: 1,
		})
		must(t, err)

		if !result.TimedOut || result.ExitCode != -3 || string(result.Stdout) != "before\n" {
			t.Errorf("%+v", result)
		}

		if took := time.Since(began); took < time.Second || took > deadline {
			t.Errorf("a time-out of 1 s took %v", took)
		}

		// The command itself is gone too.
		left, err := p.client.ExecSyncContainer(context.Background(), &client.ExecSyncConfig{
			ID: id, Command: []string{"sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; true"},
		})
		must(t, err)

		if strings.Count(string(left.Stdout), "sleep 600") != 1 {
			t.Errorf("processes after the time-out: %q", left.Stdout)
		}
	})
}

// A process that stays behind with the streams must not hold the answer for ever.
func TestExecSyncDoesNotWaitForABackgroundChild(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, args: []string{"sleep", "600"}})

		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()

		result, err := p.client.ExecSyncContainer(ctx, &client.ExecSyncConfig{
			ID: id, Command: []string{"sh", "-c", "sleep 500 & echo done; exit 4"},
		})
		must(t, err)

		if result.ExitCode != 4 || result.TimedOut || string(result.Stdout) != "done\n" {
			t.Errorf("%+v", result)
		}
	})
}

func TestExecSyncLargeOutput(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, args: []string{"sleep", "600"}})

		// Below the limit every byte comes; above it the first 16 MiB do.
		for _, size := range []int{5_000_000, 20_000_000} {
			result, err := p.client.ExecSyncContainer(context.Background(), &client.ExecSyncConfig{
				ID: id, Command: []string{"sh", "-c", fmt.Sprintf("yes 0123456789abcde | head -c %d; exit 9", size)},
			})
			must(t, err)

			want := bytes.Repeat([]byte("0123456789abcde\n"), size/16+1)[:min(size, execOutputMax)]
			if result.ExitCode != 9 || !bytes.Equal(result.Stdout, want) {
				t.Errorf("%d bytes: exit code %d, %d bytes instead of %d", size, result.ExitCode, len(result.Stdout), len(want))
			}

			told := ""
			if lost := size - len(want); lost > 0 {
				told = fmt.Sprintf("lost %d of stdout, 0 of stderr\n", lost)
			}

			if stderr := string(result.Stderr); (told == "") != (stderr == "") || !strings.HasSuffix(stderr, told) {
				t.Errorf("%d bytes: standard error says %q", size, stderr)
			}
		}
	})
}

func TestReopenLog(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, stdin: true, args: []string{"cat"}})

		stdin, output := p.attach(id)
		say := func(word string) {
			t.Helper()

			_, err := fmt.Fprintln(stdin, word)
			must(t, err)
			output.waitFor(word)
		}
		reopen := func() {
			t.Helper()
			must(t, p.client.ReopenLogContainer(context.Background(), &client.ReopenLogContainerConfig{ID: id}))
		}
		has := func(path string, words ...string) {
			t.Helper()
			p.waitFile(path, func(log []byte) bool { return bytes.Contains(log, []byte(words[len(words)-1])) })

			for _, word := range words {
				if got := p.read(path); strings.Count(got, word) != 1 {
					t.Errorf("%s once in %s: %q", word, path, got)
				}
			}
		}

		say("first")
		has(p.log(id), "first")

		// Not renamed: nothing is lost.
		reopen()
		say("second")
		has(p.log(id), "first", "second")

		// Renamed: what follows goes to the new file. An exec that runs meanwhile changes nothing.
		must(t, os.Rename(p.log(id), p.log(id)+".1"))
		reopen()
		say("third")
		has(p.log(id), "third")
		has(p.log(id)+".1", "first", "second")

		must(t, stdin.Close())
	})
}

// The engine's way to end a pod: containers are killed, their exits recorded, nothing is left.
func TestShutdownEndsContainers(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		var pids []uint32

		for _, name := range []string{"a", "b", "created"} {
			c := container{id: p.id(name), args: []string{"sleep", "600"}}
			pids = append(pids, p.create(c))
			if name != "created" {
				p.start(c.id)
			}
		}

		p.stop()

		for _, pid := range pids {
			if isAlive(pid) {
				t.Errorf("process %d is alive", pid)
			}
		}

		for _, name := range []string{"a", "b"} {
			if code := p.waitExit(p.id(name)); code != 128+9 {
				t.Errorf("%s: exit code %d", name, code)
			}
		}

	})
}

func TestUnknownContainer(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	ctx := context.Background()

	_, err := p.client.ExecSyncContainer(ctx, &client.ExecSyncConfig{ID: p.id("no"), Command: []string{"true"}})
	assertError(t, err, "not-found")
	assertError(t, p.client.ReopenLogContainer(ctx, &client.ReopenLogContainerConfig{ID: p.id("no")}), "not-found")
	assertError(t, p.client.AttachContainer(ctx, &client.AttachConfig{ID: p.id("no"), SocketPath: p.path("run", "attach")}), "not-found")
}

// A create that fails tells why and leaves nothing: the same id can be used at once.
func TestCreateFails(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		for _, terminal := range []bool{false, true} {
			c := container{id: p.id(fmt.Sprintf("c%v", terminal)), terminal: terminal, args: []string{"no-such-command"}}
			p.bundle(c)
			_, err := p.client.CreateContainer(context.Background(), p.request(c))
			assertError(t, err, "runtime-failed")

			if !strings.Contains(err.Error(), "no-such-command") {
				t.Errorf("the runtime's own words are missing: %v", err)
			}

			c.args = []string{"true"}
			p.run(c)

			if code := p.waitExit(c.id); code != 0 {
				t.Errorf("exit code %d", code)
			}

		}
	})
}
