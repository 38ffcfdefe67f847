//! The instructions of a pickle that make tensors, and nothing else.

use std::collections::HashMap;

use super::global::Global;
use super::object::{Heap, StorageRef, TensorRef, Value, keep};
use crate::cursor::Cursor;
use crate::strided::MAX_RANK;
use crate::{Format, ReadError};

/// Instructions of one pickle. A dict of some ten thousand tensors has fewer.
const MAX_STEPS: u64 = 1 << 20;
/// Values on the stack, the marks among them.
const MAX_STACK: usize = 1 << 16;
/// Values that are remembered.
const MAX_MEMO: usize = 1 << 18;
/// Bytes of an integer: PyTorch's own magic number has 10.
const MAX_LONG: u64 = 16;
/// Bytes of the name of something.
const MAX_NAME: usize = 256;

/// Runs a pickle up to its end; gives what it makes, the objects, and the bytes that it took. `most`: tensors that it may describe.
///
/// # Errors
/// It is damaged, too large, or asks for something that is not done.
pub(super) fn run(bytes: &[u8], most: usize) -> Result<(Value<'_>, Heap<'_>, usize), ReadError> {
    let mut machine = Machine {
        code: Cursor::new(bytes),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        heap: Heap::default(),
    };
    for _ in 0..MAX_STEPS {
        if let Some(value) = machine.step()? {
            return Ok((value, machine.heap, bytes.len() - machine.code.len()));
        }
        // Each takes more than the few bytes that call for it again.
        if machine.heap.tensors.len() > most {
            return Err(too_large("tensors", most as u64));
        }
        if machine.stack.len() + machine.marks.len() > MAX_STACK {
            return Err(too_large("a stack", MAX_STACK as u64));
        }
    }
    Err(too_large("a pickle", MAX_STEPS))
}

fn too_large(what: &'static str, limit: u64) -> ReadError {
    ReadError::TooLarge { format: Format::Pt, what, wanted: limit + 1, limit }
}

fn bad(reason: impl Into<String>) -> ReadError {
    ReadError::malformed(Format::Pt, reason)
}

fn cut() -> ReadError {
    ReadError::Cut(Format::Pt)
}

struct Machine<'a> {
    code: Cursor<'a>,
    stack: Vec<Value<'a>>,
    /// The height of the stack where each mark lies.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    heap: Heap<'a>,
}

