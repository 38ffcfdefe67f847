//! What a process holds of the system's: memory, descriptors, mappings, and objects of RDMA devices.

use std::collections::BTreeMap;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// What its descriptors are.
    pub descriptors: Vec<String>,
    /// Its mappings.
    pub mappings: usize,
    /// Bytes of it that are in memory.
    pub resident: u64,
    /// Objects of RDMA devices by sort, as the kernel counts them. A protection domain that is gone is proof that the memory windows
    /// in it are, which the kernel does not list.
    pub verbs: BTreeMap<&'static str, usize>,
}

/// How descriptors of shared memory begin.
const MEMORY: &str = "/memfd:";
/// Pieces of it that a session may have kept to be used again.
const MEMORY_MORE: usize = 16;
/// Mappings that an allocator may have made, and kept, in between.
const MAPPINGS_MORE: usize = 24;
/// Bytes that an allocator may have kept.
const RESIDENT_MORE: u64 = 48 << 20;
/// Bytes of that for each time.
const RESIDENT_MORE_EACH: u64 = 512 << 10;
/// Memory that a client has sent stays registered, to be sent again: as much as this, in so many pieces at the most. A server has a
/// protection domain for each client, which cannot go before what is registered in it: it need not be counted there.
const REGISTERED_BYTES: u64 = 64 << 20;
const REGISTERED_MORE: usize = 1024;
/// Queue pairs that a session may have opened since, and descriptors of each: a lane is opened while others carry what there is.
const LANES_MORE: usize = 2;
const LANE_DESCRIPTORS: usize = 3;

/// How the tool `rdma` calls registrations.
const REGISTRATIONS: &str = "mr";
/// Every sort that it lists.
#[cfg(feature = "rdma")]
const SORTS: [&str; 5] = ["pd", "cq", "qp", "cm_id", REGISTRATIONS];

impl Holdings {
    /// Of this process.
    ///
    /// # Panics
    /// If it is gone.
    pub fn of(pid: u32) -> Self {
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).expect("the process lives");
        let names = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives");
        let target = |entry: std::fs::DirEntry| {
            let name = std::fs::read_link(entry.path()).ok()?;
            // Of memory with a descriptor, how much there is.
            let bytes = std::fs::metadata(entry.path()).map_or(0, |about| about.len());
            Some(if bytes > 0 { format!("{} of {bytes}", name.display()) } else { name.display().to_string() })
        };
        let mut descriptors: Vec<_> = names.flatten().filter_map(target).collect();
        descriptors.sort_unstable();
        let pages: u64 = read("statm").split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a count of pages");
        Self { descriptors, mappings: read("maps").lines().count(), resident: pages * 4096, verbs: verbs(pid) }
    }

    /// Why this is more than `before`, if it is, after something was done so many times: whatever is lost each time is found, since
    /// what an allocator may keep is less than that. Descriptors are compared by count: sockets have other numbers each time.
    pub fn more_than(&self, before: &Self, times: u64) -> Option<String> {
        let some = |most: usize| most.min(usize::try_from(times / 2).unwrap_or(most));
        let count =
            |all: &Self, memory: bool| all.descriptors.iter().filter(|d| d.starts_with(MEMORY) == memory).count();
        let lanes = if self.verbs.is_empty() { 0 } else { some(LANES_MORE) };
        if count(self, false) > count(before, false) + lanes * LANE_DESCRIPTORS
            || count(self, true) > count(before, true) + some(MEMORY_MORE)
        {
            return Some(format!("descriptors: {:?}, and before {:?}", self.descriptors, before.descriptors));
        }
        // Of what stays registered, too, a piece may be a mapping of its own.
        let registered = if self.verbs.is_empty() { 0 } else { MAPPINGS_MORE };
        if self.mappings > before.mappings + registered + some(MAPPINGS_MORE) {
            return Some(format!("{} mappings, and before {}", self.mappings, before.mappings));
        }
        let registered = if self.verbs.is_empty() { 0 } else { REGISTERED_BYTES };
        if self.resident > before.resident + registered + RESIDENT_MORE.min(times * RESIDENT_MORE_EACH) {
            return Some(format!("{} bytes in memory, and before {}", self.resident, before.resident));
        }
        let kept = |sort| match sort {
            "pd" => 0,
            REGISTRATIONS => REGISTERED_MORE,
            _ => lanes,
        };
        let grown = |(&sort, &n): (&&'static str, &usize)| n > before.verbs.get(sort).map_or(0, |n| n + kept(sort));
        if self.verbs.iter().any(grown) {
            return Some(format!("objects of RDMA devices: {:?}, and before {:?}", self.verbs, before.verbs));
        }
        None
    }
}

/// What a process has of each sort, where this machine has an RDMA device.
///
/// # Panics
/// If there is no tool to ask it with, or it does not answer.
#[cfg(feature = "rdma")]
fn verbs(pid: u32) -> BTreeMap<&'static str, usize> {
    // Each object is its thread's that made it.
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives").flatten();
    let owners: Vec<_> = tasks.map(|task| task.file_name().into_string().expect("a number")).collect();
    let list = |sort: &'static str| {
        let said = std::process::Command::new("rdma").args(["resource", "show", sort]).output();
        let said = said.expect("iproute2's rdma");
        // One that failed has listed nothing, which must not pass for nothing that is held.
        assert!(said.status.success(), "rdma resource show {sort}: {}", String::from_utf8_lossy(&said.stderr));
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let owner = |line: &str| line.split_whitespace().skip_while(|&word| word != "pid").nth(1).map(str::to_owned);
        (sort, said.lines().filter(|line| owner(line).is_some_and(|pid| owners.contains(&pid))).count())
    };
    SORTS.into_iter().map(list).collect()
}

#[cfg(not(feature = "rdma"))]
fn verbs(_: u32) -> BTreeMap<&'static str, usize> {
    BTreeMap::new()
}
