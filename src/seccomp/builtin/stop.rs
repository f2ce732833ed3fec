//! Ending a container that makes forbidden calls: some seconds after the last of
//! them, so that whoever looks learns of all.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep_until};

use super::never_asked;
use crate::limits::{SECCOMP_COUNTED_CALLS_MAX, SECCOMP_STOP_DELAY};
use crate::seccomp::notification::{Notification, Session};
use crate::seccomp::plugin::{Decision, Plugin};
use crate::seccomp::recording::Recordings;
use crate::seccomp::rules::StopContainer;
use crate::seccomp::select::Call;
use crate::seccomp::syscall;
use crate::seccomp::target::Target;
use crate::seccomp::thread::StopRequest;
use crate::seccomp::verdict::{OnFailure, Verdict};

/// CRI-O's annotation, by both of its names.
const ANNOTATIONS: [&str; 2] =
    ["seccomp-notifier-action.crio.io", "io.kubernetes.cri-o.seccompNotifierAction"];

/// Where CRI-O puts the annotations that Kubernetes gave: as JSON in an annotation.
const KUBERNETES_ANNOTATIONS: &str = "io.kubernetes.cri-o.Annotations";

/// Containers that will be ended.
struct Doomed {
    delay: Duration,
    stops: UnboundedSender<StopRequest>,
    containers: RefCell<HashMap<Rc<str>, Doom>>,
}

/// What is known of one of them.
struct Doom {
    at: Instant,
    calls: BTreeMap<String, u64>,
}

impl Doomed {
    fn new(delay: Duration, stops: UnboundedSender<StopRequest>) -> Rc<Self> {
        Rc::new(Self { delay, stops, containers: RefCell::default() })
    }

    /// Counts a call and puts the end off.
    fn note(self: &Rc<Self>, container: &Rc<str>, call: &Call) {
        let name = syscall::name_or_number(call.arch, call.syscall);
        let at = Instant::now() + self.delay;
        let mut containers = self.containers.borrow_mut();
        if let Some(doom) = containers.get_mut(container) {
            doom.at = at;
            if doom.calls.len() < SECCOMP_COUNTED_CALLS_MAX || doom.calls.contains_key(&name) {
                *doom.calls.entry(name).or_default() += 1;
            }
            return;
        }
        containers.insert(Rc::clone(container), Doom { at, calls: BTreeMap::from([(name, 1)]) });
        drop(containers);
        tokio::task::spawn_local(Rc::clone(self).end(Rc::clone(container)));
    }

    async fn end(self: Rc<Self>, container: Rc<str>) {
        loop {
            let at = self.containers.borrow().get(&container).map(|doom| doom.at);
            match at {
                None => return,
                Some(at) if at <= Instant::now() => break,
                Some(at) => sleep_until(at).await,
            }
        }
        let Some(doom) = self.containers.borrow_mut().remove(&container) else { return };
        let calls = doom.calls.iter().map(|(name, count)| format!("{name} ({count}x)")).collect::<Vec<_>>();
        let reason = format!("used forbidden system calls: {}", calls.join(", "));
        if self.stops.send(StopRequest { container: container.to_string(), reason }).is_err() {
            ::log::error!("container {container} cannot be ended: nobody listens");
        }
    }
}

/// The action `stopContainer`.
pub(crate) struct Stopper {
    doomed: Rc<Doomed>,
    then: OnFailure,
}

impl Stopper {
    pub(crate) fn new(rule: &StopContainer, stops: UnboundedSender<StopRequest>) -> Self {
        Self { doomed: Doomed::new(Duration::from_millis(rule.delay_ms), stops), then: rule.then }
    }
}

impl Plugin for Stopper {
    fn decide(&self, _notification: Rc<Notification>, _target: Target) -> Decision {
        never_asked()
    }

    fn at_once(&self, session: &Session, call: &Call) -> Option<Verdict> {
        self.doomed.note(&session.container, call);
        Some(self.then.verdict())
    }
}

/// The action `notifierAction`: what CRI-O itself does for its annotation. The
/// call fails with `ENOSYS` and the log says so, for the first of its kind; with the
/// value `stop` the container is ended. Containers without the annotation are none of its business.
pub(crate) struct Notifier {
    doomed: Rc<Doomed>,
    seen: Recordings,
}

impl Notifier {
    pub(crate) fn new(stops: UnboundedSender<StopRequest>) -> Self {
        Self { doomed: Doomed::new(SECCOMP_STOP_DELAY, stops), seen: Recordings::default() }
    }
}

impl Plugin for Notifier {
    fn decide(&self, _notification: Rc<Notification>, _target: Target) -> Decision {
        never_asked()
    }

    fn at_once(&self, session: &Session, call: &Call) -> Option<Verdict> {
        let Some(action) = action(&session.annotations) else { return Some(Verdict::Pass) };
        if self.seen.add(&session.container, call) {
            let name = syscall::name_or_number(call.arch, call.syscall);
            ::log::warn!("seccomp blocked system call {name} in container {}", session.container);
        }
        if action == "stop" {
            self.doomed.note(&session.container, call);
        }
        Some(Verdict::Errno(libc::ENOSYS))
    }
}

/// The annotation's value.
fn action(annotations: &BTreeMap<String, String>) -> Option<String> {
    let of = |annotations: &BTreeMap<String, String>| {
        ANNOTATIONS.iter().find_map(|name| annotations.get(*name)).cloned()
    };
    of(annotations).or_else(|| of(&serde_json::from_str(annotations.get(KUBERNETES_ANNOTATIONS)?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::select::tests::session;

    #[test]
    fn the_annotation_is_found_where_engines_put_it() {
        let annotations = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(action(&annotations(ANNOTATIONS[0], "stop")).as_deref(), Some("stop"));
        assert_eq!(action(&annotations(ANNOTATIONS[1], "log")).as_deref(), Some("log"));
        let nested = r#"{"seccomp-notifier-action.crio.io": "stop"}"#;
        assert_eq!(action(&annotations(KUBERNETES_ANNOTATIONS, nested)).as_deref(), Some("stop"));
        assert_eq!(action(&annotations(KUBERNETES_ANNOTATIONS, "nonsense")), None);
        assert_eq!(action(&BTreeMap::new()), None);
    }

    #[test]
    fn the_end_comes_after_the_last_call_and_tells_of_all() {
        let (stops, mut requests) = tokio::sync::mpsc::unbounded_channel();
        let delay = 20;
        let stopper = Stopper::new(&StopContainer { delay_ms: delay, then: OnFailure::Kill }, stops);
        let call = |syscall| Call { arch: syscall::Architecture::X86_64.audit(), syscall, args: [0; 6] };
        tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
            let began = Instant::now();
            for syscall in [168, 83, 168] {
                let verdict = stopper.at_once(&session("c", ""), &call(syscall)).unwrap();
                assert!(matches!(verdict, Verdict::Kill));
            }
            let request = requests.recv().await.unwrap();
            assert!(began.elapsed() >= Duration::from_millis(delay));
            assert_eq!(request.container, "c");
            assert_eq!(request.reason, "used forbidden system calls: mkdir (1x), swapoff (2x)");
            assert!(requests.try_recv().is_err());
        });
    }
}
