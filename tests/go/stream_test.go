package conmonclient

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containers/conmon-rs/pkg/client"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
)

// transports are the two ways in which Kubernetes' clients speak.
var transports = []string{"websocket", "spdy"}

// executor is what kubectl uses, pointed at a URL of ours.
func executor(t *testing.T, transport, address string) remotecommand.Executor {
	t.Helper()

	target, err := url.Parse(address)
	must(t, err)

	return executorOf(t, &rest.Config{Host: target.Host}, transport, address)
}

func executorOf(t *testing.T, config *rest.Config, transport, address string) remotecommand.Executor {
	t.Helper()

	target, err := url.Parse(address)
	must(t, err)

	var made remotecommand.Executor
	if transport == "websocket" {
		made, err = remotecommand.NewWebSocketExecutor(config, http.MethodGet, address)
	} else {
		made, err = remotecommand.NewSPDYExecutor(config, http.MethodPost, target)
	}

	must(t, err)

	return made
}

// streamExec executes a command in a container over a transport.
func (p *pod) streamExec(ctx context.Context, transport, id string, options remotecommand.StreamOptions, command ...string) error {
	p.t.Helper()

	return executor(p.t, transport, p.execURL(id, options, command...)).StreamWithContext(ctx, options)
}

func (p *pod) execURL(id string, options remotecommand.StreamOptions, command ...string) string {
	p.t.Helper()

	served, err := p.client.ServeExecContainer(context.Background(), &client.ServeExecContainerConfig{
		ID: id, Command: command, Tty: options.Tty,
		Stdin: options.Stdin != nil, Stdout: options.Stdout != nil, Stderr: options.Stderr != nil,
	})
	must(p.t, err)

	return served.URL
}

// sleeper runs a container that does nothing, for execs.
func (p *pod) sleeper(name string) string {
	p.t.Helper()

	id := p.id(name)
	p.run(container{id: id, args: []string{"sleep", "100000"}})

	return id
}

func withDeadline(t *testing.T) context.Context {
	t.Helper()

	ctx, cancel := context.WithTimeout(context.Background(), 3*deadline)
	t.Cleanup(cancel)

	return ctx
}

func exitCode(t *testing.T, err error) int {
	t.Helper()

	var exit utilexec.CodeExitError

	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	default:
		t.Fatalf("no exit code: %v", err)

		return -1
	}
}

func TestStreamingExec(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.sleeper("c")
		ctx := withDeadline(t)

		for _, transport := range transports {
			var stdout, stderr bytes.Buffer

			// echo | kubectl exec -i -- cat
			options := remotecommand.StreamOptions{Stdin: strings.NewReader("hello\n"), Stdout: &stdout, Stderr: &stderr}
			if code := exitCode(t, p.streamExec(ctx, transport, id, options, "cat")); code != 0 || stdout.String() != "hello\n" {
				t.Errorf("%s: code %d, stdout %q, stderr %q", transport, code, stdout.String(), stderr.String())
			}

			stdout.Reset()

			options = remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}
			code := exitCode(t, p.streamExec(ctx, transport, id, options, "sh", "-c", "echo out; echo err >&2; exit 42"))

			if code != 42 || stdout.String() != "out\n" || stderr.String() != "err\n" {
				t.Errorf("%s: code %d, stdout %q, stderr %q", transport, code, stdout.String(), stderr.String())
			}

			// Killed by a signal.
			if code := exitCode(t, p.streamExec(ctx, transport, id, options, "sh", "-c", "kill -9 $$")); code != 137 {
				t.Errorf("%s: code %d", transport, code)
			}

			err := p.streamExec(ctx, transport, id, options, "/there/is/no/such/program")
			if err == nil || !strings.Contains(err.Error(), "no such program") && !strings.Contains(err.Error(), "not started") {
				t.Errorf("%s: a program that is not there: %v", transport, err)
			}
		}
	})
}

// A process that outlives the command and keeps its streams does not keep the session.
func TestStreamingExecDoesNotWaitForTheBackground(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	id := p.sleeper("c")

	for _, transport := range transports {
		var stdout bytes.Buffer

		options := remotecommand.StreamOptions{Stdout: &stdout}
		code := exitCode(t, p.streamExec(withDeadline(t), transport, id, options, "sh", "-c", "sleep 100000 & echo done"))

		if code != 0 || stdout.String() != "done\n" {
			t.Errorf("%s: code %d, stdout %q", transport, code, stdout.String())
		}
	}
}

