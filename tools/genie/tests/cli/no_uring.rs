//! A kernel without io_uring, or with it closed to this process: said what it is, and `genie://` does without. The program runs under
//! a filter of the kernel's that answers `io_uring_setup` as such a kernel does.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use genie_transport::link::uring;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::support::{Server, genie, json};

/// What the kernel answers, and what is said of it.
const ANSWERS: [(i32, &str); 2] =
    [(libc::ENOSYS, "this kernel has no io_uring"), (libc::EPERM, "io_uring is closed to this process")];

const ERRNO: &str = "GENIE_TEST_ERRNO";
const ARGUMENTS: &str = "GENIE_TEST_ARGUMENTS";

/// Runs the program with these arguments where setting up a ring fails so.
fn filtered(errno: i32, arguments: &[&str]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["no_uring::the_program_under_a_filter", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(ERRNO, errno.to_string()).env(ARGUMENTS, arguments.join("\n")).output().unwrap()
}

#[test]
#[ignore = "only as a process of other tests"]
fn the_program_under_a_filter() {
    let (Ok(errno), Ok(arguments)) = (std::env::var(ERRNO), std::env::var(ARGUMENTS)) else { return };
    let answer = SeccompAction::Errno(errno.parse().unwrap());
    let rules = [(libc::SYS_io_uring_setup, Vec::new())].into();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch).unwrap().try_into().unwrap();
    // This thread's, and so the program's that takes its place.
    seccompiler::apply_filter(&filter).unwrap();
    panic!("{}", genie(&arguments.lines().collect::<Vec<_>>()).exec());
}

#[test]
fn it_is_said_and_what_to_do() {
    for (errno, what) in ANSWERS {
        for scheme in ["uring", "urings"] {
            let uri = format!("{scheme}://127.0.0.1:0");
            let output = filtered(errno, &["serve", "--listen", &uri, "--device", "cpu", "--with-parent"]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(what) && said.contains("use tcp://"), "{said}");
            assert_eq!(output.status.code(), Some(1), "{said}");
        }
        let output = filtered(errno, &["ping", "uring://127.0.0.1:1", "--reconnect", "0"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(what), "{said}");
    }
}

/// Also by who is asked what this machine offers; `make test` asks.
#[test]
fn the_doctor_finds_out() {
    for (errno, what) in ANSWERS {
        let output = filtered(errno, &["doctor"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let line = said.lines().find(|line| line.starts_with("none  io_uring ")).unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains(what), "{line}");
    }
}

#[test]
fn a_client_without_it_is_given_tcp() {
    if let Err(reason) = uring::available() {
        return eprintln!("not tested: {reason}");
    }
    let server = Server::at("uring://127.0.0.1:0", &["--device", "cpu", "--threads", "2"]);
    let uri = server.uri.replace("uring://", "genie://");
    for (errno, what) in ANSWERS {
        let output = filtered(errno, &["explain", &uri, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        // Behind what the harness says of its own.
        let told = json(&said[said.find('{').unwrap()..]);
        assert_eq!(told["link"], "tcp", "{told}");
        let candidates = told["candidates"].as_array().unwrap();
        let of = |link: &str| candidates.iter().find(|c| c["link"] == link).unwrap_or_else(|| panic!("{told}"));
        assert_eq!(of("tcp")["outcome"], "chosen");
        assert_eq!(of("uring")["outcome"], "left out");
        assert!(of("uring")["why"].as_str().unwrap().contains(what), "{told}");
        // And it works.
        let output = filtered(errno, &["ping", &uri, "--count", "1"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
