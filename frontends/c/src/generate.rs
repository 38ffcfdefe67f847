//! KV caches, and tokens that the server makes.

use std::ffi::c_void;
use std::sync::Arc;

use genie_transport::client::blocking::Session;
use genie_transport::client::{Cache, GenerateOptions, Generated};
use genie_transport::wire::Finish;

use crate::arguments::{Place, optional, optional_place, slice};
use crate::core::{Core, Ticket};
use crate::handles::Table;
use crate::program::{arguments, binding, genie_argument, genie_binding, genie_program, program};
use crate::status::{Failure, entry, genie_error, genie_status};
use crate::tensor;

/// A KV cache on the server. Freed by `genie_cache_free`.
pub struct genie_cache {
    _opaque: [u8; 0],
}

/// Why a generate ended.
#[repr(C)]
pub enum genie_finish {
    /// It made as many tokens as were asked for.
    GENIE_FINISH_LENGTH = 0,
    /// It made a stop token, or the callback wanted no more.
    GENIE_FINISH_STOP = 1,
}

/// How tokens are made. All zeros make none.
#[repr(C)]
pub struct genie_generate_options {
    /// Tokens to make, at the most.
    pub max_new: u32,
    /// How many `stop` has.
    pub stop_count: u32,
    /// Tokens that end it; may be NULL without any.
    pub stop: *const i32,
    /// Inputs that were not bound, but for the tokens; may be NULL without any.
    pub arguments: *const genie_argument,
    /// How many.
    pub argument_count: usize,
    /// Not 0: it fails if the cache has not `position` tokens.
    pub check_position: u32,
    /// See `check_position`.
    pub position: u32,
    /// Zeros.
    pub reserved: [u64; 2],
}

/// Is called with `count` new tokens, in the order in which they were made, on the thread that called generate, and may call functions of
/// this library, on the same session, too. `tokens` is valid until it returns. Returns whether there shall be more. It must return: no
/// longjmp, no exception.
pub type genie_on_tokens = Option<unsafe extern "C" fn(tokens: *const i32, count: usize, user: *mut c_void) -> bool>;

pub(crate) struct Held {
    pub(crate) core: Arc<Core>,
    pub(crate) cache: Cache,
}

static CACHES: Table<Held> = Table::new(7, "genie_cache");

pub(crate) fn cache(cache: *const genie_cache) -> Result<Arc<Held>, Failure> {
    CACHES.get(cache)
}

/// Makes an empty KV cache that fits input `input` of a program, with room for `reserve` tokens at first (it grows). `*cache` is the
/// caller's, to be freed by `genie_cache_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_cache_create(
    program: *const genie_program,
    input: u32,
    reserve: u32,
    cache: *mut *mut genie_cache,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(cache, "cache") }?;
        let program = self::program(program)?;
        let make = |s: &mut Session| Ok(s.start_create_cache(&program.program, input, reserve));
        let cache = program.core.call(make, |s, pending| s.finish_cache(pending))?;
        place.set(CACHES.add(Held { core: program.core.clone(), cache })?);
        Ok(())
    })
}

/// Makes a second cache with the same tokens; they share memory until one of the two goes on. `*fork` is the caller's, to be freed by
/// `genie_cache_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_cache_fork(
    cache: *const genie_cache,
    fork: *mut *mut genie_cache,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(fork, "fork") }?;
        let held = self::cache(cache)?;
        let fork = held.core.call(|s| Ok(s.start_fork_cache(held.cache)), |s, pending| s.finish_cache(pending))?;
        place.set(CACHES.add(Held { core: held.core.clone(), cache: fork })?);
        Ok(())
    })
}

/// Forgets a cache's tokens from `length` on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_cache_truncate(
    cache: *const genie_cache,
    length: u32,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        let held = self::cache(cache)?;
        held.core.call(|s| Ok(s.start_truncate_cache(held.cache, length)), |s, pending| s.finish_free(pending))
    })
}

/// Frees a cache, here and on the server. NULL is nothing, and so is one whose session is gone: GENIE_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_cache_free(cache: *mut genie_cache, error: *mut genie_error) -> genie_status {
    entry(error, || {
        if cache.is_null() {
            return Ok(());
        }
        let held = CACHES.remove(cache)?;
        let Cache(handle) = held.cache;
        tensor::free(&held.core, handle)
    })
}

