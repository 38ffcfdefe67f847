//! `genie devices`: what a server has.

use anyhow::Result;
use clap::Args;
use genie_transport::Uri;
use serde::Serialize;

use crate::connect::{self, LinkArgs};
use crate::say::{self, Say};

/// List a server's devices.
///
/// Example: genie devices tcp://127.0.0.1:7070 --json
#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// The server: tcp://HOST:PORT.
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
    total_bytes: u64,
    free_bytes: u64,
}

/// Runs the command.
pub(crate) fn run(args: &DevicesArgs, say: Say) -> Result<()> {
    let mut session = connect::session(&args.uri, args.link)?;
    let found = session.devices()?;
    session.close()?;
    let devices: Vec<_> = found
        .into_iter()
        .map(|d| Device {
            index: d.index,
            name: d.name,
            model: d.model,
            capability: d.capability,
            total_bytes: d.total_bytes,
            free_bytes: d.free_bytes,
        })
        .collect();
    say.result(&devices, |devices| {
        say::table(
            ["device", "model", "capability", "memory", "free"],
            devices.iter().map(|d| {
                [
                    d.name.clone(),
                    d.model.clone(),
                    d.capability.clone(),
                    say::bytes(d.total_bytes),
                    say::bytes(d.free_bytes),
                ]
            }),
        )
    })
}
