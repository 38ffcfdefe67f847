//! Files as PyTorch, NumPy and safetensors wrote them: `tools/golden/make_tensor_files.py` made them, and says what is in each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use genie_tensor_files::{Contents, Format, Limits, Tensor, read, write};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tensors")
}

fn file(name: &str) -> Bytes {
    std::fs::read(folder().join(name)).unwrap_or_else(|e| panic!("{name}: {e}")).into()
}

fn expected() -> BTreeMap<String, Value> {
    let all: Value = serde_json::from_slice(&file("expected.json")).unwrap();
    serde_json::from_value(all["files"].clone()).unwrap()
}

/// A tensor as the list of what is expected has it.
fn described(tensor: &Tensor) -> Value {
    let hex: String = tensor.data.iter().map(|byte| format!("{byte:02x}")).collect();
    serde_json::json!([tensor.dtype.name(), tensor.dims, hex])
}

fn contents(contents: &Contents) -> Value {
    match contents {
        Contents::One(tensor) => described(tensor),
        Contents::List(all) => serde_json::json!({ "list": all.iter().map(described).collect::<Vec<_>>() }),
        Contents::Dict(entries) => entries.iter().map(|(name, tensor)| (name.clone(), described(tensor))).collect(),
    }
}

#[test]
fn every_file_holds_what_was_saved_or_is_refused_for_the_right_reason() {
    let expected = expected();
    assert!(expected.len() > 50);
    for (name, what) in &expected {
        let got = read(&file(name), &Limits::default());
        match (what.get("error").and_then(Value::as_str), got) {
            (Some(words), Err(error)) => assert!(error.to_string().contains(words), "{name}: {error}"),
            (None, Ok((_, got))) => assert_eq!(contents(&got), what["is"], "{name}"),
            (expected, got) => panic!("{name}: {got:?} instead of {expected:?}"),
        }
    }
    let kept = std::fs::read_dir(folder()).unwrap().count();
    assert_eq!(kept, expected.len() + 1, "a file is missing, or one too many");
}

#[test]
fn what_is_read_is_written_and_read_again() {
    let mut written = 0;
    for (name, what) in expected() {
        if what.get("error").is_some() {
            continue;
        }
        let (format, first) = read(&file(&name), &Limits::default()).unwrap();
        let again = Bytes::from(write(format, &first).unwrap().concat());
        let (same, second) = read(&again, &Limits::default()).unwrap();
        assert_eq!((format, contents(&first)), (same, contents(&second)), "{name}");
        written += 1;
    }
    assert!(written > 30);
}

/// A part of the file, not a copy of it: a gigabyte is not copied to be read.
#[test]
fn tensors_that_lie_as_they_are_wanted_stay_where_they_are() {
    for name in ["plain_f32.pt", "legacy_dict.pt", "little_f4.npy", "mixed.safetensors"] {
        let file = file(name);
        let nothing = Limits { expanded_bytes: 16, ..Limits::default() };
        let tensors = match read(&file, &nothing).unwrap().1 {
            Contents::One(tensor) => vec![tensor],
            Contents::List(all) => all,
            Contents::Dict(entries) => entries.into_iter().map(|(_, tensor)| tensor).collect(),
        };
        for tensor in tensors {
            assert!(file.as_ptr_range().contains(&tensor.data.as_ptr()), "{name}");
        }
    }
}

#[test]
fn every_format_says_what_it_is() {
    for (name, _) in expected() {
        let format = Format::of(&file(&name)).unwrap_or_else(|| panic!("{name}"));
        assert!(name.ends_with(&format.to_string()), "{name}");
    }
    for other in [&b""[..], b"PK", b"\x89PNG\r\n\x1a\n", b"{}", b"0000000000000000000000"] {
        assert_eq!(Format::of(other), None);
    }
}

/// A file of a big-endian machine says so, but its storages are little-endian as everybody's: their elements were turned round.
#[test]
fn a_legacy_file_is_little_endian_whatever_machine_wrote_it() {
    let file = file("legacy_dict.pt").to_vec();
    let at = file.windows(13).position(|bytes| bytes == b"little_endian").unwrap();
    let flag = at + file[at..].iter().position(|&byte| byte == 0x88).unwrap();
    let mut other = file.clone();
    other[flag] = 0x89;
    let read = |file: Vec<u8>| contents(&read(&file.into(), &Limits::default()).unwrap().1);
    assert_eq!(read(other), read(file));
}
