//! Where files are kept.

use std::env;
use std::path::PathBuf;

/// The folder for what can be made or fetched again: `$XDG_CACHE_HOME/genie`, else `~/.cache/genie`. `None` where neither
/// variable is an absolute path: a folder that others can write to would not do instead.
pub fn cache_dir() -> Option<PathBuf> {
    let xdg = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || env::var_os("HOME").map(PathBuf::from).filter(|p| p.is_absolute()).map(|h| h.join(".cache"));
    xdg.or_else(home).map(|cache| cache.join("genie"))
}

/// Where `tools/fetch-smollm2` puts SmolLM2-135M-Instruct: in [`cache_dir`], or the current folder where there is none.
/// `$GENIE_SMOLLM2` overrides it. The file need not be there.
pub fn smollm2_path() -> PathBuf {
    env::var_os("GENIE_SMOLLM2").map_or_else(
        || cache_dir().unwrap_or_default().join("models").join("SmolLM2-135M-Instruct.Q4_1.gguf"),
        PathBuf::from,
    )
}
