//! Starting and stopping the program.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// A server of a test, killed with it.
pub(crate) struct Server {
    child: Child,
    pub(crate) uri: String,
    /// Its standard output, so that it is not closed under it.
    _out: BufReader<std::process::ChildStdout>,
}

impl Server {
    /// On a port that is free.
    pub(crate) fn start() -> Self {
        Self::at("tcp://127.0.0.1:0", &["--device", "cpu", "--threads", "2"])
    }

    /// The same, for one that another is to follow at its place: a port of 127.0.0.1 might be somebody else's by then, one of this address
    /// is not.
    pub(crate) fn start_apart() -> Self {
        Self::at("tcp://127.0.0.2:0", &["--device", "cpu", "--threads", "2"])
    }

    pub(crate) fn at(listen: &str, more: &[&str]) -> Self {
        Self::logging(listen, more, Stdio::inherit())
    }

    /// What it logs goes there.
    pub(crate) fn logging(listen: &str, more: &[&str], log: Stdio) -> Self {
        Self::of(genie(&["serve", "--listen", listen]).args(more).stderr(log), "cpu:0")
    }

    /// A command that serves these devices.
    pub(crate) fn of(command: &mut Command, devices: &str) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut out = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("its output can be read");
        assert!(line.starts_with(&format!("genie: serving {devices}")), "{line}");
        let uri = line.trim().rsplit_once(" on ").expect("the line says where").1.to_owned();
        Self { child, uri, _out: out }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().expect("kill starts").success());
    }

    /// Memory that it has now.
    pub(crate) fn resident_kb(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory is told");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().expect("it can be waited for")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate for this machine's loopback address, its key, and the authority that signed it, as files.
pub(crate) struct Certificate {
    folder: tempfile::TempDir,
}

impl Certificate {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("a certificate can be made");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A certificate of its signer's name passes for its own signer's with OpenSSL.
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let key = || KeyPair::generate().expect("a key can be made");
        let authority = CertifiedIssuer::self_signed(params, key()).expect("a certificate can be made");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a certificate can be made");
        let own = key();
        let certificate = params.signed_by(&own, &authority).expect("a certificate can be made");
        let made = Self { folder: tempfile::tempdir().expect("there is room") };
        let files = [("ca.pem", authority.pem()), ("cert.pem", certificate.pem()), ("key.pem", own.serialize_pem())];
        for (name, text) in files {
            fs::write(made.path(name), text).expect("there is room");
        }
        fs::set_permissions(made.path("key.pem"), Permissions::from_mode(0o600)).expect("it is ours");
        made
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// The program with these arguments.
pub(crate) fn genie(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genie"));
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// Runs the program, which must end well; its standard output.
pub(crate) fn good(arguments: &[&str]) -> String {
    let output = genie(arguments).output().expect("the program starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it writes UTF-8")
}

/// Runs the program, which must fail; its exit status and standard error.
pub(crate) fn bad(arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = genie(arguments).output().expect("the program starts");
    assert!(!status.success(), "{arguments:?}");
    assert_eq!(String::from_utf8_lossy(&stdout), "", "what is wrong goes to standard error");
    (status.code().expect("no signal"), String::from_utf8(stderr).expect("it writes UTF-8"))
}

pub(crate) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("it is JSON")
}
