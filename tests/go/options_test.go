package conmonclient

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containers/conmon-rs/pkg/client"
)

// TestCreateOptions has everything in one request that a create can have beside the container itself.
func TestCreateOptions(t *testing.T) {
	t.Parallel()

	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			createWithOptions(t, idlePod(t, name))
		})
	}
}

func createWithOptions(t *testing.T, p *pod) {
	seen, cleaned, jsonLog := p.path("seen"), p.path("cleaned"), p.path("logs", "json")
	// A runtime that tells how it was called.
	wrapper := p.path("runtime")
	text := fmt.Sprintf("#!/bin/sh\necho \"$OPTION|$*\" >>%s\nexec %s \"$@\"\n", seen, p.runtime)
	must(t, os.WriteFile(wrapper, []byte(text), 0o755))

	id := p.id("c")
	c := container{id: id, args: []string{"sh", "-c", "for n in 1 2 3 4 5 6 7 8; do echo 0123456789abcde; done; exit 3"}}
	c.logSize = 200
	p.bundle(c)

	request := p.request(c)
	request.LogDrivers = append(request.LogDrivers, client.ContainerLogDriver{
		Type: client.LogDriverTypeJSONLogger,
		Path: jsonLog,
	})
	request.GlobalArgs = []string{"--debug"}
	request.EnvVars = map[string]string{"OPTION": "of the request"}
	request.CleanupCmd = []string{"sh", "-c", "echo \"$1\" >\"$0.new\" && mv \"$0.new\" \"$0\"", cleaned, "its argument"}

	p.runtime = wrapper

	var err error

	p.client, err = client.New(p.config())
	must(t, err)

	_, err = p.client.CreateContainer(context.Background(), request)
	must(t, err)
	p.start(id)

	if code := p.waitExit(id); code != 3 {
		t.Errorf("exit code %d", code)
	}

	p.waitFile(cleaned, func(text []byte) bool { return string(text) == "its argument\n" })

	var created string

	for _, line := range strings.Split(p.read(seen), "\n") {
		if strings.Contains(line, " create ") {
			created = line
		}
	}

	if !strings.HasPrefix(created, "of the request|") || !strings.Contains(created, "--debug") {
		t.Errorf("the runtime was called like this: %s", p.read(seen))
	}

	// Beyond its size the CRI log began anew; the other one has none, and everything.
	if log := p.read(p.log(id)); len(log) > 200 || !strings.HasSuffix(log, "stdout F 0123456789abcde\n") {
		t.Errorf("CRI log of %d bytes: %s", len(log), log)
	}

	lines := bytes.Split(bytes.TrimSpace([]byte(p.read(jsonLog))), []byte("\n"))
	if len(lines) != 8 {
		t.Errorf("%d records", len(lines))
	}

	for _, line := range lines {
		var record struct{ Log, Stream string }

		must(t, json.Unmarshal(line, &record))

		if record.Log != "0123456789abcde\n" || record.Stream != "stdout" {
			t.Errorf("record %s", line)
		}
	}
}

// TestExecEnvironment has variables in an exec that the container has not, and one instead of its own.
func TestExecEnvironment(t *testing.T) {
	withRuntimes(t, func(t *testing.T, p *pod) {
		id := p.id("c")
		p.run(container{id: id, args: []string{"sleep", "600"}})

		result, err := p.client.ExecSyncContainer(context.Background(), &client.ExecSyncConfig{
			ID:      id,
			Command: []string{"sh", "-c", "echo \"$ADDED\"; echo \"$PATH\"; echo ${PODINIT_TEST_POD:+kept}"},
			EnvVars: map[string]string{"ADDED": "a b=c", "PATH": "/bin:/none"},
		})
		must(t, err)

		if string(result.Stdout) != "a b=c\n/bin:/none\nkept\n" {
			t.Errorf("%+v", result)
		}
	})
}
