//! Decode steps that are asked for before the token they run on has come.
//!
//! A step that waits for the reply to the one before costs a round trip a token. Here the request of a step names the request of the one
//! before, whose token it runs on: the server has that token when the step's turn comes, and the client reads it while the step
//! computes. What was asked for too early, at a stop, is cancelled, or cut from the cache again.

use std::collections::VecDeque;

use genie_transport::client::ClientError;
use genie_transport::client::blocking::Pending;
use genie_transport::wire::{Effect, ErrorCode, Finish, RemoteError};

use super::{Context, Live, Part, RemoteModel, RemoteModelError, at};

/// How [`RemoteModel::steps`] makes tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepsOptions {
    /// Tokens to make at the most.
    pub max_new: u32,
    /// Tokens that end it.
    pub stop: Vec<i32>,
    /// Steps that are under way beside the one whose token is waited for. 0: each waits for the token of the one before. 1: a round
    /// trip shorter than a step is hidden; a longer one takes as many more as steps fit into it. A server has its own limit, its
    /// credits.
    pub ahead: u32,
}

impl Default for StepsOptions {
    fn default() -> Self {
        Self { max_new: 0, stop: Vec::new(), ahead: 1 }
    }
}

/// Steps in progress, across lost sessions.
struct Stepping {
    made: u32,
    /// The last token that came, or the one that was given: it has not been run, as far as is known.
    last: i32,
    /// A stop token came, or `each` wants no more.
    ended: bool,
}

impl RemoteModel {
    /// Runs a token through the decode program, then the one that follows, and so on: as [`Self::step`] again and again, with the same
    /// tokens, but with requests ahead of their replies. `each` sees the tokens as they come, and ends it by returning `false`. The
    /// last token is not in the context: pass it to the next call.
    ///
    /// # Errors
    /// [`RemoteModelError`]; `token` and all that `each` saw but the last are in the context then. If it saw none, the context is as it
    /// was.
    pub fn steps(
        &mut self,
        context: &mut Context,
        token: i32,
        options: &StepsOptions,
        mut each: impl FnMut(i32) -> bool,
    ) -> Result<Finish, RemoteModelError> {
        self.check_room(context, u64::from(options.max_new))?;
        let mut stepping = Stepping { made: 0, last: token, ended: false };
        self.again(|this| {
            let live = this.live(context)?;
            let mut asked = VecDeque::new();
            let stepped = this.go_on(live, context, &mut stepping, options, &mut asked, &mut each);
            if this.take_back(asked) {
                this.cut_back(context);
            }
            stepped.map_err(|error| this.settled(context, error))
        })
    }

    /// Steps until it is over, or something fails. `asked`: what is under way, oldest first; what is left there is not wanted.
    fn go_on(
        &mut self,
        live: Live,
        context: &mut Context,
        stepping: &mut Stepping,
        options: &StepsOptions,
        asked: &mut VecDeque<Pending>,
        each: &mut impl FnMut(i32) -> bool,
    ) -> Result<Finish, RemoteModelError> {
        // Whether the oldest one under way named another's token; and whether one that did had to be given up, with all behind it.
        let (mut named, mut broken) = (false, false);
        let depth = if self.session.can_run_ahead() { options.ahead } else { 0 };
        loop {
            if stepping.ended {
                return Ok(Finish::Stop);
            }
            broken &= !asked.is_empty();
            let left = options.max_new - stepping.made;
            let wanted = if broken { 0 } else { depth.saturating_add(1).min(left) };
            for ahead in asked.len() as u32..wanted {
                let options = at(context.length + ahead);
                let pending = match asked.back() {
                    Some(before) => self.session.start_run_on(before, live.decode, self.decode.tokens, options)?,
                    None => {
                        named = false;
                        let ids = stepping.last.to_le_bytes();
                        self.session.start_run(live.decode, &[self.decode.tokens(&[1, 1], &ids)], options)?
                    }
                };
                asked.push_back(pending);
            }
            let Some(oldest) = asked.pop_front() else { return Ok(Finish::Length) };
            let token = match self.session.finish_step(oldest) {
                // The one before came corrupted, and was sent again after this one. Those behind it name it, and fail, too: asked for
                // once more when all have.
                Err(ClientError::Remote(error)) if named && is_unnamed(&error) => {
                    broken = true;
                    continue;
                }
                other => other?,
            };
            named = true;
            context.add(Part::Token(std::mem::replace(&mut stepping.last, token)));
            stepping.made += 1;
            stepping.ended = !each(token) || options.stop.contains(&token);
        }
    }

    /// Ends steps that are not wanted. Whether any of them may have run.
    fn take_back(&mut self, asked: VecDeque<Pending>) -> bool {
        // The last first: none begins for want of a cancellation that is on its way.
        asked.iter().rev().for_each(|pending| self.session.cancel(pending));
        let ended = asked.into_iter().map(|pending| match self.session.finish_step(pending) {
            Err(ClientError::Remote(error)) => error.effect != Effect::None,
            // With a session that is lost, its caches are.
            Err(ClientError::SessionLost(_)) => false,
            _ => true,
        });
        ended.fold(false, |any, ran| any | ran)
    }
}

/// Whether a step did not run because the one whose token it takes had not.
fn is_unnamed(error: &RemoteError) -> bool {
    error.code == ErrorCode::BadArgument && error.effect == Effect::None
}
