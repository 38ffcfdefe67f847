//! What the library is to be like: variables of the environment, read when it is first called.
//!
//! | variable | what it says |
//! |---|---|
//! | `GENIE_STAND_IN_PRODUCTS` | what it refuses, see [`Refuses`]; `nothing` |
//! | `GENIE_STAND_IN_PRODUCTS_VERSION` | its version; `130000` |
//! | `GENIE_STAND_IN_PRODUCTS_DONE` | a file that gets a line for each product that was done, also each time that it is replayed |

use std::env;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    pub(crate) refuses: Refuses,
    pub(crate) done: Option<PathBuf>,
}

/// What it refuses, by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Refuses {
    /// `nothing` that the rules allow.
    #[default]
    Nothing,
    /// `start`: it makes no handle.
    Start,
    /// `all`: a heuristic says that there is no way for a product.
    All,
    /// `more`: the same for products that do more than the sums.
    More,
    /// `silently`: a heuristic finds nothing, and says that this went well.
    Silently,
    /// `found`: a heuristic finds something that has no way.
    Found,
    /// `late`: what a heuristic found has no way when it comes to it.
    Late,
    /// `unknown`: a product that a heuristic found is an invalid value when it comes to it, though no rule says so.
    Unknown,
    /// `full`: there is no memory for a product's kernel.
    Full,
    /// `failing`: a product fails when it comes to it.
    Failing,
}

impl Settings {
    /// As the environment has it.
    ///
    /// # Panics
    /// If a refusal is unknown: a test that misspells it would test nothing.
    pub(crate) fn of_this_process() -> Self {
        let refuses = match env::var("GENIE_STAND_IN_PRODUCTS").as_deref() {
            Err(_) | Ok("nothing") => Refuses::Nothing,
            Ok("start") => Refuses::Start,
            Ok("all") => Refuses::All,
            Ok("more") => Refuses::More,
            Ok("silently") => Refuses::Silently,
            Ok("found") => Refuses::Found,
            Ok("late") => Refuses::Late,
            Ok("unknown") => Refuses::Unknown,
            Ok("full") => Refuses::Full,
            Ok("failing") => Refuses::Failing,
            Ok(other) => panic!("GENIE_STAND_IN_PRODUCTS={other}"),
        };
        Self { refuses, done: env::var_os("GENIE_STAND_IN_PRODUCTS_DONE").map(PathBuf::from) }
    }
}
