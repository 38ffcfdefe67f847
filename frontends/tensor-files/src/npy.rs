//! `.npy`: a header that is a Python dict, then the elements.

use std::fmt::Write;

use bytes::Bytes;
use genie_graph::{DType, byte_len};

use crate::cursor::Cursor;
use crate::strided::{Allowance, MAX_RANK, View, strides};
use crate::{Contents, Format, ReadError, Tensor, WriteError};

pub(crate) const MAGIC: &[u8] = b"\x93NUMPY";

/// A header has three short entries.
const MAX_HEADER: u64 = 64 << 10;

/// Elements begin at a multiple of this.
const ALIGN: usize = 64;

pub(crate) fn read(file: &Bytes, allowance: &mut Allowance<'_>) -> Result<Tensor, ReadError> {
    let cut = || ReadError::Cut(Format::Npy);
    let bad = |reason: &str| ReadError::malformed(Format::Npy, reason);
    let mut cursor = Cursor::new(file);
    cursor.take(MAGIC.len() as u64).ok_or_else(cut)?;
    let [major, _minor] = cursor.array().ok_or_else(cut)?;
    let length = match major {
        1 => u64::from(cursor.u16().ok_or_else(cut)?),
        2 | 3 => u64::from(cursor.u32().ok_or_else(cut)?),
        _ => return Err(bad(&format!("its version is {major}, but 1 to 3 are known"))),
    };
    if length > MAX_HEADER {
        return Err(bad("its header is over 64 KiB"));
    }
    let text = cursor.take(length).ok_or_else(cut)?;
    let text = std::str::from_utf8(text).map_err(|_| bad("its header is not text"))?;
    let header =
        Header::parse(text).ok_or_else(|| bad("its header is not a dict of descr, fortran_order and shape"))?;
    let (dtype, big_endian) = element(header.descr)?;
    let rank = header.shape.len();
    if rank > MAX_RANK {
        return Err(ReadError::Rank { rank, most: MAX_RANK });
    }
    let have = cursor.len() as u64;
    let want = byte_len(dtype, &header.shape).ok_or_else(|| bad("its shape has more elements than can be counted"))?;
    if have < want {
        return Err(cut());
    }
    if have > want {
        return Err(bad(&format!("{} bytes follow after its elements", have - want)));
    }
    let storage = file.slice(file.len() - cursor.len()..);
    let strides = strides(&header.shape, header.fortran).ok_or_else(|| bad("its shape cannot be counted"))?;
    let view = View { format: Format::Npy, dtype, dims: &header.shape, strides: &strides, offset: 0, big_endian };
    let data = view.of(&storage, allowance)?;
    Ok(Tensor { dtype, dims: header.shape, data })
}

/// Element type and byte order of a `descr`.
fn element(descr: &str) -> Result<(DType, bool), ReadError> {
    let order = descr.chars().next();
    let big_endian = order == Some('>');
    let kind = descr.strip_prefix(['<', '>', '|', '=']).unwrap_or(descr);
    let dtype = match kind {
        "f4" => DType::F32,
        "f2" => DType::F16,
        "i8" => DType::I64,
        "i4" => DType::I32,
        "u1" => DType::U8,
        "b1" | "?" => DType::Bool,
        "f8" => return Err(ReadError::dtype("f64 (float64)")),
        _ => return Err(ReadError::dtype(descr)),
    };
    Ok((dtype, big_endian))
}

pub(crate) fn write(contents: &Contents) -> Result<Vec<Bytes>, WriteError> {
    let tensor = match contents {
        Contents::One(tensor) => tensor,
        Contents::List(tensors) => return Err(WriteError::NotOne(tensors.len())),
        Contents::Dict(entries) => return Err(WriteError::NotOne(entries.len())),
    };
    let descr = match tensor.dtype {
        DType::F32 => "<f4",
        DType::F16 => "<f2",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::U8 => "|u1",
        DType::Bool => "|b1",
        DType::BF16 => return Err(WriteError::NoSuchType),
    };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (");
    for dim in &tensor.dims {
        // A tuple of one has its comma, too. Writing to a string does not fail.
        let _ = write!(header, "{dim}, ");
    }
    header.push_str("), }");
    let before = MAGIC.len() + 4;
    let end = (before + header.len() + 1).next_multiple_of(ALIGN);
    header.extend(std::iter::repeat_n(' ', end - 1 - before - header.len()));
    header.push('\n');
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&[1, 0]);
    // At most eight dimensions of 20 digits.
    head.extend_from_slice(
        &u16::try_from(header.len()).map_err(|_| WriteError::Header("too many dimensions".into()))?.to_le_bytes(),
    );
    head.extend_from_slice(header.as_bytes());
    Ok(vec![head.into(), tensor.data.clone()])
}

/// What a header says.
struct Header<'a> {
    descr: &'a str,
    fortran: bool,
    shape: Vec<u64>,
}

