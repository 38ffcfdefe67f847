//! Tensors for kernels under test, and how results are compared.

mod place;

use genie_cuda_kernels::{Launch, LaunchError, View};
use genie_graph::DType;
use half::{bf16, f16};

use self::place::{self as host, Guarded};

/// The integer types.
pub(crate) const INTEGERS: [DType; 3] = [DType::I64, DType::I32, DType::U8];

/// The float types.
pub(crate) const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Orders of blocks and threads that every kernel runs in. A GPU picks its own, each time.
const ORDERS: [u64; 4] = [0, 1, 2, 3];

/// What outputs hold before a kernel writes them: NaN as f32, f16 and bf16, a number that no test expects otherwise.
const POISON: u8 = 0xFF;

/// A tensor in memory of which nothing beside may be touched.
pub(crate) struct Tensor {
    pub(crate) dtype: DType,
    memory: Guarded,
}

impl Tensor {
    /// These values, converted: floats rounded to nearest, integers and bool as they are.
    pub(crate) fn new(dtype: DType, values: &[f64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|&v| encode(dtype, v)).collect();
        Self { dtype, memory: Guarded::copy_of(&bytes) }
    }

    /// These i64, exactly.
    pub(crate) fn of_i64(values: &[i64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: DType::I64, memory: Guarded::copy_of(&bytes) }
    }

    /// `count` elements that no kernel has written.
    pub(crate) fn poisoned(dtype: DType, count: usize) -> Self {
        Self { dtype, memory: Guarded::new(count * dtype.bytes() as usize, POISON) }
    }

    /// `count` normal numbers times `scale`, from a seed.
    pub(crate) fn random(dtype: DType, count: usize, scale: f32, seed: u64) -> Self {
        let mut values = vec![0.0; count];
        genie_graph::random::fill_normal(seed, 0, &mut values);
        Self::new(dtype, &values.iter().map(|v| f64::from(v * scale)).collect::<Vec<_>>())
    }

    /// As launches take it.
    pub(crate) fn view(&self) -> View {
        View::new(self.memory.address(), self.dtype, self.memory.len() as u64 / self.dtype.bytes())
    }

    /// Its elements from `first` on: at an address that is aligned to an element alone.
    pub(crate) fn tail(&self, first: u64) -> View {
        let all = self.view();
        View::new(all.at + first * self.dtype.bytes(), self.dtype, all.elements - first)
    }

    /// Its address, of a fault word.
    pub(crate) fn at(&self) -> u64 {
        self.memory.address()
    }

    /// Its elements, exactly.
    pub(crate) fn values(&self) -> Vec<f64> {
        self.memory.chunks(self.dtype.bytes() as usize).map(|bytes| decode(self.dtype, bytes)).collect()
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory
    }

    /// Makes every byte what nobody wrote.
    pub(crate) fn poison(&mut self) {
        self.memory.fill(POISON);
    }
}

