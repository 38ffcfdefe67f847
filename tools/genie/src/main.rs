//! The `genie` command line. One subcommand a file; `cli` says what there is, `fail` how it ends when something is wrong.

#![forbid(unsafe_code)]

mod bench;
mod cli;
mod connect;
mod devices;
mod doctor;
mod explain;
mod fail;
mod floor;
mod gap;
mod generate;
mod get;
mod gpu;
mod local;
mod logging;
mod model;
mod ping;
mod progress;
mod prompt;
mod put;
mod say;
mod serve;
mod server;
mod token;
mod traced;

use std::process::ExitCode;

use clap::Parser;
use genie_executor::device::select;

use cli::{BenchCommand, Cli, Command};
use say::Say;

fn main() -> ExitCode {
    let Cli { command, json, verbose } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return fail::usage(&error, std::env::args_os().any(|a| a == "--json")),
    };
    logging::start(verbose);
    let say = Say { json };
    let done = match command {
        Command::Serve(args) => serve::run(&args, say),
        Command::Ping(args) => ping::run(&args, say),
        Command::Devices(args) => devices::run(&args, say),
        Command::Put(args) => put::run(&args, say),
        Command::Get(args) => get::run(&args, say),
        Command::Generate(args) => generate::run(&args, say),
        Command::Gap(args) => gap::run(&args, say),
        Command::Bench(bench) => match bench.command {
            BenchCommand::Transfer(args) => bench::transfer::run(&args, say),
            BenchCommand::Price(args) => bench::price::run(&args, say),
            BenchCommand::Interference(args) => bench::interference::run(&args, say),
            BenchCommand::Growth(args) => bench::growth::run(&args, say),
            BenchCommand::Latency(args) => bench::latency::run(&args, say),
            BenchCommand::Put(args) => bench::put::run(&args, say),
            BenchCommand::Decode(args) => bench::decode::run(&args, say),
            BenchCommand::Http(args) => bench::http::run(&args, say),
        },
        Command::Explain(args) => explain::run(&args, say),
        Command::Token(args) => token::run(&args, say),
        Command::Doctor => doctor::run(say),
        Command::Floor(args) => floor::serve(&args),
    };
    let status = match done {
        Ok(()) => 0,
        Err(error) => fail::report(&error, say),
    };
    if !select::leave() {
        tracing::debug!("a thread still waits for a GPU: the process ends without the driver's leave");
        say::flush();
        select::exit_at_once(status);
    }
    ExitCode::from(status)
}
