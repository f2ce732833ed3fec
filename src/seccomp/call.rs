//! One call, from its notification to its answer. It is answered whatever
//! happens: a call that is forgotten would be a thread that hangs.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::process::Signal;
use tokio::time::{Instant, timeout_at};

use super::broker::Broker;
use super::foreign::ForeignFd;
use super::live::Live;
use super::notification::Notification;
use super::plugin::PluginFailure;
use super::route::{RegistrationId, Route};
use super::select::Call;
use super::tap::Outcome;
use super::target::{HeldCall, OpenCall, Target, TargetError};
use super::verdict::{Verdict, VerdictKind};
use crate::sys::seccomp as kernel;

/// A call that has been received and not answered.
#[derive(Debug)]
pub(super) struct Pending {
    broker: Rc<Broker>,
    pub(super) live: Rc<Live>,
    pub(super) received: kernel::Call,
    pub(super) began: Instant,
    /// Since when it is the turn of who is being asked, or of the default.
    pub(super) turn: Cell<Instant>,
    is_settled: bool,
    /// Who is being asked.
    asked: RefCell<Option<Rc<Route>>>,
    /// Plugins that failed at it: a rule that needs one of them does not decide.
    failed: RefCell<Vec<Rc<str>>>,
    /// Whether its id is among the open ones of its listener.
    is_listed: bool,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_settled {
            // Interrupted meanwhile, a panic, or the end of the listener or the broker.
            let outcome = self.refuse(libc::ENOSYS);
            if outcome != Outcome::Interrupted {
                ::log::error!("a call of {} was given up", self.live.session.container);
            }
            self.broker.settled(self, VerdictKind::Errno, self.asked.take().as_ref(), outcome);
        }
        if self.is_listed {
            self.live.open.borrow_mut().remove(self.received.id, self.received.tid);
            self.broker.closed(&self.live);
        }
    }
}

impl Pending {
    pub(super) fn new(broker: &Rc<Broker>, live: &Rc<Live>, received: kernel::Call, began: Instant) -> Self {
        Self {
            broker: Rc::clone(broker),
            live: Rc::clone(live),
            received,
            began,
            turn: Cell::new(began),
            is_settled: false,
            asked: RefCell::default(),
            failed: RefCell::default(),
            is_listed: false,
        }
    }

    pub(super) fn call(&self) -> Call {
        Call { arch: self.received.arch, syscall: self.received.syscall, args: self.received.args }
    }

    pub(super) fn notification(&self) -> Rc<Notification> {
        let session = &self.live.session;
        Rc::new(Notification {
            id: self.received.id,
            session: session.id,
            tid: self.received.tid,
            container: Rc::clone(&session.container),
            metadata: Rc::clone(&session.metadata),
            syscall: self.received.syscall,
            name: self.broker.name(self.received.arch, self.received.syscall),
            arch: self.received.arch,
            instruction_pointer: self.received.instruction_pointer,
            args: self.received.args,
        })
    }

    /// Counts what `route` has said. It is the next one's turn.
    pub(super) fn said(&self, route: &Route, verdict: &Verdict) {
        let now = Instant::now();
        let took = now - self.turn.replace(now);
        route.counters.said(self.received.arch, self.received.syscall, verdict.kind(), took);
    }

    /// Asks `routes` from position `from` on, in a task of its own.
    pub(super) fn decide(mut self, routes: Rc<[Rc<Route>]>, from: usize) {
        self.is_listed = true;
        self.broker.opened(&self.live);
        self.broker.check_from_time_to_time();
        let (live, kernel::Call { id, tid, .. }) = (Rc::clone(&self.live), self.received);
        let task = tokio::task::spawn_local(async move {
            match self.verdict(routes, from).await {
                (Verdict::AddFd { fd, at, close_on_exec }, route) => {
                    let how = kernel::AddFd { at, close_on_exec, is_answer: true };
                    // A task of its own: what is being given cannot be given up.
                    tokio::task::spawn_local(self.give(fd, how, route));
                }
                (verdict, route) => self.settle(verdict, route.as_ref()),
            }
        });
        live.open.borrow_mut().add(id, tid, task.abort_handle());
    }

    async fn verdict(&self, mut routes: Rc<[Rc<Route>]>, mut from: usize) -> (Verdict, Option<Rc<Route>>) {
        let open = Rc::new(HeldCall::from(self.open_call()));
        let notification = self.notification();
        let mut asked: Vec<RegistrationId> = Vec::new();
        let mut waited = false;
        loop {
            for route in routes.iter().skip(from).filter(|route| route.matcher.call(&self.call())) {
                if asked.contains(&route.id) || !self.has_needs(route) {
                    continue;
                }
                asked.push(route.id);
                self.asked.replace(Some(Rc::clone(route)));
                if waited {
                    // The time in which there was nobody to ask is not its own.
                    self.turn.set(Instant::now());
                }
                match self.ask(route, &notification, &open).await {
                    Verdict::Pass => {}
                    verdict => return (verdict, Some(Rc::clone(route))),
                }
            }
            self.asked.take();
            // Before the answer, so that a registration in between is not missed.
            let moved = self.broker.moved.notified();
            match self.broker.left_over(Instant::now()) {
                Ok(verdict) => return (verdict, None),
                // Too late is all right: the next turn finds out.
                Err(until) => drop(timeout_at(until, moved).await),
            }
            waited = true;
            (routes, from) = (self.broker.routes(&self.live), 0);
        }
    }

