//! Exactly once: the replies of requests that changed something, kept until the client has them for sure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use genie_transport::wire::{
    Arguments, ContentHash, ErrorCode, Finish, Handle, HandleSpan, Kind, Offered, RemoteError, Reply, TensorSpec,
};

use crate::error::fail;

/// Buffers larger than this are not kept for the next reply.
const SPARE_BYTES: usize = 64 << 10;
/// How many buffers are kept for the next replies.
const SPARES: usize = 4;

/// A terminal reply in the form in which it is kept.
#[derive(Debug)]
pub(crate) enum Answer {
    Failed(RemoteError),
    Done,
    Tensor {
        handle: Handle,
        device: u16,
        spec: TensorSpec,
    },
    Offered(Vec<Offered>),
    OfferedSet {
        epoch: u64,
        spans: Vec<HandleSpan>,
    },
    Program {
        handle: Handle,
        hash: ContentHash,
    },
    Bound(Handle),
    Ran {
        device: u16,
        position: u32,
        count: u32,
        outputs: Vec<u8>,
    },
    /// With all tokens: who asks again may have missed any of those that were streamed.
    Generated {
        device: u16,
        position: u32,
        tokens: Vec<[u8; 4]>,
        finish: Finish,
    },
}

impl Answer {
    /// Shows it as a reply.
    pub(crate) fn show(&self, to: impl FnOnce(&Reply<'_>)) {
        let reply = match self {
            Self::Failed(error) => Reply::Failed(error.clone()),
            Self::Done => Reply::Done,
            Self::Tensor { handle, device, spec } => {
                Reply::Tensor { handle: *handle, device: *device, spec: spec.clone() }
            }
            Self::Offered(entries) => Reply::Offered(entries.clone()),
            Self::OfferedSet { epoch, spans } => Reply::OfferedSet { epoch: *epoch, spans: spans.clone() },
            Self::Program { handle, hash } => Reply::Program { handle: *handle, hash: *hash },
            Self::Bound(handle) => Reply::Bound(*handle),
            Self::Ran { device, position, count, outputs } => match Arguments::new(*count, outputs) {
                Ok(outputs) => Reply::Ran { device: *device, position: *position, outputs },
                Err(error) => {
                    Reply::Failed(fail(ErrorCode::Internal, format!("the outputs cannot be written: {error}")))
                }
            },
            Self::Generated { device, position, tokens, finish } => {
                Reply::Generated { device: *device, position: *position, tokens, finish: Some(*finish) }
            }
        };
        to(&reply);
    }

    /// Whether the request came corrupted, so that its client may send it again under the same id.
    fn is_corrupt(&self) -> bool {
        matches!(self, Self::Failed(error) if error.code == ErrorCode::Corrupt)
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Failed(error) => error.message.capacity(),
            Self::Ran { outputs, .. } => outputs.capacity(),
            Self::Generated { tokens, .. } => tokens.capacity() * 4,
            Self::Offered(entries) => entries.capacity() * size_of::<Offered>(),
            Self::OfferedSet { spans, .. } => spans.capacity() * size_of::<HandleSpan>(),
            _ => 0,
        }
    }
}

/// What the windows of all sessions keep together.
#[derive(Debug)]
pub(crate) struct Replies {
    used: AtomicUsize,
    most: usize,
    /// What a window may keep when all together keep too much.
    share: usize,
}

impl Replies {
    /// At most `most` bytes, if possible, of at most `sessions` windows.
    pub(crate) fn new(most: u64, sessions: usize) -> Arc<Self> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Arc::new(Self { used: AtomicUsize::new(0), most, share: most / sessions.max(1) })
    }

    fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn is_much(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.most
    }
}

/// The window of one session.
///
/// Replies are kept in the order in which requests *ended*. A client has at most as many unanswered requests as it has
/// credits, and replies reach it in order; so whatever it may ask again is among the last `credits` of them, however long
/// ago its id was given.
#[derive(Debug)]
pub(crate) struct Window {
    kept: VecDeque<Kept>,
    most: usize,
    most_bytes: usize,
    bytes: usize,
    /// `bytes` of all sessions.
    all: Arc<Replies>,
    /// The highest id that was seen.
    highest: Option<u64>,
    /// The highest id whose reply was let go: above it, an id that is not kept was never executed.
    forgotten: Option<u64>,
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Kept {
    id: u64,
    kind: Kind,
    answer: Answer,
}

/// What an id is to the window.
pub(crate) enum Seen<'a> {
    /// Never seen.
    New,
    /// Answered already, like this.
    Answered(Kind, &'a Answer),
    /// Too old to know.
    Forgotten,
}

impl Window {
    /// A window of at most `most` replies that together take at most `most_bytes`, or an even share of what `all` allow if
    /// that is passed (but always the last one).
    pub(crate) fn new(most: usize, most_bytes: usize, all: Arc<Replies>) -> Self {
        let most = most.max(1);
        Self {
            kept: VecDeque::with_capacity(most.min(1024)),
            most,
            most_bytes,
            bytes: 0,
            all,
            highest: None,
            forgotten: None,
            spare: Vec::new(),
        }
    }

    /// How many replies it keeps.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// What this id is. Requests in progress are not the window's: ask them first.
    pub(crate) fn look(&self, id: u64) -> Seen<'_> {
        if self.highest.is_none_or(|highest| id > highest) {
            return Seen::New;
        }
        match self.kept.iter().rev().find(|kept| kept.id == id) {
            // It did not come through, and is sent again under the same id.
            Some(kept) if kept.answer.is_corrupt() => Seen::New,
            Some(kept) => Seen::Answered(kept.kind, &kept.answer),
            None if self.forgotten.is_some_and(|forgotten| id <= forgotten) => Seen::Forgotten,
            None => Seen::New,
        }
    }

