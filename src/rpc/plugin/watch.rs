//! Looking on for somebody far away: what was decided, as records of the wire.
//!
//! Memory can be read only while a call waits. Where it is wanted, a plugin that
//! has no opinion is registered before all others: it copies the memory, and what
//! it copied is joined to the observation, which comes when the call is answered.
//! Calls that have no such memory go on at once, and those whose memory does not
//! answer do so after [`PLUGIN_COPY_TIMEOUT`].

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::remote::CallKey;
use super::translate;
use crate::limits::{
    PLUGIN_COPY_TIMEOUT, PLUGIN_GATHERED_BYTES_MAX, PLUGIN_MEMORY_BYTES_MAX, PLUGIN_READ_BYTES_MAX,
    SECCOMP_TAP_QUEUE_MAX,
};
use crate::rpc::schema::plugin_capnp as wire;
use crate::seccomp::Broker;
use crate::seccomp::broker::{RegisterError, Registered};
use crate::seccomp::decode::{Content, Decoded, Read, well_known};
use crate::seccomp::notification::{Notification, Session};
use crate::seccomp::plugin::{Decision, Plugin, Registration};
use crate::seccomp::select::{Call, Selector};
use crate::seccomp::syscall;
use crate::seccomp::tap::{Observation, Observer, Outcome};
use crate::seccomp::target::Target;
use crate::seccomp::verdict::{OnFailure, Verdict};

/// Records that are sent at once.
const RECORDS_AT_ONCE: usize = 64;

/// What memory is copied, and when it is not.
#[derive(Debug, Clone, Default)]
pub(in crate::rpc) struct Wanted {
    /// What well-known calls point to.
    pub(in crate::rpc) decode: bool,
    /// And this.
    pub(in crate::rpc) reads: Vec<Read>,
}

impl Wanted {
    /// Which memory of this call.
    pub(super) fn of(&self, notification: &Notification) -> Vec<Read> {
        let mut reads = match &notification.name {
            Some(name) if self.decode => well_known(name),
            _ => Vec::new(),
        };
        reads.extend(&self.reads);
        reads
    }

    /// Whether there is no memory of this call to be copied.
    fn is_nothing_of(&self, call: &Call) -> bool {
        let name = || syscall::name(call.arch, call.syscall);
        self.reads.is_empty() && !(self.decode && name().is_some_and(|name| !well_known(&name).is_empty()))
    }

    fn is_nothing(&self) -> bool {
        !self.decode && self.reads.is_empty()
    }
}

/// Copies memory.
pub(super) async fn copy(reads: Vec<Read>, notification: &Notification, target: &Target) -> Vec<Decoded> {
    let mut decoded = Vec::with_capacity(reads.len());
    for read in reads {
        decoded.extend(read.of(notification, target).await);
    }
    decoded
}

/// Copies, by session and id of the call. Of calls that are never observed, the
/// oldest go first; and where all are too much memory, that of the oldest.
#[derive(Debug, Default)]
struct Copies {
    by_call: HashMap<CallKey, Vec<Decoded>>,
    order: VecDeque<CallKey>,
    bytes: usize,
}

fn bytes(decoded: &[Decoded]) -> usize {
    decoded.iter().map(Decoded::bytes).sum()
}

impl Copies {
    fn put(&mut self, key: CallKey, decoded: Vec<Decoded>) {
        self.bytes += bytes(&decoded);
        self.by_call.insert(key, decoded);
        self.order.push_back(key);
        if self.order.len() > SECCOMP_TAP_QUEUE_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.take(oldest);
        }
        for key in &self.order {
            if self.bytes <= PLUGIN_MEMORY_BYTES_MAX {
                break;
            }
            for copy in self.by_call.get_mut(key).into_iter().flatten() {
                if copy.bytes() > 0 {
                    self.bytes -= copy.bytes();
                    copy.content = Content::Failed("the observer was too slow for so much memory".into());
                }
            }
        }
    }

    fn take(&mut self, key: CallKey) -> Vec<Decoded> {
        let decoded = self.by_call.remove(&key).unwrap_or_default();
        self.bytes -= bytes(&decoded);
        decoded
    }
}

