//! A socket whose other end must go on reading.

use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// What the other end must take at the least in each span of patience.
const LEAST: usize = 64 << 10;

/// Fails writes that stand still, or creep: a client that does not read its answer keeps the memory of it.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    inner: S,
    patience: Duration,
    /// Runs while something waits to be taken.
    due: Option<Pin<Box<Sleep>>>,
    /// Bytes that were taken since it runs.
    taken: usize,
}

impl<S> Paced<S> {
    pub(crate) fn new(inner: S, patience: Duration) -> Self {
        Self { inner, patience, due: None, taken: 0 }
    }

    /// What comes of a write.
    fn paced(&mut self, context: &mut Context<'_>, written: Poll<Result<usize>>) -> Poll<Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.taken += bytes;
                if self.taken >= LEAST {
                    self.rest();
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => {
                ready!(self.poll_due(context));
                Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client does not read its answer")))
            }
        }
    }

    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience;
        let due = self.due.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
        due.as_mut().poll(context)
    }

    fn rest(&mut self) {
        self.due = None;
        self.taken = 0;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.paced(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, pieces);
        self.paced(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context).map_ok(|()| 0);
        let flushed = ready!(self.paced(context, flushed)).map(drop);
        self.rest();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(context).map_ok(|()| 0);
        self.paced(context, shut).map_ok(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_given_up_and_who_reads_is_not() {
        let patience = Duration::from_secs(10);
        let (ours, mut theirs) = duplex(1000);
        let mut paced = Paced::new(ours, patience);
        let begun = Instant::now();
        assert_eq!(paced.write_all(&[0; 5000]).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 10);
        theirs.read_exact(&mut [0; 1000]).await.unwrap();

        // A byte a second is too slow: it was enough for as long as somebody cared to keep it up.
        let (ours, mut theirs) = duplex(1000);
        let mut paced = Paced::new(ours, patience);
        let creep = tokio::spawn(async move {
            while theirs.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let begun = Instant::now();
        assert_eq!(paced.write_all(&[0; 5000]).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed().as_secs() < 12);
        drop(paced);
        creep.await.unwrap();

        let (ours, mut theirs) = duplex(100_000);
        let mut paced = Paced::new(ours, patience);
        let reads = tokio::spawn(async move {
            let mut buffer = vec![0; 50_000];
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(4)).await;
                theirs.read_exact(&mut buffer).await.unwrap();
            }
        });
        paced.write_all(&[0; 500_000]).await.unwrap();
        paced.flush().await.unwrap();
        reads.await.unwrap();
    }
}
