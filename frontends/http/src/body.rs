//! Bodies of requests: read whole, within limits of size, time and memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt;
use genie_transport::memory::extend_counted;
use tokio::time::{Instant, timeout_at};

use crate::error::Failure;

/// Bytes that all requests together may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    held: AtomicU64,
    limit: u64,
}

/// What one request holds of it; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { held: AtomicU64::new(0), limit })
    }

    /// Bytes that are held now.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// A charge of nothing.
    pub(crate) fn charge(self: &Arc<Self>) -> Charge {
        Charge { budget: self.clone(), bytes: 0 }
    }
}

impl Charge {
    /// Holds more. Nobody waits for memory: requests that hold some, and wait for more, would wait for each other.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Failure> {
        let limit = self.budget.limit;
        let fits = |held: u64| held.checked_add(bytes).filter(|held| *held <= limit);
        match self.budget.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits) {
            Ok(_) => self.bytes += bytes,
            Err(_) => {
                return Err(Failure::busy("other requests hold all memory that there is for them: try again later"));
            }
        }
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// What a client must send at the least in each span of patience.
const LEAST: usize = 64 << 10;
/// What is set aside at once for a body whose length is not said.
const UNSAID: usize = 64 << 10;

/// Reads a body. `length`: as its header says.
///
/// # Errors
/// 413 if it is larger than `most`, 408 if it comes too slowly, 503 if there is no memory for it, 400 if it breaks off.
pub(crate) async fn read(
    stream: &mut BodyDataStream,
    length: Option<u64>,
    most: u64,
    patience: Duration,
    charge: &mut Charge,
) -> Result<Bytes, Failure> {
    let too_large = || Failure::too_large(format!("the body is larger than {most} bytes, which is the limit"));
    if length.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // Pages that nothing is written to take no memory: a client that says much and sends little holds little.
    let room = length.map_or(UNSAID, |length| usize::try_from(length).unwrap_or(UNSAID));
    let full = |_| Failure::busy("no memory for the body now: try again later");
    bytes.try_reserve_exact(room).map_err(full)?;
    let mut deadline = Instant::now() + patience;
    let mut next = LEAST;
    loop {
        let chunk = match timeout_at(deadline, stream.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(error))) => return Err(Failure::bad(format!("the body broke off: {error}"))),
            Ok(None) => return Ok(bytes.into()),
            Err(_) => {
                let detail = format!("the body comes too slowly: at least {LEAST} bytes are wanted every {patience:?}");
                return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, detail));
            }
        };
        if (bytes.len() + chunk.len()) as u64 > most {
            return Err(too_large());
        }
        charge.grow(chunk.len() as u64)?;
        bytes.try_reserve(chunk.len()).map_err(full)?;
        extend_counted(&mut bytes, &chunk);
        if bytes.len() >= next {
            next = bytes.len() + LEAST;
            deadline = Instant::now() + patience;
        }
    }
}

/// What is read of a body that nobody wants, and for how long: a client that is still sending finds the answer only then.
const LINGER_BYTES: usize = 16 << 20;
const LINGER: Duration = Duration::from_secs(2);

/// Reads on, a little, after an answer that did not wait for the body.
pub(crate) async fn linger(stream: &mut BodyDataStream) {
    let (deadline, mut left) = (Instant::now() + LINGER, LINGER_BYTES);
    while let Ok(Some(Ok(chunk))) = timeout_at(deadline, stream.next()).await {
        match left.checked_sub(chunk.len()) {
            Some(less) => left = less,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use futures_util::stream;

    fn chunks(chunks: Vec<&'static [u8]>) -> BodyDataStream {
        let chunks = chunks.into_iter().map(|c| Ok::<_, std::io::Error>(Bytes::from_static(c)));
        Body::from_stream(stream::iter(chunks)).into_data_stream()
    }

    #[tokio::test]
    async fn a_body_is_bounded_and_what_it_took_is_given_back() {
        let budget = Budget::new(10);
        let mut charge = budget.charge();
        let body = read(&mut chunks(vec![b"abc", b"def"]), None, 6, Duration::from_secs(9), &mut charge).await.unwrap();
        assert_eq!((&body[..], budget.held()), (&b"abcdef"[..], 6));
        let mut other = budget.charge();
        let full = read(&mut chunks(vec![b"12345"]), Some(5), 6, Duration::from_secs(9), &mut other).await.unwrap_err();
        assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
        drop((charge, other));
        assert_eq!(budget.held(), 0);
        let mut charge = budget.charge();
        for (length, mut body) in [(Some(7), chunks(vec![])), (None, chunks(vec![b"abcd", b"efg"]))] {
            let large = read(&mut body, length, 6, Duration::from_secs(9), &mut charge).await.unwrap_err();
            assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
        }
    }

    /// A byte now and then kept a request, and what it held, for ever.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up() {
        let drips = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        let budget = Budget::new(1 << 20);
        let mut charge = budget.charge();
        let begun = Instant::now();
        let mut body = Body::from_stream(Box::pin(drips)).into_data_stream();
        let slow = read(&mut body, Some(1 << 20), 1 << 20, Duration::from_secs(10), &mut charge).await.unwrap_err();
        assert_eq!(slow.status, StatusCode::REQUEST_TIMEOUT);
        assert!(begun.elapsed() < Duration::from_secs(12));
    }
}
