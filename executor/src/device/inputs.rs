//! What a program takes, and whether a run gives it that.

use genie_graph::{DType, Dim, InputDecl, InputRole, Sizes, Symbol, VerifiedGraph, byte_len};

use crate::device::{DeviceError, HostTensor, KvSpec, Memory, Row};

/// Where an argument's bytes are.
#[derive(Clone, Copy)]
pub(super) enum Argument<'a> {
    /// They came with the run.
    Inline(&'a [u8]),
    /// A resident's.
    Resident(&'a Memory),
}

impl Argument<'_> {
    pub(super) fn len(self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Resident(memory) => memory.len(),
        }
    }

    /// Copies them to `to`, which has as many.
    pub(super) fn read(self, to: &mut [u8]) -> Result<(), DeviceError> {
        match self {
            Self::Inline(bytes) => {
                to.copy_from_slice(bytes);
                Ok(())
            }
            Self::Resident(memory) => memory.read(0, to),
        }
    }
}

impl Row<'_> {
    /// The bytes of an argument, if there is one.
    pub(super) fn argument(&self, index: usize) -> Option<Argument<'_>> {
        match self.residents.get(index) {
            Some(Some(memory)) => Some(Argument::Resident(memory)),
            _ => self.arguments.get(index).map(|tensor| Argument::Inline(&tensor.data)),
        }
    }
}

/// A program's inputs that a run gives, each kind in graph order.
pub(super) struct Inputs {
    weights: Vec<InputDecl>,
    arguments: Vec<InputDecl>,
    caches: Vec<(String, KvSpec)>,
    /// Tokens of a run, where the graph fixes them.
    step: Option<u64>,
}

impl Inputs {
    /// # Errors
    /// [`DeviceError::Unsupported`] if a cache is no [`KvSpec`].
    pub(super) fn of(graph: &VerifiedGraph) -> Result<Self, DeviceError> {
        let of_role = |wanted: fn(InputRole) -> bool| -> Vec<InputDecl> {
            graph.inputs().iter().filter(|i| wanted(i.role)).cloned().collect()
        };
        let weights = of_role(|r| r == InputRole::Weight);
        let arguments = of_role(|r| !matches!(r, InputRole::Weight | InputRole::KvCache | InputRole::Positions));
        let caches: Option<Vec<_>> = of_role(|r| r == InputRole::KvCache)
            .into_iter()
            .map(|i| KvSpec::of(&i.ty).map(|spec| (i.name, spec)))
            .collect();
        let op = "input of role kv-cache in another layout";
        let caches = caches.ok_or_else(|| DeviceError::Unsupported { op: op.to_owned() })?;
        Ok(Self { weights, arguments, caches, step: graph.fixed_step() })
    }

    /// How many caches a row has.
    pub(super) fn caches(&self) -> usize {
        self.caches.len()
    }

    /// Checks number, size and alignment of the weights.
    pub(super) fn check_weights(&self, weights: &[Memory]) -> Result<(), DeviceError> {
        if weights.len() != self.weights.len() {
            let (expected, got) = (self.weights.len(), weights.len());
            return Err(DeviceError::Count { row: 0, what: "weights", expected, got });
        }
        for (decl, weight) in self.weights.iter().zip(weights) {
            let expected = decl.ty.bytes(&Sizes::default()).unwrap_or(u64::MAX);
            let got = weight.len();
            if expected != got {
                return Err(DeviceError::WeightBytes { name: decl.name.clone(), expected, got });
            }
            let bytes = decl.ty.dtype.bytes();
            if !weight.address().is_multiple_of(bytes) {
                return Err(DeviceError::Misaligned { name: decl.name.clone(), bytes });
            }
        }
        Ok(())
    }

    /// Checks a row and finds its sizes.
    pub(super) fn check_row(&self, index: usize, row: &Row<'_>) -> Result<Sizes, DeviceError> {
        let count = |what, expected, got| {
            if expected == got { Ok(()) } else { Err(DeviceError::Count { row: index, what, expected, got }) }
        };
        count("arguments", self.arguments.len(), row.arguments.len())?;
        count("caches", self.caches.len(), row.caches.len())?;
        for ((name, spec), cache) in self.caches.iter().zip(&row.caches) {
            if cache.spec() != *spec {
                let (expected, got) = (spec.to_string(), cache.spec().to_string());
                return Err(DeviceError::CacheSpec { row: index, name: name.clone(), expected, got });
            }
        }
        let mut found = Found::default();
        if let Some(cache) = row.caches.first() {
            found.position = Some(cache.len());
        }
        for (i, (decl, argument)) in self.arguments.iter().zip(row.arguments).enumerate() {
            let bytes = row.argument(i).map_or(0, Argument::len);
            found.take(index, decl, argument, bytes)?;
        }
        let sizes = Sizes {
            batch: found.batch.unwrap_or(1),
            sequence: self.step.or(found.sequence).unwrap_or(1),
            position: found.position.unwrap_or(0),
        };
        let refuse = |reason: String| Err(DeviceError::Row { row: index, reason });
        if sizes.batch != 1 && !self.caches.is_empty() {
            return refuse(format!("it holds {} sequences, but a row has one cache; make a row of each", sizes.batch));
        }
        let end = sizes.position.checked_add(sizes.sequence);
        if end.is_none_or(|end| end > i32::MAX as u64) {
            return refuse(format!(
                "{} tokens after {} are more than positions can count",
                sizes.sequence, sizes.position
            ));
        }
        Ok(sizes)
    }
}

/// Sizes of the symbols, as a row's arguments show them.
#[derive(Default)]
struct Found {
    batch: Option<u64>,
    sequence: Option<u64>,
    position: Option<u64>,
}

impl Found {
    /// Takes an argument of so many bytes.
    fn take(&mut self, row: usize, decl: &InputDecl, argument: &HostTensor, got: u64) -> Result<(), DeviceError> {
        let name = || decl.name.clone();
        if argument.dtype != Some(decl.ty.dtype) {
            let got = argument.dtype.map_or("nothing", DType::name).to_owned();
            return Err(DeviceError::ArgumentType { row, name: name(), expected: decl.ty.dtype, got });
        }
        let dims = &decl.ty.shape.0;
        let fits = dims.len() == argument.dims.len()
            && dims.iter().zip(&argument.dims).all(|(&dim, &got)| match dim {
                Dim::Fixed(n) => n == got,
                Dim::Symbol(Symbol::Position) => *self.position.get_or_insert(got) == got,
                Dim::Symbol(Symbol::Batch) => *self.batch.get_or_insert(got) == got && got > 0,
                Dim::Symbol(Symbol::Sequence) => *self.sequence.get_or_insert(got) == got && got > 0,
            });
        if !fits {
            let seen = |size: Option<u64>| size.map_or("any".to_owned(), |n| n.to_string());
            let (batch, sequence, position) = (seen(self.batch), seen(self.sequence), seen(self.position));
            let shape = &decl.ty.shape;
            let expected = format!("{shape} (batch {batch}, sequence {sequence}, position {position}, none empty)");
            return Err(DeviceError::ArgumentShape { row, name: name(), expected, got: argument.dims.clone() });
        }
        let expected = byte_len(decl.ty.dtype, &argument.dims);
        if expected != Some(got) {
            let expected = expected.unwrap_or(u64::MAX);
            return Err(DeviceError::ArgumentBytes { row, name: name(), expected, got });
        }
        Ok(())
    }
}
