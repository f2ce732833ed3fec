//! Asking a pod's seccomp broker.

use std::rc::Rc;

use tokio::sync::mpsc;

use super::{Error, PodClient};
use crate::rpc::plugin::client::{Record, Selector, Session, fill_selector, read_record, read_session};
use crate::rpc::schema::podinit_capnp::{
    seccomp_control, seccomp_stats, seccomp_trace_listener, subscription,
};
use serde::Serialize;

/// Somebody who decides about notifications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeccompPlugin {
    /// The name it registered with.
    pub name: String,
    /// The lowest is asked first.
    pub priority: i32,
    /// Milliseconds for a verdict.
    pub deadline_ms: u32,
    /// `errno:<number>`, `continue`, `kill` or `next`.
    pub on_failure: String,
    /// Plugins that it needs, as a rule can, and that are not registered: it is passed over.
    pub missing: Vec<String>,
}

/// Calls that were recorded of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeccompRecorded {
    /// The system call's name; empty if it has none, and so is not in the profile.
    pub name: String,
    /// Its number.
    pub number: i32,
    /// As OCI profiles spell it; empty if it is not known.
    pub architecture: String,
    /// How often it was made.
    pub count: u64,
}

/// What the broker counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SeccompStats {
    /// Notifications, since the monitor's start.
    pub received: u64,
    /// Those that were answered.
    pub answered: u64,
    /// Those whose process was gone or interrupted before the answer.
    pub interrupted: u64,
    /// Those that were gone before they could be received.
    pub gone: u64,
    /// Those that wait now.
    pub open: u32,
    /// Listeners now.
    pub sessions: u32,
    /// Those that decide, by name.
    pub plugins: Vec<SeccompPluginCounters>,
    /// What each said who was asked, and how long it took from when it was asked.
    pub rows: Vec<SeccompRow>,
    /// What calls were answered, whoever decided, and how long they waited for it.
    pub calls: Vec<SeccompRow>,
}

/// What is counted of all that registered with one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeccompPluginCounters {
    /// The name.
    pub name: String,
    /// Registrations now.
    pub registrations: u32,
    /// Deadlines missed.
    pub timeouts: u64,
    /// It went away with a call in its hands, or gave a bad verdict.
    pub failures: u64,
    /// Calls that it was not asked about, because it had failed too often just before.
    pub suspended: u64,
    /// Calls that were interrupted while it had them, or before its verdict was carried out.
    pub interrupted: u64,
}

/// Verdicts of one kind, on one system call, by one who decides or by whomever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeccompRow {
    /// A name, or `default`; empty in [`SeccompStats::calls`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub plugin: String,
    /// The system call's name.
    pub syscall: String,
    /// As OCI profiles spell it: `SCMP_ARCH_X86_64`, …
    pub architecture: String,
    /// `return`, `errno`, `continue`, `addfd`, `kill` or `pass`.
    pub verdict: String,
    /// Entry n: those that took less than 2^n µs and are in no entry before.
    pub histogram: Vec<u64>,
}

impl SeccompRow {
    /// How many they are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.histogram.iter().sum()
    }

    /// The microseconds that `percent` of them took less than, exact to a factor of two.
    #[must_use]
    pub fn below_us(&self, percent: u64) -> u64 {
        let wanted = (self.total() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let class = self.histogram.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        class.and_then(|class| 1u64.checked_shl(u32::try_from(class).ok()?)).unwrap_or(0)
    }
}

/// What a trace brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// Calls that were answered.
    pub records: Vec<Record>,
    /// How many more there were, since the last time, that were lost.
    pub lost: u64,
}

/// A trace. Dropping it ends it.
pub struct Trace {
    receiver: mpsc::Receiver<Traced>,
    _subscription: subscription::Client,
    _client: PodClient,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").finish_non_exhaustive()
    }
}

impl Trace {
    /// What comes next; `None` when the server has gone away.
    pub async fn next(&mut self) -> Option<Traced> {
        self.receiver.recv().await
    }
}

struct Listener(mpsc::Sender<Traced>);

impl seccomp_trace_listener::Server for Listener {
    async fn records(
        self: Rc<Self>,
        params: seccomp_trace_listener::RecordsParams,
        _: seccomp_trace_listener::RecordsResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let records = params.get_records()?.iter().map(read_record).collect::<capnp::Result<_>>()?;
        let gone = |_| capnp::Error::disconnected("the listener has gone away".into());
        self.0.send(Traced { records, lost: params.get_lost() }).await.map_err(gone)
    }
}

fn text(reader: capnp::text::Reader<'_>) -> String {
    String::from_utf8_lossy(reader.as_bytes()).into_owned()
}

impl PodClient {
    fn seccomp(&self) -> seccomp_control::Client {
        self.pod.seccomp_request().send().pipeline.get_control()
    }

    /// `SeccompControl.sessions`: the listeners there are.
    ///
    /// # Errors
    /// As [`Self::list_containers`]; so for every method below.
    pub async fn seccomp_sessions(&self) -> Result<Vec<Session>, Error> {
        let answer = self.seccomp().sessions_request().send().promise.await?;
        let list = answer.get()?.get_sessions()?;
        Ok(list.iter().map(read_session).collect::<capnp::Result<_>>()?)
    }

