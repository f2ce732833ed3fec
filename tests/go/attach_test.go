package conmonclient

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containers/conmon-rs/pkg/client"
)

// collector keeps what an attach session received, and wakes whoever waits for it.
type collector struct {
	t       *testing.T
	mutex   sync.Mutex
	content bytes.Buffer
	changed chan struct{}
	closed  chan struct{}
	once    sync.Once
}

func newCollector(t *testing.T) *collector {
	return &collector{t: t, changed: make(chan struct{}, 1), closed: make(chan struct{})}
}

func (c *collector) Write(data []byte) (int, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()

	select {
	case c.changed <- struct{}{}:
	default:
	}

	return c.content.Write(data)
}

func (c *collector) Close() error {
	c.once.Do(func() { close(c.closed) })

	return nil
}

func (c *collector) String() string {
	c.mutex.Lock()
	defer c.mutex.Unlock()

	return c.content.String()
}

func (c *collector) waitFor(text string) {
	c.t.Helper()

	timeout := time.After(deadline)

	for !strings.Contains(c.String(), text) {
		select {
		case <-c.changed:
		case <-c.closed:
			if !strings.Contains(c.String(), text) {
				c.t.Fatalf("attach ended before %q came: %q", text, c.String())
			}
		case <-timeout:
			c.t.Fatalf("waiting for %q, there is %d bytes: %.200q", text, len(c.String()), c.String())
		}
	}
}

func (c *collector) waitEnd() {
	c.t.Helper()

	select {
	case <-c.closed:
	case <-time.After(deadline):
		c.t.Fatalf("attach did not end; there is %.200q", c.String())
	}
}

// attach attaches to a container that has a stdin, and returns when the session is established.
//
// StopAfterStdinEOF is set because of the client: without it, it stops reading after the first packet.
func (p *pod) attach(id string) (io.WriteCloser, *collector) {
	p.t.Helper()

	return p.attachUntil(id, true)
}

func (p *pod) attachUntil(id string, stopAfterStdinEOF bool) (io.WriteCloser, *collector) {
	p.t.Helper()

	reader, writer := io.Pipe()
	output := newCollector(p.t)
	attached := make(chan struct{})
	failed := make(chan error, 1)

	go func() {
		failed <- p.client.AttachContainer(context.Background(), &client.AttachConfig{
			ID: id, SocketPath: p.path("run", id+".attach"), StopAfterStdinEOF: stopAfterStdinEOF, ContainerStdin: true,
			Streams: client.AttachStreams{
				Stdin: &client.In{ReadCloser: reader}, Stdout: &client.Out{WriteCloser: output}, Stderr: &client.Out{WriteCloser: output},
			},
			PostAttachFunc: func() error {
				close(attached)

				return nil
			},
		})
	}()

	select {
	case <-attached:
	case err := <-failed:
		p.t.Fatalf("attach: %v", err)
	}

	return writer, output
}

// watch attaches for output only.
func (p *pod) watch(id, socket string) (stdout, stderr *collector) {
	p.t.Helper()

	stdout, stderr = newCollector(p.t), newCollector(p.t)
	attached := make(chan struct{})
	failed := make(chan error, 1)

	go func() {
		failed <- p.client.AttachContainer(context.Background(), &client.AttachConfig{
			ID: id, SocketPath: p.path("run", socket),
			Streams: client.AttachStreams{Stdout: &client.Out{WriteCloser: stdout}, Stderr: &client.Out{WriteCloser: stderr}},
			PostAttachFunc: func() error {
				close(attached)

				return nil
			},
		})
	}()

	select {
	case <-attached:
	case err := <-failed:
		p.t.Fatalf("attach: %v", err)
	}

	return stdout, stderr
}

func TestAttach(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		for _, terminal := range []bool{false, true} {
			id := p.id(fmt.Sprintf("c%v", terminal))
			p.run(container{id: id, stdin: true, terminal: terminal, args: []string{
				"sh", "-c", "while read -r line; do echo \"got $line\"; [ \"$line\" = end ] && exit 6; done",
			}})

			stdin, output := p.attach(id)

			for _, line := range []string{"one", "two", "end"} {
				_, err := fmt.Fprintln(stdin, line)
				must(t, err)
				output.waitFor("got " + line)
			}

			output.waitEnd()

			if code := p.waitExit(id); code != 6 {
				t.Errorf("exit code %d", code)
			}

		}
	})
}

