//! `genie put`: a file becomes a named tensor.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use genie_graph::DType;
use genie_transport::Uri;
use genie_transport::client::PutOptions;
use genie_transport::wire::{ContentHash, TensorSpec};
use serde::Serialize;

use crate::connect::{self, LinkArgs};
use crate::progress::{self, Progress};
use crate::say::{self, Say};

/// Make a file's bytes a tensor on a server, under a name that every session there can find.
///
/// The bytes are hashed first: what the server has already is not sent, and an upload that was cut goes on where it was.
///
/// Example: genie put tcp://127.0.0.1:7070 embeddings table.bin --dtype f32 --shape 1000,64
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The server: genie://HOST:PORT, or a link's own address: tcp://HOST:PORT.
    uri: Uri,
    /// The name; a tensor that has it already is replaced.
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    /// The file. It is sent as it is: little-endian, row-major.
    file: PathBuf,
    /// Element type: f32, f16, bf16, i64, i32, u8 or bool.
    #[arg(long, default_value = "u8", value_parser = dtype)]
    dtype: DType,
    /// Dimensions, outermost first; without it, one dimension of as many elements as the file has.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',')]
    shape: Vec<u64>,
    /// Index of the device.
    #[arg(long, default_value_t = 0)]
    device: u16,
    #[command(flatten)]
    link: LinkArgs,
}

#[derive(Debug, Serialize)]
struct Stored {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    bytes: u64,
    device: u16,
    /// Sent for it, headers included.
    bytes_up: u64,
    seconds: f64,
}

/// Runs the command.
pub(crate) fn run(args: &PutArgs, say: Say) -> Result<()> {
    let about = fs::metadata(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    if !about.is_file() {
        let kind = if about.is_dir() { "a folder" } else { "no regular file" };
        bail!(
            "{} is {kind}: put takes a file of bytes; put each one, or write them to a file first",
            args.file.display()
        );
    }
    let data = genie_models::map_file(&args.file)?;
    let spec = spec(args.dtype, &args.shape, data.len() as u64).with_context(|| args.file.display().to_string())?;
    connect::reach(&args.uri, args.link)?;
    let began = Instant::now();
    // Before the session is opened: one that says nothing for as long as a large file takes would be taken for gone.
    let hash = ContentHash::of(&data);
    let (tensor, seconds, bytes_up) = connect::within(&args.uri, args.link, |session| {
        let options = PutOptions { device: args.device, name: Some(&args.name), weight: Some(hash) };
        let counters = session.counters();
        let before = counters.up.load(Ordering::Relaxed);
        let sent = || counters.up.load(Ordering::Relaxed) - before;
        let put = || session.put(&spec, Bytes::from_owner(data), options);
        let tensor = progress::watched(Progress::bytes("sending"), spec.bytes(), sent, put)?;
        Ok((tensor, began.elapsed().as_secs_f64(), sent()))
    })?;
    let stored = Stored {
        name: args.name.clone(),
        dtype: spec.dtype().name(),
        shape: spec.dims().to_vec(),
        bytes: spec.bytes(),
        device: tensor.device,
        bytes_up,
        seconds,
    };
    say.result(&stored, |s| {
        let rate = s.bytes as f64 / s.seconds / 1e9;
        format!(
            "{}: {} {:?}, {} in {} ({rate:.2} GB/s; {} sent)",
            s.name,
            s.dtype,
            s.shape,
            say::bytes(s.bytes),
            say::seconds(s.seconds),
            say::bytes(s.bytes_up)
        )
    })
}

fn spec(dtype: DType, shape: &[u64], bytes: u64) -> Result<TensorSpec> {
    if bytes == 0 {
        bail!("the file is empty: a tensor has at least one element");
    }
    let size = dtype.bytes();
    if !bytes.is_multiple_of(size) {
        bail!("{bytes} bytes are no whole number of {dtype} elements of {size} bytes: choose another --dtype");
    }
    let line = [bytes / size];
    let spec = TensorSpec::new(dtype, if shape.is_empty() { &line } else { shape })?;
    if spec.bytes() != bytes {
        bail!("the file has {bytes} bytes, but {dtype} {shape:?} takes {}: choose another --shape", spec.bytes());
    }
    Ok(spec)
}

/// An element type by its name.
pub(crate) fn dtype(name: &str) -> Result<DType, String> {
    DType::from_name(name).ok_or_else(|| "write f32, f16, bf16, i64, i32, u8 or bool".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_fits_its_file() {
        assert_eq!(spec(DType::U8, &[], 5).unwrap().dims(), [5]);
        assert_eq!(spec(DType::F32, &[2, 3], 24).unwrap().dims(), [2, 3]);
        for (dtype, shape, bytes) in [(DType::U8, &[][..], 0), (DType::F32, &[], 5), (DType::F32, &[2, 3], 20)] {
            assert!(spec(dtype, shape, bytes).is_err());
        }
    }
}
