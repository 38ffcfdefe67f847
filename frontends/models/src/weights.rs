//! Weights: what they are called, their types, and their bytes when they are wanted.

use bytemuck::cast_slice_mut;
use genie_graph::{DType, Dim, QuantFormat, TensorType};
use genie_transport::memory::{Region, Slab};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::gguf::GgmlType;
use crate::synthetic::Pattern;
use crate::{ContentHash, ModelError, dequant};

/// A weight that a configuration calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Its name in graphs: GGUF's, whatever the files call it.
    pub name: String,
    /// Outermost first.
    pub dims: Vec<u64>,
    /// Which types it may take.
    pub kind: Kind,
}

/// How a weight is used, and so in which types it may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of a linear layer or an embedding: any float type, or blocks as the file has them.
    Matrix,
    /// A norm's weight: always f32. It is near 1 in random models.
    Norm,
    /// A bias, or frequencies: always f32.
    Vector,
}

/// A weight of an opened model. Cloning it copies no bytes.
#[derive(Clone, Debug)]
pub struct Weight {
    name: String,
    dtype: DType,
    dims: Vec<u64>,
    source: Source,
}

/// Where the bytes come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Elements or blocks in a file, to be floats.
    Stored { ty: GgmlType, data: Region },
    /// Blocks in a file, to stay so.
    Blocks { format: QuantFormat, data: Region },
    /// Computed from the configuration.
    Made(Region),
    /// Random, by formula.
    Random(Pattern),
}

impl Weight {
    /// # Errors
    /// [`ModelError::TensorShape`] if the source does not hold as many elements as the shape calls for, and
    /// [`ModelError::TargetType`] if `dtype` is not a float.
    pub(crate) fn new(spec: WeightSpec, dtype: DType, source: Source) -> Result<Self, ModelError> {
        if !dtype.is_float() {
            return Err(ModelError::TargetType(dtype));
        }
        let WeightSpec { name, dims, .. } = spec;
        let bytes = GgmlType::F32.bytes_of(&dims).filter(|&n| isize::try_from(n).is_ok());
        let fits = match &source {
            Source::Stored { ty, data } => ty.bytes_of(&dims) == Some(data.len() as u64),
            Source::Made(data) => bytes == Some(data.len() as u64) && dtype == DType::F32,
            Source::Random(_) => true,
            Source::Blocks { .. } => false,
        };
        if bytes.is_none() || !fits {
            return Err(ModelError::TensorShape { name, expected: dims, found: Vec::new() });
        }
        Ok(Self { name, dtype, dims, source })
    }

    /// A matrix that stays in the blocks that the file holds it in. `None` if they are of a type that graphs do not read.
    ///
    /// # Errors
    /// [`ModelError::TensorShape`] if the file does not hold as many blocks as the shape calls for.
    pub(crate) fn in_blocks(spec: &WeightSpec, ty: GgmlType, data: &Region) -> Result<Option<Self>, ModelError> {
        let Some(format) = ty.blocks() else { return Ok(None) };
        let shape =
            || ModelError::TensorShape { name: spec.name.clone(), expected: spec.dims.clone(), found: Vec::new() };
        let mut dims = spec.dims.clone();
        // Whole blocks, as the file's bytes are no fewer than these.
        let bytes = ty.bytes_of(&dims).filter(|&n| n == data.len() as u64);
        let (Some(_), Some(width)) = (bytes, dims.last_mut()) else { return Err(shape()) };
        *width = *width / QuantFormat::BLOCK * format.block_bytes();
        let source = Source::Blocks { format, data: data.clone() };
        Ok(Some(Self { name: spec.name.clone(), dtype: DType::U8, dims, source }))
    }

    /// Its name in graphs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The element type of [`Self::bytes`]: u8 for blocks.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How the blocks are laid out, where it is kept in blocks: [`Self::bytes`] are those of the file.
    pub fn format(&self) -> Option<QuantFormat> {
        match self.source {
            Source::Blocks { format, .. } => Some(format),
            _ => None,
        }
    }

    /// Outermost first; of blocks, the innermost is the bytes of a row.
    pub fn dims(&self) -> &[u64] {
        &self.dims
    }

    /// Element type and shape.
    pub fn ty(&self) -> TensorType {
        TensorType::new(self.dtype, self.dims.iter().map(|&d| Dim::Fixed(d)))
    }

    /// Bytes of [`Self::bytes`], without producing them.
    pub fn len_bytes(&self) -> u64 {
        // `new` saw to it that this does not overflow.
        self.dims.iter().product::<u64>() * self.dtype.bytes()
    }

    /// The bytes as they are uploaded: row-major, little-endian, aligned at least to the element size.
    ///
    /// A view of the mapped file where it holds them so, else converted now, on all cores, into fresh memory: keep the result
    /// rather than ask again.
    pub fn bytes(&self) -> Region {
        match &self.source {
            Source::Made(region) | Source::Blocks { data: region, .. } => region.clone(),
            Source::Stored { ty, data } if ty.element() == Some(self.dtype) => {
                let aligned = data.as_ptr().addr().is_multiple_of(self.dtype.bytes() as usize);
                if aligned { data.clone() } else { Region::copy_of(data) }
            }
            Source::Stored { ty, data } => self.fill(|from, out| {
                let at = |element: usize| element / ty.block_elements() * ty.block_bytes();
                // `new` saw to it that the data holds as many blocks as the shape calls for.
                let blocks = data.get(at(from)..at(from + out.len())).unwrap_or_default();
                dequant::blocks(*ty, blocks, out);
            }),
            Source::Random(pattern) => self.fill(|from, out| pattern.fill(from as u64, out)),
        }
    }

    /// BLAKE3 of [`Self::bytes`]: the name under which a server knows this weight.
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(&self.bytes())
    }

    /// Fresh memory of the weight's type, from f32 values that `produce` writes for the elements from an index on.
    fn fill(&self, produce: impl Fn(usize, &mut [f32]) + Sync) -> Region {
        // `new` saw to it that the length fits.
        let mut slab = Slab::zeroed(self.len_bytes() as usize);
        match self.dtype {
            DType::F16 => through_f32::<f16>(cast_slice_mut(&mut slab), produce),
            DType::BF16 => through_f32::<bf16>(cast_slice_mut(&mut slab), produce),
            _ => {
                let out: &mut [f32] = cast_slice_mut(&mut slab);
                out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, out)| produce(i * CHUNK, out));
            }
        }
        slab.freeze()
    }
}

/// Elements a task: a whole number of blocks of every format, and few enough that f32 values on their way to 16 bits stay in
/// the cache.
const CHUNK: usize = 64 * 1024;

fn through_f32<T: Send>(out: &mut [T], produce: impl Fn(usize, &mut [f32]) + Sync)
where
    [T]: HalfFloatSliceExt,
{
    out.par_chunks_mut(CHUNK).enumerate().for_each_init(Vec::new, |wide, (i, out)| {
        wide.resize(out.len(), 0.0);
        produce(i * CHUNK, wide);
        out.convert_from_f32_slice(wide);
    });
}
