//! Work of all kinds, under way together, of which every byte can be checked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use genie_graph::DType;
use genie_transport::client::blocking::{self, Pending};
use genie_transport::client::{ClientError, PutOptions, Tensor};
use genie_transport::wire::{ContentHash, TensorSpec};

/// Numbers that follow from a seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n.max(1)
    }
}

/// Bytes that say themselves, by the number that they begin with, what they must be.
pub fn content(seed: u64, bytes: usize) -> Bytes {
    let mut all = Vec::with_capacity(bytes + 8);
    all.extend_from_slice(&seed.to_le_bytes());
    let mut rng = Rng::new(seed);
    while all.len() < bytes {
        all.extend_from_slice(&rng.draw().to_le_bytes());
    }
    all.truncate(bytes);
    all.into()
}

/// These bytes are what they say they are.
///
/// # Panics
/// If not: somebody sees what nobody sent.
pub fn is_whole(bytes: &[u8]) {
    let head: [u8; 8] = bytes.get(..8).and_then(|head| head.try_into().ok()).expect("a number to begin with");
    let seed = u64::from_le_bytes(head);
    let expected = content(seed, bytes.len());
    if let Some(at) = (0..bytes.len()).find(|&i| bytes[i] != expected[i]) {
        panic!("byte {at} of {} (content {seed}) is {}, not {}", bytes.len(), bytes[at], expected[at]);
    }
}

/// Names that the work gives to some of its tensors. Others may find them: whole, or not at all.
pub const NAMES: [&str; 3] = ["churned-a", "churned-b", "churned-c"];

/// What is being done right now, in words, for whoever waits for its end.
static DOING: Mutex<String> = Mutex::new(String::new());

/// What [`Churn`] is doing right now in this process.
pub fn doing() -> String {
    DOING.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn now_doing(what: String) {
    *DOING.lock().unwrap_or_else(PoisonError::into_inner) = what;
}

/// Works with one session.
pub struct Churn {
    rng: Rng,
    /// Bytes of a tensor, at the most.
    most: u64,
    kept: Vec<(Tensor, u64)>,
    /// Requests begun, and requests ended one way or the other.
    pub begun: u64,
    /// See [`Self::begun`].
    pub ended: u64,
    steps: Arc<AtomicU64>,
}

enum Begun {
    Put { pending: Pending, seed: u64, data: Bytes, keep: bool },
    Get { pending: Pending, seed: u64 },
}

impl Churn {
    /// Work that follows from this seed, with tensors of up to so many bytes.
    pub fn new(seed: u64, most: u64) -> Self {
        Self { rng: Rng::new(seed), most, kept: Vec::new(), begun: 0, ended: 0, steps: Arc::default() }
    }

    /// Counts up with each thing that was waited for: while it stands still, one of them is. For whoever watches.
    pub fn steps(&self) -> Arc<AtomicU64> {
        self.steps.clone()
    }

    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Some requests together, and all of their ends. The first error is returned after the last end.
    ///
    /// # Errors
    /// [`ClientError`]. What the session held is then forgotten here.
    ///
    /// # Panics
    /// If a byte is wrong, there or here.
    pub fn burst(&mut self, session: &mut blocking::Session) -> Result<(), ClientError> {
        let mut begun = Vec::new();
        let mut failed = None;
        for _ in 0..2 + self.rng.below(4) {
            match self.begin(session) {
                Ok(one) => begun.push(one),
                Err(error) => failed = Some(error),
            }
        }
        let count = begun.len();
        for (i, one) in begun.into_iter().enumerate() {
            if let Err(error) = self.finish(session, one, i, count) {
                failed = failed.or(Some(error));
            }
        }
        if failed.is_none() {
            failed = self.after(session).err();
        }
        now_doing("between bursts".into());
        match failed {
            None => Ok(()),
            Some(error) => {
                self.kept.clear();
                Err(error)
            }
        }
    }

    /// Frees what is kept.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn let_go(&mut self, session: &mut blocking::Session) -> Result<(), ClientError> {
        let freed = self.kept.drain(..).try_for_each(|(tensor, _)| session.free(tensor.handle));
        self.step();
        freed
    }

    fn begin(&mut self, session: &mut blocking::Session) -> Result<Begun, ClientError> {
        let kind = self.rng.below(8);
        if kind < 3
            && let Some((tensor, seed)) = self.kept.get(self.rng.below(self.kept.len() as u64) as usize)
        {
            let (handle, bytes, seed) = (tensor.handle, tensor.spec.bytes(), *seed);
            let pending = session.start_get(handle, 0, bytes)?;
            self.begun += 1;
            return Ok(Begun::Get { pending, seed });
        }
        // Few weights, so that what one began another goes on with.
        let weight = kind == 3;
        let (seed, bytes) = if weight {
            let which = self.rng.below(4);
            (which, self.most / 2 + which)
        } else {
            (self.rng.draw(), 8 + self.rng.below(self.most))
        };
        let data = content(seed, bytes as usize);
        let name = (kind == 4).then(|| NAMES[self.rng.below(NAMES.len() as u64) as usize]);
        let weight = weight.then(|| ContentHash::of(&data));
        let spec = TensorSpec::new(DType::U8, &[bytes])?;
        let keep = weight.is_none() && name.is_none();
        let pending = session.start_put(&spec, data.clone(), PutOptions { weight, name, ..PutOptions::default() })?;
        self.begun += 1;
        Ok(Begun::Put { pending, seed, data, keep })
    }

    fn finish(
        &mut self,
        session: &mut blocking::Session,
        one: Begun,
        i: usize,
        count: usize,
    ) -> Result<(), ClientError> {
        match one {
            Begun::Put { pending, seed, data, keep } => {
                now_doing(format!("waits for a put of {} bytes (content {seed}), {i} of {count}", data.len()));
                let done = session.finish_put(pending);
                self.ended += 1;
                self.step();
                // Whatever became of it, nobody has written to what was sent.
                is_whole(&data);
                let tensor = done?;
                if keep {
                    self.kept.push((tensor, seed));
                } else {
                    session.free(tensor.handle)?;
                    self.step();
                }
            }
            Begun::Get { pending, seed } => {
                now_doing(format!("waits for a get (content {seed}), {i} of {count}"));
                let done = session.finish_get(pending);
                self.ended += 1;
                self.step();
                let bytes = done?;
                is_whole(&bytes);
                assert_eq!(bytes[..8], seed.to_le_bytes(), "another tensor's bytes came");
                session.recycle(bytes);
            }
        }
        Ok(())
    }

    /// Small things, one after the other; and what is too much goes.
    fn after(&mut self, session: &mut blocking::Session) -> Result<(), ClientError> {
        now_doing("small requests".into());
        let mut back = Vec::new();
        session.echo(b"still there", &mut back)?;
        assert_eq!(back, b"still there");
        self.step();
        while self.kept.len() > 4 {
            session.free(self.kept.remove(0).0.handle)?;
            self.step();
        }
        Ok(())
    }
}