// Without StopAfterStdinEOF the end of a client's input is not the container's, whether the client stays or goes.
func TestAttachedInputWithoutStopKeepsStdinOpen(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, stdin: true, args: []string{
			"sh", "-c", "while read -r line; do echo \"got $line\"; [ \"$line\" = end ] && exit 6; done; exit 7",
		}})

		// The client removes the socket when it has done with its input; that must not be the next one's.
		finish := func(stdin io.Closer) {
			must(t, stdin.Close())

			for end := time.Now().Add(deadline); ; time.Sleep(10 * time.Millisecond) {
				if _, err := os.Stat(p.path("run", id+".attach")); os.IsNotExist(err) {
					return
				}

				if time.Now().After(end) {
					t.Fatal("the client has not seen the end of its input")
				}
			}
		}

		for _, line := range []string{"one", "two"} {
			stdin, output := p.attachUntil(id, false)
			_, err := fmt.Fprintln(stdin, line)
			must(t, err)
			output.waitFor("got " + line)
			finish(stdin)
			output.waitEnd()
		}

		// This one stays, for the output.
		stdin, waiting := p.attachUntil(id, false)
		finish(stdin)

		stdin, output := p.attach(id)
		_, err := fmt.Fprintln(stdin, "end")
		must(t, err)
		output.waitFor("got end")
		waiting.waitFor("got end")

		if code := p.waitExit(id); code != 6 {
			t.Errorf("exit code %d", code)
		}
	})
}

// A container that has closed its output may go on reading: it gets all that its client sends, and the end.
func TestAttachedInputOutlivesOutput(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")

		input, err := io.ReadAll(&pattern{left: 3 << 20})
		must(t, err)

		p.create(container{id: id, stdin: true, args: []string{
			"sh", "-c", "exec >/tmp/f 2>/dev/null; cat; exec >&-; [ \"$(md5sum </tmp/f)\" = \"" + md5Text(input) + "  -\" ]",
		}})

		stdin, output := p.attach(id)
		p.start(id)

		_, err = stdin.Write(input)
		must(t, err)
		must(t, stdin.Close())
		output.waitEnd()

		if code := p.waitExit(id); code != 0 {
			t.Errorf("exit code %d: not all of the input has arrived", code)
		}
	})
}

// Two clients of one container both get everything, stderr too after stdout's end.
func TestAttachedClientsGetEveryByte(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.create(container{id: id, args: []string{
			"sh", "-c", "seq 1 50000; exec >&-; echo last words >&2",
		}})

		var want strings.Builder
		for i := 1; i <= 50000; i++ {
			fmt.Fprintln(&want, i)
		}

		firstOut, firstErr := p.watch(id, "attach")
		secondOut, secondErr := p.watch(id, "attach")
		p.start(id)

		for name, streams := range map[string][2]*collector{"first": {firstOut, firstErr}, "second": {secondOut, secondErr}} {
			streams[0].waitEnd()
			streams[1].waitEnd()

			if got := streams[0].String(); got != want.String() {
				t.Errorf("%s client: %d bytes instead of %d, ending in %.60q", name, len(got), want.Len(), got[max(0, len(got)-60):])
			}

			if got := streams[1].String(); got != "last words\n" {
				t.Errorf("%s client: stderr %q", name, got)
			}
		}

		if code := p.waitExit(id); code != 0 {
			t.Errorf("exit code %d", code)
		}

	})
}

// Binary input of more than one packet arrives as it was sent.
func TestAttachStdinIsBinary(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, stdin: true, args: []string{"sh", "-c", "head -c 300000 | md5sum"}})

		input := make([]byte, 300_000)
		for i := range input {
			input[i] = byte(i * i >> 3)
		}

		stdin, output := p.attach(id)
		_, err := io.Copy(stdin, bytes.NewReader(input))
		must(t, err)
		output.waitFor(md5Text(input))
		p.waitExit(id)
	})
}

func md5Text(data []byte) string { return fmt.Sprintf("%x", md5.Sum(data)) }
