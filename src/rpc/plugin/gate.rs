//! Back-pressure: who does not read what was answered is not read from.
//!
//! The RPC system keeps every message that cannot be written yet. A plugin that
//! asks for memory again and again, and never reads, would fill ours.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What both halves of a connection share.
#[derive(Debug, Default)]
struct Gate {
    is_blocked: Cell<bool>,
    reader: RefCell<Option<Waker>>,
}

impl Gate {
    fn note<T>(&self, written: &Poll<T>) {
        self.is_blocked.set(written.is_pending());
        if written.is_ready()
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
    }
}

/// The half that is read: nothing comes while the other is blocked.
#[derive(Debug)]
pub(super) struct Gated<R> {
    inner: R,
    gate: Rc<Gate>,
}

/// The half that is written.
#[derive(Debug)]
pub(super) struct Gating<W> {
    inner: W,
    gate: Rc<Gate>,
}

/// Ties the two halves of a connection together.
pub(super) fn pair<R, W>(reader: R, writer: W) -> (Gated<R>, Gating<W>) {
    let gate = Rc::new(Gate::default());
    (Gated { inner: reader, gate: Rc::clone(&gate) }, Gating { inner: writer, gate })
}

impl<R: AsyncRead + Unpin> AsyncRead for Gated<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.gate.is_blocked.get() {
            self.gate.reader.replace(Some(context.waker().clone()));
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Gating<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.gate.note(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn nothing_is_read_while_nothing_can_be_written() {
        let runtime = tokio::runtime::LocalRuntime::new().unwrap();
        runtime.block_on(async {
            let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
            let (reader, writer) = near.into_split();
            let (mut reader, mut writer) = pair(reader, writer);
            far.write_all(b"a question").await.unwrap();
            // Far more than a socket holds.
            let answer = tokio::task::spawn_local(async move { writer.write_all(&vec![7; 8 << 20]).await });
            tokio::task::yield_now().await;
            let mut question = [0; 10];
            let asked =
                tokio::task::spawn_local(async move { reader.read_exact(&mut question).await.map(drop) });
            tokio::task::yield_now().await;
            assert!(!answer.is_finished() && !asked.is_finished());
            let mut read = vec![0; 8 << 20];
            far.read_exact(&mut read).await.unwrap();
            answer.await.unwrap().unwrap();
            asked.await.unwrap().unwrap();
        });
    }
}