    /// Whether all plugins that `route` needs are there still, and had their say.
    fn has_needs(&self, route: &Route) -> bool {
        let failed = self.failed.borrow();
        route.has_needs.get() && !route.needs.iter().any(|name| failed.iter().any(|other| **other == **name))
    }

    /// One plugin's verdict, or what its failure leads to.
    async fn ask(&self, route: &Rc<Route>, notification: &Rc<Notification>, open: &Rc<HeldCall>) -> Verdict {
        let at_once = route.plugin.at_once(&self.live.session, &self.call());
        let verdict = match at_once {
            Some(verdict) => route.check(verdict),
            None if route.is_plugin && !self.can_be_given().await => Ok(Verdict::Errno(libc::EMFILE)),
            None => {
                let target = Target::new(open, &notification.container, self.broker.workers.clone());
                route.ask(Rc::clone(notification), target).await
            }
        };
        let policy = route.registration.on_failure;
        if verdict.is_err() {
            self.failed.borrow_mut().push(Rc::clone(&route.name));
        }
        let verdict = match verdict {
            Ok(verdict) => verdict,
            // It was not asked, and so took no time that could be counted.
            Err(PluginFailure::Suspended) => return policy.verdict(),
            Err(failure) => {
                let (name, call, container) = (&route.name, notification.call(), &notification.container);
                if route.counters.is_to_be_told(container, Instant::now()) {
                    ::log::warn!("seccomp plugin {name}, {call} of {container}: {failure}; doing {policy:?}");
                }
                policy.verdict()
            }
        };
        self.said(route, &verdict);
        verdict
    }

    /// Whether what a plugin gives to the target can be closed again.
    async fn can_be_given(&self) -> bool {
        if self.live.held.closer.has_room() {
            return true;
        }
        let closer = self.live.held.closer.clone();
        let container = &self.live.session.container;
        self.broker.workers.run(container, move || closer.wait_for_room()).await.unwrap_or(false)
    }

    /// Carries `verdict` out.
    pub(super) fn settle(mut self, verdict: Verdict, route: Option<&Rc<Route>>) {
        self.is_settled = true;
        let kind = verdict.kind();
        let outcome = self.send(verdict);
        self.broker.settled(&self, kind, route, outcome);
    }

    fn send(&self, verdict: Verdict) -> Outcome {
        let outcome = Outcome::of(&verdict);
        let answer = match verdict {
            Verdict::Return(value) => kernel::Answer::Return(value),
            Verdict::Errno(errno) => kernel::Answer::Errno(errno),
            Verdict::Continue => kernel::Answer::Continue,
            // Nobody settles with these; if somebody did, the call must not hang.
            Verdict::Pass | Verdict::AddFd { .. } => return self.refuse(libc::ENOSYS),
            Verdict::Kill => return self.kill(),
        };
        match kernel::answer(self.live.listener.as_fd(), self.received.id, answer) {
            Ok(()) => outcome,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Outcome::Interrupted,
            Err(error) => {
                ::log::error!("cannot answer a call of {}: {error}", self.live.session.container);
                self.refuse(libc::ENOSYS)
            }
        }
    }

    /// Gives the target `fd`, which waits until its thread has run.
    async fn give(mut self, fd: ForeignFd, how: kernel::AddFd, route: Option<Rc<Route>>) {
        // A file of the container's: that its close(2) hangs is to hold up nobody's but its own.
        let fd = fd.closed_by(&self.live.held.closer);
        let (listener, id) = (Arc::clone(&self.live.listener), self.received.id);
        let job = move || kernel::add_fd(listener.as_fd(), id, fd.as_fd(), how);
        let added = self.broker.givers.run(&self.live.session.container, job).await;
        let outcome = match added.and_then(|added| added) {
            Ok(number) => Outcome::GaveFd(number),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Outcome::Interrupted,
            // It has no number left, or may not have that one: what open(2) would say.
            Err(error) => self.refuse(error.raw_os_error().unwrap_or(libc::EMFILE)),
        };
        self.is_settled = true;
        self.broker.settled(&self, VerdictKind::AddFd, route.as_ref(), outcome);
    }

    fn open_call(&self) -> OpenCall {
        OpenCall {
            listener: Arc::downgrade(&self.live.listener),
            id: self.received.id,
            tid: self.received.tid,
            closer: self.live.held.closer.clone(),
        }
    }

    fn refuse(&self, errno: i32) -> Outcome {
        let refused = kernel::Answer::Errno(errno);
        match kernel::answer(self.live.listener.as_fd(), self.received.id, refused) {
            Ok(()) => Outcome::Failed(errno),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Outcome::Interrupted,
            Err(error) => {
                ::log::error!("cannot answer a call of {}: {error}", self.live.session.container);
                Outcome::Failed(errno)
            }
        }
    }

    fn kill(&self) -> Outcome {
        let killed = self.open_call().pidfd().and_then(|pidfd| {
            // To a thread it is to its process all the same: SIGKILL ends all of it (signal(7)).
            let sent = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            sent.map_err(|errno| TargetError::Io { doing: "kill the process", source: errno.into() })
        });
        match killed {
            Ok(()) => Outcome::Killed,
            Err(TargetError::Gone) => Outcome::Interrupted,
            Err(error) => {
                ::log::error!("{error}; a call of {} fails instead", self.live.session.container);
                self.refuse(libc::EPERM)
            }
        }
    }
}