impl<'a> Header<'a> {
    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }` with its entries in any order.
    fn parse(text: &'a str) -> Option<Self> {
        let mut words = Words(text);
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        words.expect('{')?;
        while !words.accept('}') {
            let key = words.string()?;
            words.expect(':')?;
            let new = match key {
                "descr" => descr.replace(words.string()?).is_none(),
                "fortran_order" => fortran.replace(words.boolean()?).is_none(),
                "shape" => shape.replace(words.tuple()?).is_none(),
                _ => false,
            };
            if !new {
                return None;
            }
            if !words.accept(',') {
                words.expect('}')?;
                break;
            }
        }
        if !words.0.trim().is_empty() {
            return None;
        }
        Some(Self { descr: descr?, fortran: fortran?, shape: shape? })
    }
}

/// What is left of a header.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn accept(&mut self, mark: char) -> bool {
        let rest = self.0.trim_start().strip_prefix(mark);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, mark: char) -> Option<()> {
        self.accept(mark).then_some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let rest = self.0.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (text, rest) = rest.strip_prefix(quote)?.split_once(quote)?;
        self.0 = rest;
        (!text.contains('\\')).then_some(text)
    }

    fn boolean(&mut self) -> Option<bool> {
        let rest = self.0.trim_start();
        for (word, value) in [("False", false), ("True", true)] {
            if let Some(rest) = rest.strip_prefix(word) {
                self.0 = rest;
                return Some(value);
            }
        }
        None
    }

    fn tuple(&mut self) -> Option<Vec<u64>> {
        let mut numbers = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            let rest = self.0.trim_start();
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (digits, rest) = rest.split_at_checked(end)?;
            // Python 2 marked long integers.
            self.0 = rest.strip_prefix('L').unwrap_or(rest);
            numbers.push(digits.parse().ok()?);
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str, data: &[u8]) -> Bytes {
        let mut file = MAGIC.to_vec();
        file.extend([version, 0]);
        match version {
            1 => file.extend((header.len() as u16).to_le_bytes()),
            _ => file.extend((header.len() as u32).to_le_bytes()),
        }
        file.extend(header.as_bytes());
        file.extend(data);
        file.into()
    }

    fn take(file: &Bytes) -> Result<Tensor, ReadError> {
        read(file, &mut Allowance::new(1 << 20))
    }

    #[test]
    fn every_version_order_and_way_to_write_a_header() {
        for version in 1..=3 {
            let header = "{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }   \n";
            let tensor = take(&file(version, header, &[1, 0, 0, 0, 2, 0, 0, 0])).unwrap();
            assert_eq!((tensor.dtype, &tensor.dims[..], &tensor.data[..4]), (DType::I32, &[2][..], &[1, 0, 0, 0][..]));
        }
        let header = "{\"shape\":(2,3),'descr':'>f2','fortran_order':True}";
        let tensor = take(&file(1, header, &[0, 1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6])).unwrap();
        assert_eq!(&tensor.data[..], [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0]);
        let scalar = take(&file(1, "{'descr': '|b1', 'fortran_order': False, 'shape': ()}", &[1])).unwrap();
        assert_eq!((scalar.dtype, scalar.dims.len()), (DType::Bool, 0));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let told = |header: &str, data: &[u8]| take(&file(1, header, data)).unwrap_err().to_string();
        let f64s = "{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}";
        assert_eq!(told(f64s, &[0; 8]), "elements are f64 (float64), which is not carried: convert them to f32");
        assert!(told("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", &[0; 8]).contains("|O"));
        assert!(told("{'descr': '<i2', 'fortran_order': False, 'shape': (1,)}", &[0; 8]).contains("i64, i32 or u8"));
        let u8s = |shape: &str| format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}");
        assert!(told(&u8s("(3,)"), &[0; 2]).contains("cut short"));
        assert!(told(&u8s("(1,1,1,1,1,1,1,1,1)"), &[0]).contains("9 dimensions, but at most 8"));
        assert!(told(&u8s("(3,)"), &[0; 4]).contains("1 bytes follow"));
        assert!(told(&u8s("(4294967296, 4294967296)"), &[0; 4]).contains("counted"));
        for bad in ["(", "(-1,)", "(1, 2", "(1 2)", "(99999999999999999999,)", "3", "(,)", "[3]"] {
            assert!(told(&u8s(bad), &[0; 3]).contains("dict of descr"), "{bad}");
        }
        for bad in ["", "{}", "{'descr': '|u1'}", "{'descr': '|u1', 'fortran_order': 0, 'shape': ()}", "{{", "{'a': 1}"]
        {
            assert!(told(bad, &[0; 3]).contains("dict of descr"), "{bad}");
        }
        let twice = "{'descr': '|u1', 'descr': '|u1', 'fortran_order': False, 'shape': ()}";
        assert!(told(twice, &[0]).contains("dict of descr"));
    }

    #[test]
    fn what_is_written_is_aligned_and_read_back() {
        for dims in [vec![], vec![3], vec![2, 3], vec![1; 8]] {
            let bytes = dims.iter().product::<u64>() as usize * 2;
            let tensor = Tensor { dtype: DType::F16, dims, data: vec![7; bytes].into() };
            let pieces = write(&Contents::One(tensor.clone())).unwrap();
            assert!(pieces[0].len().is_multiple_of(ALIGN) && pieces[0].ends_with(b"\n"));
            assert_eq!(take(&pieces.concat().into()).unwrap(), tensor);
        }
    }
}
