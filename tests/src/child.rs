//! Other processes of a test: its own program again, in a role, spoken to line by line.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Lines that a role says to whoever started it begin with this: the test harness says others.
const MARK: char = '@';

/// A process in a role: an ignored test of this program, named by its path. It ends with this value.
pub struct Role {
    child: Child,
    name: &'static str,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Role {
    /// Starts it, with these variables in its environment.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(name: &'static str, variables: &[(&str, &str)]) -> Self {
        let program = std::env::current_exe().expect("this program");
        Self::run(Command::new(program), name, variables)
    }

    /// Starts it within a network namespace.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_in(namespace: &str, name: &'static str, variables: &[(&str, &str)]) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        Self::run(command, name, variables)
    }

    fn run(mut command: Command, name: &'static str, variables: &[(&str, &str)]) -> Self {
        command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
        command.envs(variables.iter().copied()).env(ROLE, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the role starts");
        let stdin = child.stdin.take().expect("its input");
        let out = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // Whoever waited for it may be gone; and the harness may have begun the line with words of its own.
                let said = line.split_once(MARK).map(|(_, said)| said.to_owned());
                if said.is_some_and(|said| sender.send(said).is_err()) {
                    return;
                }
            }
        });
        Self { child, name, stdin, lines }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says a line to it. One that is gone is heard of when it is waited for.
    pub fn tell(&mut self, line: &str) {
        let _ = writeln!(self.stdin, "{line}");
    }

    /// What follows `what` on the next line that begins so.
    ///
    /// # Panics
    /// If nothing comes within this time, or the process ends: with what it was doing.
    pub fn hear(&mut self, what: &str, within: Duration) -> String {
        loop {
            let lines = &self.lines;
            let mut gone = false;
            let line = patience(within, |tick| match lines.recv_timeout(tick) {
                Ok(line) => Some(line),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    gone = true;
                    Some(String::new())
                }
            });
            match line {
                Some(line) if !gone => {
                    if let Some(rest) = line.strip_prefix(what) {
                        return rest.trim().to_owned();
                    }
                }
                Some(_) => panic!("the {} ended before it said {what:?}: {:?}", self.name, self.child.wait()),
                None => {
                    let where_to = self.whereabouts();
                    panic!("the {} did not say {what:?} within {within:?}:\n{where_to}", self.name);
                }
            }
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is gone.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Ends it by SIGKILL, which it cannot see coming, and waits until the system has cleared it away.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Where its threads are, for a test that waited in vain.
    fn whereabouts(&mut self) -> String {
        let mut text = String::new();
        let pid = self.pid();
        let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let at = task.path().display().to_string();
            let state = state(&read(format!("{at}/stat")));
            let (name, call) = (read(format!("{at}/comm")), read(format!("{at}/syscall")));
            let (place, stack) = (read(format!("{at}/wchan")), read(format!("{at}/stack")));
            let stack = stack.replace('\n', " ");
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {} {state} {place} syscall {} {stack}", name.trim(), call.trim());
        }
        // It has a thread that answers whatever the others do.
        self.tell("where");
        let said = patience(Duration::from_secs(1), |tick| {
            self.lines.recv_timeout(tick).ok().filter(|line| line.starts_with("where"))
        });
        text + "  it says: " + &said.unwrap_or_else(|| "nothing".into())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends a process a signal. One that is told to stop has stopped when this returns.
///
/// # Panics
/// If it is gone.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.expect("kill starts").success(), "process {pid} is gone");
    // The system stops a process once one of its threads has run, and each of the others as soon as it would.
    if name == "-STOP" {
        let stopped = patience(Duration::from_secs(20), |_| states(pid).iter().all(|s| s == "T").then_some(()));
        assert!(stopped.is_some(), "process {pid} does not stop: {:?}", states(pid));
    }
}

/// What each thread of a process is at, as one letter.
fn states(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| state(&std::fs::read_to_string(task.path().join("stat")).unwrap_or_default())).collect()
}

/// The letter in the words of `/proc/PID/stat`: it follows the name, which may hold anything.
fn state(stat: &str) -> String {
    stat.rsplit_once(')').and_then(|(_, rest)| rest.get(1..2)).unwrap_or_default().to_owned()
}

const ROLE: &str = "GENIE_TEST_ROLE";

/// Whether this process was started for its role: a test that is one does nothing otherwise.
pub fn is_role() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// Says a line to whoever started this process.
///
/// # Panics
/// If it is gone: then so is this.
pub fn say(line: &str) {
    println!("{MARK}{line}");
    std::io::stdout().flush().expect("somebody reads it");
}

/// Looks again and again, each time for at most the duration that it is given, until there is something or the time is over. Time
/// in which the machine let this process wait is not counted: of a look, no more than it was given is.
pub fn patience<T>(span: Duration, mut look: impl FnMut(Duration) -> Option<T>) -> Option<T> {
    const TICK: Duration = Duration::from_millis(5);
    let mut left = span;
    loop {
        let began = Instant::now();
        if let Some(found) = look(TICK) {
            return Some(found);
        }
        // A look that did not wait is made to.
        std::thread::sleep(TICK.saturating_sub(began.elapsed()));
        left = left.saturating_sub(TICK);
        if left.is_zero() {
            return None;
        }
    }
}
