//! The RPC socket: accepting, bounding, serving.
//!
//! A connection costs memory once it has said something: until then it is only a
//! descriptor in a queue. At most [`CONNECTIONS_MAX`] connections are served at a
//! time; one more waits for a while and is then told that there is no room. Of the
//! silent ones the oldest is closed when there are too many, or when descriptors run
//! out, so that connections that say nothing cannot lock anybody out.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use capnp::message::ReaderOptions;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Disconnector, RpcSystem, rpc_capnp, twoparty};
use tokio::io::{BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::limits::{CONNECTION_WAIT_MAX, CONNECTIONS_MAX, SILENT_CONNECTIONS_MAX};
use crate::monitor::Monitor;
use crate::monitor::error::Error;
use crate::rpc::convert::refuse;
use crate::rpc::schema::podinit_capnp::pod;
use crate::stream::Streaming;
use crate::sys;

/// Words (8 bytes) of one request: a create request with every list in it is a
/// few KiB. Answers are not bound by this.
const REQUEST_WORDS_MAX: usize = (4 << 20) / 8;

/// Pointers in pointers of one request: ours nest four deep.
const REQUEST_NESTING_MAX: i32 = 16;

/// The bootstrap object of every connection.
#[derive(Debug)]
pub(super) struct PodServer {
    pub(super) monitor: Rc<Monitor>,
    pub(super) streaming: Rc<Streaming>,
}

/// Runs `work` as a task of its own: it goes on when the client who asked for it
/// is gone, and a panic in it ends the request, not the monitor.
pub(super) async fn detached<T: 'static>(
    work: impl Future<Output = Result<T, Error>> + 'static,
) -> Result<T, capnp::Error> {
    match tokio::task::spawn_local(work).await {
        Ok(result) => result.map_err(|error| refuse(&error)),
        Err(_) => Err(refuse(&Error::Internal("the request ended in a panic"))),
    }
}

/// Connections that have been accepted and have said nothing yet, oldest first.
#[derive(Debug, Default)]
struct Silent {
    queue: RefCell<VecDeque<(u64, oneshot::Sender<()>)>>,
}

impl Silent {
    /// Closes the oldest one. False if there is none.
    fn close_oldest(&self) -> bool {
        // The receiver may be gone because the connection has just begun to speak.
        self.queue.borrow_mut().pop_front().is_some_and(|(_, close)| close.send(()).is_ok())
    }

    fn add(&self, number: u64) -> oneshot::Receiver<()> {
        let (close, closed) = oneshot::channel();
        let mut queue = self.queue.borrow_mut();
        queue.push_back((number, close));
        let too_many = queue.len() > SILENT_CONNECTIONS_MAX;
        drop(queue);
        if too_many {
            self.close_oldest();
        }
        closed
    }

    fn remove(&self, number: u64) {
        self.queue.borrow_mut().retain(|(other, _)| *other != number);
    }
}

/// The server of one pod's RPC socket.
pub struct Server {
    monitor: Rc<Monitor>,
    streaming: Rc<Streaming>,
    silent: Silent,
    permits: Semaphore,
    speaking: RefCell<HashMap<u64, Disconnector<Side>>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("speaking", &self.speaking.borrow().len()).finish_non_exhaustive()
    }
}

impl Server {
    /// A server for `monitor`.
    #[must_use]
    pub fn new(monitor: Rc<Monitor>) -> Rc<Self> {
        Rc::new(Self {
            streaming: Streaming::new(Rc::clone(&monitor)),
            monitor,
            silent: Silent::default(),
            permits: Semaphore::new(CONNECTIONS_MAX),
            speaking: RefCell::default(),
        })
    }