fn encode(dtype: DType, v: f64) -> Vec<u8> {
    match dtype {
        DType::F32 => (v as f32).to_le_bytes().to_vec(),
        // By way of f32, which holds every value that tests convert: `from_f64` leaves out the last bits before it rounds.
        DType::F16 => f16::from_f32(v as f32).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(v as f32).to_le_bytes().to_vec(),
        DType::I64 => (v as i64).to_le_bytes().to_vec(),
        DType::I32 => (v as i32).to_le_bytes().to_vec(),
        DType::U8 => vec![v as u8],
        DType::Bool => vec![u8::from(v != 0.0)],
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> f64 {
    let four = || bytes.try_into().expect("four bytes");
    let two = || bytes.try_into().expect("two bytes");
    match dtype {
        DType::F32 => f32::from_le_bytes(four()).into(),
        DType::F16 => f16::from_le_bytes(two()).into(),
        DType::BF16 => bf16::from_le_bytes(two()).into(),
        DType::I64 => i64::from_le_bytes(bytes.try_into().expect("eight bytes")) as f64,
        DType::I32 => i32::from_le_bytes(four()).into(),
        DType::U8 | DType::Bool => bytes[0].into(),
    }
}

/// Runs a launch in every order; `outputs` are poisoned before each, and must be the same bytes after each.
pub(crate) fn run(launch: Result<Option<Launch>, LaunchError>, outputs: &mut [&mut Tensor]) {
    run_all(&[launch.expect("a launch that can be made")], outputs);
}

/// As [`run`], for launches one after another.
pub(crate) fn run_all(launches: &[Option<Launch>], outputs: &mut [&mut Tensor]) {
    let mut first: Option<Vec<Vec<u8>>> = None;
    for seed in ORDERS {
        outputs.iter_mut().for_each(|tensor| tensor.poison());
        for launch in launches.iter().flatten() {
            // SAFETY: the views in it are of tensors that the caller holds, and nobody else uses them.
            unsafe { host::run(launch, seed) }.unwrap_or_else(|error| panic!("order {seed}: {error}"));
        }
        let now: Vec<Vec<u8>> = outputs.iter().map(|tensor| tensor.bytes().to_vec()).collect();
        let first = first.get_or_insert_with(|| now.clone());
        assert!(*first == now, "order {seed} gives other bytes than the first: a race");
    }
}

/// As [`run_all`], and with so few blocks along x that each takes several turns: for kernels that take any number of them.
pub(crate) fn run_any_grid(launches: &[Option<Launch>], outputs: &mut [&mut Tensor]) {
    let mut few = launches.to_vec();
    few.iter_mut().flatten().for_each(|launch| launch.grid[0] = launch.grid[0].min(2));
    run_all(&few, outputs);
    let bytes: Vec<Vec<u8>> = outputs.iter().map(|tensor| tensor.bytes().to_vec()).collect();
    run_all(launches, outputs);
    let same = outputs.iter().zip(&bytes).all(|(tensor, bytes)| tensor.bytes() == bytes);
    assert!(same, "the result depends on the number of blocks");
}

/// As [`run_all`], for launches that read what they write: `tensor` is what it was before each order.
pub(crate) fn run_over(launches: &[Option<Launch>], tensor: &mut Tensor) {
    let (before, mut first) = (tensor.bytes().to_vec(), None);
    for seed in ORDERS {
        tensor.memory.copy_from_slice(&before);
        for launch in launches.iter().flatten() {
            // SAFETY: as in `run_all`.
            unsafe { host::run(launch, seed) }.unwrap_or_else(|error| panic!("order {seed}: {error}"));
        }
        let first = first.get_or_insert_with(|| tensor.bytes().to_vec());
        assert!(first == tensor.bytes(), "order {seed} gives other bytes than the first: a race");
    }
}

/// A fault word, as the host sets it: what nobody wrote is `u64::MAX`.
pub(crate) fn fault_word() -> Tensor {
    Tensor::poisoned(DType::I64, 1)
}

/// The element that a fault word names.
pub(crate) fn fault(word: &Tensor) -> Option<u64> {
    let value = u64::from_le_bytes(word.bytes().try_into().expect("eight bytes"));
    (value != u64::MAX).then_some(value)
}

/// Numbers from a seed, for shapes and values of tests.
pub(crate) struct Numbers(u64, u128);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed, 0)
    }

    /// One of `0..below`.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.1 += 1;
        u64::from(genie_graph::random::philox(self.0, self.1)[0]) % below
    }

    /// Whole numbers from `-most` to `most`, as tensors of `dtype` hold them.
    pub(crate) fn integers(&mut self, dtype: DType, count: u64, most: u64) -> Vec<f64> {
        let signed = !matches!(dtype, DType::U8 | DType::Bool);
        (0..count).map(|_| self.below(2 * most + 1) as f64 - if signed { most as f64 } else { 0.0 }).collect()
    }
}

/// Runs a launch once, its outputs not poisoned before: for those that are inputs, too.
pub(crate) fn run_once(launch: &Option<Launch>) {
    if let Some(launch) = launch {
        // SAFETY: as in `run_all`.
        unsafe { host::run(launch, 2) }.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Units in the last place of `dtype` at 1, as a relative error.
pub(crate) fn precision(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::EPSILON),
        DType::F16 => f16::EPSILON.to_f64(),
        DType::BF16 => bf16::EPSILON.to_f64(),
        _ => 0.0,
    }
}

/// Every element is within `relative` of what is expected, or within `absolute`; NaN and infinities are themselves.
pub(crate) fn assert_close(what: &str, got: &[f64], expected: &[f64], relative: f64, absolute: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let same = g == e || (g.is_nan() && e.is_nan());
        let close = (g - e).abs() <= absolute + relative * e.abs();
        assert!(same || close, "{what}: element {i} is {g:e}, expected {e:e}");
    }
}

/// The values as an element of `dtype` holds them: what a kernel reads.
pub(crate) fn rounded(dtype: DType, values: &[f64]) -> Vec<f64> {
    Tensor::new(dtype, values).values()
}