/// The plugin that has no opinion.
#[derive(Debug)]
struct Copier {
    wanted: Wanted,
    copies: Rc<RefCell<Copies>>,
}

impl Plugin for Copier {
    fn decide(&self, notification: Rc<Notification>, target: Target) -> Decision {
        let (wanted, copies) = (self.wanted.clone(), Rc::clone(&self.copies));
        Box::pin(async move {
            let decoded = copy(wanted.of(&notification), &notification, &target).await;
            copies.borrow_mut().put((notification.session, notification.id), decoded);
            Ok(Verdict::Pass)
        })
    }

    fn at_once(&self, _: &Session, call: &Call) -> Option<Verdict> {
        self.wanted.is_nothing_of(call).then_some(Verdict::Pass)
    }
}

/// An observer, and what it observed.
#[derive(Debug)]
pub(in crate::rpc) struct Watch {
    observer: Observer,
    copies: Rc<RefCell<Copies>>,
    /// What did not fit into the last message.
    left: Option<(Rc<Observation>, Vec<Decoded>)>,
    told_lost: u64,
    _copier: Option<Registered>,
}

/// What is sent at once.
#[derive(Debug)]
pub(in crate::rpc) struct Seen {
    /// Calls, with what their arguments pointed to.
    pub(in crate::rpc) calls: Vec<(Rc<Observation>, Vec<Decoded>)>,
    /// How many were lost since the last time.
    pub(in crate::rpc) lost: u64,
}

impl Watch {
    /// Begins to look on.
    ///
    /// # Errors
    /// If the selector makes no sense, or there are too many observers.
    pub(in crate::rpc) fn begin(
        broker: &Rc<Broker>,
        name: &str,
        selector: Selector,
        wanted: Wanted,
    ) -> Result<Self, RegisterError> {
        let copies = Rc::new(RefCell::new(Copies::default()));
        let observer = broker.observe(selector.clone())?;
        let copier = if wanted.is_nothing() {
            None
        } else {
            let registration = Registration {
                name: name.to_owned(),
                selector,
                priority: i32::MIN,
                deadline: PLUGIN_COPY_TIMEOUT,
                on_failure: OnFailure::Next,
                allow_continue: false,
                // What is being copied is bounded as what was copied is.
                in_flight_max: PLUGIN_MEMORY_BYTES_MAX / (PLUGIN_READ_BYTES_MAX * wanted.reads.len().max(1)),
            };
            let copier = Copier { wanted, copies: Rc::clone(&copies) };
            Some(broker.look_at(registration, Rc::new(copier))?)
        };
        Ok(Self { observer, copies, left: None, told_lost: 0, _copier: copier })
    }

    /// What was seen since the last time, once there is something. `None` when the
    /// broker is gone.
    pub(in crate::rpc) async fn next(&mut self) -> Option<Seen> {
        let first = match self.left.take() {
            Some(left) => left,
            None => {
                let first = self.observer.next().await?;
                self.complete(first)
            }
        };
        let size = |(observation, decoded): &(Rc<Observation>, Vec<Decoded>)| {
            translate::notification_bytes(&observation.notification, decoded)
        };
        let mut bytes = size(&first);
        let mut calls = vec![first];
        while calls.len() < RECORDS_AT_ONCE
            && let Some(more) = self.observer.next_now()
        {
            let more = self.complete(more);
            bytes += size(&more);
            if bytes > PLUGIN_GATHERED_BYTES_MAX {
                self.left = Some(more);
                break;
            }
            calls.push(more);
        }
        let lost = self.observer.lost().saturating_sub(self.told_lost);
        self.told_lost += lost;
        Some(Seen { calls, lost })
    }

    fn complete(&self, observation: Rc<Observation>) -> (Rc<Observation>, Vec<Decoded>) {
        let key = (observation.notification.session, observation.notification.id);
        let decoded = self.copies.borrow_mut().take(key);
        (observation, decoded)
    }
}

