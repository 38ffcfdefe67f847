//! `genie devices`: what a server has.

use anyhow::Result;
use clap::Args;
use genie_transport::Uri;
use serde::Serialize;

use crate::connect::{self, LinkArgs};
use crate::say::{self, Say};

/// List a server's devices.
///
/// With --json: index, name, model, capability, total and free (bytes of memory).
///
/// Example: genie devices tcp://127.0.0.1:7070 --json
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// The server: genie://HOST:PORT, or a link's own address: tcp://HOST:PORT.
    uri: Uri,
    #[command(flatten)]
    link: LinkArgs,
}

#[derive(Debug, Serialize)]
struct Device {
    index: u32,
    name: String,
    model: String,
    capability: String,
    /// Bytes of memory.
    total: u64,
    /// Bytes of it that nothing takes.
    free: u64,
}

/// Runs the command.
pub(crate) fn run(args: &DevicesArgs, say: Say) -> Result<()> {
    let found = connect::within(&args.uri, args.link, |session| Ok(session.devices()?))?;
    let devices: Vec<_> = found
        .into_iter()
        .map(|d| Device {
            index: d.index,
            name: d.name,
            model: d.model,
            capability: d.capability,
            total: d.total_bytes,
            free: d.free_bytes,
        })
        .collect();
    say.result(&devices, |devices| {
        say::table(
            ["device", "model", "capability", "memory", "free"],
            devices.iter().map(|d| {
                [d.name.clone(), d.model.clone(), d.capability.clone(), say::bytes(d.total), say::bytes(d.free)]
            }),
        )
    })
}
