package conmonclient

import (
	"context"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/containers/conmon-rs/pkg/client"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	otlp "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	v1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// spans is a collector: what OTLP's clients send to.
type spans struct {
	otlp.UnimplementedTraceServiceServer

	mutex    sync.Mutex
	received []*v1.Span
	services map[string]bool
}

func (s *spans) Export(_ context.Context, request *otlp.ExportTraceServiceRequest) (*otlp.ExportTraceServiceResponse, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()

	for _, resource := range request.GetResourceSpans() {
		for _, attribute := range resource.GetResource().GetAttributes() {
			if attribute.GetKey() == "service.name" {
				s.services[attribute.GetValue().GetStringValue()] = true
			}
		}

		for _, scope := range resource.GetScopeSpans() {
			s.received = append(s.received, scope.GetSpans()...)
		}
	}

	return &otlp.ExportTraceServiceResponse{}, nil
}

// collect starts a collector; its endpoint.
func collect(t *testing.T) (*spans, string) {
	t.Helper()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)

	received := &spans{services: map[string]bool{}}
	server := grpc.NewServer()
	otlp.RegisterTraceServiceServer(server, received)

	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	return received, "http://" + listener.Addr().String()
}

// traced does two requests, one of which is refused, in a span of the engine's, and ends the pod. The span.
func traced(t *testing.T, p *pod, endpoint string) trace.ReadOnlySpan {
	t.Helper()

	otel.SetTextMapPropagator(propagation.TraceContext{})

	tracer := trace.NewTracerProvider().Tracer("engine")
	config := p.config()
	config.Tracing = &client.Tracing{Enabled: true, Endpoint: endpoint, Tracer: tracer}

	engine, err := client.New(config)
	must(t, err)

	p.client = engine
	id := p.id("c")
	p.bundle(container{id: id})

	ctx, span := tracer.Start(withDeadline(t), "the engine's work")
	_, err = engine.CreateContainer(ctx, p.request(container{id: id}))
	must(t, err)
	assertError(t, engine.ReopenLogContainer(ctx, &client.ReopenLogContainerConfig{ID: p.id("no")}), "not-found")
	span.End()
	p.stop()

	return span.(trace.ReadOnlySpan)
}

// The flags of tracing are always taken; the released binary has no exporter.
func TestTracingFlagsAreTaken(t *testing.T) {
	t.Parallel()

	received, endpoint := collect(t)
	traced(t, idlePod(t, "crun"), endpoint)

	if len(received.received) > 0 {
		t.Errorf("spans without the feature: %v", received.received)
	}
}

// A binary with the feature sends a span of each request, below the engine's own.
func TestTracing(t *testing.T) {
	t.Parallel()

	binary := os.Getenv("PODINIT_TRACING_BINARY")
	if binary == "" {
		t.Skip("needs a binary with the feature tracing-otlp in PODINIT_TRACING_BINARY: `make test-tracing`")
	}

	received, endpoint := collect(t)
	p := idlePod(t, "crun")
	p.program = p.path("conmonrs")
	must(t, os.Symlink(binary, p.program))

	parent := traced(t, p, endpoint).SpanContext()
	traceID, parents := parent.TraceID(), map[string]bool{}
	found := map[string]*v1.Span{}

	received.mutex.Lock()
	defer received.mutex.Unlock()

	for _, span := range received.received {
		if string(span.GetTraceId()) == string(traceID[:]) {
			found[span.GetName()] = span
			parents[string(span.GetParentSpanId())] = true
		}
	}

	create, reopen := found["createContainer"], found["reopenLogContainer"]
	if create == nil || reopen == nil {
		t.Fatalf("spans of trace %v: %v of %v", traceID, found, received.received)
	}

	if !received.services["podinit"] {
		t.Errorf("services: %v", received.services)
	}

	if create.GetKind() != v1.Span_SPAN_KIND_SERVER || create.GetEndTimeUnixNano() <= create.GetStartTimeUnixNano() {
		t.Errorf("the span of a create: %v", create)
	}

	if attributes := create.GetAttributes(); len(attributes) != 1 || attributes[0].GetValue().GetStringValue() != p.id("c") {
		t.Errorf("attributes: %v", attributes)
	}

	if create.GetStatus().GetCode() == v1.Status_STATUS_CODE_ERROR || reopen.GetStatus().GetCode() != v1.Status_STATUS_CODE_ERROR {
		t.Errorf("statuses: %v, %v", create.GetStatus(), reopen.GetStatus())
	}

	// The client makes a span of each call, under the one of the test.
	if len(parents) < 2 {
		t.Errorf("parents: %v", parents)
	}
}
