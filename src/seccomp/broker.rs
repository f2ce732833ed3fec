//! The broker: who is asked about a call, in which order, and what it is told.
//!
//! ```text
//!  listener ── notification ──▶ rules and plugins by priority ── first verdict ──▶ answer
//!                                   │ a failure: its own policy       ▲
//!                                   └── nobody decides: the default ──┘
//! ```
//!
//! What can be decided at once is: on the spot, without a task. Everything else
//! is a task for each call, so that none waits for another's; a thread that waits
//! makes no other call, so calls of one thread stay in order.
//!
//! All that a successor would have to be handed is in [`State`], and in nothing
//! else: the listeners with the ids of their open calls. The rest comes to it
//! anew: rules are files, plugins register again, and statistics begin again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, broadcast, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::builtin;
use super::call::Pending;
use super::linger::Pace;
use super::live::Live;
use super::notification::{Session, SessionId};
use super::plugin::{Plugin, Registration};
use super::recording::Recordings;
use super::route::{RegistrationId, Route};
use super::rules::Rules;
use super::select::{Call, SelectError, Selector};
use super::stats::{Counters, PluginStats, Stats, count};
use super::syscall;
use super::tap::{self, Observation, Observer, Outcome, Tap};
use super::thread::StopRequest;
use super::verdict::{OnFailure, Verdict};
use super::worker::Workers;
use crate::limits::{
    SECCOMP_CALLS_MAX, SECCOMP_CHANGES_QUEUE_MAX, SECCOMP_CHECK_PERIOD, SECCOMP_CONTAINER_CALLS_MAX,
    SECCOMP_COUNTED_CALLS_MAX, SECCOMP_REGISTRATIONS_MAX, SECCOMP_SESSIONS_BYTES_MAX, SECCOMP_SESSIONS_MAX,
    SECCOMP_SWEEP_PAUSE, SECCOMP_SWEEP_TURN, SECCOMP_TAPS_MAX,
};
use crate::sys::seccomp as kernel;

/// Who decides where nobody else does, in statistics and observations.
pub const DEFAULT: &str = "default";

/// What happens to calls that nobody decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Their answer. [`OnFailure::Next`] is taken for `ENOSYS`.
    pub unmatched: OnFailure,
    /// How long, from the broker's start, they wait for the first plugin before
    /// they get it: plugins take a moment to connect.
    pub patience: Duration,
}

impl Default for Defaults {
    /// What the kernel does where there is no listener.
    fn default() -> Self {
        Self { unmatched: OnFailure::Errno(libc::ENOSYS), patience: Duration::from_secs(1) }
    }
}

/// A listener came or went.
#[derive(Debug, Clone)]
pub enum Change {
    /// This one came.
    Began(Rc<Session>),
    /// This one went.
    Ended(SessionId),
}

/// Somebody who decides.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its registration. Of the selector nothing is told.
    pub registration: Registration,
    /// Plugins that it needs and that are not registered: until they are, it is passed over.
    pub missing: Vec<String>,
}

/// Why somebody was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The selector makes no sense.
    #[error("the selector of {name:?} cannot be used: {source}")]
    Selector {
        /// Of which registration.
        name: String,
        /// Why.
        source: SelectError,
    },
    /// Too many.
    #[error("{name:?} is one registration too many; at most {SECCOMP_REGISTRATIONS_MAX} are taken")]
    TooMany {
        /// Of which registration.
        name: String,
    },
    /// Too many.
    #[error("one observer too many; at most {SECCOMP_TAPS_MAX} are taken")]
    TooManyObservers,
}

/// What a successor would have to know.
#[derive(Debug, Default)]
struct State {
    sessions: BTreeMap<SessionId, Rc<Live>>,
    /// What their descriptions take.
    bytes: usize,
    /// In the order in which they are asked.
    routes: Vec<Rc<Route>>,
    /// Changes with every change of `routes`.
    version: u64,
    /// The last number given to a session or registration.
    last: u64,
    /// Whether any plugin was ever registered.
    had_plugin: bool,
    defaults: Defaults,
}

impl State {
    /// Those of `needs` that are not registered.
    fn missing(&self, needs: &[String]) -> Vec<String> {
        let is_missing =
            |name: &&String| !self.routes.iter().any(|route| route.is_plugin && *route.name == ***name);
        needs.iter().filter(is_missing).cloned().collect()
    }

