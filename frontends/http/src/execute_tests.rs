use genie_graph::{DType, Op};
use genie_tensor_files::write;

use super::*;

fn part(name: &str, is_file: bool, data: impl Into<Bytes>) -> Part {
    Part { name: name.to_owned(), is_file, data: data.into() }
}

fn text(name: &str, data: &str) -> Part {
    part(name, false, data.to_owned())
}

/// A file of bytes, as many as it has dimensions of 1 and their number as each.
fn file(name: &str, count: u8) -> Part {
    let tensor = Tensor { dtype: DType::U8, dims: vec![count.into()], data: vec![count; count.into()].into() };
    part(name, true, write(Format::Npy, &Contents::One(tensor)).unwrap().concat())
}

fn work(parts: &[Part]) -> Result<Work, Failure> {
    read_form(parts, &mut Files::new(1 << 20, &mut |_| true))
}

fn order(parts: &[Part]) -> Result<Vec<u64>, Failure> {
    let all = [&[text("operation", "cat")], parts].concat();
    Ok(work(&all)?.inputs.iter().map(|tensor| tensor.dims[0]).collect())
}

/// `tensor_file_2` sent before `tensor_file` was the first tensor: a - b was b - a.
#[test]
fn tensors_are_taken_by_their_numbers_and_not_as_they_come() {
    assert_eq!(order(&[file("tensor_file_2", 2), file("tensor_file", 1)]), Ok(vec![1, 2]));
    assert_eq!(
        order(&[file("tensor_file_10", 3), file("tensor_file_2", 2), file("tensor_file1", 1)]),
        Ok(vec![1, 2, 3])
    );
    let bare = [file("tensor_file", 3), file("tensor_file_2", 2), file("tensor_file", 1)];
    assert_eq!(order(&bare), Ok(vec![3, 1, 2]));
    for two in
        [["tensor_file_2", "tensor_file_2"], ["tensor_file_1", "tensor_file"], ["tensor_file2", "tensor_file_02"]]
    {
        let failure = order(&two.map(|name| file(name, 1))).unwrap_err();
        assert_eq!(failure.status, 422);
        assert!(failure.detail.contains("are the same place"), "{}", failure.detail);
    }
    for odd in ["tensor_file_", "tensor_file_x", "tensor_file_-1", "tensor_fil"] {
        assert!(order(&[file(odd, 1)]).unwrap_err().detail.contains("is unknown"), "{odd}");
    }
    assert!(order(&[file("tensor_file_99999999999", 1)]).unwrap_err().detail.contains("too large"));
}

/// A field of 28 MiB took half a gigabyte when it was parsed.
#[test]
fn fields_are_short() {
    let long = format!("[{}]", "[],".repeat(30_000));
    for (name, data) in [("kwargs", long.as_str()), ("dim", &long), ("device", &long), (&long, "1")] {
        let failure = work(&[text("operation", "relu"), text(name, data), file("tensor_file", 1)]).err().unwrap();
        assert_eq!(failure.status, 413, "{name:.20}");
    }
    let many: Vec<_> = (0..100).map(|i| text(&format!("x{i}"), &"1".repeat(1000))).collect();
    assert_eq!(work(&many).err().unwrap().status, 413);
}

/// 200 files of nothing but zeros, each within its own allowance, took 1.6 GiB.
#[test]
fn what_files_expand_to_is_one_sum_and_asked_for_before() {
    let tensor = Tensor { dtype: DType::U8, dims: vec![2, 3], data: vec![0; 6].into() };
    let plain = write(Format::Npy, &Contents::One(tensor)).unwrap().concat();
    let other_order = String::from_utf8_lossy(&plain[10..]).contains("False");
    assert!(other_order);
    let at = plain.windows(5).position(|bytes| bytes == b"False").unwrap();
    let mut turned = plain;
    turned[at..at + 5].copy_from_slice(b"True ");
    let parts: Vec<_> = (0..10).map(|_| part("tensor_file", true, turned.clone())).collect();
    let parts = [&[text("operation", "cat")], &parts[..]].concat();
    let read = |bytes, grant: &mut dyn FnMut(u64) -> bool| read_form(&parts, &mut Files::new(bytes, grant));
    let mut asked = 0;
    read(60, &mut |bytes| {
        asked += bytes;
        true
    })
    .map(|_| ())
    .unwrap();
    assert_eq!(asked, 60);
    assert_eq!(read(59, &mut |_| true).err().unwrap().status, 413);
    let mut left = 30_u64;
    let grant = &mut |bytes| {
        let rest = left.checked_sub(bytes);
        left = rest.unwrap_or(left);
        rest.is_some()
    };
    assert_eq!(read(60, grant).err().unwrap().status, 503);
}

#[test]
fn an_op_that_takes_other_tensors_reads_none() {
    let bad = part("tensor_file", true, "no file at all");
    let failure = work(&[text("operation", "relu"), bad.clone(), bad.clone()]).err().unwrap();
    assert!(failure.detail.contains("takes 1 tensor(s), not 2"), "{}", failure.detail);
    let failure = work(&[text("operation", "relu"), text("dim", "1"), bad]).err().unwrap();
    assert!(failure.detail.contains("takes no argument 'dim'"), "{}", failure.detail);
}

#[test]
fn a_tensor_can_be_made_of_nothing_in_the_format_that_is_asked_for() {
    let made = work(&[text("operation", "zeros"), text("size", "(2, 3)"), text("format", "npy")]).unwrap();
    assert!(made.inputs.is_empty() && made.reply.format == Format::Npy);
    assert_eq!(made.graph.nodes.len(), 1);
    let made = work(&[text("operation", "eye"), text("n", "2")]).unwrap();
    assert!(made.reply.format == Format::Pt);
    let named = Contents::Dict(vec![("w".to_owned(), Tensor { dtype: DType::U8, dims: vec![], data: vec![1].into() })]);
    let named = part("tensor_file", true, write(Format::Safetensors, &named).unwrap().concat());
    let kept = work(&[text("operation", "neg"), text("format", "safetensors"), named.clone()]).unwrap();
    assert_eq!(kept.reply.name.as_deref(), Some("w"));
    let other = work(&[text("operation", "neg"), text("format", "pt"), named]).unwrap();
    assert!(other.reply.name.is_none() && other.reply.format == Format::Pt);
    assert!(matches!(other.graph.nodes.last().unwrap().op, Op::Sub));
    let failure = work(&[text("operation", "zeros"), text("size", "2"), text("format", "png")]).err().unwrap();
    assert!(failure.detail.contains("pt, npy and safetensors"), "{}", failure.detail);
    assert!(work(&[text("operation", "relu"), text("kwargs", "null"), file("tensor_file", 1)]).is_ok());
}
