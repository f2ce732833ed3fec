package conmonclient

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

// certificate writes a key and a certificate of its own making, good for 127.0.0.1; what clients have to trust.
func certificate(t *testing.T, certificateFile, keyFile string) []byte {
	t.Helper()

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)

	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "podinit"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IsCA:         true, BasicConstraintsValid: true,
	}

	signed, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)

	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})
	must(t, os.WriteFile(certificateFile, text, 0o644))
	must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))

	return text
}

// encrypted starts a pod whose streaming port has TLS.
func encrypted(t *testing.T) (p *pod, certificateFile, keyFile string, trusted []byte) {
	t.Helper()

	dir := t.TempDir()
	certificateFile, keyFile = dir+"/tls.crt", dir+"/tls.key"
	trusted = certificate(t, certificateFile, keyFile)
	p = newPod(t, "crun", "PODINIT_STREAMING_TLS_CERT="+certificateFile, "PODINIT_STREAMING_TLS_KEY="+keyFile)

	return p, certificateFile, keyFile, trusted
}

func (p *pod) secureExec(ctx context.Context, trusted []byte, transport, id string, options remotecommand.StreamOptions, command ...string) error {
	p.t.Helper()

	address := p.execURL(id, options, command...)
	if !strings.HasPrefix(address, "https://127.0.0.1:") {
		p.t.Fatalf("no URL of an encrypted port: %s", address)
	}

	target, err := url.Parse(address)
	must(p.t, err)

	config := &rest.Config{Host: "https://" + target.Host, TLSClientConfig: rest.TLSClientConfig{CAData: trusted}}

	return executorOf(p.t, config, transport, address).StreamWithContext(ctx, options)
}

func TestStreamingOverTLS(t *testing.T) {
	t.Parallel()

	p, certificateFile, keyFile, trusted := encrypted(t)
	id := p.sleeper("c")
	ctx := withDeadline(t)

	for _, transport := range transports {
		var stdout, stderr bytes.Buffer

		options := remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}
		code := exitCode(t, p.secureExec(ctx, trusted, transport, id, options, "sh", "-c", "echo out; echo err >&2; exit 42"))

		if code != 42 || stdout.String() != "out\n" || stderr.String() != "err\n" {
			t.Errorf("%s: code %d, stdout %q, stderr %q", transport, code, stdout.String(), stderr.String())
		}

		// Both directions at once, and the end of the input.
		const size = 16 << 20

		sent, received := md5.New(), &counter{Hash: md5.New()}
		options = remotecommand.StreamOptions{Stdin: io.TeeReader(&pattern{left: size}, sent), Stdout: received}

		if code := exitCode(t, p.secureExec(ctx, trusted, transport, id, options, "cat")); code != 0 {
			t.Errorf("%s: code %d", transport, code)
		}

		if received.bytes != size || !bytes.Equal(received.Sum(nil), sent.Sum(nil)) {
			t.Errorf("%s: %d bytes came back, and not the same", transport, received.bytes)
		}

		// Who does not trust the certificate does not send the token.
		err := p.secureExec(ctx, nil, transport, id, remotecommand.StreamOptions{Stdout: &stdout}, "true")
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: no certificate is trusted, but: %v", transport, err)
		}
	}

	// One that is renewed is shown at once.
	renewed := certificate(t, certificateFile, keyFile)
	options := remotecommand.StreamOptions{Stdout: io.Discard}

	if code := exitCode(t, p.secureExec(ctx, renewed, "websocket", id, options, "true")); code != 0 {
		t.Errorf("with the new certificate: code %d", code)
	}

	// Nobody is served without TLS.
	address := p.execURL(id, options, "true")
	response, err := http.Get(strings.Replace(address, "https:", "http:", 1))

	if err == nil {
		response.Body.Close()
		t.Errorf("plain HTTP is answered: %s", response.Status)
	}
}

// A client that is killed takes its command with it, over TLS, too.
func TestStreamingOverTLSClientIsGone(t *testing.T) {
	t.Parallel()

	p, _, _, trusted := encrypted(t)
	id := p.sleeper("c")

	for _, transport := range transports {
		ctx, cancel := context.WithCancel(withDeadline(t))
		output := newCollector(t)
		ended := make(chan error, 1)

		go func() {
			options := remotecommand.StreamOptions{Stdout: output}
			ended <- p.secureExec(ctx, trusted, transport, id, options, "sh", "-c", "echo $$; exec sleep 12345")
		}()

		output.waitFor("\n")
		cancel()
		<-ended

		for limit := time.Now().Add(deadline); p.countProcesses("sleep 12345") > 0; {
			if time.Now().After(limit) {
				t.Fatalf("%s: the command is still there", transport)
			}
		}
	}
}

// countProcesses counts the processes of the pod with this command line.
func (p *pod) countProcesses(command string) int {
	p.t.Helper()

	var found int

	for _, process := range p.processesLeft() {
		if strings.Contains(process, strings.ReplaceAll(command, " ", `\x00`)) {
			found++
		}
	}

	return found
}

// Instead of a port, a socket in the run directory, for an engine that has a server of its own.
func TestStreamingOverAUnixSocket(t *testing.T) {
	t.Parallel()

	p := newPod(t, "crun", "PODINIT_STREAMING_SOCKET=true")
	id := p.sleeper("c")
	ctx := withDeadline(t)

	for _, transport := range transports {
		var stdout bytes.Buffer

		options := remotecommand.StreamOptions{Stdin: strings.NewReader("hello\n"), Stdout: &stdout}
		served, err := url.Parse(strings.Replace(p.execURL(id, options, "cat"), "http+unix://", "unix:///", 1))
		must(t, err)

		socket, rest, found := strings.Cut(strings.TrimPrefix(served.Path, "/"), ".sock/")
		if socket += ".sock"; !found || socket != p.path("run", "streaming.sock") {
			t.Fatalf("not the URL of a socket: %s", served)
		}

		info, err := os.Stat(socket)
		must(t, err)

		if info.Mode().Perm() != 0o600 {
			t.Errorf("the socket's mode is %v", info.Mode())
		}

		address := "http://" + portTo(t, socket) + "/" + rest
		if code := exitCode(t, executor(t, transport, address).StreamWithContext(ctx, options)); code != 0 || stdout.String() != "hello\n" {
			t.Errorf("%s: code %d, stdout %q", transport, code, stdout.String())
		}
	}
}

// portTo listens on a port, and connects one client to the socket.
func portTo(t *testing.T, socket string) string {
	t.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })

	go func() {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		defer client.Close()

		server, err := net.Dial("unix", socket)
		if err != nil {
			return
		}
		defer server.Close()

		go func() {
			_, _ = io.Copy(server, client)
			_ = server.(*net.UnixConn).CloseWrite()
		}()

		_, _ = io.Copy(client, server)
	}()

	return listener.Addr().String()
}