    /// Somebody came or went.
    fn changed(&mut self) {
        self.version += 1;
        for route in self.routes.iter().filter(|route| !route.needs.is_empty()) {
            route.has_needs.set(self.missing(&route.needs).is_empty());
        }
    }
}

/// Names of calls, by architecture and number.
type Names = HashMap<(u32, i32), Option<Rc<str>>>;

/// See the module.
#[derive(Debug)]
pub struct Broker {
    /// What the pod is called where no engine says.
    pub(super) pod: Rc<str>,
    state: RefCell<State>,
    taps: RefCell<Vec<Tap>>,
    names: RefCell<Names>,
    counters: RefCell<BTreeMap<String, Rc<Counters>>>,
    by_default: Rc<Counters>,
    /// Calls as a whole.
    calls: Counters,
    default_name: Rc<str>,
    rules: RefCell<Vec<Registered>>,
    /// Who takes listeners of one container only.
    pub(super) doors: RefCell<HashMap<String, AbortHandle>>,
    changes: broadcast::Sender<Change>,
    /// Told when a call has been answered or a registration has come.
    pub(super) moved: Notify,
    pub(super) workers: Workers,
    /// Of their own: memory that cannot be read shall not keep a verdict from anybody.
    pub(super) givers: Workers,
    is_checking: Cell<bool>,
    /// Held by who looks for calls that nobody waits for: one at a time.
    sweep: Mutex<()>,
    /// Where containers are ended.
    pub(super) stops: mpsc::UnboundedSender<StopRequest>,
    /// What the `record` built-in has seen.
    pub recordings: Rc<Recordings>,
    pub(super) open: Cell<usize>,
    pub(super) received: Cell<u64>,
    pub(super) answered: Cell<u64>,
    pub(super) interrupted: Cell<u64>,
    pub(super) gone: Cell<u64>,
    pub(super) pace: Pace,
    began: Instant,
}

/// A registration lasts as long as this.
#[derive(Debug)]
pub struct Registered {
    broker: Weak<Broker>,
    id: RegistrationId,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.upgrade() {
            broker.unregister(self.id);
        }
    }
}

impl Registered {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> RegistrationId {
        self.id
    }
}

impl Broker {
    /// A broker without listeners, of a pod that is called `pod` where no engine
    /// says what. Rules that end containers say so to `stops`.
    #[must_use]
    pub fn new(pod: &str, stops: mpsc::UnboundedSender<StopRequest>) -> Rc<Self> {
        Rc::new(Self {
            pod: pod.into(),
            state: RefCell::default(),
            taps: RefCell::default(),
            names: RefCell::default(),
            counters: RefCell::default(),
            by_default: Rc::default(),
            calls: Counters::default(),
            default_name: DEFAULT.into(),
            rules: RefCell::default(),
            doors: RefCell::default(),
            changes: broadcast::channel(SECCOMP_CHANGES_QUEUE_MAX).0,
            moved: Notify::new(),
            workers: Workers::default(),
            givers: Workers::default(),
            is_checking: Cell::new(false),
            sweep: Mutex::default(),
            recordings: Rc::default(),
            stops,
            open: Cell::new(0),
            received: Cell::new(0),
            answered: Cell::new(0),
            interrupted: Cell::new(0),
            gone: Cell::new(0),
            pace: Pace::default(),
            began: Instant::now(),
        })
    }

    /// Asks `plugin` from now on about what its registration selects, until what
    /// is returned is dropped.
    ///
    /// # Errors
    /// If the selector makes no sense, or there are too many already.
    pub fn register(
        self: &Rc<Self>,
        registration: Registration,
        plugin: Rc<dyn Plugin>,
    ) -> Result<Registered, RegisterError> {
        let plugins = self.state.borrow().routes.iter().filter(|route| route.is_plugin).count();
        if plugins >= SECCOMP_REGISTRATIONS_MAX {
            return Err(RegisterError::TooMany { name: registration.name });
        }
        let registered = self.add_route(registration, plugin, true, &[])?;
        self.state.borrow_mut().had_plugin = true;
        self.moved.notify_waiters();
        Ok(registered)
    }