impl Seen {
    /// Writes the records.
    pub(in crate::rpc) fn fill(&self, mut to: capnp::struct_list::Builder<'_, wire::record::Owned>) {
        for (index, (observation, decoded)) in (0..to.len()).zip(&self.calls) {
            set_record(to.reborrow().get(index), observation, decoded);
        }
    }

    /// How many they are.
    pub(in crate::rpc) fn count(&self) -> u32 {
        u32::try_from(self.calls.len()).unwrap_or(u32::MAX)
    }
}

fn set_record(mut to: wire::record::Builder<'_>, observation: &Observation, decoded: &[Decoded]) {
    translate::set_notification(to.reborrow().init_notification(), &observation.notification, decoded);
    let mut verdict = to.reborrow().init_verdict();
    match observation.outcome {
        Outcome::Returned(value) => verdict.set_return_value(value),
        Outcome::Failed(errno) => verdict.set_errno(u16::try_from(errno).unwrap_or(u16::MAX)),
        Outcome::Continued => verdict.set_continue(()),
        Outcome::Killed => verdict.set_kill(()),
        Outcome::Interrupted => verdict.set_pass_on(()),
        Outcome::GaveFd(number) => {
            verdict.init_add_descriptor().set_at(i32::try_from(number).unwrap_or(i32::MAX));
        }
    }
    to.set_decided_by(&*observation.by);
    to.set_latency_us(u64::try_from(observation.took.as_micros()).unwrap_or(u64::MAX));
    // The observation was made a moment ago; a clock before 1970 has no name here.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    to.set_at_ns(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::notification::SessionId;
    use crate::seccomp::syscall::{Architecture, number};

    #[test]
    fn calls_without_memory_are_not_waited_for() {
        let decode = Wanted { decode: true, reads: Vec::new() };
        let reads = Wanted { decode: false, reads: vec![Read::Text { argument: 0, max: 1 }] };
        let call = |name| {
            let native = Architecture::NATIVE;
            Call { arch: native.audit(), syscall: number(name, native).unwrap(), args: [1; 6] }
        };
        assert!(decode.is_nothing_of(&call("getppid")) && !decode.is_nothing_of(&call("mkdirat")));
        assert!(!reads.is_nothing_of(&call("getppid")));
    }

    #[test]
    fn copies_that_nobody_fetches_are_bounded() {
        let mut copies = Copies::default();
        let count = SECCOMP_TAP_QUEUE_MAX as u64;
        for id in 0..=count {
            copies.put((SessionId(1), id), Vec::new());
        }
        assert_eq!(copies.by_call.len(), SECCOMP_TAP_QUEUE_MAX);
        assert!(!copies.by_call.contains_key(&(SessionId(1), 0)));
        // What was fetched long ago leaves its place in the order; it is found to be gone.
        for id in 1..=count {
            copies.take((SessionId(1), id));
        }
        for id in 0..2 * count {
            copies.put((SessionId(2), id), Vec::new());
        }
        assert_eq!(copies.order.len(), SECCOMP_TAP_QUEUE_MAX);
    }

    #[test]
    fn copies_that_nobody_fetches_take_a_bounded_memory() {
        let mut copies = Copies::default();
        let piece = || Decoded { argument: 1, content: Content::Bytes(vec![7; 64 << 10]), cut: false };
        let count = u64::try_from(2 * PLUGIN_MEMORY_BYTES_MAX / piece().bytes()).unwrap();
        for id in 0..count {
            copies.put((SessionId(1), id), vec![piece()]);
            assert!(copies.bytes <= PLUGIN_MEMORY_BYTES_MAX);
        }
        // The oldest say that they are gone; the newest are there.
        let [gone] = &copies.take((SessionId(1), 0))[..] else { panic!("one piece") };
        assert!(gone.argument == 1 && matches!(gone.content, Content::Failed(_)));
        assert_eq!(copies.take((SessionId(1), count - 1)), [piece()]);
        for id in 0..count {
            copies.take((SessionId(1), id));
        }
        assert_eq!(copies.bytes, 0);
    }
}