    /// Accepts connections for ever.
    pub async fn serve(self: Rc<Self>, listener: UnixListener) {
        let mut number = 0;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    number += 1;
                    tokio::task::spawn_local(Rc::clone(&self).connection(stream, number));
                }
                Err(error) => accept_failed(&error, &self.silent).await,
            }
        }
    }

    /// Sends every answer that is ready and closes the connections, in at most a
    /// second: a client that does not read cannot hold up the end.
    pub async fn close(&self) {
        let closing = self.speaking.take().into_values().map(|disconnector| async move {
            if let Err(error) = disconnector.await {
                ::log::debug!("a connection did not close in order: {error}");
            }
        });
        let mut tasks = tokio::task::JoinSet::new();
        closing.for_each(|one| drop(tasks.spawn_local(one)));
        if tokio::time::timeout(Duration::from_secs(1), tasks.join_all()).await.is_err() {
            ::log::debug!("a client did not read its last answer");
        }
    }

    async fn connection(self: Rc<Self>, stream: UnixStream, number: u64) {
        if let Err(reason) = check_peer(&stream) {
            ::log::warn!("refused a connection: {reason}");
            return;
        }
        let closed = self.silent.add(number);
        let speaks = tokio::select! {
            ready = stream.readable() => ready.is_ok(),
            _ = closed => false,
        };
        self.silent.remove(number);
        if !speaks {
            return;
        }
        // The semaphore is never closed, so there is no room if there is no permit.
        let permit = tokio::time::timeout(CONNECTION_WAIT_MAX, self.permits.acquire()).await;
        let Ok(Ok(permit)) = permit else {
            send_away(&stream);
            return;
        };
        let (reader, writer) = stream.into_split();
        let options = ReaderOptions {
            traversal_limit_in_words: Some(REQUEST_WORDS_MAX),
            nesting_limit: REQUEST_NESTING_MAX,
        };
        let (reader, writer) = (BufReader::new(reader).compat(), BufWriter::new(writer).compat_write());
        let network = twoparty::VatNetwork::new(reader, writer, Side::Server, options);
        let (monitor, streaming) = (Rc::clone(&self.monitor), Rc::clone(&self.streaming));
        let bootstrap: pod::Client = capnp_rpc::new_client(PodServer { monitor, streaming });
        let system = RpcSystem::new(Box::new(network), Some(bootstrap.client));
        self.speaking.borrow_mut().insert(number, system.get_disconnector());
        if let Err(error) = system.await {
            ::log::debug!("a connection ended: {error}");
        }
        self.speaking.borrow_mut().remove(&number);
        drop(permit);
        if self.permits.available_permits() == CONNECTIONS_MAX {
            // A burst of connections leaves free lists behind that glibc would keep.
            sys::heap::trim();
        }
    }
}

/// Tells a client that there is no room, so that it need not wait for an answer
/// until its own patience ends. None of those that are served is closed instead: a
/// silent one may hold what it subscribed to, or be an engine that calls rarely.
fn send_away(stream: &UnixStream) {
    let error = refuse(&Error::TooManyClients(CONNECTIONS_MAX));
    ::log::warn!("sent a client away: {}", error.extra);
    let mut message = capnp::message::Builder::new_default();
    let mut abort = message.init_root::<rpc_capnp::message::Builder<'_>>().init_abort();
    abort.set_reason(error.extra.as_str());
    abort.set_type(rpc_capnp::exception::Type::Overloaded);
    // A socket that is closed with bytes in it has its peer's calls fail with ECONNRESET. These
    // are the client's first words; of one that says more, never mind.
    if stream.try_read(&mut [0; 4096]).is_ok()
        && let Err(error) = stream.try_write(&capnp::serialize::write_message_to_words(&message))
    {
        ::log::debug!("a client that was sent away did not hear it: {error}");
    }
}

/// A client may be gone before it was accepted; descriptors may have run out.
/// Neither is a reason to stop serving.
async fn accept_failed(error: &io::Error, silent: &Silent) {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
            let made_room = silent.close_oldest();
            ::log::warn!("cannot accept a connection: {error}; closed a silent one: {made_room}");
            // The closed descriptor is free in the next turn; if there was none, others must close theirs.
            let pause = if made_room { Duration::ZERO } else { Duration::from_millis(50) };
            tokio::time::sleep(pause).await;
        }
        _ => ::log::debug!("a connection was not accepted: {error}"),
    }
}

/// Only the user that runs the pod, and root, may speak to it. The socket's mode
/// says the same; this holds even if somebody changes the mode.
pub(super) fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| format!("its peer is not known: {error}"))?;
    let own = rustix::process::geteuid().as_raw();
    if peer.uid() == 0 || peer.uid() == own {
        return Ok(());
    }
    Err(format!("its peer is user {}, not root nor user {own}", peer.uid()))
}
