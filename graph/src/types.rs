//! Element types, dimensions and annotations.

/// The element type of a tensor. The discriminant is its code on the wire and in the graph codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DType {
    /// IEEE 754 binary32.
    F32 = 0,
    /// IEEE 754 binary16.
    F16 = 1,
    /// The upper half of a binary32 (bfloat16).
    BF16 = 2,
    /// 64-bit two's complement.
    I64 = 3,
    /// 32-bit two's complement.
    I32 = 4,
    /// Unsigned byte.
    U8 = 5,
    /// One byte an element, 0 or 1.
    Bool = 6,
}

impl DType {
    /// Every element type, in wire order.
    pub const ALL: [Self; 7] = [Self::F32, Self::F16, Self::BF16, Self::I64, Self::I32, Self::U8, Self::Bool];

    /// Bytes that one element takes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }

    /// The type with this wire code, or `None` where no type has it.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The wire code.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether it is f32, f16 or bf16.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// The name as users write it: `f32`, `bf16`, ...
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::Bool => "bool",
        }
    }

    /// The type with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A dimension whose size is known only when a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Symbol {
    /// Rows that run together; the server may join rows of different sessions along it.
    Batch = 0,
    /// Tokens of this step (prefill: the prompt's; decode: 1).
    Sequence = 1,
    /// Tokens already in the KV cache.
    Position = 2,
}

impl Symbol {
    /// Every symbol, in codec order.
    pub const ALL: [Self; 3] = [Self::Batch, Self::Sequence, Self::Position];
}

/// One dimension of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A size known when the graph is built: at least 1 and at most [`crate::limits::MAX_DIM`].
    Fixed(u64),
    /// A size known when the program runs.
    Symbol(Symbol),
}

impl From<u64> for Dim {
    fn from(n: u64) -> Self {
        Self::Fixed(n)
    }
}

impl From<Symbol> for Dim {
    fn from(s: Symbol) -> Self {
        Self::Symbol(s)
    }
}

/// A shape: outermost dimension first, row-major, at most [`Shape::MAX_RANK`] dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// The highest rank that the verifier and the wire accept.
    pub const MAX_RANK: usize = 8;

    /// A shape without symbols.
    pub fn fixed(dims: &[u64]) -> Self {
        Self(dims.iter().map(|&d| Dim::Fixed(d)).collect())
    }

    /// How many dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }
}

/// Element type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// The element type.
    pub dtype: DType,
    /// The shape.
    pub shape: Shape,
}

impl TensorType {
    /// A type from anything that makes dimensions: `TensorType::new(DType::F32, [Dim::from(Symbol::Batch), 3.into()])`.
    pub fn new(dtype: DType, dims: impl IntoIterator<Item = Dim>) -> Self {
        Self { dtype, shape: Shape(dims.into_iter().collect()) }
    }
}

/// Which part of a model's work a node belongs to; the scheduler orders queues by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Phase {
    /// Not said.
    #[default]
    Unknown = 0,
    /// Work over a whole prompt: bound by compute.
    Prefill = 1,
    /// One token a step: bound by latency and memory bandwidth.
    Decode = 2,
    /// Image encoders.
    Vision = 3,
    /// Where modalities meet.
    Fusion = 4,
}

/// How long a tensor lives, and who may share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Residency {
    /// Lives within one run.
    #[default]
    Activation = 0,
    /// Immutable, named by content, shared by sessions.
    Weight = 1,
    /// Appended to in place, owned by one session.
    KvCache = 2,
    /// Goes back to the client, or stays as a resident of its own.
    Output = 3,
}

/// What kind of data a tensor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Modality {
    /// Not said.
    #[default]
    None = 0,
    /// Text.
    Text = 1,
    /// Images.
    Vision = 2,
    /// Sound.
    Audio = 3,
}

/// What a node costs once, for given sizes of the symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cost {
    /// Floating-point operations (a multiply-add counts as two).
    pub flops: u64,
    /// Bytes read and written, weights included.
    pub bytes: u64,
}

/// What a frontend knows of a node beyond its op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Annotation {
    /// Phase of the model.
    pub phase: Phase,
    /// Residency of the node's result.
    pub residency: Residency,
    /// Modality of the data.
    pub modality: Modality,
}
