//! `SeccompControl`: what the engine and people ask the broker.
//!
//! The broker lives on a thread of its own. What it is asked for is written there,
//! as a message, and copied into the answer here.

use std::rc::Rc;

use capnp::message::{Builder, HeapAllocator};
use tokio::sync::mpsc;

use crate::monitor::error::Error;
use crate::monitor::seccomp::Seccomp;
use crate::rpc::convert::{refuse, text};
use crate::rpc::plugin::translate::{selector, set_session};
use crate::rpc::plugin::watch::{Wanted, Watch};
use crate::rpc::schema::podinit_capnp as wire;
use crate::seccomp::Broker;
use crate::seccomp::broker::Listed;
use crate::seccomp::recording::Recorded;
use crate::seccomp::rules::Rules;
use crate::seccomp::select::Selector;
use crate::seccomp::stats::{Entry, Stats};
use crate::seccomp::syscall::Architecture;
use crate::seccomp::verdict::OnFailure;

/// A message that was written on the broker's thread.
type Message = Builder<HeapAllocator>;

/// The broker's control.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) seccomp: Rc<Seccomp>,
}

fn over() -> capnp::Error {
    refuse(&Error::Internal("the thread of seccomp's broker has ended"))
}

impl Control {
    /// Has the broker write an answer. Without a broker the answer is empty.
    async fn written(
        &self,
        write: impl FnOnce(&Rc<Broker>, &mut Message) + Send + 'static,
    ) -> Result<Message, capnp::Error> {
        let Some(handle) = self.seccomp.handle() else { return Ok(Message::new_default()) };
        let written = handle.ask(move |broker| {
            let mut message = Message::new_default();
            write(broker, &mut message);
            message
        });
        written.await.ok_or_else(over)
    }
}

impl wire::seccomp_control::Server for Control {
    async fn sessions(
        self: Rc<Self>,
        _: wire::seccomp_control::SessionsParams,
        mut results: wire::seccomp_control::SessionsResults,
    ) -> Result<(), capnp::Error> {
        let message = self.written(|broker, message| {
            let sessions = broker.sessions();
            let count = u32::try_from(sessions.len()).unwrap_or(u32::MAX);
            let root: wire::seccomp_control::sessions_results::Builder<'_> = message.init_root();
            let mut list = root.init_sessions(count);
            for (index, session) in (0..count).zip(&sessions) {
                set_session(list.reborrow().get(index), session);
            }
        });
        let message = message.await?;
        results.set(message.get_root_as_reader()?)
    }

    async fn plugins(
        self: Rc<Self>,
        _: wire::seccomp_control::PluginsParams,
        mut results: wire::seccomp_control::PluginsResults,
    ) -> Result<(), capnp::Error> {
        let message = self.written(|broker, message| {
            let listed = broker.registrations();
            let count = number(listed.len());
            let root: wire::seccomp_control::plugins_results::Builder<'_> = message.init_root();
            let mut list = root.init_plugins(count);
            for (index, Listed { registration, missing }) in (0..count).zip(&listed) {
                let mut to = list.reborrow().get(index);
                to.set_name(&registration.name);
                to.set_priority(registration.priority);
                to.set_deadline_ms(u32::try_from(registration.deadline.as_millis()).unwrap_or(u32::MAX));
                to.set_on_failure(&*on_failure(registration.on_failure));
                let mut names = to.init_missing(number(missing.len()));
                for (index, name) in (0..).zip(missing) {
                    names.set(index, name);
                }
            }
        });
        let message = message.await?;
        results.set(message.get_root_as_reader()?)
    }

    async fn stats(
        self: Rc<Self>,
        _: wire::seccomp_control::StatsParams,
        mut results: wire::seccomp_control::StatsResults,
    ) -> Result<(), capnp::Error> {
        let Some(handle) = self.seccomp.handle() else { return Ok(()) };
        let stats = handle.ask(|broker| broker.stats()).await.ok_or_else(over)?;
        set_stats(results.get().init_stats(), &stats);
        Ok(())
    }

    async fn trace(
        self: Rc<Self>,
        params: wire::seccomp_control::TraceParams,
        mut results: wire::seccomp_control::TraceResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let wanted = Wanted { decode: params.get_decode(), reads: Vec::new() };
        let selector = selector(params.get_selector()?).map_err(|error| refuse(&error))?;
        let listener = params.get_listener()?;
        // A trace may begin before the container does.
        let handle = self.seccomp.started().map_err(|error| refuse(&error))?;
        let begun = handle.ask(move |broker| begin_trace(broker, selector, wanted)).await;
        let messages = begun.ok_or_else(over)?.map_err(|reason| refuse(&Error::Invalid(reason)))?;
        let task = tokio::task::spawn_local(async move {
            if let Err(error) = forward(messages, &listener).await {
                ::log::debug!("nobody listens to a trace any more: {error}");
            }
        });
        let subscription: wire::subscription::Client = capnp_rpc::new_client(Subscription(task));
        results.get().set_subscription(subscription);
        Ok(())
    }

