//! Metadata values.

use genie_transport::memory::Region;

use super::GgufError;
use super::reader::Reader;

/// A metadata value. Numbers are widened; arrays stay in the file until they are asked for.
#[derive(Clone, Debug)]
pub enum Value {
    /// u8 to u64.
    Unsigned(u64),
    /// i8 to i64.
    Signed(i64),
    /// f32, f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// Numbers, truth values or strings, all of one type.
    Array(Array),
}

/// An array in the file: checked to lie in it and, for strings, to be UTF-8.
#[derive(Clone, Debug)]
pub struct Array {
    element: Scalar,
    count: usize,
    bytes: Region,
}

/// GGUF's value types, arrays aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

const ARRAY: u32 = 9;
const WHERE: &str = "a metadata value";

impl Scalar {
    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a value; of a string: of its length field.
    fn least_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::String | Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn read(self, r: &mut Reader<'_>) -> Result<Value, GgufError> {
        Ok(match self {
            Self::U8 => Value::Unsigned(u8::from_le_bytes(r.array(WHERE)?).into()),
            Self::I8 => Value::Signed(i8::from_le_bytes(r.array(WHERE)?).into()),
            Self::U16 => Value::Unsigned(u16::from_le_bytes(r.array(WHERE)?).into()),
            Self::I16 => Value::Signed(i16::from_le_bytes(r.array(WHERE)?).into()),
            Self::U32 => Value::Unsigned(r.u32(WHERE)?.into()),
            Self::I32 => Value::Signed(i32::from_le_bytes(r.array(WHERE)?).into()),
            Self::F32 => Value::Float(f32::from_le_bytes(r.array(WHERE)?).into()),
            Self::Bool => Value::Bool(r.array::<1>(WHERE)? != [0]),
            Self::String => Value::String(r.string(WHERE)?.to_owned()),
            Self::U64 => Value::Unsigned(r.u64(WHERE)?),
            Self::I64 => Value::Signed(i64::from_le_bytes(r.array(WHERE)?)),
            Self::F64 => Value::Float(f64::from_le_bytes(r.array(WHERE)?)),
        })
    }
}

impl Value {
    pub(super) fn read(r: &mut Reader<'_>, key: &str) -> Result<Self, GgufError> {
        let refused = |code| GgufError::ValueType { key: key.to_owned(), code };
        let code = r.u32(WHERE)?;
        if code != ARRAY {
            return Scalar::from_code(code).ok_or_else(|| refused(code))?.read(r);
        }
        let code = r.u32(WHERE)?;
        let element = Scalar::from_code(code).ok_or_else(|| refused(code))?;
        let count = r.u64(WHERE)?;
        let count = r.check_count(count, element.least_bytes(), WHERE)?;
        let bytes = if element == Scalar::String {
            let mut ahead = r.fork();
            for _ in 0..count {
                ahead.string(WHERE)?;
            }
            r.region(ahead.position() - r.position(), WHERE)?
        } else {
            r.region(count as u64 * element.least_bytes(), WHERE)?
        };
        Ok(Self::Array(Array { element, count, bytes }))
    }

    /// A non-negative integer of any width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(n) => Some(n),
            Self::Signed(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// A number, integer or not.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(n) => Some(n as f64),
            Self::Signed(n) => Some(n as f64),
            Self::Float(x) => Some(x),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(b) => Some(b),
            _ => None,
        }
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(a) => Some(a),
            _ => None,
        }
    }
}

impl Array {
    /// How many elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements, if they are strings.
    pub fn strings(&self) -> Option<Vec<&str>> {
        if self.element != Scalar::String {
            return None;
        }
        let mut r = Reader::new(&self.bytes);
        (0..self.count).map(|_| r.string(WHERE).ok()).collect()
    }

    /// The elements, if they are numbers or truth values.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        if self.element == Scalar::String {
            return None;
        }
        let mut r = Reader::new(&self.bytes);
        let number = |v: Value| v.as_f64().or_else(|| v.as_bool().map(|b| b.into()));
        (0..self.count).map(|_| self.element.read(&mut r).ok().and_then(number)).collect()
    }
}
