//! How much of a prompt one run takes.
//!
//! A device works best on many tokens at once, but nobody else's step runs meanwhile. So a prompt is cut in short pieces while others
//! decode, and in pieces of about the same time where nobody does: whoever comes then waits that long at the most.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::{Config, Mode};
use crate::core::Core;
use crate::programs::Program;

/// How long a piece may take where nobody decodes.
const ALONE: Duration = Duration::from_millis(100);
/// Somebody decodes whose last step was no longer ago than this.
const COMPANY: Duration = Duration::from_millis(250);

/// How long a program takes for a token of a prompt, by its last run of several.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Nanoseconds; 0: not known.
    token: AtomicU64,
}

impl Pace {
    /// A run of so many tokens took so long.
    pub(crate) fn note(&self, tokens: u64, took: Duration) {
        if tokens > 1 {
            let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.token.store((nanoseconds / tokens).max(1), Ordering::Relaxed);
        }
    }

    /// Tokens that take this long, where that is known.
    fn tokens_in(&self, time: Duration) -> Option<u64> {
        let token = self.token.load(Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        (token > 0).then(|| nanoseconds / token)
    }
}

/// Tokens that the next run of a prompt takes at the most.
pub(crate) fn piece(core: &Core, program: &Program) -> usize {
    // Only threads of their own have others beside them, and a time that means anything.
    let alone = core.config.mode == Mode::Threads && !core.queue(program.device).decoded_within(COMPANY);
    length(&core.config, &program.pace, alone)
}

fn length(config: &Config, pace: &Pace, alone: bool) -> usize {
    let least = config.prefill_tokens.max(1);
    let most = config.prefill_tokens_alone.max(least);
    match pace.tokens_in(ALONE).filter(|_| alone) {
        // Of few lengths: a device plans its work for each.
        Some(tokens) => (usize::try_from(tokens).unwrap_or(usize::MAX) / least * least).clamp(least, most),
        None => least,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(tokens: u64, took: Duration, alone: bool) -> usize {
        let pace = Pace::default();
        pace.note(tokens, took);
        let config = Config { prefill_tokens: 512, prefill_tokens_alone: 2048, ..Config::new(Vec::new(), 1) };
        length(&config, &pace, alone)
    }

    #[test]
    fn a_piece_is_short_beside_others_and_as_long_as_it_may_take_alone() {
        let ms = Duration::from_millis;
        assert_eq!(after(512, ms(50), true), 1024, "a hundred milliseconds");
        assert_eq!(after(512, ms(50), false), 512, "others decode");
        assert_eq!(after(512, ms(5), true), 2048, "no more than the most");
        assert_eq!(after(512, ms(500), true), 512, "no less than beside others");
        assert_eq!(after(1, ms(1), true), 512, "one token says nothing of many");
        assert_eq!(after(512, Duration::ZERO, true), 2048);
    }
}
