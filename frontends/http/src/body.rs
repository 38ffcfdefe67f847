//! Bodies of requests: read whole, within limits of size, time and memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt;
use genie_transport::memory::extend_counted;
use tokio::time::{Instant, timeout_at};

use crate::error::Failure;

/// Bytes that all requests together may hold. One token's requests may hold three quarters of them: others can always come.
#[derive(Debug)]
pub(crate) struct Budget {
    held: Mutex<Held>,
    limit: u64,
}

#[derive(Debug, Default)]
struct Held {
    all: u64,
    /// By the token's name, of those that hold something.
    by_name: HashMap<String, u64>,
}

/// What one request holds of it; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    /// The token's; none: of everybody.
    name: Option<String>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), limit })
    }

    /// Bytes that are held now.
    pub(crate) fn held(&self) -> u64 {
        self.lock().all
    }

    /// A charge of nothing, for the token of this name.
    pub(crate) fn charge(self: &Arc<Self>, name: Option<String>) -> Charge {
        Charge { budget: self.clone(), name, bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Charge {
    /// Holds more. Nobody waits for memory: requests that hold some, and wait for more, would wait for each other.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Failure> {
        let limit = self.budget.limit;
        let share = if self.name.is_some() { limit - limit / 4 } else { limit };
        if self.bytes.checked_add(bytes).is_none_or(|wanted| wanted > share) {
            return Err(Failure::too_large(format!(
                "the request takes more than {share} bytes of memory, which is the limit"
            )));
        }
        let mut held = self.budget.lock();
        let own = self.name.as_ref().map_or(held.all, |name| held.by_name.get(name).copied().unwrap_or(0));
        // None of these is more than the limit.
        if held.all.saturating_add(bytes) > limit || own.saturating_add(bytes) > share {
            return Err(Failure::busy("other requests hold all memory that there is for them: try again later"));
        }
        held.all += bytes;
        if let Some(name) = self.name.as_ref().filter(|_| bytes > 0) {
            *held.by_name.entry(name.clone()).or_default() += bytes;
        }
        self.bytes += bytes;
        Ok(())
    }

    /// What it holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut held = self.budget.lock();
        held.all -= self.bytes;
        if let Some(name) = &self.name
            && let Some(own) = held.by_name.get_mut(name)
        {
            *own -= self.bytes;
            if *own == 0 {
                held.by_name.remove(name);
            }
        }
    }
}

/// What a client must send at the least in each span of patience.
const LEAST: usize = 64 << 10;
/// What must have come of a body at any time, for each second beyond the first span of patience: else many that creep hold all memory
/// for days.
const LEAST_A_SECOND: u64 = 64 << 10;
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
    let begun = Instant::now();
    let mut deadline = begun + patience;
    let mut next = LEAST;
    loop {
        let chunk = match timeout_at(deadline, stream.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(error))) => return Err(Failure::bad(format!("the body broke off: {error}"))),
            Ok(None) => return Ok(bytes.into()),
            Err(_) => {
                let detail = format!(
                    "the body comes too slowly: {LEAST} bytes are wanted every {patience:?}, and on an average every second"
                );
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
            let paid = Duration::from_secs(bytes.len() as u64 / LEAST_A_SECOND);
            deadline = (Instant::now() + patience).min(begun + patience + paid);
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
        let mut charge = budget.charge(None);
        let body = read(&mut chunks(vec![b"abc", b"def"]), None, 6, Duration::from_secs(9), &mut charge).await.unwrap();
        assert_eq!((&body[..], budget.held()), (&b"abcdef"[..], 6));
        let mut other = budget.charge(None);
        let full = read(&mut chunks(vec![b"12345"]), Some(5), 6, Duration::from_secs(9), &mut other).await.unwrap_err();
        assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
        drop((charge, other));
        assert_eq!(budget.held(), 0);
        let mut charge = budget.charge(None);
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
        let mut charge = budget.charge(None);
        let begun = Instant::now();
        let mut body = Body::from_stream(Box::pin(drips)).into_data_stream();
        let slow = read(&mut body, Some(1 << 20), 1 << 20, Duration::from_secs(10), &mut charge).await.unwrap_err();
        assert_eq!(slow.status, StatusCode::REQUEST_TIMEOUT);
        assert!(begun.elapsed() < Duration::from_secs(12));
    }

    /// The least in each span of patience, for ever: a gigabyte was held for six days.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_creeps_is_given_up() {
        let creeps = |bytes: usize, every: u64| {
            let chunks = stream::unfold((), move |()| async move {
                tokio::time::sleep(Duration::from_secs(every)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from(vec![0; bytes])), ()))
            });
            Body::from_stream(Box::pin(chunks.take(20))).into_data_stream()
        };
        let budget = Budget::new(64 << 20);
        let patience = Duration::from_secs(30);
        let mut charge = budget.charge(None);
        let begun = Instant::now();
        let slow = read(&mut creeps(LEAST, 20), None, 64 << 20, patience, &mut charge).await.unwrap_err();
        assert_eq!(slow.status, StatusCode::REQUEST_TIMEOUT);
        assert!(begun.elapsed() < Duration::from_secs(40));
        read(&mut creeps(20 * LEAST, 20), None, 64 << 20, patience, &mut charge).await.unwrap();
    }

    /// Bodies of one token held everything, and no other was let in.
    #[test]
    fn one_token_leaves_something_for_others() {
        let budget = Budget::new(100);
        let [mut first, mut second, mut other] =
            ["alice", "alice", "bob"].map(|name| budget.charge(Some(name.to_owned())));
        first.grow(70).unwrap();
        assert_eq!(second.grow(6).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        other.grow(25).unwrap();
        second.grow(5).unwrap();
        assert_eq!(other.grow(1).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        // What can never be is not for later.
        assert_eq!(first.grow(6).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(budget.held(), 100);
        drop(first);
        assert_eq!(other.grow(50), Ok(()));
        drop((second, other));
        assert_eq!((budget.held(), budget.lock().by_name.len()), (0, 0));
    }
}
