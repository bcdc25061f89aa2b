//! The streams of a link as `AsyncRead` and `AsyncWrite`, for the shells of both ends.
//!
//! The shell owns [`Tunnels`], feeds it what the session says of streams and takes from it what the
//! session must be told. Each [`TunnelStream`] belongs to whoever carries something over it. Both
//! sides meet in small buffers that the session's credit bounds; nothing here waits on a socket.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes};
use proto::stream::{CHUNK_BYTES_MAX, StreamInput, StreamOutput, WINDOW_BYTES};
use proto::wire::{StreamId, StreamKind};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// What both ends of a buffer share.
#[derive(Debug)]
struct State {
    /// Came from the peer, not yet read: at most [`WINDOW_BYTES`].
    unread: VecDeque<Bytes>,
    /// Written, not yet taken by the shell: at most [`WINDOW_BYTES`].
    written: VecDeque<Bytes>,
    /// Bytes that may still be written.
    room: u32,
    /// Read since the shell was last told.
    consumed: u32,
    /// The peer writes no more.
    peer_ended: bool,
    /// We write no more; the flag says whether the session was told.
    finished: Option<bool>,
    /// The stream is gone, and why.
    closed: Option<String>,
    /// The owner dropped it.
    is_dropped: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    /// Empties the buffer of a stream that nobody reads; whether this concerns the session.
    fn discard(&mut self) -> bool {
        if self.is_dropped {
            let bytes: usize = self.unread.drain(..).map(|bytes| bytes.len()).sum();
            self.consumed = self.consumed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        }

        self.is_dropped
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

#[derive(Debug, Default)]
struct Common {
    /// Streams with something for the session.
    dirty: Mutex<BTreeSet<StreamId>>,
    changed: Notify,
}

impl Common {
    fn tell(&self, id: StreamId) {
        lock(&self.dirty).insert(id);
        self.changed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data that is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All streams of one connection.
#[derive(Debug, Default)]
pub struct Tunnels {
    common: Arc<Common>,
    streams: BTreeMap<StreamId, Arc<Mutex<State>>>,
}

impl Tunnels {
    /// The stream that the session has just opened, or been told of.
    pub fn open(&mut self, id: StreamId) -> TunnelStream {
        let state = Arc::new(Mutex::new(State {
            unread: VecDeque::new(),
            written: VecDeque::new(),
            room: WINDOW_BYTES,
            consumed: 0,
            peer_ended: false,
            finished: None,
            closed: None,
            is_dropped: false,
            reader: None,
            writer: None,
        }));
        self.streams.insert(id, Arc::clone(&state));

        TunnelStream { id, state, common: Arc::clone(&self.common) }
    }

    /// Takes what the session says; gives back what the peer wants opened.
    pub fn handle(&mut self, output: StreamOutput) -> Option<(StreamId, StreamKind)> {
        match output {
            StreamOutput::Opened { id, kind } => return Some((id, kind)),
            StreamOutput::Data { id, bytes } => {
                self.change(id, |state| state.unread.push_back(bytes));
                self.discard(id);
            }
            StreamOutput::Writable { id, bytes } => self.change(id, |state| {
                state.room = state.room.saturating_add(bytes);
            }),
            StreamOutput::Ended { id } => {
                self.change(id, |state| state.peer_ended = true);
                self.discard(id);
            }
            StreamOutput::Closed { id, reason } => {
                self.change(id, |state| state.closed = Some(reason));
                self.streams.remove(&id);
            }
        }

        None
    }

    fn change(&self, id: StreamId, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.streams.get(&id) {
            let mut state = lock(state);
            change(&mut state);
            state.wake();
        }
    }

    /// Takes what comes for a stream that nobody reads any more, so that the peer comes to its end.
    fn discard(&self, id: StreamId) {
        if let Some(state) = self.streams.get(&id)
            && lock(state).discard()
        {
            self.common.tell(id);
        }
    }

    /// Resolves when some stream has something for the session.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        let common = Arc::clone(&self.common);

        async move { common.changed.notified().await }
    }

    /// What the session must be told.
    pub fn take_inputs(&mut self) -> Vec<StreamInput> {
        let dirty = std::mem::take(&mut *lock(&self.common.dirty));
        let mut inputs = Vec::new();
        for id in dirty {
            let Some(state) = self.streams.get(&id) else { continue };
            let mut state = lock(state);
            inputs.extend(state.written.drain(..).map(|bytes| StreamInput::Write { id, bytes }));
            let consumed = std::mem::take(&mut state.consumed);
            if consumed > 0 {
                inputs.push(StreamInput::Consumed { id, bytes: consumed });
            }
            if state.finished == Some(false) {
                state.finished = Some(true);
                inputs.push(StreamInput::Finish { id });
            }
            let is_over = state.finished.is_some() && state.peer_ended && state.unread.is_empty();
            let is_given_up = state.is_dropped && state.finished.is_none();
            if is_given_up {
                inputs.push(StreamInput::Reset { id, reason: "no longer needed".to_owned() });
            }
            drop(state);
            if is_over || is_given_up {
                self.streams.remove(&id);
            }
        }

        inputs
    }

    /// Whether there is no stream.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// The connection is gone, and every stream with it.
    pub fn lose(&mut self, reason: &str) {
        for (_, state) in std::mem::take(&mut self.streams) {
            let mut state = lock(&state);
            state.closed = Some(reason.to_owned());
            state.wake();
        }
        lock(&self.common.dirty).clear();
    }
}

/// One stream. Dropped after a shutdown, what was written still reaches the peer and what comes is
/// thrown away; dropped without, the stream ends at once for both.
#[derive(Debug)]
pub struct TunnelStream {
    id: StreamId,
    state: Arc<Mutex<State>>,
    common: Arc<Common>,
}

impl TunnelStream {
    fn tell(&self) {
        self.common.tell(self.id);
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.is_dropped = true;
        state.discard();
        drop(state);
        self.tell();
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = lock(&self.state);
        if let Some(mut chunk) = state.unread.pop_front() {
            let len = chunk.len().min(buffer.remaining());
            buffer.put_slice(&chunk[..len]);
            chunk.advance(len);
            if !chunk.is_empty() {
                state.unread.push_front(chunk);
            }
            state.consumed += u32::try_from(len).unwrap_or(u32::MAX);
            drop(state);
            self.tell();
            return Poll::Ready(Ok(()));
        }
        if state.peer_ended {
            return Poll::Ready(Ok(()));
        }
        if let Some(reason) = &state.closed {
            let error = io::Error::new(io::ErrorKind::ConnectionReset, reason.clone());
            return Poll::Ready(Err(error));
        }
        state.reader = Some(cx.waker().clone());

        Poll::Pending
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.state);
        if let Some(reason) = &state.closed {
            let error = io::Error::new(io::ErrorKind::BrokenPipe, reason.clone());
            return Poll::Ready(Err(error));
        }
        if state.room == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let room = usize::try_from(state.room).unwrap_or(usize::MAX);
        let len = bytes.len().min(room).min(CHUNK_BYTES_MAX);
        state.written.push_back(Bytes::copy_from_slice(&bytes[..len]));
        state.room -= u32::try_from(len).unwrap_or(u32::MAX);
        drop(state);
        self.tell();

        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = lock(&self.state);
        if state.finished.is_none() {
            state.finished = Some(false);
            drop(state);
            self.tell();
        }

        Poll::Ready(Ok(()))
    }
}
