//! A call that waits for this plugin's verdict, and its process.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::convert;
use super::descriptors::Exchange;
use super::types::{Credentials, Notification, Place, Ticket};
use crate::rpc::client::{Code, Error};
use crate::rpc::schema::plugin_capnp as wire;

/// A call that waits, and what can be done to its process meanwhile. Every method
/// answers [`Code::NotFound`] when the process is gone or was interrupted.
pub struct Call {
    /// What is asked about.
    pub notification: Notification,
    pub(super) target: Option<wire::target::Client>,
    pub(super) exchange: Option<Rc<Exchange>>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("notification", &self.notification).finish_non_exhaustive()
    }
}

impl Call {
    fn target(&self) -> Result<&wire::target::Client, Error> {
        self.target.as_ref().ok_or_else(|| Error {
            code: Code::NotFound,
            message: "there is no process behind this notification: it is a replay".into(),
        })
    }

    fn exchange(&self) -> Result<&Exchange, Error> {
        self.exchange.as_deref().ok_or_else(|| Error {
            code: Code::NotFound,
            message: "no descriptors change hands here: it is a replay".into(),
        })
    }

    /// Whether the process still waits. To be asked before a side effect.
    ///
    /// # Errors
    /// [`Code::Disconnected`].
    pub async fn check(&self) -> Result<bool, Error> {
        let mut request = self.target()?.check_request();
        request.get().set_id(self.notification.id);
        Ok(request.send().promise.await?.get()?.get_open())
    }

    /// Reads the process's memory: all of it, or an error.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if it is not mapped or too much.
    pub async fn read_memory(&self, address: u64, size: u32) -> Result<Vec<u8>, Error> {
        let mut request = self.target()?.read_memory_request();
        request.get().set_id(self.notification.id);
        request.get().set_address(address);
        request.get().set_size(size);
        Ok(request.send().promise.await?.get()?.get_bytes()?.to_vec())
    }

    /// Reads up to a zero byte; `true` if there was more than `max` bytes.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if it is not mapped.
    pub async fn read_text(&self, address: u64, max: u32) -> Result<(Vec<u8>, bool), Error> {
        let mut request = self.target()?.read_text_request();
        request.get().set_id(self.notification.id);
        request.get().set_address(address);
        request.get().set_max(max);
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        Ok((answer.get_text()?.to_vec(), answer.get_cut()))
    }

    /// Writes into the process's memory: all of it, or an error.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if it cannot be written.
    pub async fn write_memory(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut request = self.target()?.write_memory_request();
        request.get().set_id(self.notification.id);
        request.get().set_address(address);
        request.get().set_bytes(bytes);
        request.send().promise.await?;
        Ok(())
    }

    /// A descriptor of the process: the same open file.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] if it has none of this number.
    pub async fn duplicate(&self, descriptor: i32) -> Result<OwnedFd, Error> {
        let mut request = self.target()?.duplicate_request();
        request.get().set_id(self.notification.id);
        request.get().set_descriptor(descriptor);
        let ticket = Ticket(request.send().promise.await?.get()?.get_ticket()?.to_vec());
        self.exchange()?.take(&ticket).await
    }

    /// The process's root or working directory, or a pidfd of it.
    ///
    /// # Errors
    /// As the monitor says.
    pub async fn open(&self, place: Place) -> Result<OwnedFd, Error> {
        let mut request = self.target()?.open_request();
        request.get().set_id(self.notification.id);
        request.get().set_place(convert::place(place));
        let ticket = Ticket(request.send().promise.await?.get()?.get_ticket()?.to_vec());
        self.exchange()?.take(&ticket).await
    }

    /// Hands a descriptor of this plugin to the monitor, for a verdict or for
    /// [`Call::install`].
    ///
    /// # Errors
    /// [`Code::ResourceExhausted`] if too many wait there unused.
    pub async fn hand_over(&self, descriptor: BorrowedFd<'_>) -> Result<Ticket, Error> {
        self.exchange()?.put(descriptor).await
    }

    /// Installs a descriptor in the process, without answering yet; its number.
    ///
    /// # Errors
    /// As the monitor says.
    pub async fn install(&self, ticket: &Ticket, at: Option<u32>, close_on_exec: bool) -> Result<i32, Error> {
        let mut request = self.target()?.install_request();
        request.get().set_id(self.notification.id);
        convert::fill_descriptor(request.get().init_descriptor(), ticket, at, close_on_exec);
        Ok(request.send().promise.await?.get()?.get_descriptor())
    }

    /// Who makes the call.
    ///
    /// # Errors
    /// As the monitor says.
    pub async fn credentials(&self) -> Result<Credentials, Error> {
        let mut request = self.target()?.credentials_request();
        request.get().set_id(self.notification.id);
        let answer = request.send().promise.await?;
        Ok(convert::read_credentials(answer.get()?.get_credentials()?)?)
    }

    /// The process's namespaces: kind and inode.
    ///
    /// # Errors
    /// As the monitor says.
    pub async fn namespaces(&self) -> Result<Vec<(String, u64)>, Error> {
        let mut request = self.target()?.namespaces_request();
        request.get().set_id(self.notification.id);
        let answer = request.send().promise.await?;
        let list = answer.get()?.get_namespaces()?;
        let one = |namespace: wire::namespace::Reader<'_>| -> capnp::Result<_> {
            Ok((
                String::from_utf8_lossy(namespace.get_kind()?.as_bytes()).into_owned(),
                namespace.get_inode(),
            ))
        };
        Ok(list.iter().map(one).collect::<capnp::Result<_>>()?)
    }

    /// The process's cgroup, as `/proc/<pid>/cgroup` has it.
    ///
    /// # Errors
    /// As the monitor says.
    pub async fn cgroup(&self) -> Result<String, Error> {
        let mut request = self.target()?.cgroup_request();
        request.get().set_id(self.notification.id);
        let answer = request.send().promise.await?;
        Ok(String::from_utf8_lossy(answer.get()?.get_path()?.as_bytes()).into_owned())
    }
}
