//! Vectors of f32, as wide as the machine has them: kernels are written once over [`Lanes`] and compiled for each width.
//!
//! Which width runs is found out when a device starts ([`Isa::detect`]); nothing is built for the machine it is built on.

use half::{bf16, f16};

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

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn load_f16(p: *const f16) -> Self::V;
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// a * b + c, with one rounding where the machine can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
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

/// A float type that weights come in.
pub(super) trait Element: Copy + Default + 'static {
    unsafe fn load<S: Lanes>(p: *const Self) -> S::V;
    /// The first `n < N` elements, and zeros.
    unsafe fn load_part<S: Lanes>(p: *const Self, n: usize) -> S::V;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const Self) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Lanes>(p: *const Self, n: usize) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::load_part(p, n) }
    }
}

macro_rules! short_element {
    ($t:ty, $load:ident) => {
        impl Element for $t {
            #[inline(always)]
            unsafe fn load<S: Lanes>(p: *const Self) -> S::V {
                // SAFETY: as the caller's.
                unsafe { S::$load(p) }
            }
            #[inline(always)]
            unsafe fn load_part<S: Lanes>(p: *const Self, n: usize) -> S::V {
                let mut padded = [Self::ZERO; MAX_LANES];
                // SAFETY: `n` elements can be read, and fit: n < N <= MAX_LANES.
                unsafe {
                    std::ptr::copy_nonoverlapping(p, padded.as_mut_ptr(), n);
                    S::$load(padded.as_ptr())
                }
            }
        }
    };
}

short_element!(f16, load_f16);
short_element!(bf16, load_bf16);

/// The most lanes that any width has.
pub(super) const MAX_LANES: usize = 16;

/// Eight lanes in an array: what machines without a width of their own get.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Lanes for Scalar {
    type V = [f32; 8];
    const N: usize = 8;
    const COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller lets us read eight; an array of f32 is read unaligned.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller lets us read eight.
        unsafe { p.cast::<[f16; 8]>().read_unaligned() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller lets us read eight.
        unsafe { p.cast::<[bf16; 8]>().read_unaligned() }.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller lets us write eight.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: as the caller's.
        v.map(|v| unsafe { Self::sum(v) })
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; 8];
        // SAFETY: the caller lets us read n < 8.
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n) };
        v
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the caller lets us write n < 8.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::{Kernel, Lanes};

    #[target_feature(enable = "avx,avx2,fma,f16c")]
    pub(super) unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Out {
        // SAFETY: the caller vouches for the kernel and the machine.
        unsafe { kernel.run::<Avx2>() }
    }

    #[target_feature(enable = "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn with_avx512<K: Kernel>(kernel: K) -> K::Out {
        // SAFETY: the caller vouches for the kernel and the machine.
        unsafe { kernel.run::<Avx512>() }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx2;

    // SAFETY (of every block below): the trait's callers vouch for the instructions and the pointers.
    impl Lanes for Avx2 {
        type V = __m256;
        const N: usize = 8;
        const COLUMNS: usize = 2;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            // SAFETY: see the impl.
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: Self::V) -> f32 {
            // SAFETY: see the impl.
            unsafe { sum256(v) }
        }
        #[inline(always)]
        unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
            // SAFETY: see the impl.
            unsafe {
                // As `sum256` adds, but four vectors side by side once they are 128 bits wide.
                let half = |v| _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let [a, b, c, d] = [half(v[0]), half(v[1]), half(v[2]), half(v[3])];
                let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
                let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
                let sums = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
                let mut out = [0.0; 4];
                _mm_storeu_ps(out.as_mut_ptr(), sums);
                out
            }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self::V {
            let mut v = [0.0_f32; 8];
            // SAFETY: see the impl; n < 8.
            unsafe {
                std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
                _mm256_loadu_ps(v.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: Self::V, n: usize) {
            let mut all = [0.0_f32; 8];
            // SAFETY: see the impl; n < 8.
            unsafe {
                _mm256_storeu_ps(all.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Avx512;

    // SAFETY (of every block below): the trait's callers vouch for the instructions and the pointers.
    impl Lanes for Avx512 {
        type V = __m512;
        const N: usize = 16;
        const COLUMNS: usize = 6;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            // SAFETY: see the impl.
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: see the impl.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: Self::V) -> f32 {
            // SAFETY: see the impl.
            unsafe { sum256(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
        }
        #[inline(always)]
        unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
            // SAFETY: see the impl.
            unsafe {
                // As `sum` adds, but upper and lower halves of two vectors, then of four, side by side.
                let [a, b, c, d] = v;
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                let ab = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d);
                let cd = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d));
                let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
                let quarters = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
                let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0b01_00_11_10>(quarters));
                let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs));
                // The first element of each quarter.
                let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
                let mut out = [0.0; 4];
                _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, sums)));
                out
            }
        }
        #[inline(always)]
        unsafe fn load_part(p: *const f32, n: usize) -> Self::V {
            // SAFETY: see the impl; masked lanes are not touched.
            unsafe { _mm512_maskz_loadu_ps((1_u16 << n) - 1, p) }
        }
        #[inline(always)]
        unsafe fn store_part(p: *mut f32, v: Self::V, n: usize) {
            // SAFETY: see the impl; masked lanes are not touched.
            unsafe { _mm512_mask_storeu_ps(p, (1_u16 << n) - 1, v) }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
    }

    #[inline(always)]
    unsafe fn sum256(v: __m256) -> f32 {
        // SAFETY: the caller runs on a machine with AVX.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}
