//! `genie get`: a named tensor becomes a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use genie_transport::Uri;
use serde::Serialize;

use crate::connect::{self, LinkArgs};
use crate::progress::{self, Progress};
use crate::say::{self, Say};

/// Write a named tensor of a server to a file, whole or not at all.
///
/// Example: genie get tcp://127.0.0.1:7070 embeddings table.bin
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The server: genie://HOST:PORT, or a link's own address: tcp://HOST:PORT.
    uri: Uri,
    /// The tensor's name.
    name: String,
    /// The file; one that is there already is replaced once all bytes are here.
    file: PathBuf,
    #[command(flatten)]
    link: LinkArgs,
}

#[derive(Debug, Serialize)]
struct Fetched {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    bytes: u64,
    device: u16,
    seconds: f64,
}

/// Runs the command.
pub(crate) fn run(args: &GetArgs, say: Say) -> Result<()> {
    let (tensor, data, seconds) = connect::within(&args.uri, args.link, |session| {
        let tensor = session.lookup(&args.name)?;
        let began = Instant::now();
        let counters = session.counters();
        let before = counters.down.load(Ordering::Relaxed);
        let came = || counters.down.load(Ordering::Relaxed) - before;
        let data = progress::watched(Progress::bytes("receiving"), tensor.spec.bytes(), came, || session.get(&tensor))?;
        Ok((tensor, data, began.elapsed().as_secs_f64()))
    })?;
    write_whole(&args.file, &data).with_context(|| {
        format!("cannot write {} ({}): the file is as it was", args.file.display(), say::bytes(data.len() as u64))
    })?;
    let fetched = Fetched {
        name: args.name.clone(),
        dtype: tensor.spec.dtype().name(),
        shape: tensor.spec.dims().to_vec(),
        bytes: tensor.spec.bytes(),
        device: tensor.device,
        seconds,
    };
    say.result(&fetched, |f| {
        let rate = f.bytes as f64 / f.seconds / 1e9;
        let (size, time) = (say::bytes(f.bytes), say::seconds(f.seconds));
        format!("{}: {} {:?}, {size} in {time} ({rate:.2} GB/s) to {}", f.name, f.dtype, f.shape, args.file.display())
    })
}

/// Writes a file beside its place and renames it: nobody ever sees half of it. A file that it replaces leaves it its mode. What is
/// no regular file (a pipe, a device) is written as it is, and what a link points to is replaced rather than the link.
pub(crate) fn write_whole(path: &Path, data: &[u8]) -> io::Result<()> {
    let there = fs::canonicalize(path);
    let path = there.as_deref().unwrap_or(path);
    let before = fs::metadata(path).ok();
    if before.as_ref().is_some_and(|m| !m.is_file()) {
        return File::options().write(true).open(path)?.write_all(data);
    }
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut part = name.to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(part);
    let write = || {
        let mut file = File::create_new(&part)?;
        if let Some(before) = &before {
            file.set_permissions(before.permissions())?;
        }
        file.write_all(data)?;
        // A full disk may show itself only here.
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().inspect_err(|error| {
        if error.kind() != io::ErrorKind::AlreadyExists {
            // Nothing more can be done about it.
            let _ = fs::remove_file(&part);
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_whole(&link, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write_whole(&path, b"four").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(write_whole(&folder.path().join("missing/x"), b"").is_err());
        assert!(write_whole(Path::new("/dev/full"), b"x").is_err(), "a full disk is an error");
        assert!(write_whole(folder.path(), b"x").is_err(), "a folder is no file");
    }
}
