use std::io::Write;

use super::*;

/// A file of entries with these names, data and methods.
fn file(entries: &[(&str, &[u8], u16)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for &(name, data, method) in entries {
        let stored = match method {
            DEFLATED => {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            _ => data.to_vec(),
        };
        let mut common = [20_u16, 0, method, 0, 0].map(u16::to_le_bytes).concat();
        let crc = crc_fast::checksum(Crc32IsoHdlc, data) as u32;
        common.extend([crc, stored.len() as u32, data.len() as u32].map(u32::to_le_bytes).concat());
        common.extend([name.len() as u16, 0].map(u16::to_le_bytes).concat());
        directory.extend(CENTRAL.to_le_bytes());
        directory.extend([&20_u16.to_le_bytes()[..], &common].concat());
        directory.extend([0_u16, 0, 0, 0, 0].map(u16::to_le_bytes).concat());
        directory.extend((file.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        file.extend(LOCAL.to_le_bytes());
        file.extend(common);
        file.extend([name.as_bytes(), &stored].concat());
    }
    end(file, &directory, entries.len() as u16)
}

fn end(mut file: Vec<u8>, directory: &[u8], count: u16) -> Vec<u8> {
    let start = file.len() as u32;
    file.extend(directory);
    file.extend(END.to_le_bytes());
    file.extend([0, 0, count, count].map(u16::to_le_bytes).concat());
    file.extend([directory.len() as u32, start].map(u32::to_le_bytes).concat());
    file.extend([0, 0]);
    file
}

fn entry(file: &[u8], name: &str, limit: u64) -> Result<Option<Bytes>, ReadError> {
    let file = Bytes::copy_from_slice(file);
    Archive::open(&file, 100)?.entry(name, &mut Allowance::new(limit))
}

fn told(file: &[u8]) -> String {
    entry(file, "a", 1 << 20).unwrap_err().to_string()
}

/// Overwrites bytes, counted from where `mark` stands last.
fn patched(file: &[u8], mark: u32, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    let at = (0..file.len()).rev().find(|&at| file[at..].starts_with(&mark.to_le_bytes())).unwrap() + offset;
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn entries_come_stored_and_deflated() {
    let long = vec![7; 100_000];
    let file = file(&[("a", b"abc", STORED), ("b", &long, DEFLATED)]);
    assert_eq!(entry(&file, "a", 0).unwrap().unwrap(), &b"abc"[..]);
    assert_eq!(entry(&file, "b", 100_000).unwrap().unwrap(), long);
    assert_eq!(entry(&file, "c", 0).unwrap(), None);
    // torch.serialization.set_crc32_options(False) leaves 0 for each sum.
    let without_sum = patched(&file, CENTRAL, 16, &[0; 4]);
    assert_eq!(entry(&without_sum, "b", 100_000).unwrap().unwrap(), long);
    let mut with_comment = patched(&file, END, 20, &300_u16.to_le_bytes());
    with_comment.extend([b' '; 300]);
    assert_eq!(entry(&with_comment, "a", 0).unwrap().unwrap(), &b"abc"[..]);
}

#[test]
fn a_bomb_is_bounded_by_what_it_claims_and_by_the_limit() {
    let bomb = file(&[("a", &vec![0; 10 << 20], DEFLATED)]);
    assert!(bomb.len() < 20_000);
    assert!(matches!(entry(&bomb, "a", 1 << 20), Err(ReadError::TooLarge { limit, .. }) if limit == 1 << 20));
    // It claims less than it is.
    let lies = patched(&bomb, CENTRAL, 24, &1000_u32.to_le_bytes());
    assert!(told(&lies).contains("does not inflate"), "{}", told(&lies));
    // Or more.
    let lies = patched(&bomb, CENTRAL, 24, &(11_u32 << 20).to_le_bytes());
    assert!(entry(&lies, "a", 20 << 20).unwrap_err().to_string().contains("does not inflate"));
}

#[test]
fn entries_that_share_bytes_are_refused() {
    let two = file(&[("a", &[1; 100], STORED), ("b", &[2; 100], STORED)]);
    assert!(entry(&two, "a", 0).is_ok());
    // The second is said to begin where the first does.
    assert!(told(&patched(&two, CENTRAL, 42, &0_u32.to_le_bytes())).contains("lie over one another"));
    let one = file(&[("a", &[1; 100], STORED)]);
    let twice = {
        let at = one.len() - 22 - 47;
        let directory = one[at..at + 47].repeat(2);
        end(one[..at].to_vec(), &directory, 2)
    };
    assert!(told(&twice).contains("two entries have the name"));
}

#[test]
fn what_is_wrong_is_said() {
    let good = file(&[("a", b"abc", STORED)]);
    for (mark, offset, bytes, words) in [
        (CENTRAL, 0, &[0][..], "record of its directory"),
        (CENTRAL, 8, &[1], "encrypted"),
        (CENTRAL, 10, &[99], "method 99"),
        (CENTRAL, 16, &[0], "checksum"),
        (CENTRAL, 20, &[4, 0, 0, 0], "cut short"),
        (CENTRAL, 20, &[0xff; 4], "record of its directory"),
        (CENTRAL, 24, &[4, 0, 0, 0], "is stored in 3 bytes but has 4"),
        (CENTRAL, 28, &[0xff, 0xff], "record of its directory"),
        (CENTRAL, 42, &[1, 0, 0, 0], "not where the directory says"),
        (CENTRAL, 42, &[0xfe; 4], "not where the directory says"),
        (CENTRAL, 46, &[0xff], "not text"),
        (LOCAL, 26, &[0xff, 0xff], "cut short"),
        (END, 0, &[0], "without a directory"),
        (END, 8, &[9, 0, 9, 0], "record of its directory"),
        (END, 8, &[0xff; 4], "zip64"),
        (END, 12, &[0xfe; 4], "cut short"),
        (END, 16, &[0xfe; 4], "cut short"),
        (END, 16, &[0xff; 4], "zip64"),
        (END, 20, &[1, 0], "without a directory"),
    ] {
        let told = told(&patched(&good, mark, offset, bytes));
        assert!(told.contains(words), "{offset} {bytes:?}: {told}");
    }
    for end in 0..good.len() {
        assert!(entry(&good[..end], "a", 0).is_err(), "{end}");
    }
    let names: Vec<_> = (0..101).map(|i| i.to_string()).collect();
    let entries: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..], STORED)).collect();
    assert!(matches!(entry(&file(&entries), "1", 0), Err(ReadError::TooLarge { wanted: 101, .. })));
}
