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

/// How descriptors of shared memory begin.
const MEMORY: &str = "/memfd:";
/// Pieces of it that a session may have kept to be used again.
const MEMORY_MORE: usize = 16;
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
        let target = |entry: std::fs::DirEntry| {
            let name = std::fs::read_link(entry.path()).ok()?;
            // Of memory with a descriptor, how much there is.
            let bytes = std::fs::metadata(entry.path()).map_or(0, |about| about.len());
            Some(if bytes > 0 { format!("{} of {bytes}", name.display()) } else { name.display().to_string() })
        };
        let mut descriptors: Vec<_> = names.flatten().filter_map(target).collect();
        descriptors.sort_unstable();
        let pages: u64 = read("statm").split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a count of pages");
        Self { descriptors, mappings: read("maps").lines().count(), resident: pages * 4096 }
    }

    /// Why this is more than `before`, if it is. Descriptors are compared by count: sockets have other numbers each time.
    pub fn more_than(&self, before: &Self) -> Option<String> {
        let count =
            |all: &Self, memory: bool| all.descriptors.iter().filter(|d| d.starts_with(MEMORY) == memory).count();
        if count(self, false) > count(before, false) || count(self, true) > count(before, true) + MEMORY_MORE {
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