    async fn profile(
        self: Rc<Self>,
        params: wire::seccomp_control::ProfileParams,
        mut results: wire::seccomp_control::ProfileResults,
    ) -> Result<(), capnp::Error> {
        let id = text(params.get()?.get_container_id()?, "containerId").map_err(|error| refuse(&error))?;
        let nothing =
            format!("nothing was recorded of container {id}: no rule with the action `record` met it");
        let recorded = match self.seccomp.handle() {
            None => None,
            Some(handle) => {
                let recordings = handle.ask(move |broker| broker.recordings.list(Some(&id)));
                recordings.await.ok_or_else(over)?.into_iter().next()
            }
        };
        let recorded = recorded.ok_or_else(|| capnp::Error::failed(format!("not-found: {nothing}")))?;
        results.get().set_profile(&*recorded.profile().to_string());
        let mut list = results.get().init_calls(number(recorded.calls.len()));
        for (index, call) in (0..list.len()).zip(&recorded.calls) {
            set_recorded(list.reborrow().get(index), call);
        }
        Ok(())
    }

    async fn load_rules(
        self: Rc<Self>,
        params: wire::seccomp_control::LoadRulesParams,
        _: wire::seccomp_control::LoadRulesResults,
    ) -> Result<(), capnp::Error> {
        let invalid = |reason: String| refuse(&Error::Invalid(reason));
        let rules = Rules::parse(params.get()?.get_rules()?.as_bytes());
        let rules = rules.map_err(|error| invalid(error.to_string()))?;
        // Rules may come before the first container that they are for.
        let handle = self.seccomp.started().map_err(|error| refuse(&error))?;
        let set = handle.ask(move |broker| broker.set_rules(&rules)).await.ok_or_else(over)?;
        set.map_err(|error| invalid(error.to_string()))
    }
}

/// Starts to look on, on the broker's thread; messages come as they are taken.
fn begin_trace(
    broker: &Rc<Broker>,
    selector: Selector,
    wanted: Wanted,
) -> Result<mpsc::Receiver<Message>, String> {
    let mut watch = Watch::begin(broker, "trace", selector, wanted).map_err(|error| error.to_string())?;
    // One waits, one is under way: the rest waits where it is counted when it is lost.
    let (sender, receiver) = mpsc::channel(1);
    tokio::task::spawn_local(async move {
        loop {
            let seen = tokio::select! {
                seen = watch.next() => seen,
                () = sender.closed() => return,
            };
            let Some(seen) = seen else { return };
            let mut message = Message::new_default();
            let mut root: wire::seccomp_trace_listener::records_params::Builder<'_> = message.init_root();
            root.set_lost(seen.lost);
            seen.fill(root.init_records(seen.count()));
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

async fn forward(
    mut messages: mpsc::Receiver<Message>,
    listener: &wire::seccomp_trace_listener::Client,
) -> Result<(), capnp::Error> {
    while let Some(message) = messages.recv().await {
        let mut request = listener.records_request();
        request.set(message.get_root_as_reader()?)?;
        request.send().promise.await?;
    }
    Ok(())
}

/// Ends the trace when the client drops its capability or is gone.
struct Subscription(tokio::task::JoinHandle<()>);

impl wire::subscription::Server for Subscription {}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn on_failure(policy: OnFailure) -> String {
    match policy {
        OnFailure::Errno(number) => format!("errno:{number}"),
        OnFailure::Continue => "continue".into(),
        OnFailure::Kill => "kill".into(),
        OnFailure::Next => "next".into(),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn set_recorded(mut to: wire::seccomp_recorded::Builder<'_>, call: &Recorded) {
    to.set_name(call.name.as_deref().unwrap_or_default());
    to.set_number(call.syscall);
    if let Some(architecture) = Architecture::of(call.arch, call.syscall) {
        to.set_architecture(architecture.as_str());
    }
    to.set_count(call.count);
}

fn set_stats(mut to: wire::seccomp_stats::Builder<'_>, stats: &Stats) {
    to.set_received(stats.received);
    to.set_answered(stats.answered);
    to.set_interrupted(stats.interrupted);
    to.set_gone(stats.gone);
    to.set_open(number(stats.open));
    to.set_sessions(number(stats.sessions));
    let count = number(stats.plugins.len());
    let mut list = to.reborrow().init_plugins(count);
    for (index, plugin) in (0..count).zip(&stats.plugins) {
        let mut to = list.reborrow().get(index);
        to.set_name(&plugin.name);
        to.set_registrations(number(plugin.registrations));
        to.set_timeouts(plugin.time_outs);
        to.set_failures(plugin.failures);
        to.set_suspended(plugin.suspended);
        to.set_interrupted(plugin.interrupted);
    }
    set_rows(to.reborrow().init_rows(number(stats.entries.len())), &stats.entries);
    set_rows(to.init_calls(number(stats.calls.len())), &stats.calls);
}

fn set_rows(mut to: capnp::struct_list::Builder<'_, wire::seccomp_stats::row::Owned>, entries: &[Entry]) {
    for (index, entry) in (0..to.len()).zip(entries) {
        set_row(to.reborrow().get(index), entry);
    }
}

fn set_row(mut to: wire::seccomp_stats::row::Builder<'_>, entry: &Entry) {
    to.set_plugin(&entry.plugin);
    to.set_syscall(&entry.syscall);
    // x32's calls are told from x86_64's by their numbers, which are names here.
    if let Some(architecture) = Architecture::of(entry.arch, 0) {
        to.set_architecture(architecture.as_str());
    }
    to.set_verdict(entry.verdict.as_str());
    let classes = &entry.histogram.counts;
    let mut histogram = to.init_histogram(number(classes.len()));
    for (index, count) in (0..).zip(classes) {
        histogram.set(index, *count);
    }
}
