//! Writing it: all records in their long form (zip64), as PyTorch does.

use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc32IsoHdlc;
use genie_graph::DType;

use crate::strided::strides;
use crate::zip::{CENTRAL, ELSEWHERE, END, END64, END64_AT, LOCAL, LOCAL_BYTES, ZIP64};
use crate::{Contents, Tensor, WriteError};

/// The folder that all entries lie in.
const ROOT: &str = "archive";
/// Storages begin at a multiple of this, as PyTorch has it: they can be mapped.
const ALIGN: u64 = 64;
/// The extra field that fills up to it.
const PADDING: u16 = 0x4246;
/// Version 4.5 of the format has zip64.
const VERSION: u16 = 45;
/// Times are not told: the first day that can be written.
const DAY: u16 = (1 << 5) | 1;

pub(crate) fn write(contents: &Contents) -> Result<Vec<Bytes>, WriteError> {
    let mut file = Writer::default();
    let (code, tensors) = pickle(contents)?;
    file.entry("data.pkl", code.into());
    file.entry("byteorder", Bytes::from_static(b"little"));
    for (i, tensor) in tensors.into_iter().enumerate() {
        file.entry(&format!("data/{i}"), tensor.data.clone());
    }
    file.entry("version", Bytes::from_static(b"3\n"));
    Ok(file.finish())
}

#[derive(Default)]
struct Writer {
    pieces: Vec<Bytes>,
    /// Bytes of the pieces.
    at: u64,
    directory: Vec<u8>,
    count: u64,
}

impl Writer {
    fn entry(&mut self, name: &str, data: Bytes) {
        let name = format!("{ROOT}/{name}");
        let (begin, size) = (self.at, data.len() as u64);
        let crc = crc_fast::checksum(Crc32IsoHdlc, &data) as u32;
        // What both records have.
        let mut common = [VERSION, 0, 0, 0, DAY].map(u16::to_le_bytes).concat();
        common.extend([crc, ELSEWHERE, ELSEWHERE].map(u32::to_le_bytes).concat());
        common.extend((name.len() as u16).to_le_bytes());

        let mut extra = [ZIP64, 16].map(u16::to_le_bytes).concat();
        extra.extend([size, size].map(u64::to_le_bytes).concat());
        let start = begin + LOCAL_BYTES + (name.len() + extra.len() + 4) as u64;
        let padding = (start.next_multiple_of(ALIGN) - start) as u16;
        extra.extend([PADDING, padding].map(u16::to_le_bytes).concat());
        extra.resize(extra.len() + usize::from(padding), 0);
        let mut local = LOCAL.to_le_bytes().to_vec();
        local.extend(&common);
        local.extend((extra.len() as u16).to_le_bytes());
        local.extend(name.as_bytes());
        local.extend(extra);
        self.push(local.into());
        self.push(data);

        let central = &mut self.directory;
        central.extend(CENTRAL.to_le_bytes());
        central.extend(VERSION.to_le_bytes());
        central.extend(common);
        // The extra field's length; no comment, first disk, no attributes.
        central.extend([28_u16, 0, 0, 0, 0, 0].map(u16::to_le_bytes).concat());
        central.extend(ELSEWHERE.to_le_bytes());
        central.extend(name.as_bytes());
        central.extend([ZIP64, 24].map(u16::to_le_bytes).concat());
        central.extend([size, size, begin].map(u64::to_le_bytes).concat());
        self.count += 1;
    }

    fn push(&mut self, piece: Bytes) {
        self.at += piece.len() as u64;
        self.pieces.push(piece);
    }

