//! `genie token`: secrets that clients prove to a server.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use genie_transport::auth::Token;
use serde::Serialize;

use crate::connect::size;
use crate::say::{self, Say};

/// Make tokens, by which a server knows its clients.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    New(NewArgs),
}

/// Make a token: a line NAME SECRET for the server's file, and one for the client's
///
/// Both files can be read by their owner alone; the secret itself is never sent. A server reads its file again on SIGHUP.
///
/// Example: genie token new alice --tokens tokens --client alice.token --quota 8G
///          genie serve --tokens tokens
///          genie ping tcp://127.0.0.1:7070 --token-file alice.token
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct NewArgs {
    /// What logs call it: 1 to 64 letters, digits, or -_.@
    name: String,
    /// The server's file, to which a line is added.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// The client's file, which must not be there yet. Without either file the line is printed.
    #[arg(long, value_name = "FILE")]
    client: Option<PathBuf>,
    /// The devices that it may use, by name: cpu:0,cuda:1. Without it, all.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    devices: Option<Vec<String>>,
    /// Bytes that a session of it may hold: 8G.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    quota: Option<u64>,
    /// It may use weights that are on the server, and upload none.
    #[arg(long)]
    read_only_weights: bool,
    /// Sessions that it may have at a time.
    #[arg(long, value_name = "N")]
    sessions: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Made<'a> {
    name: &'a str,
    tokens: Option<&'a Path>,
    client: Option<&'a Path>,
}

/// Runs the command.
pub(crate) fn run(args: &TokenArgs, say: Say) -> Result<()> {
    let TokenCommand::New(args) = &args.command;
    let mut token = Token::draw(&args.name)?;
    token.rights.devices.clone_from(&args.devices);
    token.rights.quota = args.quota;
    token.rights.upload_weights = !args.read_only_weights;
    token.rights.sessions = args.sessions;
    if let Some(client) = &args.client {
        anyhow::ensure!(!client.exists(), "{} is there already: remove it, or name another file", client.display());
    }
    if let Some(tokens) = &args.tokens {
        token.append(tokens)?;
    }
    if let Some(client) = &args.client {
        token.append(client)?;
    }
    if args.tokens.is_none() && args.client.is_none() {
        return say::line(&token.line());
    }
    let made = Made { name: &token.name, tokens: args.tokens.as_deref(), client: args.client.as_deref() };
    if say.json {
        return say::line(&serde_json::to_string(&made)?);
    }
    let files: Vec<_> = made.tokens.iter().chain(&made.client).map(|path| path.display().to_string()).collect();
    say::line(&format!("genie: token {} is in {}", made.name, files.join(" and ")))
}
