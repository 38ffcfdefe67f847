use genie_tensor_files::write as write_file;
use genie_transport::client::DeviceInfo;

use super::*;
use crate::body::Budget;
use crate::subgraph;

/// A body with these fields.
fn body(fields: &[(&str, &[u8])]) -> Bytes {
    let mut body = Vec::new();
    for (name, data) in fields {
        body.extend(format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").bytes());
        body.extend_from_slice(data);
        body.extend(b"\r\n");
    }
    body.extend(b"--B--");
    body.into()
}

/// 1000 tensors that were the same bytes of a file were put as 1000 times those bytes, which nobody had counted.
#[test]
fn tensors_that_share_bytes_are_charged_each() {
    const BYTES: usize = 100_000;
    let tensor = Tensor { dtype: DType::U8, dims: vec![BYTES as u64], data: vec![1; BYTES].into() };
    let file = write_file(Format::Pt, &Contents::List(vec![tensor.clone(), tensor])).unwrap().concat();
    // Both tensors name the storage '0': the other is there, and not read.
    let key = b"X\x01\0\0\x001";
    let mut shared = file.clone();
    let places: Vec<_> = (0..file.len() - key.len()).filter(|&at| file[at..].starts_with(key)).collect();
    for at in places {
        shared[at + key.len() - 1] = b'0';
    }
    assert_ne!(shared, file);
    let directory = shared.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    // The sum of the pickle, which is the first entry, is not looked at where it is 0.
    shared[directory + 16..directory + 20].fill(0);
    let request = r#"{"operations": [{"op_id": "y", "operation": "cat", "inputs": [0, 1, 0]}], "output_id": "y"}"#;
    let body = body(&[("request", request.as_bytes()), ("tensors", &shared)]);
    let parsed = |limit: u64, read: usize| {
        let mut charge = Budget::new(limit).charge(None);
        charge.grow(read as u64).unwrap();
        parse(&body, "B", subgraph::read_form, charge)
    };
    let (work, charge) = parsed(1 << 20, 1000).map_err(|failure| failure.detail).unwrap();
    assert_eq!((work.inputs.len(), charge.bytes()), (2, 2 * BYTES as u64));
    assert_eq!(parsed(150_000, 1000).err().unwrap().status, 413);
}

#[test]
fn a_device_is_found_by_its_name_and_by_its_kind() {
    let devices: Vec<_> = ["cpu:0", "cuda:0", "cuda:1"]
        .iter()
        .zip(0..)
        .map(|(name, index)| DeviceInfo {
            index,
            name: (*name).to_owned(),
            model: String::new(),
            capability: String::new(),
            total_bytes: 1,
            free_bytes: 1,
        })
        .collect();
    let found = |name| device(&devices, name).ok();
    assert_eq!(
        [found(None), found(Some("cpu")), found(Some("cuda")), found(Some("cuda:1"))].map(Option::unwrap),
        [0, 0, 1, 2]
    );
    assert_eq!([found(Some("cud")), found(Some("cuda:2")), found(Some(""))], [None; 3]);
}