    /// Above every id that was seen.
    pub(crate) fn next(&self) -> u64 {
        self.highest.map_or(1, |highest| highest.saturating_add(1))
    }

    /// A request with this id has begun.
    pub(crate) fn begin(&mut self, id: u64) {
        if self.highest.is_none_or(|highest| id > highest) {
            self.highest = Some(id);
        } else {
            // Once it was corrupted; how it ends now is what counts.
            self.let_go(|kept| kept.id == id);
        }
    }

    /// It has ended like this.
    pub(crate) fn end(&mut self, id: u64, kind: Kind, answer: Answer) -> &Answer {
        self.bytes += answer.bytes();
        self.all.add(answer.bytes());
        self.kept.push_back(Kept { id, kind, answer });
        while self.kept.len() > 1 && self.is_full() {
            self.forget_oldest();
        }
        // One was just pushed, and the loop leaves one.
        &self.kept[self.kept.len() - 1].answer
    }

    /// The client has every reply below `unanswered`: none of these ids will be asked again.
    pub(crate) fn acknowledge(&mut self, unanswered: u64) {
        let Some(answered) = unanswered.checked_sub(1) else { return };
        self.highest = self.highest.max(Some(answered));
        self.forgotten = self.forgotten.max(Some(answered));
        self.let_go(|kept| kept.id < unanswered);
    }

    /// An empty buffer for the outputs of a run; one that was used before where there is one.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    fn is_full(&self) -> bool {
        let too_much = self.bytes > self.most_bytes || (self.bytes > self.all.share && self.all.is_much());
        self.kept.len() > self.most || too_much
    }

    fn let_go(&mut self, which: impl Fn(&Kept) -> bool) {
        let (bytes, all) = (&mut self.bytes, &self.all);
        self.kept.retain(|kept| {
            let goes = which(kept);
            if goes {
                *bytes -= kept.answer.bytes();
                all.take(kept.answer.bytes());
            }
            !goes
        });
    }

    fn forget_oldest(&mut self) {
        let Some(kept) = self.kept.pop_front() else { return };
        self.bytes -= kept.answer.bytes();
        self.all.take(kept.answer.bytes());
        self.forgotten = self.forgotten.max(Some(kept.id));
        if let Answer::Ran { mut outputs, .. } = kept.answer
            && self.spare.len() < SPARES
            && outputs.capacity() <= SPARE_BYTES
        {
            outputs.clear();
            self.spare.push(outputs);
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.all.take(self.bytes);
    }
}

/// What a request gets whose reply was let go.
pub(crate) fn forgotten(id: u64) -> RemoteError {
    let mut error = fail(
        ErrorCode::Forgotten,
        format!("request {id} is older than the replies that are kept: whether it took effect is no longer known"),
    );
    error.effect = genie_transport::wire::Effect::Unknown;
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(bytes: usize) -> Answer {
        Answer::Ran { device: 0, position: 1, count: 0, outputs: vec![0; bytes] }
    }

    fn window(most: usize, most_bytes: usize) -> Window {
        Window::new(most, most_bytes, Replies::new(u64::MAX, 1))
    }

    #[test]
    fn all_windows_together_have_a_bound() {
        let all = Replies::new(4000, 4);
        let mut windows: Vec<Window> = (0..3).map(|_| Window::new(100, 3000, all.clone())).collect();
        for id in 0..20 {
            windows.iter_mut().for_each(|window| _ = window.end(id, Kind::Run, ran(400)));
        }
        assert!(all.used.load(Ordering::Relaxed) <= 4000);
        assert!(windows.iter().all(|window| window.kept.len() >= 2), "an even share stays");
        windows[0].end(20, Kind::Run, ran(2000));
        windows[1].acknowledge(19);
        assert_eq!(windows.iter().map(|w| w.bytes).sum::<usize>(), all.used.load(Ordering::Relaxed));
        drop(windows);
        assert_eq!(all.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_id_is_new_answered_or_forgotten() {
        let mut window = window(2, 1 << 20);
        for id in [10, 11, 13] {
            assert!(matches!(window.look(id), Seen::New));
            window.begin(id);
            window.end(id, Kind::Free, Answer::Done);
        }
        assert!(matches!(window.look(10), Seen::Forgotten));
        assert!(matches!(window.look(9), Seen::Forgotten));
        assert!(matches!(window.look(11), Seen::Answered(Kind::Free, Answer::Done)));
        assert!(matches!(window.look(12), Seen::New), "arrived out of order, never executed");
        window.acknowledge(14);
        assert!(matches!(window.look(13), Seen::Forgotten));
        assert!(matches!(window.look(12), Seen::Forgotten), "never seen, but it cannot be asked any more");
        assert!(matches!(window.look(14), Seen::New));
    }

    #[test]
    fn a_long_request_is_kept_by_when_it_ended() {
        let mut window = window(2, 1 << 20);
        for id in 1..=5 {
            window.begin(id);
        }
        for id in [2, 3, 4, 5, 1] {
            window.end(id, Kind::Run, ran(4));
        }
        assert!(matches!(window.look(1), Seen::Answered(..)));
        assert!(matches!(window.look(5), Seen::Answered(..)));
        assert!(matches!(window.look(4), Seen::Forgotten));
    }

    #[test]
    fn bytes_are_bounded_and_buffers_come_back() {
        let mut window = window(100, 1000);
        for id in 0..10 {
            window.end(id, Kind::Run, ran(400));
        }
        assert!(window.bytes <= 1000 && window.kept.len() == 2);
        assert_eq!(window.buffer().capacity(), 400);
        window.end(11, Kind::Run, ran(5000));
        assert_eq!(window.kept.len(), 1, "the last one is kept whatever its size");
    }
}
