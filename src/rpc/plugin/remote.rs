//! A plugin of another process, as the broker sees it: notifications go out,
//! alone or in batches, and verdicts come back, in whatever order.
//!
//! A plugin that does not answer costs its own verdicts and a bounded number of
//! messages: a call of its interface counts until it is answered, even if nobody
//! waits for the verdicts any more, and beyond `callsMax` such calls nothing is
//! sent. The memory that comes with them is bounded the same way, and containers
//! share it. Whoever waits in line meanwhile gives up at the deadline.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use tokio::sync::oneshot;

use super::descriptors::{Owner, Tickets};
use super::target::TargetServer;
use super::translate::{self, Said, Terms};
use super::watch::{Wanted, copy};
use crate::limits::{
    PLUGIN_GATHERED_BYTES_MAX, PLUGIN_MEMORY_BYTES_MAX, PLUGIN_NEWS_MAX, PLUGIN_REASON_BYTES_MAX,
    PLUGIN_WORK_BYTES_MAX,
};
use crate::rpc::schema::plugin_capnp as wire;
use crate::seccomp::decode::Decoded;
use crate::seccomp::notification::{Notification, Session, SessionId};
use crate::seccomp::plugin::{Decision, Plugin, PluginFailure};
use crate::seccomp::share::{Permit, Shares};
use crate::seccomp::target::Target;
use crate::seccomp::verdict::Verdict;

/// A call: its session, and its number there.
pub(super) type CallKey = (SessionId, u64);

/// Where a verdict goes.
type Reply = oneshot::Sender<Result<Verdict, PluginFailure>>;

/// Lists the broker's sessions.
pub(super) type Sessions = Box<dyn Fn() -> Vec<Rc<Session>>>;

/// One registration's plugin.
pub(super) struct Remote {
    number: u64,
    plugin: wire::seccomp_plugin::Client,
    terms: Terms,
    wanted: Wanted,
    tickets: Rc<Tickets>,
    sessions: Sessions,
    /// News of sessions that the plugin has not taken yet.
    news: Cell<usize>,
    /// Whether there was more than it is sent at a time.
    is_behind: Cell<bool>,
    /// Sessions that it was told of.
    known: RefCell<HashSet<SessionId>>,
    /// Calls in its hands.
    open: RefCell<HashMap<CallKey, Open>>,
    queue: RefCell<VecDeque<Queued>>,
    /// Bytes of memory that may be copied for it yet.
    memory: Rc<Shares>,
    /// Bytes that its calls to targets may take yet.
    work: Rc<Shares>,
    /// Calls of `decide` that are not answered.
    calls: Cell<usize>,
}

#[derive(Debug)]
struct Open {
    target: Target,
    later: Later,
}

/// How far a call is whose verdict may be put off. A plugin's two messages, that it
/// puts it off and the verdict, can come in either order.
#[derive(Debug)]
enum Later {
    /// Neither has come.
    Not,
    /// It is put off: where the verdict goes.
    PutOff(Reply),
    /// The verdict has come first.
    Said(Result<Verdict, PluginFailure>),
    /// Both have come.
    Done,
}

#[derive(Debug)]
struct Queued {
    notification: Rc<Notification>,
    decoded: Vec<Decoded>,
    reply: Reply,
    /// What it takes of [`Remote::memory`], until the plugin has answered.
    _room: Option<Permit>,
}