// A command that has closed its output may go on reading: it gets all of its input, and its end.
func TestStreamingExecInputOutlivesOutput(t *testing.T) {
	t.Parallel()

	const size = 10 << 20

	p := newPod(t, "crun")
	id := p.sleeper("c")

	for _, transport := range transports {
		sent := md5.New()
		options := remotecommand.StreamOptions{
			Stdin: io.TeeReader(&pattern{left: size}, sent), Stdout: io.Discard, Stderr: io.Discard,
		}
		code := exitCode(t, p.streamExec(withDeadline(t), transport, id, options, "sh", "-c", "exec cat >/tmp/f 2>/dev/null"))

		var stored bytes.Buffer

		must(t, p.streamExec(withDeadline(t), transport, id, remotecommand.StreamOptions{Stdout: &stored}, "md5sum", "/tmp/f"))

		if code != 0 || !strings.HasPrefix(stored.String(), fmt.Sprintf("%x ", sent.Sum(nil))) {
			t.Errorf("%s: code %d, and not all of the input has arrived", transport, code)
		}
	}
}

// hundredMegabytes is the size of what is sent in each direction.
const hundredMegabytes = 100 << 20

// pattern makes bytes of every value that do not repeat soon.
type pattern struct {
	left int
	next uint64
}

func (p *pattern) Read(buffer []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}

	count := min(len(buffer), p.left)
	for i := range buffer[:count] {
		p.next = p.next*6364136223846793005 + 1442695040888963407
		buffer[i] = byte(p.next >> 56)
	}

	p.left -= count

	return count, nil
}

type counter struct {
	hash.Hash
	bytes int
}

func (c *counter) Write(data []byte) (int, error) {
	c.bytes += len(data)

	return c.Hash.Write(data)
}

func TestStreamingExecIsByteForByte(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	id := p.sleeper("c")

	for _, transport := range transports {
		// Both directions at once.
		sent, received := md5.New(), &counter{Hash: md5.New()}
		input := io.TeeReader(&pattern{left: hundredMegabytes}, sent)
		options := remotecommand.StreamOptions{Stdin: input, Stdout: received}

		if code := exitCode(t, p.streamExec(withDeadline(t), transport, id, options, "cat")); code != 0 {
			t.Errorf("%s: code %d", transport, code)
		}

		if received.bytes != hundredMegabytes || !bytes.Equal(received.Sum(nil), sent.Sum(nil)) {
			t.Errorf("%s: %d bytes came back, and not the same", transport, received.bytes)
		}
	}
}

// sizes is a terminal that has the sizes that a test sends.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}

	return &size
}

// Resizes arrive whether there is a stdin or not.
func TestStreamingTerminal(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.sleeper("c")

		for _, transport := range transports {
			for _, hasStdin := range []bool{false, true} {
				output, queue := newCollector(t), make(sizes, 1)
				options := remotecommand.StreamOptions{Stdout: output, Tty: true, TerminalSizeQueue: queue}

				if hasStdin {
					reader, writer := io.Pipe()
					options.Stdin = reader

					defer writer.Close()
				}

				ended := make(chan error, 1)

				go func() {
					err := p.streamExec(withDeadline(t), transport, id, options,
						"sh", "-c", "trap 'stty size; exit 5' WINCH; tty; echo ready; while :; do sleep 0.05; done")
					// What went wrong is seen where the output is waited for.
					fmt.Fprintf(output, "ended: %v", err)
					output.Close()

					ended <- err
				}()

				output.waitFor("ready")
				queue <- remotecommand.TerminalSize{Width: 121, Height: 33}
				output.waitFor("33 121")

				if code := exitCode(t, <-ended); code != 5 {
					t.Errorf("%s: code %d", transport, code)
				}

				close(queue)

				if !strings.Contains(output.String(), "/dev/pts/") {
					t.Errorf("%s: no terminal: %q", transport, output.String())
				}
			}
		}
	})
}

// commands lists the processes whose command line contains a text.
func commands(text string) []string {
	var found []string

	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		if content, err := os.ReadFile(path); err == nil && bytes.Contains(content, []byte(text)) {
			found = append(found, fmt.Sprintf("%s: %q", path, content))
		}
	}

	return found
}

// severable gives another address to a URL, and a function that ends the connection as a client's death would.
func severable(t *testing.T, address string) (string, func()) {
	t.Helper()

	target, err := url.Parse(address)
	must(t, err)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)

	server, err := net.Dial("tcp", target.Host)
	must(t, err)

	target.Host = listener.Addr().String()
	accepted := make(chan net.Conn, 1)

	go func() {
		conn, err := listener.Accept()
		if err != nil {
			close(accepted)

			return
		}

		accepted <- conn

		go func() { _, _ = io.Copy(server, conn) }()

		_, _ = io.Copy(conn, server)
	}()

	return target.String(), func() {
		listener.Close()
		server.Close()

		if conn := <-accepted; conn != nil {
			conn.Close()
		}
	}
}

