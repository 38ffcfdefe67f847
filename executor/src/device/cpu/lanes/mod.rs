//! Vectors of f32, as wide as the machine has them: kernels are written once over [`Lanes`] and compiled for each width.
//!
//! Which width runs is found out when a device starts ([`Isa::detect`]); nothing is built for the machine it is built on.

mod element;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::{bf16, f16};

pub(super) use self::element::{Element, Factor};
use self::scalar::Scalar;

/// The instruction set that kernels run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// No vectors beyond what the compiler makes by itself.
    Scalar,
    /// 8 lanes: AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 16 lanes: AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same, with AVX-512 BF16's products of pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Isa {
    /// The widest that this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 && is_x86_feature_detected!("avx512bf16") {
                return Self::Avx512Bf16;
            }
            if avx2 && avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }

    /// All that this machine has, narrowest first.
    pub fn available() -> Vec<Self> {
        let all = [
            Self::Scalar,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16,
        ];
        all.into_iter().filter(|&isa| isa <= Self::detect()).collect()
    }

    /// The name of its defining feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512f",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    ///
    /// # Safety
    /// The machine has it ([`Isa::detect`] or [`Isa::available`] gave it), and the kernel's own demands hold.
    #[inline]
    pub(super) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Out {
        // SAFETY: the caller vouches for the kernel's demands and for the features.
        unsafe {
            match self {
                Self::Scalar => kernel.run::<Scalar>(),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => x86::with_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => x86::with_avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Bf16 => x86::with_avx512_bf16(kernel),
            }
        }
    }
}

/// A piece of work that is compiled once per width. `run` must be `#[inline(always)]`, as must all it calls that is to be
/// compiled with the width's instructions.
pub(super) trait Kernel {
    type Out;

    /// # Safety
    /// Whatever the kernel says of its fields; and `S` is a width that the machine has.
    unsafe fn run<S: Lanes>(self) -> Self::Out;
}

/// A vector of `N` f32.
///
/// # Safety
/// All functions need the machine to have the instructions; the ones with pointers need them to be valid for the elements that
/// they touch. No alignment is needed.
pub(super) trait Lanes: Copy + 'static {
    type V: Copy;
    /// Lanes in a vector.
    const N: usize;
    /// Activation rows that a tile of four weight rows keeps in registers beside its accumulators.
    const COLUMNS: usize;
    /// Multiplications that it takes to multiply vectors of pairs of bf16: one by the instruction for it, else two of f32.
    const PAIR_ROUNDS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    /// An f16 in every lane.
    unsafe fn splat_f16(x: f16) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn load_f16(p: *const f16) -> Self::V;
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    /// N signed bytes.
    unsafe fn load_i8(p: *const i8) -> Self::V;
    /// The low halves of N bytes, 0 to 15.
    unsafe fn load_low(p: *const u8) -> Self::V;
    /// The high halves of N bytes, 0 to 15.
    unsafe fn load_high(p: *const u8) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// a + b.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a * b, rounded by itself whatever comes after.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, with one rounding where the machine can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// What to multiply in round `round` of [`Lanes::PAIR_ROUNDS`] where each lane of `v` holds two bf16.
    unsafe fn of_pairs(v: Self::V, round: usize) -> Self::V;
    /// Adds the products of one round to `sum`. After all rounds each lane has first the product of the upper (second) bf16 added,
    /// then that of the lower, each sum rounded to f32. A machine's own instruction may take subnormal numbers for 0.
    unsafe fn multiply_pairs(a: Self::V, b: Self::V, sum: Self::V) -> Self::V;
    /// The sum of all lanes, in an order that depends on nothing.
    unsafe fn sum(v: Self::V) -> f32;
    /// [`Lanes::sum`] of four vectors, to the bit.
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4];
    /// The first `n < N` elements, and zeros. Touches no element beyond them.
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V;
    /// Stores the first `n < N` lanes.
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize);
    /// Asks for the cache line of this address, into the second level: what is asked for early would not stay in the first.
    unsafe fn prefetch(p: *const u8);
}

/// The most lanes that any width has.
pub(super) const MAX_LANES: usize = 16;