impl Queued {
    fn bytes(&self) -> usize {
        translate::notification_bytes(&self.notification, &self.decoded)
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("number", &self.number)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

/// Ends what a plugin may do to a target when its verdict is there, or not
/// waited for any more.
struct InHands {
    remote: Rc<Remote>,
    key: CallKey,
}

impl Drop for InHands {
    fn drop(&mut self) {
        self.remote.open.borrow_mut().remove(&self.key);
        self.remote.tickets.close_call(self.remote.owner(), self.key);
        // What nobody waits for must not wait in line: a plugin may never take it.
        self.remote.queue.borrow_mut().retain(|queued| !queued.reply.is_closed());
    }
}

impl Remote {
    pub(super) fn new(
        number: u64,
        plugin: wire::seccomp_plugin::Client,
        terms: Terms,
        tickets: Rc<Tickets>,
        sessions: Sessions,
    ) -> Rc<Self> {
        Rc::new(Self {
            number,
            plugin,
            wanted: Wanted { decode: terms.decode, reads: terms.reads.clone() },
            terms,
            tickets,
            sessions,
            news: Cell::new(0),
            is_behind: Cell::new(false),
            known: RefCell::default(),
            open: RefCell::default(),
            queue: RefCell::default(),
            memory: Shares::new(PLUGIN_MEMORY_BYTES_MAX),
            work: Shares::new(PLUGIN_WORK_BYTES_MAX),
            calls: Cell::new(0),
        })
    }

    /// The target of a call in the plugin's hands.
    pub(super) fn target(&self, key: CallKey) -> Option<Target> {
        self.open.borrow().get(&key).map(|open| open.target.clone())
    }

    /// Room for a call to a target that takes `bytes`, or `None` if too many are under way.
    pub(super) fn work(&self, target: &Target, bytes: usize) -> Option<Permit> {
        self.work.try_acquire(target.container(), bytes)
    }

    pub(super) fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    /// Whose the descriptors are that wait for the plugin.
    pub(super) fn owner(&self) -> Owner {
        Owner::Registration(self.number)
    }

    /// Describes a session that exists already.
    pub(super) fn describe(self: &Rc<Self>, mut to: wire::session::Builder<'_>, session: &Session) {
        self.known.borrow_mut().insert(session.id);
        translate::set_session(to.reborrow(), session);
        let target = TargetServer { remote: Rc::downgrade(self), session: session.id };
        to.set_target(capnp_rpc::new_client(target));
    }

    /// Tells of a session, unless that was done.
    pub(super) fn opened(self: &Rc<Self>, session: &Session) {
        if !self.known.borrow().contains(&session.id) && self.can_hear() {
            self.introduce(session);
        }
    }

    fn introduce(self: &Rc<Self>, session: &Session) {
        let mut request = self.plugin.session_opened_request();
        self.describe(request.get().init_session(), session);
        self.tell(request.send().promise);
    }

    /// Tells that a session is over, if it was told of it.
    pub(super) fn closed(self: &Rc<Self>, session: SessionId) {
        if self.known.borrow().contains(&session) && self.can_hear() {
            self.known.borrow_mut().remove(&session);
            let mut request = self.plugin.session_closed_request();
            request.get().set_session(session.0);
            self.tell(request.send().promise);
        }
    }

    /// Tells of all changes at once, after some of them were missed.
    pub(super) fn compare(self: &Rc<Self>) {
        let sessions = (self.sessions)();
        let known: Vec<SessionId> = self.known.borrow().iter().copied().collect();
        let over = known.into_iter().filter(|id| !sessions.iter().any(|session| session.id == *id));
        over.for_each(|id| self.closed(id));
        sessions.iter().for_each(|session| self.opened(session));
    }

    /// Whether the plugin takes news. One that does not is told everything later.
    fn can_hear(&self) -> bool {
        let can = self.news.get() < PLUGIN_NEWS_MAX;
        self.is_behind.set(self.is_behind.get() || !can);
        can
    }

    /// Lets a call run whose answer says nothing.
    fn tell<T: 'static>(self: &Rc<Self>, answer: capnp::capability::Promise<T, capnp::Error>) {
        self.news.set(self.news.get() + 1);
        let remote = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if let Err(error) = answer.await {
                ::log::debug!("a plugin did not take news of a session: {error}");
            }
            remote.news.set(remote.news.get().saturating_sub(1));
            if remote.news.get() == 0 && remote.is_behind.replace(false) {
                remote.compare();
            }
        });
    }

    /// Gives a verdict that was put off, or will be. False if nobody waits for it.
    pub(super) fn answer(&self, key: CallKey, verdict: wire::verdict::Reader<'_>) -> bool {
        let mut open = self.open.borrow_mut();
        let Some(open) = open.get_mut(&key) else { return false };
        if matches!(open.later, Later::Said(_) | Later::Done) {
            return false;
        }
        let verdict = self.read(verdict).and_then(Said::at_last);
        match std::mem::replace(&mut open.later, Later::Done) {
            Later::PutOff(reply) => reply.send(verdict).is_ok(),
            _ => {
                open.later = Later::Said(verdict);
                true
            }
        }
    }

    fn read(&self, verdict: wire::verdict::Reader<'_>) -> Result<Said, PluginFailure> {
        translate::verdict(verdict, |ticket| self.tickets.take(ticket))
    }

    async fn decide(
        self: Rc<Self>,
        notification: Rc<Notification>,
        target: Target,
    ) -> Result<Verdict, PluginFailure> {
        let reads = self.wanted.of(&notification);
        let most = reads.iter().map(|read| read.bytes_max(&notification)).sum::<usize>();
        let mut room = match most {
            0 => None,
            most => Some(self.memory.acquire(&notification.container, most).await),
        };
        let decoded = copy(reads, &notification, &target).await;
        if let Some(room) = &mut room {
            room.keep(decoded.iter().map(Decoded::bytes).sum());
        }
        // A change of the sessions may be on its way to us still.
        if !self.known.borrow().contains(&notification.session)
            && let Some(session) = (self.sessions)().iter().find(|one| one.id == notification.session)
        {
            self.introduce(session);
        }
        let key = (notification.session, notification.id);
        self.open.borrow_mut().insert(key, Open { target, later: Later::Not });
        let _in_hands = InHands { remote: Rc::clone(&self), key };
        let (reply, verdict) = oneshot::channel();
        self.queue.borrow_mut().push_back(Queued { notification, decoded, reply, _room: room });
        self.send_what_waits();
        verdict.await.unwrap_or(Err(PluginFailure::Gone))
    }

    /// Sends as much as the plugin takes at a time.
    fn send_what_waits(self: &Rc<Self>) {
        while self.calls.get() < self.terms.calls_max {
            let batch = self.next_batch();
            if batch.is_empty() {
                return;
            }
            self.calls.set(self.calls.get() + 1);
            tokio::task::spawn_local(Rc::clone(self).ask(batch));
        }
    }

    /// What is waited for still, in order, as much as one message has room for.
    fn next_batch(&self) -> Vec<Queued> {
        let mut queue = self.queue.borrow_mut();
        let mut batch: Vec<Queued> = Vec::new();
        let mut bytes = 0;
        while batch.len() < self.terms.batch_max
            && let Some(queued) = queue.pop_front_if(|queued| {
                batch.is_empty() || bytes + queued.bytes() <= PLUGIN_GATHERED_BYTES_MAX
            })
        {
            if !queued.reply.is_closed() {
                bytes += queued.bytes();
                batch.push(queued);
            }
        }
        batch
    }

    async fn ask(self: Rc<Self>, mut batch: Vec<Queued>) {
        let count = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        let mut request = self.plugin.decide_request();
        let mut list = request.get().init_notifications(count);
        for (index, queued) in (0..count).zip(&mut batch) {
            // From here on the message has it.
            let decoded = std::mem::take(&mut queued.decoded);
            translate::set_notification(list.reborrow().get(index), &queued.notification, &decoded);
        }
        let answer = request.send().promise.await;
        self.calls.set(self.calls.get().saturating_sub(1));
        match answer.as_ref().map_err(failure).and_then(|answer| {
            let verdicts =
                answer.get().and_then(|answer| answer.get_verdicts()).map_err(|error| failure(&error))?;
            if verdicts.len() == count {
                return Ok(verdicts);
            }
            Err(PluginFailure::Nonsense(format!("{} verdicts for {count} notifications", verdicts.len())))
        }) {
            Ok(verdicts) => {
                verdicts.iter().zip(batch).for_each(|(verdict, queued)| self.deliver(verdict, queued))
            }
            Err(failure) => batch.into_iter().for_each(|queued| give(queued.reply, Err(failure.clone()))),
        }
        self.send_what_waits();
    }

    fn deliver(&self, verdict: wire::verdict::Reader<'_>, queued: Queued) {
        let key = (queued.notification.session, queued.notification.id);
        match self.read(verdict) {
            Ok(Said::Now(verdict)) => {
                let open = self.open.borrow();
                let has_said = open.get(&key).is_some_and(|open| matches!(open.later, Later::Said(_)));
                let twice = || PluginFailure::Nonsense("two verdicts for one notification".into());
                give(queued.reply, if has_said { Err(twice()) } else { Ok(verdict) });
            }
            Err(failure) => give(queued.reply, Err(failure)),
            Ok(Said::Later) => {
                if let Some(open) = self.open.borrow_mut().get_mut(&key) {
                    match std::mem::replace(&mut open.later, Later::Done) {
                        Later::Said(verdict) => give(queued.reply, verdict),
                        _ => open.later = Later::PutOff(queued.reply),
                    }
                }
            }
        }
    }
}

/// Whoever waited may have given up.
fn give(reply: Reply, verdict: Result<Verdict, PluginFailure>) {
    if reply.send(verdict).is_err() {
        ::log::debug!("a verdict came too late");
    }
}

pub(super) fn failure(error: &capnp::Error) -> PluginFailure {
    if error.kind == capnp::ErrorKind::Disconnected {
        return PluginFailure::Gone;
    }
    let mut text = error.to_string();
    text.retain(|c| !c.is_control());
    while text.len() > PLUGIN_REASON_BYTES_MAX {
        text.pop();
    }
    PluginFailure::Failed(text)
}

/// What is registered with the broker.
#[derive(Debug)]
pub(super) struct RemotePlugin(pub(super) Rc<Remote>);

impl Plugin for RemotePlugin {
    fn decide(&self, notification: Rc<Notification>, target: Target) -> Decision {
        Box::pin(Rc::clone(&self.0).decide(notification, target))
    }
}