// A client that goes takes its command with it, and all that the command has started.
func TestStreamingClientIsGone(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.sleeper("c")

		for n, transport := range transports {
			// Nothing else on this machine sleeps for as long.
			mark := fmt.Sprintf("%d%d", 1_000_000+os.Getpid(), 10*n+int(podCount.Add(1)))
			output := newCollector(t)
			ended := make(chan error, 1)
			// It does not read its input, of which there is more than all buffers take.
			options := remotecommand.StreamOptions{Stdin: &pattern{left: hundredMegabytes}, Stdout: output}

			address, leave := severable(t, p.execURL(id, options,
				"sh", "-c", fmt.Sprintf("sleep %s & sleep %s & echo ready; sleep %s", mark, mark, mark)))

			go func() { ended <- executor(t, transport, address).StreamWithContext(withDeadline(t), options) }()

			output.waitFor("ready")

			if len(commands(mark)) < 3 {
				t.Fatalf("the command does not run: %q", commands(mark))
			}

			leave()
			<-ended

			for end := time.Now().Add(deadline); len(commands(mark)) > 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s: left behind: %q", transport, commands(mark))
				}
			}
		}
	})
}

// gate is a reader of output who stops after the first bytes, until it is opened.
type gate struct{ reached, open chan struct{} }

func (g *gate) Write(data []byte) (int, error) {
	select {
	case <-g.reached:
	default:
		close(g.reached)
	}

	<-g.open

	return len(data), nil
}

// Who does not read output holds up that command and nobody else, and can still interrupt it.
func TestStreamingClientThatDoesNotRead(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	id := p.sleeper("c")

	for _, transport := range transports {
		mark := fmt.Sprintf("%s-%s", p.name, transport)
		output := &gate{reached: make(chan struct{}), open: make(chan struct{})}
		reader, writer := io.Pipe()
		ended := make(chan error, 1)

		go func() {
			options := remotecommand.StreamOptions{Stdin: reader, Stdout: output, Tty: true}
			ended <- p.streamExec(withDeadline(t), transport, id, options, "yes", mark)
		}()

		<-output.reached

		var other bytes.Buffer

		err := p.streamExec(withDeadline(t), transport, id, remotecommand.StreamOptions{Stdout: &other}, "echo", "other")
		if err != nil || other.String() != "other\n" {
			t.Errorf("%s: another exec: %v, %q", transport, err, other.String())
		}

		// Ctrl-C.
		_, err = writer.Write([]byte{3})
		must(t, err)

		for end := time.Now().Add(deadline); len(commands("yes\x00"+mark)) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not interrupted: %q", transport, commands(mark))
			}
		}

		close(output.open)

		if code := exitCode(t, <-ended); code != 130 {
			t.Errorf("%s: code %d", transport, code)
		}
	}
}

// Sessions leave no descriptor behind, whether they end in order or not.
func TestStreamingLeavesNothingOpen(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	id := p.sleeper("c")
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.client.PID(), p.client.PID()))
	must(t, err)

	monitor, _, _ := strings.Cut(string(children), " ")
	open := func() []string {
		found, err := filepath.Glob("/proc/" + monitor + "/fd/*")
		must(t, err)

		return found
	}

	var before int

	for n := range 11 {
		for _, transport := range transports {
			options := remotecommand.StreamOptions{Stdin: strings.NewReader("x"), Stdout: io.Discard}
			must(t, p.streamExec(withDeadline(t), transport, id, options, "cat"))

			address, leave := severable(t, p.execURL(id, options, "cat"))
			ended := make(chan error, 1)

			go func() {
				options.Stdin, _ = io.Pipe()
				ended <- executor(t, transport, address).StreamWithContext(withDeadline(t), options)
			}()

			leave()
			<-ended
		}

		if n == 0 {
			// The listener is there now. What is still open of the first round makes this too many, not too few.
			before = len(open())
		}
	}

	for end := time.Now().Add(deadline); len(open()) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors are open, not %d", len(open()), before)
		}
	}
}

// streamAttach attaches over a transport, in the background.
func (p *pod) streamAttach(transport, id string, options remotecommand.StreamOptions) <-chan error {
	p.t.Helper()

	served, err := p.client.ServeAttachContainer(context.Background(), &client.ServeAttachContainerConfig{
		ID: id, Stdin: options.Stdin != nil, Stdout: options.Stdout != nil, Stderr: options.Stderr != nil,
	})
	must(p.t, err)

	session := executor(p.t, transport, served.URL)
	ended := make(chan error, 1)

	go func() { ended <- session.StreamWithContext(withDeadline(p.t), options) }()

	return ended
}

