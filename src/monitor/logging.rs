//! What is asked of containers' logs while they run: limits, and what the relay
//! tells by itself.

use std::rc::Rc;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::monitor::container::Container;
use crate::monitor::error::Error;
use crate::monitor::event::Happening;
use crate::monitor::exit::publish;
use crate::monitor::id::ContainerId;
use crate::monitor::log::limit::{LogLimits, Rate};
use crate::monitor::relay::{Notice, Relay, RelayError, StreamId};
use crate::monitor::{Monitor, Slot, ask};

/// The pod's total, in the run directory, for the next monitor.
pub(super) const TOTAL_FILE: &str = "log-total.json";

/// What the relay tells, and about which stream.
pub(super) type Notices = UnboundedReceiver<(StreamId, Notice)>;

/// A relay, and what it will tell.
pub(super) fn relay() -> Result<(Relay, Notices), RelayError> {
    // Bounded by what tells: a notice per container in ten seconds, and one per failure.
    let (sender, notices) = tokio::sync::mpsc::unbounded_channel();
    let tell = move |stream, notice| {
        if sender.send((stream, notice)).is_err() {
            ::log::debug!("nobody hears the relay any more");
        }
    };
    Ok((Relay::start_telling(Box::new(tell))?, notices))
}

impl Monitor {
    /// Makes events of what the relay tells.
    pub(super) fn hear_relay(self: &Rc<Self>) {
        let Some(mut notices) = self.notices.take() else { return };
        let monitor = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            while let Some((stream, notice)) = notices.recv().await {
                let Some(monitor) = monitor.upgrade() else { return };
                let Some(container) = monitor.container_of(stream) else { continue };
                let happening = match notice {
                    Notice::LogFailed(why) => {
                        ::log::warn!("container {}: its log cannot be written: {why}", container.id);
                        Happening::LogFailed(why)
                    }
                    Notice::Gap(gap) => {
                        ::log::warn!("container {}: {}", container.id, gap.sentence());
                        Happening::LogGap(gap)
                    }
                };
                monitor.events.add(Some(&container.id), happening);
            }
        });
    }

    fn container_of(&self, stream: StreamId) -> Option<Rc<Container>> {
        let containers = self.containers.borrow();
        let mut here = containers.values().filter_map(|slot| match slot {
            Slot::Here(container) => Some(container),
            Slot::Creating => None,
        });
        here.find(|container| container.stream().is_ok_and(|its| its == stream)).map(Rc::clone)
    }

    /// Sets the limits of a container's log, from now on and for monitors to come.
    ///
    /// # Errors
    /// If the container is gone.
    pub async fn set_log_limits(&self, id: &ContainerId, limits: LogLimits) -> Result<(), Error> {
        let container = self.living(id)?;
        let stream = container.stream()?;
        let answer = ask(|reply| self.relay.set_limits(stream, limits, reply)).await?;
        answer?;
        container.set_log_limits(limits);
        self.save(&container);
        Ok(())
    }

    /// Sets the limit of all containers' logs together.
    ///
    /// # Errors
    /// If it could not be kept for the next monitor; it is set nevertheless.
    pub fn set_log_total(&self, rate: Rate) -> Result<(), Error> {
        self.log_total.set(rate);
        self.relay.set_pod_rate(rate);
        let path = self.config.run_dir.join(TOTAL_FILE);
        let kept = serde_json::to_vec(&rate).map_err(std::io::Error::other);
        let kept = kept.and_then(|text| publish(&path, &text));
        kept.map_err(|error| Error::io(format!("write {}", path.display()), error))
    }

    /// The limit of all containers' logs together.
    #[must_use]
    pub fn log_total(&self) -> Rate {
        self.log_total.get()
    }

    /// Sets what an earlier monitor was told.
    pub(super) fn resume_log_total(&self) {
        let path = self.config.run_dir.join(TOTAL_FILE);
        let Ok(text) = std::fs::read(&path) else { return };
        match serde_json::from_slice::<Rate>(&text) {
            Ok(rate) => {
                self.log_total.set(rate);
                self.relay.set_pod_rate(rate);
            }
            Err(error) => ::log::error!("cannot read {}: {error}", path.display()),
        }
    }

    /// Sets the limits with which a container was created.
    pub(super) fn begin_log_limits(&self, stream: StreamId, limits: LogLimits) {
        if limits != LogLimits::default() {
            self.relay.set_limits(stream, limits, Box::new(drop));
        }
    }
}
