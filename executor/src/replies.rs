//! Exactly once: the replies of requests that changed something, kept until the client has them for sure.

use std::collections::VecDeque;

use genie_transport::wire::{
    Arguments, ContentHash, ErrorCode, Finish, Handle, Kind, Offered, RemoteError, Reply, TensorSpec,
};

use crate::error::fail;

/// Buffers larger than this are not kept for the next reply.
const SPARE_BYTES: usize = 1 << 20;
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

    fn bytes(&self) -> usize {
        match self {
            Self::Ran { outputs, .. } => outputs.capacity(),
            Self::Generated { tokens, .. } => tokens.capacity() * 4,
            Self::Offered(entries) => entries.capacity() * size_of::<Offered>(),
            _ => 0,
        }
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
    /// A window of at most `most` replies that together take at most `most_bytes` (but always the last one).
    pub(crate) fn new(most: usize, most_bytes: usize) -> Self {
        let most = most.max(1);
        Self {
            kept: VecDeque::with_capacity(most.min(1024)),
            most,
            most_bytes,
            bytes: 0,
            highest: None,
            forgotten: None,
            spare: Vec::new(),
        }
    }

    /// What this id is. Requests in progress are not the window's: ask them first.
    pub(crate) fn look(&self, id: u64) -> Seen<'_> {
        if self.highest.is_none_or(|highest| id > highest) {
            return Seen::New;
        }
        match self.kept.iter().rev().find(|kept| kept.id == id) {
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
        self.highest = self.highest.max(Some(id));
    }

    /// It has ended like this.
    pub(crate) fn end(&mut self, id: u64, kind: Kind, answer: Answer) -> &Answer {
        self.bytes += answer.bytes();
        self.kept.push_back(Kept { id, kind, answer });
        while self.kept.len() > 1 && (self.kept.len() > self.most || self.bytes > self.most_bytes) {
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
        let mut later = VecDeque::with_capacity(self.kept.capacity());
        for kept in self.kept.drain(..) {
            if kept.id < unanswered {
                self.bytes -= kept.answer.bytes();
            } else {
                later.push_back(kept);
            }
        }
        self.kept = later;
    }

    /// An empty buffer for the outputs of a run; one that was used before where there is one.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    fn forget_oldest(&mut self) {
        let Some(kept) = self.kept.pop_front() else { return };
        self.bytes -= kept.answer.bytes();
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

    #[test]
    fn an_id_is_new_answered_or_forgotten() {
        let mut window = Window::new(2, 1 << 20);
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
        let mut window = Window::new(2, 1 << 20);
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
        let mut window = Window::new(100, 1000);
        for id in 0..10 {
            window.end(id, Kind::Run, ran(400));
        }
        assert!(window.bytes <= 1000 && window.kept.len() == 2);
        assert_eq!(window.buffer().capacity(), 400);
        window.end(11, Kind::Run, ran(5000));
        assert_eq!(window.kept.len(), 1, "the last one is kept whatever its size");
    }
}
