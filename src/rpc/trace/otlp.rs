//! Spans to a collector, over OTLP/gRPC, in batches. A thread of the exporter gathers
//! them; the connection lives on the monitor's event loop.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::SystemTime;

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span as SdkSpan};

use super::Parent;
use crate::limits::TRACE_FLUSH_MAX;

/// Of this process; empty if nobody wants spans.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// See [`super::start`].
pub(super) fn start(endpoint: &str) -> Result<(), ExporterBuildError> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = Resource::builder_empty()
        .with_service_name("podinit")
        .with_attribute(KeyValue::new("service.version", crate::version::BUILD.version));
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build());
    if PROVIDER.set(provider.build()).is_err() {
        ::log::debug!("spans are exported already");
    }
    Ok(())
}

/// See [`super::finish`].
pub(super) async fn finish() {
    let Some(provider) = PROVIDER.get().cloned() else { return };
    let (sender, done) = tokio::sync::oneshot::channel();
    // Not on this thread: it waits for the connection, which lives here.
    let flush = move || drop(sender.send(provider.shutdown_with_timeout(TRACE_FLUSH_MAX)));
    if let Err(error) = std::thread::Builder::new().name("spans".to_owned()).spawn(flush) {
        ::log::warn!("the last spans are not exported: {error}");
        return;
    }
    match tokio::time::timeout(TRACE_FLUSH_MAX, done).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => ::log::warn!("the last spans may not have been exported: {error}"),
        Ok(Err(_)) | Err(_) => ::log::warn!("the last spans were not exported in time"),
    }
}

impl Parent {
    fn context(&self) -> Context {
        let span = SpanContext::new(
            TraceId::from_bytes(self.trace_id.to_be_bytes()),
            SpanId::from_bytes(self.span_id.to_be_bytes()),
            TraceFlags::new(self.flags),
            true,
            self.state.parse::<TraceState>().unwrap_or_default(),
        );
        Context::new().with_remote_span_context(span)
    }
}

/// One request.
#[derive(Debug)]
pub(super) struct Span(Option<SdkSpan>);

impl Span {
    pub(super) fn begin(name: &'static str, id: Option<&str>, parent: Option<&Parent>) -> Self {
        Self(PROVIDER.get().map(|provider| {
            let tracer = provider.tracer("podinit");
            let mut builder = tracer.span_builder(Cow::Borrowed(name)).with_kind(SpanKind::Server);
            if let Some(id) = id {
                builder = builder.with_attributes([KeyValue::new("container.id", id.to_owned())]);
            }
            tracer.build_with_context(builder, &parent.map(Parent::context).unwrap_or_default())
        }))
    }

    pub(super) fn end(self, error: Option<&capnp::Error>) {
        let Some(mut span) = self.0 else { return };
        if let Some(error) = error {
            span.set_status(Status::error(error.extra.clone()));
        }
        span.end_with_timestamp(SystemTime::now());
    }
}
