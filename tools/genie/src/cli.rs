//! What may be written on the command line.

use clap::{Args, Parser, Subcommand};

use crate::{bench, devices, explain, floor, gap, generate, get, ping, put, serve, token};

/// Use a GPU, or any other device, across the network as if it were local.
#[derive(Debug, Parser)]
#[command(name = "genie", version, propagate_version = true, after_long_help = AFTER)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// For programs: print the result as one JSON document on standard output (a list where it has rows), and an error as one
    /// line {"error": TEXT, "exit": STATUS} on standard error.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Log more to standard error: -v for what happens, -vv for why. The variable RUST_LOG says it in detail.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

const AFTER: &str = "\
Examples:
  genie doctor                                                    what this machine offers
  genie serve --listen tcp://127.0.0.1:7070 --device cpu          serve this machine's CPU
  genie ping tcp://127.0.0.1:7070 --count 10                      is it there, and how far?
  genie explain genie://127.0.0.1:7070                            which link it would be, and why
  genie generate --connect tcp://127.0.0.1:7070 --model model.gguf --prompt 'The capital of France is'
  genie gap --model model.gguf --out gap.csv                      what knowing the meaning of bytes is worth

Exit status:
  0 done  1 failed  2 wrong usage  3 the server cannot be reached  4 results that must be equal differ";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(serve::ServeArgs),
    Ping(ping::PingArgs),
    Devices(devices::DevicesArgs),
    Put(put::PutArgs),
    Get(get::GetArgs),
    Generate(generate::GenerateArgs),
    Gap(gap::GapArgs),
    Bench(BenchArgs),
    Explain(explain::ExplainArgs),
    Token(token::TokenArgs),
    /// Say what this machine offers, and how to get what it lacks.
    Doctor,
    #[command(hide = true)]
    Floor(floor::FloorArgs),
}

/// Measure a server against the floor: plain sockets, or the same executor in process.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Transfer(bench::transfer::TransferArgs),
    Price(bench::price::PriceArgs),
    Interference(bench::interference::InterferenceArgs),
    Growth(bench::growth::GrowthArgs),
    Latency(bench::latency::LatencyArgs),
    Put(bench::put::PutArgs),
    Decode(bench::decode::DecodeArgs),
    Http(bench::http::HttpArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn scripts_rely_on_these_calls() {
        for line in [
            "genie serve --listen tcp://127.0.0.1:7070 --device cpu",
            "genie serve --listen tcp://127.0.0.1:0 --device cpu*8 --json",
            "genie serve --listen tcp://127.0.0.1:0 --device auto",
            "genie ping tcp://127.0.0.1:7070 --count 3",
            "genie devices tcp://127.0.0.1:7070 --json",
            "genie put tcp://127.0.0.1:7070 name file",
            "genie get tcp://127.0.0.1:7070 name file",
            "genie generate --connect tcp://127.0.0.1:7070 --model m.gguf --prompt text --max-new-tokens 8 --temperature 0.7 --seed 1",
            "genie gap --model m.gguf --modes local,naive,remote-cache,genie --phases prefill,decode --trials 3 \
             --prompt-tokens 72 --new-tokens 16 --out gap.csv",
            "genie gap --model m.gguf --modes sys_simulated --out gap.csv --connect tcp://127.0.0.1:7070",
            "genie bench latency --connect tcp://127.0.0.1:7070 --sizes 64,4096,65536,1048576 --floor --json --spin 0",
            "genie bench put --connect tcp://127.0.0.1:7070 --sizes 65536,1048576,4194304,67108864 --floor --json",
            "genie bench transfer --connect tcp://127.0.0.1:7070 --op put --sizes 64M --lanes 4 --threads 2 --json",
            "genie bench transfer --serve --links tcp,tcp --op echo,put,get,mixed --sizes 64,4K:64K:4 --rate 1000 --csv",
            "genie bench price --serve --serve-args=--unchecked --op put,get --sizes 1M,4M --pairs 5 --json",
            "genie bench price --uri tcps://a:2,tcp://a:1 --ca ca.pem --sizes 64M",
            "genie bench interference --serve --tensor 1G --json",
            "genie serve --device cpu --http",
            "genie serve --http --device cpu --http-limit 64M",
            "genie serve --http 127.0.0.1:0 --listen tcp://127.0.0.1:0",
            "genie bench http --sizes 64K,4M --json",
            "genie bench growth --serve --connections 1,10000 --residents 1,100000 --json",
            "genie serve --listen tcps://0.0.0.0:7070 --tokens t --tls-cert c --tls-key k --client-ca a --plaintext-off-host",
            "genie ping tcps://gpu:7070 --token-file t --ca a --tls-cert c --tls-key k",
            "genie token new alice --tokens t --client a --devices cpu:0 --quota 8G --read-only-weights --sessions 2",
            "genie doctor --json",
            "genie explain genie://127.0.0.1:7070 --json",
            "genie ping genie://127.0.0.1:7070 --link shm",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split_whitespace()) {
                panic!("{line}: {error}");
            }
        }
        for line in [
            "genie ping 127.0.0.1:7070",
            "genie ping genie://127.0.0.1:7070 --link pigeon",
            "genie bench put --connect tcp://a:1 --sizes 0",
            "genie gap --model m --modes x",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
