//! What a process holds of the system's: memory, descriptors, mappings.

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// What its descriptors are.
    pub descriptors: Vec<String>,
    /// Its mappings.
    pub mappings: usize,
    /// Bytes of it that are in memory.
    pub resident: u64,
}

/// Mappings that an allocator may have made, and kept, in between.
const MAPPINGS_MORE: usize = 24;
/// Bytes that an allocator may have kept.
const RESIDENT_MORE: u64 = 48 << 20;

impl Holdings {
    /// Of this process.
    ///
    /// # Panics
    /// If it is gone.
    pub fn of(pid: u32) -> Self {
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).expect("the process lives");
        let names = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives");
        let target = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).ok();
        let mut descriptors: Vec<_> =
            names.flatten().filter_map(target).map(|path| path.to_string_lossy().into_owned()).collect();
        descriptors.sort_unstable();
        let pages: u64 = read("statm").split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a count of pages");
        Self { descriptors, mappings: read("maps").lines().count(), resident: pages * 4096 }
    }

    /// Why this is more than `before`, if it is. Descriptors are compared by count: sockets have other numbers each time.
    pub fn more_than(&self, before: &Self) -> Option<String> {
        if self.descriptors.len() > before.descriptors.len() {
            return Some(format!("descriptors: {:?}, and before {:?}", self.descriptors, before.descriptors));
        }
        if self.mappings > before.mappings + MAPPINGS_MORE {
            return Some(format!("{} mappings, and before {}", self.mappings, before.mappings));
        }
        if self.resident > before.resident + RESIDENT_MORE {
            return Some(format!("{} bytes in memory, and before {}", self.resident, before.resident));
        }
        None
    }
}
