//! `.safetensors`: a header in JSON, then the tensors' elements.

use std::collections::HashSet;

use bytes::Bytes;
use genie_graph::DType;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::cursor::Cursor;
use crate::strided::MAX_RANK;
use crate::{Contents, Format, Limits, ReadError, Tensor, WriteError};

/// Headers of models with tens of thousands of tensors are shorter. Parsed, one takes several times its bytes.
const MAX_HEADER: u64 = 8 << 20;

/// The name of a tensor that has none.
const NAME: &str = "tensor";

/// Whether a file that begins like this may be one: the header's length, then its first bracket.
pub(crate) fn is(bytes: &[u8]) -> bool {
    let header = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    header.is_some_and(|length| (2..=MAX_HEADER).contains(&length)) && bytes.get(8) == Some(&b'{')
}

pub(crate) fn read(file: &Bytes, limits: &Limits) -> Result<Contents, ReadError> {
    let bad = |reason: String| ReadError::malformed(Format::Safetensors, reason);
    let cut = || ReadError::Cut(Format::Safetensors);
    // Here, and not by the library, which adds up what a file says without looking whether the sum can be counted.
    let mut cursor = Cursor::new(file);
    let length = cursor.u64().ok_or_else(cut)?;
    let header = cursor.take(length).ok_or_else(cut)?;
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| bad(error.to_string()))?;
    let data = file.slice(file.len() - cursor.len()..);
    match metadata.data_len() {
        said if said > data.len() => return Err(cut()),
        said if said < data.len() => return Err(bad(format!("{} bytes follow after its elements", data.len() - said))),
        _ => {}
    }
    let mut names = metadata.offset_keys();
    if names.len() > limits.tensors {
        let (wanted, limit) = (names.len() as u64, limits.tensors as u64);
        return Err(ReadError::TooLarge { format: Format::Safetensors, what: "tensors", wanted, limit });
    }
    let mut tensors = Vec::with_capacity(names.len());
    for name in names.drain(..) {
        let info = metadata.info(&name).ok_or_else(|| bad(format!("'{name}' is missing")))?;
        let (start, end) = info.data_offsets;
        let data = data.get(start..end).map(|part| data.slice_ref(part));
        let data = data.ok_or_else(|| bad(format!("the data of '{name}' lies outside the file")))?;
        if info.shape.len() > MAX_RANK {
            return Err(ReadError::Rank { rank: info.shape.len(), most: MAX_RANK });
        }
        let dims = info.shape.iter().map(|&dim| dim as u64).collect();
        let tensor = Tensor { dtype: element(info.dtype)?, dims, data };
        if tensor.byte_len() != Some(tensor.data.len() as u64) {
            return Err(bad(format!("'{name}' has not the bytes that its shape says")));
        }
        if tensor.dtype == DType::Bool && tensor.data.iter().any(|&byte| byte > 1) {
            return Err(bad(format!("a bool of '{name}' is neither 0 nor 1")));
        }
        tensors.push((name, tensor));
    }
    Ok(Contents::Dict(tensors))
}

fn element(dtype: Dtype) -> Result<DType, ReadError> {
    Ok(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        Dtype::F64 => return Err(ReadError::dtype("f64 (F64)")),
        other => return Err(ReadError::dtype(other.to_string())),
    })
}

