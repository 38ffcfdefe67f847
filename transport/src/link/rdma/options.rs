//! How the link behaves, where its defaults do not fit.

use std::io;

/// What the verbs leave to be chosen. The defaults work on soft-RoCE and on hardware.
///
/// `genie` takes them from the environment: `GENIE_RDMA_MTU`, `GENIE_RDMA_TIMEOUT`, `GENIE_RDMA_RETRIES`, `GENIE_RDMA_RNR`,
/// `GENIE_RDMA_WINDOWS`. The device and its GID follow from the address: `rdma_cm` takes those that the route goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a packet's payload at the most: 256, 512, 1024, 2048 or 4096. The path's own is never exceeded.
    pub mtu: u32,
    /// How long to wait for an acknowledgement before a packet is sent again: 4.096 us times 2 to this power, 1 to 31. The
    /// default, 14, is 67 ms.
    pub timeout: u8,
    /// How often a packet is sent again before the connection counts as broken, 0 to 7.
    pub retries: u8,
    /// How often a message is sent again to a peer that has no buffer posted, 0 to 6; 7: for ever. Credits see to it that it
    /// never comes to that.
    pub rnr_retries: u8,
    /// Rights on memory are given by memory windows, where the device has them. Otherwise by registering and deregistering
    /// the memory, which is slower.
    pub windows: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { mtu: 4096, timeout: 14, retries: 7, rnr_retries: 7, windows: true }
    }
}

impl Options {
    /// The defaults, changed by what the environment says.
    ///
    /// # Errors
    /// A value that is none.
    pub fn from_env() -> io::Result<Self> {
        Self::from_names(|name| std::env::var(name).ok())
    }

    fn from_names(named: impl Fn(&str) -> Option<String>) -> io::Result<Self> {
        let number =
            |name: &str, usual: u32, allowed: &dyn Fn(u32) -> bool, what: &str| match named(name) {
                None => Ok(usual),
                Some(text) => text.parse().ok().filter(|&n| allowed(n)).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidInput, format!("{name}={text}: it may be {what}"))
                }),
            };
        let usual = Self::default();
        let small = |n: u32| u8::try_from(n).unwrap_or(u8::MAX);
        Ok(Self {
            mtu: number(
                "GENIE_RDMA_MTU",
                usual.mtu,
                &|n| [256, 512, 1024, 2048, 4096].contains(&n),
                "256, 512, 1024, 2048 or 4096",
            )?,
            timeout: small(number("GENIE_RDMA_TIMEOUT", usual.timeout.into(), &|n| (1..32).contains(&n), "1 to 31")?),
            retries: small(number("GENIE_RDMA_RETRIES", usual.retries.into(), &|n| n < 8, "0 to 7")?),
            rnr_retries: small(number("GENIE_RDMA_RNR", usual.rnr_retries.into(), &|n| n < 8, "0 to 7")?),
            windows: number("GENIE_RDMA_WINDOWS", usual.windows.into(), &|n| n < 2, "0 or 1")? == 1,
        })
    }

    /// The packet size as verbs count it: 1 is 256 bytes, 5 is 4096.
    pub(super) fn mtu_code(&self) -> u32 {
        (self.mtu / 256).checked_ilog2().unwrap_or(0) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_checked() {
        let with = |name: &'static str, value: &'static str| {
            Options::from_names(move |n| (n == name).then(|| value.to_owned()))
        };
        assert_eq!(with("GENIE_RDMA_NOTHING", "1").unwrap(), Options::default());
        assert_eq!(with("GENIE_RDMA_MTU", "1024").unwrap().mtu_code(), 3);
        assert!(!with("GENIE_RDMA_WINDOWS", "0").unwrap().windows);
        for (name, bad) in [("GENIE_RDMA_MTU", "1500"), ("GENIE_RDMA_TIMEOUT", "32"), ("GENIE_RDMA_RETRIES", "x")] {
            assert!(with(name, bad).is_err(), "{name}={bad}");
        }
    }
}
