//! What the operating system says of the machine.

use std::fs::read_to_string;

/// The processor's name for itself.
pub(super) fn model() -> String {
    read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| model_in(&text))
        .unwrap_or_else(|| std::env::consts::ARCH.into())
}

fn model_in(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.trim().to_owned())
}

/// Bytes of memory that tensors may take: four fifths of what this process can have.
pub(super) fn memory_for_tensors() -> u64 {
    host_memory() / 5 * 4
}

/// Bytes of memory that this process can have, by the machine or its control group.
pub(crate) fn host_memory() -> u64 {
    /// Where nothing can be read.
    const UNKNOWN: u64 = 4 << 30;
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| total_in(&text));
    let group = read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(group).min().unwrap_or(UNKNOWN)
}

fn total_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_kernel_writes_them() {
        assert_eq!(model_in("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n"), Some("Some CPU @ 3 GHz".into()));
        assert_eq!(model_in("processor : 0"), None);
        assert_eq!(total_in("MemTotal:       24600000 kB\nMemFree: 1 kB"), Some(24_600_000 * 1024));
        assert_eq!(total_in("MemTotal: much"), None);
        assert!(memory_for_tensors() > 0);
    }
}