    fn finish(mut self) -> Vec<Bytes> {
        let (start, length) = (self.at, self.directory.len() as u64);
        let mut end = self.directory;
        end.extend(END64.to_le_bytes());
        end.extend(44_u64.to_le_bytes());
        end.extend([VERSION, VERSION].map(u16::to_le_bytes).concat());
        end.extend([0_u32, 0].map(u32::to_le_bytes).concat());
        end.extend([self.count, self.count, length, start].map(u64::to_le_bytes).concat());
        end.extend([END64_AT, 0].map(u32::to_le_bytes).concat());
        end.extend((start + length).to_le_bytes());
        end.extend(1_u32.to_le_bytes());
        end.extend(END.to_le_bytes());
        end.extend([0, 0, u16::MAX, u16::MAX].map(u16::to_le_bytes).concat());
        end.extend([ELSEWHERE, ELSEWHERE].map(u32::to_le_bytes).concat());
        end.extend(0_u16.to_le_bytes());
        self.pieces.push(end.into());
        self.pieces
    }
}

/// The pickle, and the tensors in the order of their storages' keys.
fn pickle(contents: &Contents) -> Result<(Vec<u8>, Vec<&Tensor>), WriteError> {
    let (mut code, mut tensors) = (vec![0x80, 2], Vec::new());
    match contents {
        Contents::One(tensor) => put_tensor(&mut code, tensor, &mut tensors)?,
        Contents::List(all) => {
            code.extend(b"](");
            for tensor in all {
                put_tensor(&mut code, tensor, &mut tensors)?;
            }
            code.push(b'e');
        }
        Contents::Dict(entries) => {
            let mut seen = std::collections::HashSet::new();
            code.extend(b"}(");
            for (name, tensor) in entries {
                if !seen.insert(name) {
                    return Err(WriteError::Twice(name.clone()));
                }
                put_str(&mut code, name)?;
                put_tensor(&mut code, tensor, &mut tensors)?;
            }
            code.push(b'u');
        }
    }
    code.push(b'.');
    Ok((code, tensors))
}

/// `_rebuild_tensor_v2(storage, 0, dims, strides, False, OrderedDict())`.
fn put_tensor<'a>(code: &mut Vec<u8>, tensor: &'a Tensor, tensors: &mut Vec<&'a Tensor>) -> Result<(), WriteError> {
    let storage = match tensor.dtype {
        DType::F32 => "FloatStorage",
        DType::F16 => "HalfStorage",
        DType::BF16 => "BFloat16Storage",
        DType::I64 => "LongStorage",
        DType::I32 => "IntStorage",
        DType::U8 => "ByteStorage",
        DType::Bool => "BoolStorage",
    };
    code.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    put_str(code, "storage")?;
    code.extend(format!("ctorch\n{storage}\n").as_bytes());
    put_str(code, &tensors.len().to_string())?;
    put_str(code, "cpu")?;
    put_int(code, tensor.data.len() as u64 / tensor.dtype.bytes())?;
    code.extend(b"tQ");
    put_int(code, 0)?;
    for counts in [&tensor.dims, &strides(&tensor.dims, false).ok_or(WriteError::Length)?] {
        code.push(b'(');
        for count in counts {
            put_int(code, *count)?;
        }
        code.push(b't');
    }
    code.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    tensors.push(tensor);
    Ok(())
}

fn put_str(code: &mut Vec<u8>, text: &str) -> Result<(), WriteError> {
    let length = u32::try_from(text.len()).map_err(|_| WriteError::Header("a name of over 4 GiB".to_owned()))?;
    code.push(b'X');
    code.extend(length.to_le_bytes());
    code.extend(text.as_bytes());
    Ok(())
}

fn put_int(code: &mut Vec<u8>, value: u64) -> Result<(), WriteError> {
    if let Ok(byte) = u8::try_from(value) {
        code.extend([b'K', byte]);
    } else if let Ok(short) = u16::try_from(value) {
        code.push(b'M');
        code.extend(short.to_le_bytes());
    } else if let Ok(int) = i32::try_from(value) {
        code.push(b'J');
        code.extend(int.to_le_bytes());
    } else {
        let long = i64::try_from(value).map_err(|_| WriteError::Length)?;
        code.extend([0x8a, 8]);
        code.extend(long.to_le_bytes());
    }
    Ok(())
}