    /// Asks rules instead of those that there were. What an earlier rule has begun,
    /// it ends.
    ///
    /// # Errors
    /// If one of them makes no sense; then the others are asked.
    pub fn set_rules(self: &Rc<Self>, rules: &Rules) -> Result<(), RegisterError> {
        // No call can be decided in between: nothing here waits.
        drop(self.rules.take());
        self.set_defaults(rules.defaults());
        let routes = rules.rules.iter().map(|rule| {
            self.add_route(rule.registration(), builtin::of(&rule.action, self), false, &rule.needs)
        });
        let (mut registered, mut refused) = (Vec::new(), Ok(()));
        for route in routes {
            match route {
                Ok(route) => registered.push(route),
                Err(error) => refused = Err(error),
            }
        }
        self.rules.replace(registered);
        refused
    }

    /// As [`Broker::register`], for what only looks at calls and passes them on:
    /// those that nobody wants go on waiting for the first plugin.
    ///
    /// # Errors
    /// If the selector makes no sense.
    pub fn look_at(
        self: &Rc<Self>,
        registration: Registration,
        plugin: Rc<dyn Plugin>,
    ) -> Result<Registered, RegisterError> {
        self.add_route(registration, plugin, false, &[])
    }

    fn add_route(
        self: &Rc<Self>,
        registration: Registration,
        plugin: Rc<dyn Plugin>,
        is_plugin: bool,
        needs: &[String],
    ) -> Result<Registered, RegisterError> {
        let name = registration.name.clone();
        let mut state = self.state.borrow_mut();
        state.last += 1;
        let id = RegistrationId(state.last);
        let route = Route::new(id, registration, plugin, self.counters_of(&name));
        let mut route = route.map_err(|source| RegisterError::Selector { name, source })?;
        route.is_plugin = is_plugin;
        route.needs = needs.to_vec();
        // Rules before plugins, wherever they came from first: to read rules again is to add them again.
        let place = |route: &Route| (route.registration.priority, route.is_plugin);
        let position = state.routes.partition_point(|other| place(other) <= place(&route));
        state.routes.insert(position, Rc::new(route));
        state.changed();
        Ok(Registered { broker: Rc::downgrade(self), id })
    }

    fn unregister(&self, id: RegistrationId) {
        let mut state = self.state.borrow_mut();
        let position = state.routes.iter().position(|route| route.id == id);
        let Some(route) = position.map(|position| state.routes.remove(position)) else { return };
        state.changed();
        drop(state);
        if route.is_plugin {
            route.withdraw();
        }
    }

    fn counters_of(&self, name: &str) -> Rc<Counters> {
        let mut counters = self.counters.borrow_mut();
        if let Some(known) = counters.get(name) {
            return Rc::clone(known);
        }
        // A plugin that comes again and again with another name is counted with its like.
        let name = if counters.len() >= 4 * SECCOMP_REGISTRATIONS_MAX { "others" } else { name };
        Rc::clone(counters.entry(name.to_owned()).or_default())
    }

    /// Looks on at calls that `selector` selects.
    ///
    /// # Errors
    /// If the selector makes no sense, or there are too many observers.
    pub fn observe(&self, selector: Selector) -> Result<Observer, RegisterError> {
        let refused = |source| RegisterError::Selector { name: "observer".to_owned(), source };
        let matcher = selector.compile().map_err(refused)?;
        let mut taps = self.taps.borrow_mut();
        taps.retain(Tap::is_open);
        if taps.len() >= SECCOMP_TAPS_MAX {
            return Err(RegisterError::TooManyObservers);
        }
        let (tap, observer) = tap::pair(matcher);
        taps.push(tap);
        Ok(observer)
    }

    /// The listeners there are.
    #[must_use]
    pub fn sessions(&self) -> Vec<Rc<Session>> {
        self.state.borrow().sessions.values().map(|live| Rc::clone(&live.session)).collect()
    }

    /// Is told of every change from now on. To know all: subscribe, then ask for
    /// [`Broker::sessions`]; and do both again after a `Lagged`.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// What happens to calls that nobody decides about, from now on.
    pub fn set_defaults(&self, defaults: Defaults) {
        self.state.borrow_mut().defaults = defaults;
        self.moved.notify_waiters();
    }