impl<'a> Machine<'a> {
    /// One instruction; what the whole pickle makes, after the last.
    fn step(&mut self) -> Result<Option<Value<'a>>, ReadError> {
        match self.code.u8().ok_or_else(cut)? {
            b'.' => {
                let value = self.pop()?;
                let rest = self.stack.is_empty() && self.marks.is_empty();
                return if rest { Ok(Some(value)) } else { Err(bad("a pickle leaves more than one value")) };
            }
            // PROTO
            0x80 => match self.code.u8().ok_or_else(cut)? {
                2..=5 => {}
                version => return Err(bad(format!("pickles of protocol {version} are not read, only 2 to 5"))),
            },
            // FRAME: says how many bytes follow, which is no more than a hint.
            0x95 => drop(self.code.u64().ok_or_else(cut)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => self.push(*self.top()?),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => self.integer::<4>(|bytes| i32::from_le_bytes(bytes).into())?,
            b'K' => self.integer::<1>(|[byte]| byte.into())?,
            b'M' => self.integer::<2>(|bytes| u16::from_le_bytes(bytes).into())?,
            // LONG1
            0x8a => {
                let length = self.code.u8().ok_or_else(cut)?.into();
                self.long(length)?;
            }
            // LONG4
            0x8b => {
                let length = self.code.u32().ok_or_else(cut)?.into();
                self.long(length)?;
            }
            b'G' => {
                self.code.array::<8>().ok_or_else(cut)?;
                self.push(Value::Float);
            }
            // SHORT_BINUNICODE, and SHORT_BINSTRING of Python 2.
            0x8c | b'U' => {
                let length = self.code.u8().ok_or_else(cut)?.into();
                self.string(length)?;
            }
            // BINUNICODE, and BINSTRING of Python 2.
            b'X' | b'T' => {
                let length = self.code.u32().ok_or_else(cut)?.into();
                self.string(length)?;
            }
            // BINUNICODE8
            0x8d => {
                let length = self.code.u64().ok_or_else(cut)?;
                self.string(length)?;
            }
            b')' => self.tuple(Vec::new()),
            0x85 => self.tuple_of::<1>()?,
            0x86 => self.tuple_of::<2>()?,
            0x87 => self.tuple_of::<3>()?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.tuple(items);
            }
            b']' => self.list(Vec::new()),
            b'l' => {
                let items = self.pop_to_mark()?;
                self.list(items);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.dict(Vec::new()),
            b'd' => {
                let items = self.pop_to_mark()?;
                self.dict(pairs(&items)?);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(pairs(&items)?)?;
            }
            b'h' => {
                let index = self.code.u8().ok_or_else(cut)?.into();
                self.recall(index)?;
            }
            b'j' => {
                let index = self.code.u32().ok_or_else(cut)?;
                self.recall(index)?;
            }
            b'q' => {
                let index = self.code.u8().ok_or_else(cut)?.into();
                self.remember(index)?;
            }
            b'r' => {
                let index = self.code.u32().ok_or_else(cut)?;
                self.remember(index)?;
            }
            // MEMOIZE: at most `MAX_MEMO`, which an u32 holds.
            0x94 => self.remember(self.memo.len() as u32)?,
            b'c' => {
                let mut name = || self.code.line(MAX_NAME).and_then(|line| std::str::from_utf8(line).ok());
                let names = name().zip(name()).ok_or_else(|| bad("a name in the pickle has no end"))?;
                self.push(Value::Global(Global::find(names.0, names.1)?));
            }
            // STACK_GLOBAL
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => self.push(Value::Global(Global::find(module, name)?)),
                _ => return Err(bad("the name of something is no str")),
            },
            b'R' => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let made = self.call(callable, arguments)?;
                self.push(made);
            }
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                let index = keep(&mut self.heap.storages, storage);
                self.push(Value::Storage(index));
            }
            other => return Err(ReadError::refused(instruction(other))),
        }
        Ok(None)
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(value);
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<&Value<'a>, ReadError> {
        self.stack
            .get(self.floor()..)
            .and_then(|values| values.last())
            .ok_or_else(|| bad("a pickle takes more than there is"))
    }

    fn pop(&mut self) -> Result<Value<'a>, ReadError> {
        let top = *self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value<'a>>, ReadError> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or_else(|| bad("a pickle takes more than there is"))?))
    }

    fn integer<const N: usize>(&mut self, make: impl FnOnce([u8; N]) -> i64) -> Result<(), ReadError> {
        let bytes = self.code.array().ok_or_else(cut)?;
        self.push(Value::Int(make(bytes)));
        Ok(())
    }

    fn long(&mut self, length: u64) -> Result<(), ReadError> {
        if length > MAX_LONG {
            return Err(ReadError::refused(format!("an integer of {length} bytes")));
        }
        let bytes = self.code.take(length).ok_or_else(cut)?;
        let mut whole = [if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 }; 8];
        let value = match whole.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(whole))
            }
            None => Value::Long(bytes),
        };
        self.push(value);
        Ok(())
    }

    fn string(&mut self, length: u64) -> Result<(), ReadError> {
        let bytes = self.code.take(length).ok_or_else(cut)?;
        self.push(Value::Str(std::str::from_utf8(bytes).map_err(|_| bad("a str is not UTF-8"))?));
        Ok(())
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) {
        let index = keep(&mut self.heap.tuples, items);
        self.push(Value::Tuple(index));
    }

    fn tuple_of<const N: usize>(&mut self) -> Result<(), ReadError> {
        let mut items = Vec::with_capacity(N);
        for _ in 0..N {
            items.push(self.pop()?);
        }
        items.reverse();
        self.tuple(items);
        Ok(())
    }

    fn list(&mut self, items: Vec<Value<'a>>) {
        let index = keep(&mut self.heap.lists, items);
        self.push(Value::List(index));
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Result<(), ReadError> {
        match *self.top()? {
            Value::List(index) => self.heap.lists.get_mut(index).map(|list| list.extend(items)),
            _ => None,
        }
        .ok_or_else(|| bad("a pickle appends to what is no list"))
    }

    fn dict(&mut self, entries: Vec<(Value<'a>, Value<'a>)>) {
        let index = keep(&mut self.heap.dicts, entries);
        self.push(Value::Dict(index));
    }

    fn set(&mut self, entries: Vec<(Value<'a>, Value<'a>)>) -> Result<(), ReadError> {
        match *self.top()? {
            Value::Dict(index) => self.heap.dicts.get_mut(index).map(|dict| dict.extend(entries)),
            _ => None,
        }
        .ok_or_else(|| bad("a pickle sets entries of what is no dict"))
    }

    fn remember(&mut self, index: u32) -> Result<(), ReadError> {
        let value = *self.top()?;
        if self.memo.len() >= MAX_MEMO {
            return Err(too_large("a memo", MAX_MEMO as u64));
        }
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), ReadError> {
        let value = self.memo.get(&index).copied();
        self.push(value.ok_or_else(|| bad(format!("a pickle recalls {index}, which it has not remembered")))?);
        Ok(())
    }

    /// The attributes of an `OrderedDict`: modules leave their versions there, which say nothing of tensors.
    fn build(&mut self) -> Result<(), ReadError> {
        let (state, object) = (self.pop()?, *self.top()?);
        match (object, state) {
            (Value::Dict(_), Value::Dict(_)) => Ok(()),
            (object, _) => Err(ReadError::refused(format!("the state of {}", object.kind()))),
        }
    }

    fn items(&self, tuple: Value<'a>) -> Option<&[Value<'a>]> {
        match tuple {
            Value::Tuple(index) => self.heap.tuples.get(index).map(Vec::as_slice),
            _ => None,
        }
    }

    /// `('storage', type, key, location, elements)`, and in old files what part of another it is.
    fn storage(&self, id: Value<'a>) -> Result<StorageRef<'a>, ReadError> {
        let other = || bad("a persistent id is not that of a storage");
        let (storage, part) = match self.items(id).ok_or_else(other)? {
            [storage @ .., part] if storage.len() == 5 => (storage, *part),
            storage => (storage, Value::None),
        };
        let &[
            Value::Str("storage"),
            Value::Global(Global::Storage(dtype)),
            Value::Str(key),
            Value::Str(_),
            Value::Int(count),
        ] = storage
        else {
            return Err(other());
        };
        let first = match part {
            Value::None => Value::Int(0),
            // Its own key, its first element, and how many it has: the storage is the whole.
            part => match self.items(part) {
                Some([_, first, _]) => *first,
                _ => return Err(other()),
            },
        };
        let (count, first) = (u64::try_from(count).map_err(|_| other())?, count_of(first).ok_or_else(other)?);
        Ok(StorageRef { dtype, key, count, first })
    }

    fn call(&mut self, callable: Value<'a>, arguments: Value<'a>) -> Result<Value<'a>, ReadError> {
        let Value::Global(global) = callable else {
            return Err(ReadError::refused(format!("a call of {}", callable.kind())));
        };
        let other = || bad(format!("{global:?} is called with other arguments than PyTorch writes"));
        let items = self.items(arguments).ok_or_else(other)?;
        let made = match (global, items) {
            (Global::OrderedDict, []) => return Ok(Value::Dict(keep(&mut self.heap.dicts, Vec::new()))),
            // Of Python 2: a list of pairs.
            (Global::OrderedDict, &[Value::List(index)]) => {
                let entries =
                    self.heap.lists.get(index).and_then(|list| list.iter().map(|&pair| self.pair(pair)).collect());
                return Ok(Value::Dict(keep(&mut self.heap.dicts, entries.ok_or_else(other)?)));
            }
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), Value::Bool(_), _]) => return Ok(tensor),
            (Global::RebuildTensor, &[storage, offset, dims, strides]) => {
                self.tensor(storage, offset, dims, strides, None)
            }
            (Global::RebuildTensorV2, &[storage, offset, dims, strides, Value::Bool(_), _, ref metadata @ ..]) => {
                self.plain(metadata)?;
                self.tensor(storage, offset, dims, strides, None)
            }
            (
                Global::RebuildTensorV3,
                &[
                    storage,
                    offset,
                    dims,
                    strides,
                    Value::Bool(_),
                    _,
                    Value::Global(Global::Element(dtype)),
                    ref metadata @ ..,
                ],
            ) => {
                self.plain(metadata)?;
                self.tensor(storage, offset, dims, strides, Some(dtype))
            }
            (Global::Storage(_) | Global::Element(_), _) => {
                return Err(ReadError::refused(format!("a call of {global:?}")));
            }
            _ => return Err(other()),
        };
        let tensor = made.ok_or_else(other)?;
        let rank = tensor.dims.len();
        if rank > MAX_RANK {
            return Err(ReadError::Rank { rank, most: MAX_RANK });
        }
        Ok(Value::Tensor(keep(&mut self.heap.tensors, tensor)))
    }

    /// A key and its value: a list or a tuple of two.
    fn pair(&self, pair: Value<'a>) -> Option<(Value<'a>, Value<'a>)> {
        let items = match pair {
            Value::List(index) => self.heap.lists.get(index).map(Vec::as_slice),
            pair => self.items(pair),
        };
        match *items? {
            [key, value] => Some((key, value)),
            _ => None,
        }
    }

    /// Metadata say that elements are to be negated, or conjugated: such a tensor is not what its storage holds.
    fn plain(&self, metadata: &[Value<'a>]) -> Result<(), ReadError> {
        match *metadata {
            [] | [Value::None] => Ok(()),
            [Value::Dict(index)] if self.heap.dicts.get(index).is_some_and(Vec::is_empty) => Ok(()),
            _ => Err(ReadError::refused("a tensor with metadata (call .resolve_neg().clone() before it is saved)")),
        }
    }

    fn tensor(
        &self,
        storage: Value<'a>,
        offset: Value<'a>,
        dims: Value<'a>,
        strides: Value<'a>,
        dtype: Option<genie_graph::DType>,
    ) -> Option<TensorRef<'a>> {
        let Value::Storage(index) = storage else { return None };
        let storage = *self.heap.storages.get(index)?;
        let counts = |tuple| {
            let items = self.items(tuple)?;
            items.iter().map(|item| count_of(*item)).collect::<Option<Vec<u64>>>()
        };
        let (dims, strides) = (counts(dims)?, counts(strides)?);
        let offset = count_of(offset)?;
        let dtype = dtype.or(storage.dtype)?;
        (dims.len() == strides.len()).then_some(TensorRef { storage, dtype, offset, dims, strides })
    }
}

fn count_of(value: Value<'_>) -> Option<u64> {
    match value {
        Value::Int(count) => u64::try_from(count).ok(),
        _ => None,
    }
}

fn pairs<'a>(items: &[Value<'a>]) -> Result<Vec<(Value<'a>, Value<'a>)>, ReadError> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(bad("a key in a pickle has no value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

/// An instruction that is not done, in words.
fn instruction(code: u8) -> String {
    let name = match code {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82..=0x84 => "EXT",
        b'P' => "PERSID",
        b'B' | b'C' | 0x8e => "BINBYTES",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x8f..=0x91 => "a set",
        b'I' | b'L' | b'F' | b'S' | b'V' | b'p' | b'g' => "an instruction of protocol 0",
        _ => return format!("the unknown instruction {code:#04x}"),
    };
    format!("the instruction {name}")
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
