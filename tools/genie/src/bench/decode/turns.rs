//! The same tokens again and again: in this process, asked for one by one, and streamed by the server.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use genie_models::remote::{RemoteModel, Sampling, StepsOptions};
use genie_transport::client::blocking::Session;

use super::super::median;
use super::super::relay::Relay;
use crate::fail::Differ;
use crate::local::LocalModel;
use crate::progress::Progress;

/// What is run.
pub(super) struct Task<'a> {
    pub(super) local: &'a LocalModel,
    pub(super) prompt: &'a [i32],
    /// Decode steps; 0: only the prompt is run.
    pub(super) steps: u32,
    pub(super) turns: u32,
    /// Requests that are under way beside the one whose reply is waited for, where steps do not wait for each reply.
    pub(super) ahead: u32,
}

/// Local and remote, in seconds.
pub(super) struct Pair {
    pub(super) local_prefill: f64,
    pub(super) remote_prefill: f64,
    /// Without steps, none.
    pub(super) decode: Option<Decode>,
}

/// A step, in seconds.
pub(super) struct Decode {
    pub(super) local: f64,
    pub(super) remote: f64,
    /// A token of steps with requests ahead, all of a turn, and that by a local step, turn by turn.
    pub(super) ahead: f64,
    pub(super) ahead_ratio: f64,
    /// A token of those that the server streams.
    pub(super) streamed: f64,
    /// That by a local step, turn by turn.
    pub(super) streamed_ratio: f64,
    /// How many of the first streamed tokens are those of the steps in this process. All of them go through the same program: fewer than
    /// all are a fault.
    pub(super) streamed_alike: usize,
    /// Up and down, of the largest step.
    pub(super) bytes: (u64, u64),
}

/// Steps of a client that is further away, in seconds.
pub(super) struct Far {
    /// As it was measured.
    pub(super) round_trip: f64,
    /// What of it bytes were held back for, there and back.
    pub(super) held: f64,
    pub(super) local: f64,
    pub(super) remote: f64,
    /// As in [`Decode`].
    pub(super) ahead: f64,
    pub(super) ahead_ratio: f64,
}

/// Steps with requests ahead, of some turns.
#[derive(Default)]
struct Ahead {
    seconds: Vec<f64>,
    ratios: Vec<f64>,
}

/// One turn of one side.
struct Turn {
    prefill: f64,
    steps: Vec<f64>,
    tokens: Vec<i32>,
    /// Up and down, of the largest step.
    bytes: (u64, u64),
}