    /// Those that decide, in the order in which they are asked.
    #[must_use]
    pub fn registrations(&self) -> Vec<Listed> {
        let state = self.state.borrow();
        let listed = |route: &Rc<Route>| Listed {
            registration: route.registration.clone(),
            missing: state.missing(&route.needs),
        };
        state.routes.iter().map(listed).collect()
    }

    /// What is counted.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.state.borrow();
        let counters = self.counters.borrow();
        let registrations =
            |name: &str| state.routes.iter().filter(|route| route.registration.name == name).count();
        let plugins = counters.iter().map(|(name, counters)| PluginStats {
            name: name.clone(),
            registrations: registrations(name),
            time_outs: counters.time_outs.get(),
            failures: counters.failures.get(),
            suspended: counters.suspended.get(),
            interrupted: counters.interrupted.get(),
        });
        let entries = counters.iter().flat_map(|(name, counters)| counters.entries(name));
        Stats {
            received: self.received.get(),
            answered: self.answered.get(),
            interrupted: self.interrupted.get(),
            gone: self.gone.get(),
            open: self.open.get(),
            sessions: state.sessions.len(),
            plugins: plugins.collect(),
            entries: entries.chain(self.by_default.entries(DEFAULT)).collect(),
            calls: self.calls.entries(""),
        }
    }

    /// Takes a listener. `describe` gets the session's number.
    ///
    /// # Errors
    /// Gives the listener back if there are too many, or as many of its container as
    /// are left for all.
    pub(super) fn begin(
        &self,
        listener: OwnedFd,
        describe: impl FnOnce(SessionId) -> Session,
    ) -> Result<Rc<Live>, OwnedFd> {
        let mut state = self.state.borrow_mut();
        state.last += 1;
        let session = Rc::new(describe(SessionId(state.last)));
        let of_same = state.sessions.values().find(|live| live.session.container == session.container);
        let held = of_same.map(|live| Rc::clone(&live.held)).unwrap_or_default();
        let (sessions, bytes) = (held.sessions.get() + 1, held.bytes.get().saturating_add(session.bytes()));
        if sessions > SECCOMP_SESSIONS_MAX.saturating_sub(state.sessions.len())
            || bytes > SECCOMP_SESSIONS_BYTES_MAX.saturating_sub(state.bytes)
        {
            return Err(listener);
        }
        held.sessions.set(sessions);
        held.bytes.set(bytes);
        state.bytes += session.bytes();
        let live = Rc::new(Live {
            session: Rc::clone(&session),
            listener: Arc::new(listener),
            held,
            open: RefCell::default(),
            // No version is this one, so the first call makes the list.
            routes: RefCell::new((u64::MAX, Rc::from([]))),
        });
        state.sessions.insert(session.id, Rc::clone(&live));
        drop(state);
        self.tell(Change::Began(session));
        Ok(live)
    }

    /// Lets a listener go whose last process has ended.
    pub(super) fn end(&self, live: &Live) {
        let mut state = self.state.borrow_mut();
        if state.sessions.remove(&live.session.id).is_some() {
            let (held, bytes) = (&live.held, live.session.bytes());
            state.bytes = state.bytes.saturating_sub(bytes);
            held.bytes.set(held.bytes.get().saturating_sub(bytes));
            held.sessions.set(held.sessions.get().saturating_sub(1));
        }
        drop(state);
        live.open.borrow().give_up_all();
        self.pace.forget(live);
        self.tell(Change::Ended(live.session.id));
    }

    fn tell(&self, change: Change) {
        if self.changes.send(change).is_err() {
            ::log::trace!("nobody asked to be told of seccomp sessions");
        }
    }

    /// Who can want calls of `live`, in order.
    pub(super) fn routes(&self, live: &Live) -> Rc<[Rc<Route>]> {
        let state = self.state.borrow();
        let mut routes = live.routes.borrow_mut();
        if routes.0 != state.version {
            let is_wanted =
                |route: &&Rc<Route>| route.has_needs.get() && route.matcher.session(&live.session);
            let wanted = state.routes.iter().filter(is_wanted);
            *routes = (state.version, wanted.cloned().collect());
        }
        Rc::clone(&routes.1)
    }

    /// Whether another call of `live` can be received: while its container has fewer
    /// than are free, and always if it has none.
    pub(super) fn has_room(&self, live: &Live) -> bool {
        let free = SECCOMP_CALLS_MAX.saturating_sub(self.open.get());
        live.held.calls.get() < free.clamp(1, SECCOMP_CONTAINER_CALLS_MAX)
    }

    /// A call of `live` waits from now on.
    pub(super) fn opened(&self, live: &Live) {
        self.open.set(self.open.get() + 1);
        live.held.calls.set(live.held.calls.get() + 1);
    }

    /// One of `live` waits no more.
    pub(super) fn closed(&self, live: &Live) {
        self.open.set(self.open.get().saturating_sub(1));
        live.held.calls.set(live.held.calls.get().saturating_sub(1));
        self.moved.notify_waiters();
    }

    /// Gives up calls of `lives` whose threads do not wait any more: the kernel does not
    /// tell. It looks for each among all of its listener's, so that 1024 take some 10 ms:
    /// everything else has its turn in between.
    pub(super) async fn sweep(&self, lives: Vec<Weak<Live>>) {
        let _one_at_a_time = self.sweep.lock().await;
        let mut until = Instant::now() + SECCOMP_SWEEP_TURN;
        for live in lives {
            let ids = live.upgrade().map(|live| live.open.borrow().ids());
            for id in ids.unwrap_or_default() {
                // Not kept over a pause: a listener whose session ends has to be closed.
                let Some(live) = live.upgrade() else { break };
                if matches!(kernel::is_waiting(live.listener.as_fd(), id), Ok(false)) {
                    live.open.borrow().give_up(id);
                }
                drop(live);
                if Instant::now() >= until {
                    tokio::time::sleep(SECCOMP_SWEEP_PAUSE).await;
                    until = Instant::now() + SECCOMP_SWEEP_TURN;
                }
            }
        }
    }

    /// Looks from time to time for calls that nobody waits for, while there are any
    /// that wait.
    pub(super) fn check_from_time_to_time(self: &Rc<Self>) {
        if self.is_checking.replace(true) {
            return;
        }
        let broker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SECCOMP_CHECK_PERIOD).await;
                if broker.open.get() == 0 {
                    break;
                }
                let lives = broker.state.borrow().sessions.values().map(Rc::downgrade).collect();
                broker.sweep(lives).await;
            }
            broker.is_checking.set(false);
        });
    }

    /// Decides about a call, now or in a task.
    pub(super) fn notified(self: &Rc<Self>, live: &Rc<Live>, received: kernel::Call) {
        count(&self.received);
        let began = Instant::now();
        self.pace.called(live, began);
        let call = Call { arch: received.arch, syscall: received.syscall, args: received.args };
        let pending = Pending::new(self, live, received, began);
        let routes = self.routes(live);
        for (position, route) in routes.iter().enumerate() {
            if !route.matcher.call(&call) {
                continue;
            }
            match route.plugin.at_once(&live.session, &call).map(|verdict| route.check(verdict)) {
                Some(Ok(verdict)) => {
                    pending.said(route, &verdict);
                    if !matches!(verdict, Verdict::Pass) {
                        return pending.settle(verdict, Some(route));
                    }
                }
                Some(Err(_)) | None => {
                    pending.decide(routes, position);
                    return;
                }
            }
        }
        match self.left_over(began) {
            Ok(verdict) => pending.settle(verdict, None),
            Err(_until) => pending.decide(Rc::clone(&routes), routes.len()),
        }
    }

    /// The answer for a call that nobody has decided about by `now`, or until when
    /// it waits for the first plugin.
    pub(super) fn left_over(&self, now: Instant) -> Result<Verdict, Instant> {
        let state = self.state.borrow();
        let until = self.began + state.defaults.patience;
        if !state.had_plugin && now < until {
            return Err(until);
        }
        Ok(match state.defaults.unmatched {
            OnFailure::Next => Verdict::Errno(libc::ENOSYS),
            unmatched => unmatched.verdict(),
        })
    }

    /// A call's name.
    pub(super) fn name(&self, arch: u32, syscall: i32) -> Option<Rc<str>> {
        let mut names = self.names.borrow_mut();
        if let Some(known) = names.get(&(arch, syscall)) {
            return known.clone();
        }
        let name = syscall::name(arch, syscall).map(Rc::from);
        // Programs can make numbers up.
        if names.len() < SECCOMP_COUNTED_CALLS_MAX {
            names.insert((arch, syscall), name.clone());
        }
        name
    }

    /// Counts and shows what became of a call.
    pub(super) fn settled(
        &self,
        pending: &Pending,
        verdict: super::verdict::VerdictKind,
        route: Option<&Rc<Route>>,
        outcome: Outcome,
    ) {
        let now = Instant::now();
        let took = now - pending.began;
        let kernel::Call { arch, syscall, .. } = pending.received;
        if outcome == Outcome::Interrupted {
            count(&self.interrupted);
            if let Some(route) = route {
                count(&route.counters.interrupted);
            }
        } else {
            count(&self.answered);
            self.calls.said(arch, syscall, verdict, took);
            if route.is_none() {
                self.by_default.said(arch, syscall, verdict, now - pending.turn.get());
            }
        }
        if self.taps.borrow().is_empty() {
            return;
        }
        let call = pending.call();
        let session = &pending.live.session;
        let mut observation = None;
        for tap in self.taps.borrow().iter().filter(|tap| tap.wants(session, &call)) {
            tap.show(observation.get_or_insert_with(|| {
                Rc::new(Observation {
                    notification: pending.notification(),
                    session: Rc::clone(session),
                    by: Rc::clone(route.map_or(&self.default_name, |route| &route.name)),
                    outcome,
                    took,
                })
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::select::tests::session;

    /// Not a listener: nothing is asked of it here.
    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn broker() -> Rc<Broker> {
        Broker::new("p", mpsc::unbounded_channel().0)
    }

    #[test]
    fn descriptions_have_a_bound_together_and_what_ends_makes_room() {
        let broker = broker();
        let big = "x".repeat(SECCOMP_SESSIONS_BYTES_MAX / 4 - 100);
        let begin = |container| broker.begin(fd(), |id| Session { id, ..session(container, &big) });
        let (first, _second) = (begin("c").unwrap(), begin("c").unwrap());
        // There is as much left, but not for who has as much.
        begin("c").unwrap_err();
        begin("another").unwrap();
        begin("another").unwrap_err();
        broker.end(&first);
        // Twice is once.
        broker.end(&first);
        begin("c").unwrap();
        begin("c").unwrap_err();
        assert_eq!(broker.sessions().len(), 3);
    }

    #[test]
    fn a_container_has_at_most_as_many_listeners_as_are_left_for_others() {
        let broker = broker();
        let begin = |container| broker.begin(fd(), |id| Session { id, ..session(container, "") });
        let first = begin("c").unwrap();
        // As if it had all but two of them.
        first.held.sessions.set(SECCOMP_SESSIONS_MAX - 2);
        let second = begin("c").unwrap();
        begin("c").unwrap_err();
        begin("another").unwrap();
        broker.end(&second);
        begin("c").unwrap_err();
        broker.end(&first);
        begin("c").unwrap();
    }

    #[test]
    fn a_container_without_calls_has_room_whatever_the_others_have() {
        let broker = broker();
        let begin =
            |container: &str| broker.begin(fd(), |id| Session { id, ..session(container, "") }).unwrap();
        let fill = |live: &Live| {
            while broker.has_room(live) {
                broker.opened(live);
            }
            live.held.calls.get()
        };
        for number in 0..7 {
            let (one, exec) = (begin(&number.to_string()), begin(&number.to_string()));
            assert_eq!(fill(&one), SECCOMP_CONTAINER_CALLS_MAX);
            assert!(!broker.has_room(&exec), "all of a container's together");
        }
        assert_eq!(fill(&begin("half")), SECCOMP_CONTAINER_CALLS_MAX / 2);
        let rest = begin("rest");
        while broker.open.get() < SECCOMP_CALLS_MAX {
            broker.opened(&rest);
        }
        let (late, another) = (begin("late"), begin("another"));
        assert!(broker.has_room(&late) && broker.has_room(&another));
        broker.opened(&late);
        assert!(!broker.has_room(&late) && broker.has_room(&another));
        broker.closed(&late);
        assert!(broker.has_room(&late));
    }
}
