//! Good files, damaged at random in every way that damages a parser: whatever comes, it is an answer, soon, and in little memory.
//!
//! `GENIE_CASES` is how many (3000 without it), `GENIE_SEED` where they begin. A case that fails is named by its number, which is a seed.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc32IsoHdlc;
use genie_tensor_files::{Contents, Format, Limits, read};

/// Numbers as an RNG gives them: splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn good_files() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tensors");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension != "json"));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).filter(|file| Format::of(file).is_some()).collect()
}

/// Damages bytes a few times.
fn damage(bytes: &mut Vec<u8>, others: &[Vec<u8>], dice: &mut Dice) {
    const ODD: [u64; 12] =
        [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX >> 1, u64::MAX];
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        let reach = 1 << dice.below(8);
        let length = dice.below(reach).min(bytes.len() - at);
        match dice.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + length)),
            2 => {
                let copy = bytes[at..at + length].to_vec();
                let to = dice.below(bytes.len() + 1);
                drop(bytes.splice(to..to, copy));
            }
            3 => {
                let other = &others[dice.below(others.len())];
                let from = dice.below(other.len());
                let end = other.len().min(from + 1 + dice.below(64));
                drop(bytes.splice(at..at + length, other[from..end].iter().copied()));
            }
            4 => {
                let value = ODD[dice.below(ODD.len())].to_le_bytes();
                let width = 1 << dice.below(4);
                for (place, byte) in bytes.iter_mut().skip(at).zip(&value[..width]) {
                    *place = *byte;
                }
            }
            5 => {
                // Digits of a shape.
                if let Some(digit) = bytes.iter_mut().skip(at).find(|byte| byte.is_ascii_digit()) {
                    *digit = b'0' + dice.below(10) as u8;
                }
            }
            6 => drop(bytes.splice(at..at, vec![dice.roll() as u8; 1 << dice.below(12)])),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
        }
    }
}

/// The stored entries of a zip file: name, first byte, length, and where its checksum is in the directory.
fn entries(file: &[u8]) -> Vec<(String, usize, usize, usize)> {
    let u16s = |at: usize| usize::from(u16::from_le_bytes([file[at], file[at + 1]]));
    let u32s = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let mut all = Vec::new();
    let marks = (0..file.len().saturating_sub(46)).filter(|&at| file[at..].starts_with(b"PK\x01\x02"));
    for at in marks {
        let (stored, name, begin) = (u32s(at + 20), u16s(at + 28), u32s(at + 42));
        if u16s(at + 10) != 0 || begin + 30 > file.len() || at + 46 + name > file.len() {
            continue;
        }
        let start = begin + 30 + u16s(begin + 26) + u16s(begin + 28);
        if start + stored <= file.len() {
            all.push((String::from_utf8_lossy(&file[at + 46..at + 46 + name]).into_owned(), start, stored, at + 16));
        }
    }
    all
}

/// Damages the pickle in a zip file, as long as it was, and makes its checksum right: else no damage gets past that.
fn damage_inside(file: &mut [u8], others: &[Vec<u8>], dice: &mut Dice) {
    let Some((_, start, length, crc)) = entries(file).into_iter().find(|(name, ..)| name.ends_with("/data.pkl")) else {
        return;
    };
    let mut pickle = file[start..start + length].to_vec();
    damage(&mut pickle, others, dice);
    pickle.resize(length, b'.');
    file[start..start + length].copy_from_slice(&pickle);
    let sum = crc_fast::checksum(Crc32IsoHdlc, &pickle) as u32;
    file[crc..crc + 4].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn damaged_files_are_answered_soon_and_in_little_memory() {
    let (good, cases, seed) = (good_files(), setting("GENIE_CASES", 3000), setting("GENIE_SEED", 0));
    assert!(good.len() > 50);
    let limits = Limits { expanded_bytes: 1 << 20, tensors: 64 };
    let (mut taken, mut slowest) = (0_u64, Duration::ZERO);
    for case in seed..seed + cases {
        let mut dice = Dice(case);
        let mut file = good[dice.below(good.len())].clone();
        if file.starts_with(b"PK") && dice.below(2) == 0 {
            damage_inside(&mut file, &good, &mut dice);
        } else {
            damage(&mut file, &good, &mut dice);
        }
        let file = Bytes::from(file);
        let begun = Instant::now();
        if let Ok((_, contents)) = read(&file, &limits) {
            taken += 1;
            let tensors = match contents {
                Contents::One(tensor) => vec![tensor],
                Contents::List(all) => all,
                Contents::Dict(entries) => entries.into_iter().map(|(_, tensor)| tensor).collect(),
            };
            for tensor in tensors {
                assert_eq!(tensor.byte_len(), Some(tensor.data.len() as u64), "case {case}");
            }
        }
        let took = begun.elapsed();
        slowest = slowest.max(took);
        assert!(took < Duration::from_secs(5), "case {case} took {took:?}");
    }
    // Some damage does no harm: were all refused, nothing would have been looked at.
    assert!(taken > cases / 100 && taken < cases, "{taken} of {cases} were taken");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 256 << 10, "{peak} kB at the peak");
    println!("{cases} cases from {seed}: {taken} taken, the slowest in {slowest:?}, {peak} kB at the peak");
}

/// A file that ends anywhere is not taken for another that is whole.
#[test]
fn files_that_end_too_early_are_refused() {
    for file in good_files() {
        let file = Bytes::from(file);
        if read(&file, &Limits::default()).is_err() {
            continue;
        }
        let step = 1 + file.len() / 4000;
        for end in (0..file.len()).step_by(step) {
            assert!(read(&file.slice(..end), &Limits::default()).is_err(), "the first {end} of {} bytes", file.len());
        }
    }
}