impl Task<'_> {
    /// All in turns: what slows the machine down slows down all.
    pub(super) fn pair(&self, remote: &mut RemoteModel) -> Result<Pair> {
        let (mut local_prefills, mut remote_prefills) = (Vec::new(), Vec::new());
        let (mut local_steps, mut remote_steps) = (Vec::new(), Vec::new());
        let (mut streamed, mut ratios, mut alike) = (Vec::new(), Vec::new(), self.steps as usize);
        let (mut bytes, mut ahead) = ((0, 0), Ahead::default());
        let mut progress = self.progress("decode", 4);
        // Not counted: the first turn plans programs and touches memory for the first time.
        for turn in 0..=self.turns {
            let ours = self.here(&mut progress)?;
            let theirs = self.there(remote, &mut progress)?;
            agree(&ours.tokens, &theirs.tokens)?;
            let further = self.ahead(remote, &ours, &mut progress)?;
            let stream = if self.steps > 0 { Some(self.streamed(remote, &mut progress)?) } else { None };
            if turn == 0 {
                continue;
            }
            ahead.add(further, &ours);
            local_prefills.push(ours.prefill);
            remote_prefills.push(theirs.prefill);
            bytes = (bytes.0.max(theirs.bytes.0), bytes.1.max(theirs.bytes.1));
            if let Some((seconds, tokens)) = stream {
                // The first step's time is not in the stream's, either.
                let behind_first = &ours.steps[1..];
                streamed.push(seconds);
                ratios.push(seconds * behind_first.len() as f64 / behind_first.iter().sum::<f64>());
                alike = alike.min(ours.tokens[1..].iter().zip(&tokens).take_while(|(a, b)| a == b).count());
            }
            local_steps.extend(ours.steps);
            remote_steps.extend(theirs.steps);
        }
        let decode = Decode {
            local: median(&local_steps),
            remote: median(&remote_steps),
            ahead: median(&ahead.seconds),
            ahead_ratio: median(&ahead.ratios),
            streamed: median(&streamed),
            streamed_ratio: median(&ratios),
            streamed_alike: alike,
            bytes,
        };
        Ok(Pair {
            local_prefill: median(&local_prefills),
            remote_prefill: median(&remote_prefills),
            decode: (self.steps > 0).then_some(decode),
        })
    }

    /// Steps at a longer round trip beside those in this process. `remote` goes through the relay; where the way through it takes
    /// longer than is wanted with nothing held back, it is that way that is measured.
    pub(super) fn far(&self, relay: &Relay, remote: &mut RemoteModel, round_trip: Duration) -> Result<Far> {
        let wanted = round_trip.as_secs_f64();
        let (mut held, mut least) = (0.0, f64::INFINITY);
        for look in 0..4 {
            let beside = relay.quickly(|| trip(remote.session()))? - held;
            // Held back, bytes are noticed sooner or later than without: the first look is only where to begin. Of the others the
            // least counts, as a machine that was busy during one would make the way too short for all that follows.
            least = if look <= 1 { beside } else { least.min(beside) };
            held = (wanted - least).max(0.0);
            relay.hold(Duration::from_secs_f64(held / 2.0));
        }
        let (mut local_steps, mut remote_steps, mut trips) = (Vec::new(), Vec::new(), Vec::new());
        let mut ahead = Ahead::default();
        let mut progress = self.progress("decode from further away", 3);
        for turn in 0..=self.turns {
            let ours = self.here(&mut progress)?;
            let (theirs, further, trip) = relay.quickly(|| {
                let theirs = self.there(remote, &mut progress)?;
                let further = self.ahead(remote, &ours, &mut progress)?;
                Ok::<_, anyhow::Error>((theirs, further, trip(remote.session())?))
            })?;
            agree(&ours.tokens, &theirs.tokens)?;
            if turn > 0 {
                ahead.add(further, &ours);
                local_steps.extend(ours.steps);
                remote_steps.extend(theirs.steps);
                trips.push(trip);
            }
        }
        Ok(Far {
            round_trip: median(&trips),
            held,
            local: median(&local_steps),
            remote: median(&remote_steps),
            ahead: median(&ahead.seconds),
            ahead_ratio: median(&ahead.ratios),
        })
    }

    fn progress(&self, what: &'static str, sides: u64) -> Progress {
        Progress::steps(what, (u64::from(self.turns) + 1) * u64::from(self.steps) * sides)
    }

    fn here(&self, progress: &mut Progress) -> Result<Turn> {
        let mut context = self.local.context(Sampling::default())?;
        let (first, prefill) = timed(|| self.local.prefill(&mut context, self.prompt))?;
        let (mut tokens, mut steps, mut last) = (vec![first], Vec::new(), first);
        for _ in 0..self.steps {
            let (token, time) = timed(|| self.local.step(&mut context, last))?;
            last = token;
            tokens.push(token);
            steps.push(time);
            progress.step();
        }
        Ok(Turn { prefill, steps, tokens, bytes: (0, 0) })
    }

    fn there(&self, remote: &mut RemoteModel, progress: &mut Progress) -> Result<Turn> {
        let mut context = remote.context(Sampling::default())?;
        let (first, prefill) = timed(|| remote.prefill(&mut context, self.prompt))?;
        let (mut tokens, mut steps, mut last, mut bytes) = (vec![first], Vec::new(), first, (0, 0));
        for _ in 0..self.steps {
            let before = remote.session().traffic();
            let (token, time) = timed(|| remote.step(&mut context, last))?;
            let after = remote.session().traffic();
            bytes = (bytes.0.max(after.0 - before.0), bytes.1.max(after.1 - before.1));
            last = token;
            tokens.push(token);
            steps.push(time);
            progress.step();
        }
        remote.forget(context)?;
        Ok(Turn { prefill, steps, tokens, bytes })
    }

    /// Seconds a token of steps with requests ahead, the first among them; their tokens must be those of `ours`. Nothing where there are
    /// no steps.
    fn ahead(&self, remote: &mut RemoteModel, ours: &Turn, progress: &mut Progress) -> Result<Option<f64>> {
        if self.steps == 0 {
            return Ok(None);
        }
        let mut context = remote.context(Sampling::default())?;
        let first = remote.prefill(&mut context, self.prompt)?;
        let (mut tokens, options) =
            (vec![first], StepsOptions { max_new: self.steps, ahead: self.ahead, ..StepsOptions::default() });
        let (_, seconds) = timed(|| {
            remote.steps(&mut context, first, &options, |token| {
                tokens.push(token);
                progress.step();
                true
            })
        })?;
        remote.forget(context)?;
        agree(&ours.tokens, &tokens)?;
        Ok(Some(seconds / f64::from(self.steps)))
    }

    /// Seconds a token of those that the server makes by itself and streams, from the first on; and the tokens.
    fn streamed(&self, remote: &mut RemoteModel, progress: &mut Progress) -> Result<(f64, Vec<i32>)> {
        let mut context = remote.context(Sampling::default())?;
        let first = remote.prefill(&mut context, self.prompt)?;
        let (mut tokens, mut times) = (Vec::new(), Vec::new());
        remote.generate(&mut context, &[first], self.steps, &[], |token| {
            times.push(Instant::now());
            tokens.push(token);
            progress.step();
            true
        })?;
        remote.forget(context)?;
        match times.as_slice() {
            [begun, .., ended] => Ok(((*ended - *begun).as_secs_f64() / (times.len() - 1) as f64, tokens)),
            _ => bail!("the server streamed {} tokens, not {}", times.len(), self.steps),
        }
    }
}

impl Ahead {
    fn add(&mut self, seconds: Option<f64>, ours: &Turn) {
        let Some(seconds) = seconds else { return };
        self.seconds.push(seconds);
        self.ratios.push(seconds * ours.steps.len() as f64 / ours.steps.iter().sum::<f64>());
    }
}

fn agree(ours: &[i32], theirs: &[i32]) -> Result<()> {
    if ours != theirs {
        return Err(Differ("the server's tokens are not those of this process".to_owned()).into());
    }
    Ok(())
}

/// Trips of one look at the most, and how long it goes on where they take long.
const TRIPS: usize = 201;
const LOOK: Duration = Duration::from_millis(100);

/// A round trip of an empty request, in seconds: the median of many.
fn trip(session: &mut Session) -> Result<f64> {
    let (began, mut trips) = (Instant::now(), Vec::new());
    while trips.is_empty() || (trips.len() < TRIPS && began.elapsed() < LOOK) {
        trips.push(session.ping()?.as_secs_f64());
    }
    Ok(median(&trips))
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, f64), E> {
    let began = Instant::now();
    Ok((work()?, began.elapsed().as_secs_f64()))
}
