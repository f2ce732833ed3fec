//! A connected socket that wakes its owner for what is waited for, and for nothing else.
//!
//! tokio has a stream watched for both directions at once. A peer that takes what
//! was written makes room, which counts as an event: every message would wake its
//! writer for nothing, most often on another processor, and that costs more than
//! the message. Here a socket is watched for what comes, and for room only while
//! there is none.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::net::{SendFlags, Shutdown, send, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use crate::seccomp::awake;

/// The half that is read.
#[derive(Debug)]
pub(super) struct Reader(AsyncFd<Rc<OwnedFd>>);

/// The half that is written. Dropped, it tells the peer that nothing more comes.
#[derive(Debug)]
pub(super) struct Writer {
    socket: Rc<OwnedFd>,
    /// Another descriptor of it, while it is full: the event loop takes each once.
    full: Option<AsyncFd<OwnedFd>>,
}

/// Both halves of `stream`.
///
/// # Errors
/// If the event loop does not take it.
pub(super) fn split(stream: UnixStream) -> io::Result<(Reader, Writer)> {
    let socket = Rc::new(OwnedFd::from(stream.into_std()?));
    let reader = AsyncFd::with_interest(Rc::clone(&socket), Interest::READABLE)?;
    Ok((Reader(reader), Writer { socket, full: None }))
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut is_ready = ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            let size = room.len();
            match is_ready.try_io(|socket| Ok(rustix::io::read(socket.get_ref(), room)?)) {
                Ok(Ok(count)) => {
                    // Less than there was room for is all that there was (epoll(7)).
                    if count > 0 && count < size {
                        is_ready.clear_ready();
                    }
                    buffer.advance(count);
                    awake::came();
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let write = || Ok(send(&self.socket, bytes, SendFlags::NOSIGNAL)?);
            let written: io::Result<usize> = match &self.full {
                None => write(),
                Some(full) => match ready!(full.poll_write_ready(context))?.try_io(|_| write()) {
                    Ok(written) => written,
                    Err(_would_block) => continue,
                },
            };
            match written {
                Ok(count) => {
                    self.full = None;
                    awake::sent();
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let another = self.socket.try_clone()?;
                    self.full = Some(AsyncFd::with_interest(another, Interest::WRITABLE)?);
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(&self.socket, Shutdown::Write)?))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The peer may have gone first.
        shutdown(&self.socket, Shutdown::Write).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::LocalRuntime::new().unwrap().block_on(work)
    }

    #[test]
    fn more_than_a_socket_holds_arrives_whole_and_then_the_end() {
        block_on(async {
            let (near, far) = UnixStream::pair().unwrap();
            let (mut reader, mut far_writer) = split(near).unwrap();
            let (mut far_reader, mut writer) = split(far).unwrap();
            let sent: Vec<u8> = (0..4_u32 << 20).flat_map(|number| [number.to_le_bytes()[0]]).collect();
            let copy = sent.clone();
            let write = tokio::task::spawn_local(async move {
                for chunk in copy.chunks(100_001) {
                    writer.write_all(chunk).await.unwrap();
                }
                assert!(writer.full.is_none(), "room is not watched for when there is some");
                writer
            });
            let mut read = vec![0; sent.len()];
            reader.read_exact(&mut read).await.unwrap();
            assert!(read == sent);
            drop(write.await.unwrap());
            assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
            // The other direction is open still.
            far_writer.write_all(b"answer").await.unwrap();
            let mut answer = [0; 6];
            far_reader.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"answer");
        });
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_to_the_writer() {
        block_on(async {
            let (near, far) = UnixStream::pair().unwrap();
            let (_reader, mut writer) = split(near).unwrap();
            drop(far);
            let error = writer.write_all(b"x").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        });
    }

    /// The reason for all this: who takes a message does not wake who has written it.
    #[test]
    fn a_message_that_is_taken_wakes_nobody() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};

        struct Count(AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        block_on(async {
            let (near, far) = UnixStream::pair().unwrap();
            let (mut reader, mut writer) = split(near).unwrap();
            let (mut far_reader, mut far_writer) = split(far).unwrap();
            let count = Arc::new(Count(AtomicUsize::new(0)));
            let waker = std::task::Waker::from(Arc::clone(&count));
            let mut context = Context::from_waker(&waker);
            let mut room = [0; 8];
            let mut poll = || Pin::new(&mut reader).poll_read(&mut context, &mut ReadBuf::new(&mut room));
            assert!(poll().is_pending());
            writer.write_all(b"question").await.unwrap();
            far_reader.read_exact(&mut [0; 8]).await.unwrap();
            // Long enough for the event loop to hear of all that there is.
            for _ in 0..3 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            assert_eq!(count.0.load(Ordering::Relaxed), 0);
            far_writer.write_all(b"answer").await.unwrap();
            while count.0.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            assert!(poll().is_ready());
        });
    }
}