pub(crate) fn write(contents: &Contents) -> Result<Vec<Bytes>, WriteError> {
    let mut tensors: Vec<(String, &Tensor)> = match contents {
        Contents::One(tensor) => vec![(NAME.to_owned(), tensor)],
        Contents::List(tensors) => tensors.iter().enumerate().map(|(i, tensor)| (i.to_string(), tensor)).collect(),
        Contents::Dict(entries) => entries.iter().map(|(name, tensor)| (name.clone(), tensor)).collect(),
    };
    let mut seen = HashSet::new();
    if let Some((twice, _)) = tensors.iter().find(|(name, _)| !seen.insert(name.clone())) {
        return Err(WriteError::Twice(twice.clone()));
    }
    // Those with the largest elements first: so all are aligned.
    tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.bytes()));
    let too_large = |_| WriteError::Header("a dimension is larger than this machine can count".to_owned());
    let mut infos = Vec::with_capacity(tensors.len());
    let mut at = 0_usize;
    for (name, tensor) in &tensors {
        let dtype = match tensor.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::U8 => Dtype::U8,
            DType::Bool => Dtype::BOOL,
        };
        let shape = tensor.dims.iter().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>().map_err(too_large)?;
        let end = at.saturating_add(tensor.data.len());
        infos.push((name.clone(), TensorInfo { dtype, shape, data_offsets: (at, end) }));
        at = end;
    }
    let metadata = Metadata::new(None, infos).map_err(|error| WriteError::Header(error.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| WriteError::Header(error.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.append(&mut json);
    Ok(std::iter::once(head.into()).chain(tensors.iter().map(|(_, tensor)| tensor.data.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Bytes {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat().into()
    }

    fn told(header: &str, data: &[u8]) -> String {
        read(&file(header, data), &Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn several_come_back_by_name_and_aligned() {
        let tensor = |dtype, byte, bytes: usize| Tensor { dtype, dims: vec![3], data: vec![byte; bytes].into() };
        let entries =
            [("a", tensor(DType::U8, 1, 3)), ("b", tensor(DType::F32, 2, 12)), ("c", tensor(DType::BF16, 3, 6))];
        let entries = entries.map(|(name, tensor)| (name.to_owned(), tensor)).to_vec();
        let written: Bytes = write(&Contents::Dict(entries.clone())).unwrap().concat().into();
        assert!(is(&written));
        let Contents::Dict(mut read) = read(&written, &Limits::default()).unwrap() else { panic!("a dict") };
        assert_eq!(read[0].0, "b");
        read.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(read, entries);
        let twice = Contents::Dict(vec![entries[0].clone(), entries[0].clone()]);
        assert_eq!(write(&twice), Err(WriteError::Twice("a".into())));
    }

    /// Tensors that end at the last byte that can be counted, with the header before them: the sum wrapped round.
    #[test]
    fn sizes_that_cannot_be_added_up_are_refused() {
        let part = (1_u64 << 61) - 1;
        let one = |i: u64| {
            format!(
                "\"{i}\":{{\"dtype\":\"U8\",\"shape\":[{part}],\"data_offsets\":[{},{}]}}",
                i * part,
                (i + 1) * part
            )
        };
        let header = format!("{{{}}}", (0..8).map(one).collect::<Vec<_>>().join(","));
        assert!(told(&header, &[0; 8]).contains("cut short"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let of = |dtype: &str, shape: &str, end: u64| {
            format!("{{\"x\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}}}")
        };
        assert!(told(&of("F64", "[1]", 8), &[0; 8]).contains("f64 (F64), which is not carried: convert them to f32"));
        assert!(told(&of("I16", "[1]", 2), &[0; 2]).contains("I16, which is not carried: convert them to i64"));
        assert!(told(&of("U8", "[4]", 4), &[0; 3]).contains("cut short"));
        assert!(told(&of("U8", "[4]", 3), &[0; 3]).contains("damaged"));
        assert!(told(&of("U8", "[3]", 3), &[0; 4]).contains("1 bytes follow"));
        assert!(told(&of("U8", "[1,1,1,1,1,1,1,1,1]", 1), &[0]).contains("9 dimensions, but at most 8"));
        assert!(told(&of("U8", "[18446744073709551615,2]", 2), &[0; 2]).contains("damaged"));
        assert!(told(&of("BOOL", "[1]", 1), &[2]).contains("neither 0 nor 1"));
        assert!(told("{\"x\":3}", &[]).contains("damaged"));
        let many = (0..9).map(|i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"));
        let many = format!("{{{}}}", many.collect::<Vec<_>>().join(","));
        let limits = Limits { tensors: 8, ..Limits::default() };
        assert!(matches!(read(&file(&many, &[]), &limits), Err(ReadError::TooLarge { wanted: 9, .. })));
    }
}
