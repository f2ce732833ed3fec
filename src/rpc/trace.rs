//! Traces: which trace a request belongs to (W3C Trace Context, in the request's
//! metadata), and a span for each request, if this build exports spans (cargo
//! feature `tracing-otlp`).
//!
//! Without the feature a request's trace is named in the monitor's own log, at level
//! debug, and that is all: the exporter, with its HTTP/2, would be a good part of the binary.

use std::fmt;
use std::future::Future;

use capnp::struct_list;

use crate::limits::{TRACE_ENTRIES_MAX, TRACE_STATE_BYTES_MAX};
use crate::rpc::schema::conmon_capnp::conmon::text_text_map_entry::Owned as Entry;

#[cfg(feature = "tracing-otlp")]
mod otlp;

/// Where a request stands in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parent {
    trace_id: u128,
    span_id: u64,
    flags: u8,
    /// `tracestate` as it came.
    state: String,
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}, under span {:016x}", self.trace_id, self.span_id)
    }
}

impl Parent {
    /// Out of a request's metadata. What is not well-formed counts as absent, as the
    /// standard says.
    fn of(metadata: struct_list::Reader<'_, Entry>) -> Option<Self> {
        let value = |wanted: &str| {
            metadata.iter().take(TRACE_ENTRIES_MAX).find_map(|entry| {
                let is_it = entry.get_key().ok()?.to_str().ok()?.eq_ignore_ascii_case(wanted);
                if is_it { entry.get_value().ok()?.to_str().ok() } else { None }
            })
        };
        let state = value("tracestate").filter(|state| state.len() <= TRACE_STATE_BYTES_MAX);
        Self::parse(value("traceparent")?, state.unwrap_or_default())
    }

    /// `version-traceid-spanid-flags`, in lower-case hexadecimal; later versions may have
    /// more after that (section 3.2).
    fn parse(traceparent: &str, state: &str) -> Option<Self> {
        let mut fields = traceparent.split('-');
        let mut field = |digits: usize| {
            let field = fields.next()?;
            let is_hex = field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            (field.len() == digits && is_hex).then_some(field)
        };
        let (version, trace_id, span_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        if version == "ff" || (version == "00" && fields.next().is_some()) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace_id, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span_id, 16).ok().filter(|id| *id != 0)?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        Some(Self { trace_id, span_id, flags, state: state.to_owned() })
    }
}

/// A request, as its span tells of it.
pub(super) struct Traced<'a> {
    /// The method.
    pub(super) name: &'static str,
    /// Of which container, if of one.
    pub(super) id: Option<capnp::Result<capnp::text::Reader<'a>>>,
    /// What came with it.
    pub(super) metadata: capnp::Result<struct_list::Reader<'a, Entry>>,
}

impl Traced<'_> {
    /// Does `work` in a span.
    pub(super) async fn span<T>(
        self,
        work: impl Future<Output = Result<T, capnp::Error>>,
    ) -> Result<T, capnp::Error> {
        let parent = self.metadata.ok().and_then(Parent::of);
        let id = self.id.and_then(Result::ok).and_then(|id| id.to_str().ok());
        if let Some(parent) = &parent {
            ::log::debug!("{} {} belongs to trace {parent}", self.name, id.unwrap_or_default());
        }
        #[cfg(feature = "tracing-otlp")]
        {
            let span = otlp::Span::begin(self.name, id, parent.as_ref());
            let result = work.await;
            span.end(result.as_ref().err());
            result
        }
        #[cfg(not(feature = "tracing-otlp"))]
        work.await
    }
}

/// Begins to export spans to the OTLP collector at `endpoint` (gRPC). The pod is served
/// whether that can be done or not.
pub fn start(endpoint: &str) {
    #[cfg(feature = "tracing-otlp")]
    if let Err(error) = otlp::start(endpoint) {
        ::log::error!("spans cannot be exported to {endpoint}: {error}");
    }
    #[cfg(not(feature = "tracing-otlp"))]
    ::log::warn!("no spans go to {endpoint}: this podinit was built without the feature tracing-otlp");
}

/// Exports what has not been exported yet, in bounded time.
pub async fn finish() {
    #[cfg(feature = "tracing-otlp")]
    otlp::finish().await;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn traceparent_of_the_standard_is_understood() {
        let parent = Parent::parse(GOOD, "a=b").unwrap();
        assert_eq!(parent.to_string(), "0af7651916cd43dd8448eb211c80319c, under span b7ad6b7169203331");
        assert_eq!((parent.flags, parent.state.as_str()), (1, "a=b"));
        // A later version may say more.
        assert_eq!(Parent::parse(&format!("cc{}-what", &GOOD[2..]), "a=b"), Some(parent));
    }

    #[test]
    fn what_is_not_well_formed_is_absent() {
        let zeros = |from: usize, to: usize| {
            let (before, after) = (&GOOD[..from], &GOOD[to..]);
            format!("{before}{}{after}", "0".repeat(to - from))
        };
        let bad = [
            String::new(),
            GOOD[..54].to_owned(),
            GOOD.to_uppercase(),
            format!("{GOOD}-more"),
            format!("ff{}", &GOOD[2..]),
            GOOD.replace('-', "_"),
            zeros(3, 35),
            zeros(36, 52),
        ];
        for text in bad {
            assert_eq!(Parent::parse(&text, ""), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_taken_or_refused(text in ".{0,80}") {
            let _outcome = Parent::parse(&text, "");
        }
    }
}
