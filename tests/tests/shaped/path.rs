//! Two namespaces and what joins them.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// What a path needs of the kernel beyond namespaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Nothing,
    Netem,
}

/// Gone, with all that was set up, with this value.
pub(crate) struct Path {
    /// Where the server is, and where its clients are.
    pub(crate) names: [String; 2],
    devices: [String; 2],
}

/// The server's address on the path.
pub(crate) const SERVER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";

impl Path {
    /// A fresh one, and otherwise why there is none.
    pub(crate) fn new(need: Need) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if need == Need::Netem && std::env::var("GENIE_SHAPED").as_deref() != Ok("netem") {
            return Err("only where GENIE_SHAPED=netem says that the kernel has sch_netem".into());
        }
        let id = format!("{:x}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let names = ["s", "c"].map(|end| format!("genie-{end}-{id}"));
        // A device's name has 15 bytes at the most.
        let devices = ["s", "c"].map(|end| format!("g{end}{id}"));
        let path = Self { names, devices };
        for name in &path.names {
            run(&["ip", "netns", "add", name]).map_err(|why| format!("no network namespaces here: {why}"))?;
        }
        let [server, client] = &path.devices;
        run(&["ip", "link", "add", server, "type", "veth", "peer", "name", client])
            .map_err(|why| format!("no veth devices here: {why}"))?;
        for ((name, device), address) in path.names.iter().zip(&path.devices).zip([SERVER, CLIENT]) {
            // What is allowed so far is allowed to its end.
            must(&["ip", "link", "set", device, "netns", name]);
            must(&["ip", "-n", name, "address", "add", &format!("{address}/24"), "dev", device]);
            must(&["ip", "-n", name, "link", "set", "lo", "up"]);
            must(&["ip", "-n", name, "link", "set", device, "up"]);
        }
        Ok(path)
    }

    /// Runs a command in both namespaces; `DEV` in it is the end's device.
    pub(crate) fn on_both(&self, words: &[&str]) {
        for (name, device) in self.names.iter().zip(&self.devices) {
            let words = words.iter().map(|word| if *word == "DEV" { device.as_str() } else { word });
            let all: Vec<_> = ["ip", "netns", "exec", name].into_iter().chain(words).collect();
            must(&all);
        }
    }

    /// Takes the link down, or up again.
    pub(crate) fn set(&self, up: bool) {
        let [_, name] = &self.names;
        let [_, device] = &self.devices;
        must(&["ip", "-n", name, "link", "set", device, if up { "up" } else { "down" }]);
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        for name in &self.names {
            // The devices go with their namespaces; one that was never made is not there to be deleted.
            let _ = run(&["ip", "netns", "delete", name]);
        }
        let _ = run(&["ip", "link", "delete", &self.devices[0]]);
    }
}

fn must(words: &[&str]) {
    if let Err(why) = run(words) {
        panic!("{words:?}: {why}; `make setup` installs what is missing");
    }
}

fn run(words: &[&str]) -> Result<(), String> {
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}