// Two clients each get everything, whatever they speak; input reaches the container.
func TestStreamingAttach(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, stdin: true, args: []string{
			"sh", "-c", "while read -r line; do echo \"out $line\"; echo \"err $line\" >&2; done; echo eof",
		}})

		reader, writer := io.Pipe()
		outA, errA, outB, errB := newCollector(t), newCollector(t), newCollector(t), newCollector(t)
		endedA := p.streamAttach("spdy", id, remotecommand.StreamOptions{Stdin: reader, Stdout: outA, Stderr: errA})
		endedB := p.streamAttach("websocket", id, remotecommand.StreamOptions{Stdout: outB, Stderr: errB})

		// Output comes from when a client is attached; what nobody saw yet is no loss.
		for end := time.Now().Add(deadline); !strings.Contains(outB.String(), "out hello"); {
			if time.Now().After(end) {
				t.Fatal("the second client is not attached")
			}

			_, err := fmt.Fprintln(writer, "hello")
			must(t, err)
			time.Sleep(10 * time.Millisecond)
		}

		var want strings.Builder
		for i := range 20000 {
			fmt.Fprintf(&want, "out %d\n", i)
		}

		_, err := fmt.Fprintln(writer, "begin")
		must(t, err)

		for i := range 20000 {
			_, err := fmt.Fprintln(writer, i)
			must(t, err)
		}

		// The end of the client's input is the end of the container's.
		writer.Close()

		for name, ended := range map[string]<-chan error{"first": endedA, "second": endedB} {
			if err := <-ended; err != nil {
				t.Errorf("%s client: %v", name, err)
			}
		}

		for name, output := range map[string][2]*collector{"first": {outA, errA}, "second": {outB, errB}} {
			_, got, _ := strings.Cut(output[0].String(), "out begin\n")
			if got != want.String()+"eof\n" {
				t.Errorf("%s client: %d bytes of stdout instead of %d", name, len(got), want.Len()+4)
			}

			_, got, _ = strings.Cut(output[1].String(), "err begin\n")
			if got != strings.ReplaceAll(want.String(), "out", "err") {
				t.Errorf("%s client: %d bytes of stderr instead of %d", name, len(got), want.Len())
			}
		}

		p.waitExit(id)
	})
}

// A container without stdinOnce never gets an end of its input; one of which the engine says nothing does.
func TestStreamingAttachKeepsStdinOpen(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")

	for _, transport := range transports {
		for stdinOnce, wanted := range map[string]int{"false": 6, "true": 7, "": 7} {
			id := p.id(transport + stdinOnce)
			annotations := map[string]string{}

			if stdinOnce != "" {
				annotations["io.kubernetes.cri-o.StdinOnce"] = stdinOnce
			}

			p.run(container{id: id, stdin: true, annotations: annotations, args: []string{
				"sh", "-c", "while read -r line; do echo \"got $line\"; [ \"$line\" = end ] && exit 6; done; exit 7",
			}})

			attach := func(input string) (<-chan error, *collector) {
				output := newCollector(t)

				return p.streamAttach(transport, id, remotecommand.StreamOptions{Stdin: strings.NewReader(input), Stdout: output}), output
			}

			first, output := attach("one\n")
			output.waitFor("got one")

			if stdinOnce == "false" {
				second, output := attach("two\nend\n")
				output.waitFor("got two\ngot end\n")
				must(t, <-second)
			}

			must(t, <-first)

			if code := p.waitExit(id); code != wanted {
				t.Errorf("%s: stdinOnce is %q, exit code %d", transport, stdinOnce, code)
			}
		}
	}
}

// A URL is good for one session, and for nothing else.
func TestStreamingURLs(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	id := p.sleeper("c")
	ctx := withDeadline(t)
	served, err := p.client.ServeExecContainer(ctx, &client.ServeExecContainerConfig{ID: id, Command: []string{"true"}, Stdout: true})
	must(t, err)

	status := func(address string) int {
		response, err := http.Get(address)
		must(t, err)
		response.Body.Close()

		return response.StatusCode
	}

	// Neither of these uses up the URL.
	if code := status(served.URL); code != http.StatusBadRequest {
		t.Errorf("no upgrade: %d", code)
	}

	wrong := strings.Replace(served.URL, "/exec/", "/attach/", 1)
	if err := executor(t, "spdy", wrong).StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		t.Error("attached with the token of an exec")
	}

	for n, wanted := range []bool{true, false} {
		err := executor(t, "spdy", served.URL).StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard})
		if (err == nil) != wanted {
			t.Errorf("use %d: %v", n, err)
		}
	}

	for _, id := range []string{p.id("nobody"), "../c"} {
		if _, err := p.client.ServeExecContainer(ctx, &client.ServeExecContainerConfig{ID: id, Command: []string{"true"}}); err == nil {
			t.Errorf("served an exec in %q", id)
		}
	}

	for _, path := range []string{"/", "/proc/self/ns/pid", p.path("nothing")} {
		_, err := p.client.ServePortForwardContainer(ctx, &client.ServePortForwardContainerConfig{NetNsPath: path})
		if err == nil {
			t.Errorf("served a port-forward to %q", path)
		}
	}
}