    /// `SeccompControl.plugins`: those that decide, in the order in which they are asked.
    ///
    /// # Errors
    /// As [`Self::seccomp_sessions`].
    pub async fn seccomp_plugins(&self) -> Result<Vec<SeccompPlugin>, Error> {
        let answer = self.seccomp().plugins_request().send().promise.await?;
        let mut plugins = Vec::new();
        for plugin in answer.get()?.get_plugins()? {
            plugins.push(SeccompPlugin {
                name: text(plugin.get_name()?),
                priority: plugin.get_priority(),
                deadline_ms: plugin.get_deadline_ms(),
                on_failure: text(plugin.get_on_failure()?),
                missing: plugin
                    .get_missing()?
                    .iter()
                    .map(|name| Ok(text(name?)))
                    .collect::<capnp::Result<_>>()?,
            });
        }
        Ok(plugins)
    }

    /// `SeccompControl.stats`.
    ///
    /// # Errors
    /// As [`Self::seccomp_sessions`].
    pub async fn seccomp_stats(&self) -> Result<SeccompStats, Error> {
        let answer = self.seccomp().stats_request().send().promise.await?;
        Ok(read_stats(answer.get()?.get_stats()?)?)
    }

    /// `SeccompControl.trace`: what is decided about the calls that `selector`
    /// selects, from now on; with `decode`, what they point to.
    ///
    /// # Errors
    /// [`super::Code::InvalidArgument`] if the selector makes no sense.
    pub async fn seccomp_trace(&self, selector: &Selector, decode: bool) -> Result<Trace, Error> {
        let (sender, receiver) = mpsc::channel(1);
        let mut request = self.seccomp().trace_request();
        fill_selector(request.get().init_selector(), selector)?;
        request.get().set_listener(capnp_rpc::new_client(Listener(sender)));
        request.get().set_decode(decode);
        let answer = request.send().promise.await?;
        let subscription = answer.get()?.get_subscription()?;
        Ok(Trace { receiver, _subscription: subscription, _client: self.clone() })
    }

    /// `SeccompControl.profile`: a profile (JSON) that allows what was recorded of
    /// a container.
    ///
    /// # Errors
    /// [`super::Code::NotFound`] if nothing was.
    pub async fn seccomp_profile(&self, container: &str) -> Result<String, Error> {
        let mut request = self.seccomp().profile_request();
        request.get().set_container_id(container);
        let answer = request.send().promise.await?;
        Ok(text(answer.get()?.get_profile()?))
    }

    /// `SeccompControl.profile`: what that profile is made of.
    ///
    /// # Errors
    /// As [`Self::seccomp_profile`].
    pub async fn seccomp_recorded(&self, container: &str) -> Result<Vec<SeccompRecorded>, Error> {
        let mut request = self.seccomp().profile_request();
        request.get().set_container_id(container);
        let answer = request.send().promise.await?;
        let mut calls = Vec::new();
        for call in answer.get()?.get_calls()? {
            calls.push(SeccompRecorded {
                name: text(call.get_name()?),
                number: call.get_number(),
                architecture: text(call.get_architecture()?),
                count: call.get_count(),
            });
        }
        Ok(calls)
    }

    /// `SeccompControl.loadRules`: replaces the rules of the built-ins.
    ///
    /// # Errors
    /// [`super::Code::InvalidArgument`] says what is wrong with them.
    pub async fn seccomp_load_rules(&self, rules: &str) -> Result<(), Error> {
        let mut request = self.seccomp().load_rules_request();
        request.get().set_rules(rules);
        request.send().promise.await?;
        Ok(())
    }
}

fn read_stats(stats: seccomp_stats::Reader<'_>) -> capnp::Result<SeccompStats> {
    let plugin = |plugin: seccomp_stats::plugin::Reader<'_>| -> capnp::Result<_> {
        Ok(SeccompPluginCounters {
            name: text(plugin.get_name()?),
            registrations: plugin.get_registrations(),
            timeouts: plugin.get_timeouts(),
            failures: plugin.get_failures(),
            suspended: plugin.get_suspended(),
            interrupted: plugin.get_interrupted(),
        })
    };
    let row = |row: seccomp_stats::row::Reader<'_>| -> capnp::Result<_> {
        Ok(SeccompRow {
            plugin: text(row.get_plugin()?),
            syscall: text(row.get_syscall()?),
            architecture: text(row.get_architecture()?),
            verdict: text(row.get_verdict()?),
            histogram: row.get_histogram()?.iter().collect(),
        })
    };
    Ok(SeccompStats {
        received: stats.get_received(),
        answered: stats.get_answered(),
        interrupted: stats.get_interrupted(),
        gone: stats.get_gone(),
        open: stats.get_open(),
        sessions: stats.get_sessions(),
        plugins: stats.get_plugins()?.iter().map(plugin).collect::<capnp::Result<_>>()?,
        rows: stats.get_rows()?.iter().map(row).collect::<capnp::Result<_>>()?,
        calls: stats.get_calls()?.iter().map(row).collect::<capnp::Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_upper_bounds() {
        let row = |histogram: &[u64]| SeccompRow {
            plugin: "p".into(),
            syscall: "mkdir".into(),
            architecture: "x86_64".into(),
            verdict: "errno".into(),
            histogram: histogram.to_vec(),
        };
        assert_eq!(row(&[]).below_us(50), 0);
        assert_eq!(row(&[0, 0, 3]).below_us(50), 4);
        assert_eq!(row(&[98, 0, 0, 1, 1]).below_us(50), 1);
        assert_eq!(row(&[98, 0, 0, 1, 1]).below_us(99), 8);
    }
}
