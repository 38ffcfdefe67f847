//! Widths of x86-64.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, Lanes};

/// The upper half of each lane.
const UPPER: i32 = 0xFFFF_0000_u32.cast_signed();

#[target_feature(enable = "avx,avx2,fma,f16c")]
pub(super) unsafe fn with_avx2<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller vouches for the kernel and the machine.
    unsafe { kernel.run::<Avx2>() }
}

#[target_feature(enable = "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn with_avx512<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller vouches for the kernel and the machine.
    unsafe { kernel.run::<Avx512<false>>() }
}

#[target_feature(enable = "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn with_avx512_bf16<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller vouches for the kernel and the machine.
    unsafe { kernel.run::<Avx512<true>>() }
}

#[derive(Clone, Copy)]
pub(super) struct Avx2;

// SAFETY (of every block below): the trait's callers vouch for the instructions and the pointers.
impl Lanes for Avx2 {
    type V = __m256;
    const N: usize = 8;
    const COLUMNS: usize = 2;
    const PAIR_ROUNDS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(x.to_bits())))) }
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
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_low(p: *const u8) -> Self::V {
        // SAFETY: see the impl.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            _mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15)))
        }
    }
    #[inline(always)]
    unsafe fn load_high(p: *const u8) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm256_mul_ps(a, b) }
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
    unsafe fn of_pairs(v: Self::V, round: usize) -> Self::V {
        // SAFETY: see the impl.
        unsafe {
            if round == 0 {
                _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(UPPER)))
            } else {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v)))
            }
        }
    }
    #[inline(always)]
    unsafe fn multiply_pairs(a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe { Self::fma(a, b, sum) }
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

/// `BF16`: with products of pairs of bf16 as one instruction.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>;

// SAFETY (of every block below): the trait's callers vouch for the instructions and the pointers.
impl<const BF16: bool> Lanes for Avx512<BF16> {
    type V = __m512;
    const N: usize = 16;
    const COLUMNS: usize = 6;
    const PAIR_ROUNDS: usize = if BF16 { 1 } else { 2 };

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(x.to_bits())))) }
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
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_low(p: *const u8) -> Self::V {
        // SAFETY: see the impl.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)))
        }
    }
    #[inline(always)]
    unsafe fn load_high(p: *const u8) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see the impl.
        unsafe { _mm512_mul_ps(a, b) }
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
    unsafe fn of_pairs(v: Self::V, round: usize) -> Self::V {
        // SAFETY: see the impl.
        unsafe {
            if BF16 {
                v
            } else if round == 0 {
                _mm512_and_ps(v, _mm512_castsi512_ps(_mm512_set1_epi32(UPPER)))
            } else {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(v)))
            }
        }
    }
    #[inline(always)]
    unsafe fn multiply_pairs(a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
        // SAFETY: see the impl; any 64 bytes are bf16.
        unsafe {
            if BF16 {
                let pairs = |x| std::mem::transmute::<__m512, __m512bh>(x);
                _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
            } else {
                Self::fma(a, b, sum)
            }
        }
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
