//! `docs/protocol.md` says what the code does: its tables are read and compared.

use std::collections::BTreeMap;

use genie_graph::DType;
use genie_transport::wire::layout::MESSAGES;
use genie_transport::wire::{ErrorCode, Kind, SLICE_FRAME_BYTES, VERSION, limits};

const DOC: &str = include_str!("../../docs/protocol.md");

/// The rows of the first table under each heading, as cells.
fn tables() -> BTreeMap<&'static str, Vec<Vec<&'static str>>> {
    let mut tables = BTreeMap::new();
    let mut heading = "";
    for line in DOC.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            heading = title;
        } else if line.starts_with("## ") {
            heading = "";
        } else if line.starts_with('|') && !heading.is_empty() {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            tables.entry(heading).or_insert_with(Vec::new).push(cells);
        }
    }
    // The first two rows are the head and the line under it.
    tables.values_mut().for_each(|rows| drop(rows.drain(..2)));
    tables
}

fn code(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[test]
fn every_message_is_drawn_as_it_is() {
    let tables = tables();
    for (name, bytes, fields) in MESSAGES {
        let heading = format!("`{name}` ({bytes} bytes)");
        let rows = tables.get(&*heading).unwrap_or_else(|| panic!("no table under `### {heading}`"));
        let drawn: Vec<(&str, usize, usize)> =
            rows.iter().map(|r| (code(r[2]), r[0].parse().unwrap(), r[1].parse().unwrap())).collect();
        assert_eq!(drawn, *fields, "{name}");
        let end = drawn.iter().fold(0, |end, &(field, offset, size)| {
            assert_eq!(offset, end, "{name}.{field} does not follow what is before it");
            offset + size
        });
        assert_eq!(end, *bytes, "{name}");
    }
    let drawn = tables.keys().filter(|heading| heading.ends_with(" bytes)")).count();
    assert_eq!(drawn, MESSAGES.len(), "the page draws messages that there are not");
}

#[test]
fn kinds_have_their_codes() {
    let tables = tables();
    let drawn: Vec<(String, &str)> = tables["Kinds"].iter().map(|r| (code(r[0]).to_owned(), code(r[1]))).collect();
    let real: Vec<_> = Kind::ALL.iter().map(|&k| (format!("{:#04x}", k as u8), format!("{k:?}"))).collect();
    let real: Vec<_> = real.iter().map(|(code, name)| (code.clone(), &**name)).collect();
    assert_eq!(drawn, real);
}

#[test]
fn errors_have_their_codes() {
    let tables = tables();
    let drawn: Vec<_> = tables["Error codes"].iter().map(|r| (r[0].parse().unwrap(), code(r[1]).to_owned())).collect();
    let real: Vec<_> = ErrorCode::ALL.iter().map(|&c| (c as u16, format!("{c:?}"))).collect();
    assert_eq!(drawn, real);
}

#[test]
fn element_types_have_their_codes() {
    let tables = tables();
    let drawn: Vec<(u8, &str, u64)> =
        tables["Element types"].iter().map(|r| (r[0].parse().unwrap(), code(r[1]), r[2].parse().unwrap())).collect();
    let real: Vec<_> = DType::ALL.iter().map(|d| (d.code(), d.name(), d.bytes())).collect();
    assert_eq!(drawn, real);
}

#[test]
fn limits_are_what_they_are() {
    let tables = tables();
    let drawn: Vec<(&str, u64)> = tables["Limits"].iter().map(|r| (code(r[0]), r[1].parse().unwrap())).collect();
    let real = [
        ("META_BYTES", u64::from(limits::META_BYTES)),
        ("CONTROL_PAYLOAD_BYTES", u64::from(limits::CONTROL_PAYLOAD_BYTES)),
        ("SLICE_BYTES", u64::from(limits::SLICE_BYTES)),
        ("SLICES", limits::SLICES),
        ("RANK", limits::RANK as u64),
        ("NAME_BYTES", limits::NAME_BYTES as u64),
        ("TENSOR_BYTES", limits::TENSOR_BYTES),
        ("OFFERED", limits::OFFERED as u64),
        ("ARGUMENTS", limits::ARGUMENTS as u64),
        ("BOUND", limits::BOUND as u64),
        ("TOKEN_NAME_BYTES", limits::TOKEN_NAME_BYTES as u64),
        ("STOP_TOKENS", limits::STOP_TOKENS as u64),
        ("LINKS", limits::LINKS as u64),
        ("LINKS_ASKED", u64::from(limits::LINKS_ASKED)),
        ("SOCKET_PATH_BYTES", limits::SOCKET_PATH_BYTES as u64),
    ];
    assert_eq!(drawn, real);
    assert_eq!(SLICE_FRAME_BYTES, 32 + 24);
    assert!(DOC.contains(&format!("Version {VERSION}.")));
}