/// Runs `prompt` (`prompt_count` token ids, at least 1) through `prefill`, then makes tokens by `decode`, one after another, on the server:
/// both are bindings of one cache. `on_tokens` (which may be NULL) sees them as they come. Other threads use the session meanwhile.
///
/// `prompt` and `options` are read before the first token comes. `user` is passed on as it is. `*finish` (which may be NULL) says why it
/// ended. On an error tokens that were seen stay in the cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_generate(
    prefill: *const genie_binding,
    decode: *const genie_binding,
    prompt: *const i32,
    prompt_count: usize,
    options: *const genie_generate_options,
    on_tokens: genie_on_tokens,
    user: *mut c_void,
    finish: *mut genie_finish,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, prompt, options) = unsafe {
            (
                optional_place(finish, "finish")?,
                slice(prompt, prompt_count, "prompt")?,
                optional(options, "options")?.ok_or_else(|| Failure::argument("options is NULL: say max_new"))?,
            )
        };
        if options.reserved != [0; 2] {
            return Err(Failure::argument("genie_generate_options.reserved is not zero: begin with `= {0}`"));
        }
        // SAFETY: the header's rules for what is read.
        let (stop, inputs) = unsafe {
            (
                slice(options.stop, options.stop_count as usize, "stop")?,
                arguments(options.arguments, options.argument_count)?,
            )
        };
        let position = (options.check_position != 0).then_some(options.position);
        let asked = GenerateOptions { position, max_new: options.max_new, stop: stop.to_vec(), inputs };
        let (prefill, decode) = (binding(prefill)?, binding(decode)?);
        if !Arc::ptr_eq(&prefill.core, &decode.core) {
            return Err(Failure::argument("prefill and decode are of two sessions"));
        }
        let core = &prefill.core;
        let ticket = core.start(|s| s.start_generate(prefill.binding, decode.binding, prompt, &asked))?;
        let ended = follow(core, ticket, |tokens| match on_tokens {
            // SAFETY: the caller's function, called as the header says; the tokens live until it returns.
            Some(on_tokens) => unsafe { on_tokens(tokens.as_ptr(), tokens.len(), user) },
            None => true,
        });
        core.forget(ticket);
        if let Some(place) = place {
            place.set(of(ended?));
        } else {
            ended?;
        }
        Ok(())
    })
}

/// Shows tokens as they come, until there are no more.
fn follow(core: &Core, ticket: Ticket, mut see: impl FnMut(&[i32]) -> bool) -> Result<Finish, Failure> {
    let (mut stopped, mut next) = (false, None);
    loop {
        core.wait(&[ticket], None)?;
        let generated = match core.of(ticket, Session::next_generated)? {
            Ok(generated) => generated,
            // It was this side that wanted no more.
            Err(error) => {
                let failure = Failure::from(error);
                let wanted = stopped && failure.status == genie_status::GENIE_ERROR_CANCELLED;
                return if wanted { Ok(Finish::Stop) } else { Err(failure) };
            }
        };
        let fresh = match unseen(&generated, &mut next) {
            Ok(fresh) => fresh,
            Err(failure) => {
                // Nobody hears the rest of it.
                core.of(ticket, Session::cancel)?;
                return Err(failure);
            }
        };
        if !stopped && !fresh.is_empty() && !see(fresh) {
            stopped = true;
            if generated.finish.is_none() {
                core.of(ticket, Session::cancel)?;
            }
        }
        if let Some(finish) = generated.finish {
            return Ok(if stopped { Finish::Stop } else { finish });
        }
    }
}

/// The tokens of a message that were not seen before: over a new connection the server says again all that it made. `next`: the cache's
/// length when the next token is made; unknown before the first.
fn unseen<'a>(generated: &'a Generated, next: &mut Option<i64>) -> Result<&'a [i32], Failure> {
    let tokens = &generated.tokens[..];
    if tokens.is_empty() {
        return Ok(tokens);
    }
    // The last was made when the cache held `position` tokens, the one before it one fewer, and so on.
    let end = i64::from(generated.position) + 1;
    let first = end - tokens.len() as i64;
    let expected = *next.get_or_insert(first);
    if first > expected {
        let message = "tokens are missing between two messages of a generate";
        return Err(Failure::new(genie_status::GENIE_ERROR_PROTOCOL, message));
    }
    let seen = usize::try_from(expected - first).unwrap_or(0).min(tokens.len());
    *next = Some(expected.max(end));
    Ok(&tokens[seen..])
}

pub(crate) fn of(finish: Finish) -> genie_finish {
    match finish {
        Finish::Length => genie_finish::GENIE_FINISH_LENGTH,
        Finish::Stop => genie_finish::GENIE_FINISH_STOP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_seen_once() {
        let message =
            |position, tokens: &[i32]| Generated { device: 0, position, tokens: tokens.to_vec(), finish: None };
        let mut next = None;
        let mut seen = |position, tokens: &[i32]| unseen(&message(position, tokens), &mut next).map(<[i32]>::to_vec);
        // A prompt of 5: the first token is made when the cache holds 5.
        assert_eq!(seen(5, &[10]).unwrap(), [10]);
        assert_eq!(seen(7, &[11, 12]).unwrap(), [11, 12]);
        assert_eq!(seen(8, &[10, 11, 12, 13]).unwrap(), [13], "again over a new connection");
        assert!(seen(6, &[10, 11]).unwrap().is_empty());
        assert!(seen(8, &[]).unwrap().is_empty(), "the end");
        assert_eq!(seen(10, &[15]).unwrap_err().status, genie_status::GENIE_ERROR_PROTOCOL);
        assert_eq!(seen(9, &[14]).unwrap(), [14]);
    }
}
