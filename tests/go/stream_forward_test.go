package conmonclient

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containers/conmon-rs/pkg/client"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// network is a network namespace with servers in it, as a pod has one.
type network struct {
	t    *testing.T
	path string
	work chan func()
}

// podAddress is an address of a pod: RFC 5737, for documentation.
const podAddress = "192.0.2.7"

// newNetwork makes a network namespace that lives until the test ends.
func newNetwork(t *testing.T) *network {
	t.Helper()

	n := &network{t: t, work: make(chan func())}
	path := make(chan string)

	go func() {
		// A thread that is never given back: it ends with its namespace.
		runtime.LockOSThread()

		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			path <- ""

			return
		}

		path <- fmt.Sprintf("/proc/%d/task/%d/ns/net", syscall.Getpid(), syscall.Gettid())

		for work := range n.work {
			work()
		}
	}()

	n.path = <-path
	if n.path == "" {
		t.Fatal("no network namespace; tests need root")
	}

	t.Cleanup(func() { close(n.work) })
	n.inside(func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() })
	n.inside(func() error { return exec.Command("ip", "address", "add", podAddress+"/32", "dev", "lo").Run() })

	return n
}

// inside does something in the namespace.
func (n *network) inside(work func() error) {
	n.t.Helper()

	done := make(chan error)
	n.work <- func() { done <- work() }
	must(n.t, <-done)
}

// listen starts a server in the namespace: it reads all, then answers with a hash and all it has read.
func (n *network) listen(address string) string {
	n.t.Helper()

	var listener net.Listener

	n.inside(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(address, "0"))

		return err
	})
	n.t.Cleanup(func() { listener.Close() })

	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}

			go func() {
				defer conn.Close()

				content, err := io.ReadAll(conn)
				if err == nil {
					fmt.Fprintf(conn, "%x\n", md5.Sum(content))
					_, _ = conn.Write(content)
				}
			}()
		}
	}()

	_, port, err := net.SplitHostPort(listener.Addr().String())
	must(n.t, err)

	return port
}

func (p *pod) dialer(transport, path string) httpstream.Dialer {
	p.t.Helper()

	served, err := p.client.ServePortForwardContainer(context.Background(), &client.ServePortForwardContainerConfig{NetNsPath: path})
	must(p.t, err)

	target, err := url.Parse(served.URL)
	must(p.t, err)

	config := &rest.Config{Host: target.Host}

	if transport == "websocket" {
		dialer, err := portforward.NewSPDYOverWebsocketDialer(target, config)
		must(p.t, err)

		return dialer
	}

	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	must(p.t, err)

	return spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, target)
}

// forward forwards local ports to a network namespace until the test ends.
func (p *pod) forward(transport, path string, ports ...string) []string {
	p.t.Helper()

	var wanted []string
	for _, port := range ports {
		wanted = append(wanted, ":"+port)
	}

	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewOnAddresses(
		p.dialer(transport, path), []string{"127.0.0.1"}, wanted, stop, ready, io.Discard, io.Discard)
	must(p.t, err)

	go func() { ended <- forwarder.ForwardPorts() }()

	select {
	case <-ready:
	case err := <-ended:
		p.t.Fatalf("%s: %v", transport, err)
	}

	p.t.Cleanup(func() {
		close(stop)
		<-ended
	})

	var local []string

	forwarded, err := forwarder.GetPorts()
	must(p.t, err)

	for _, port := range forwarded {
		local = append(local, strconv.Itoa(int(port.Local)))
	}

	return local
}

// converse sends a request through a forwarded port, ends it, and reads the answer.
func converse(port string, request []byte) error {
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	defer conn.Close()

	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		return err
	}

	if _, err := conn.Write(request); err != nil {
		return err
	}

	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}

	answer, err := io.ReadAll(conn)
	if err != nil {
		return err
	}

	if hash, content, _ := bytes.Cut(answer, []byte("\n")); string(hash) != md5Text(request) || !bytes.Equal(content, request) {
		return fmt.Errorf("%d bytes were answered with %d others", len(request), len(content))
	}

	return nil
}

// A server is found wherever it listens, and each half of a connection ends on its own.
func TestPortForward(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	n := newNetwork(t)
	servers := []string{n.listen("127.0.0.1"), n.listen("::1"), n.listen(podAddress), n.listen("")}

	request, err := io.ReadAll(&pattern{left: 3 << 20})
	must(t, err)

	for _, transport := range transports {
		local := p.forward(transport, n.path, servers...)
		failed := make(chan error)
		count := 0

		// All at once, and each port more than once.
		for range 3 {
			for at, port := range local {
				count++

				go func() {
					if err := converse(port, request); err != nil {
						failed <- fmt.Errorf("%s, server %d: %w", transport, at, err)
					} else {
						failed <- nil
					}
				}()
			}
		}

		for range count {
			if err := <-failed; err != nil {
				t.Error(err)
			}
		}
	}
}

// A port without a server: the client hears why.
func TestPortForwardIsRefused(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	n := newNetwork(t)

	for _, transport := range transports {
		conn, _, err := p.dialer(transport, n.path).Dial(portforward.PortForwardProtocolV1Name)
		must(t, err)

		headers := http.Header{}
		headers.Set("streamType", "error")
		headers.Set("port", "9")
		headers.Set("requestID", "0")

		errorStream, err := conn.CreateStream(headers)
		must(t, err)
		headers.Set("streamType", "data")

		dataStream, err := conn.CreateStream(headers)
		must(t, err)

		data, err := io.ReadAll(dataStream)
		must(t, err)

		reason, err := io.ReadAll(errorStream)
		must(t, err)

		if len(data) > 0 || !strings.Contains(string(reason), "port 9") || !strings.Contains(string(reason), "refused") {
			t.Errorf("%s: data %q, reason %q", transport, data, reason)
		}

		conn.Close()
	}
}

// A pair of streams has one of each kind: another one is refused, and the pair goes on.
func TestPortForwardRefusesASecondStreamOfAKind(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun")
	n := newNetwork(t)
	port := n.listen("127.0.0.1")

	for _, transport := range transports {
		conn, _, err := p.dialer(transport, n.path).Dial(portforward.PortForwardProtocolV1Name)
		must(t, err)

		open := func(kind, request string) (httpstream.Stream, error) {
			headers := http.Header{}
			headers.Set("streamType", kind)
			headers.Set("port", port)
			headers.Set("requestID", request)

			return conn.CreateStream(headers)
		}

		for request, kinds := range map[string][2]string{"1": {"data", "error"}, "2": {"error", "data"}} {
			streams := map[string]httpstream.Stream{}
			streams[kinds[0]], err = open(kinds[0], request)
			must(t, err)

			for range 3 {
				if _, err := open(kinds[0], request); err == nil {
					t.Errorf("%s: a second %s stream was accepted", transport, kinds[0])
				}
			}

			streams[kinds[1]], err = open(kinds[1], request)
			must(t, err)

			_, err = io.WriteString(streams["data"], "hello")
			must(t, err)
			must(t, streams["data"].Close())

			answer, err := io.ReadAll(streams["data"])
			must(t, err)

			if string(answer) != md5Text([]byte("hello"))+"\nhello" {
				t.Errorf("%s: answer %q", transport, answer)
			}
		}

		conn.Close()
	}
}
