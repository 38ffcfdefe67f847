//! Functions of one f32 that the compiler can turn into vector code: no branches, no calls.

use std::f32::consts::LOG2_E;

/// e^x to about 1 ulp; 0 and infinity where it leaves f32's range; NaN stays.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r is a polynomial (a Taylor series, its last coefficients adjusted), 2^n goes into the
/// exponent in two halves, so that results below the normal range come out right too.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// Adding this leaves the rounded number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Comparisons, unlike min and max, let NaN pass.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_5e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 2^n for -127 < n < 128.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// x Phi(x) by the tanh approximation: with u = sqrt(2/pi) (x + 0.044715 x^3), x (1 + tanh u) / 2 = x / (1 + e^-2u), which loses
/// no digits where tanh is near -1.
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    const TWICE_ROOT_2_OVER_PI: f32 = 1.595_769;
    let u = TWICE_ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    let e = 1.0 + exp(-u);
    x / e
}

/// x Phi(x) = x erfc(-x / sqrt 2) / 2.
#[inline(always)]
pub(super) fn gelu_erf(x: f32) -> f32 {
    (f64::from(x) * 0.5 * erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2)) as f32
}

/// The complementary error function, for |x| < 2 by the series of erf (Abramowitz and Stegun 7.1.6), beyond by the continued
/// fraction 7.1.14; to about 1e-13 of the result, or 1e-16 absolute where that is more.
fn erfc(x: f64) -> f64 {
    const TWO_OVER_ROOT_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI;
    let a = x.abs();
    if a.is_nan() {
        return x;
    }
    if a < 2.0 {
        // erf x = 2/sqrt(pi) e^(-x^2) sum over n of 2^n x^(2n+1) / (1 3 5 .. (2n+1))
        let square = x * x;
        let (mut term, mut sum, mut odd) = (x, x, 1.0);
        while term.abs() > 1e-17 * sum.abs() {
            odd += 2.0;
            term *= 2.0 * square / odd;
            sum += term;
        }
        return 1.0 - TWO_OVER_ROOT_PI * (-square).exp() * sum;
    }
    // sqrt(pi) e^(x^2) erfc x = 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + 2/(x + ..)))))
    let mut fraction = a;
    let mut n = 60;
    while n > 0 {
        fraction = a + f64::from(n) * 0.5 / fraction;
        n -= 1;
    }
    let tail = 0.5 * TWO_OVER_ROOT_PI * (-a * a).exp() / fraction;
    if x > 0.0 { tail } else { 2.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(a: f32, b: f64) -> f64 {
        (f64::from(a) - b).abs() / b.abs().max(f64::from(f32::MIN_POSITIVE))
    }

    #[test]
    fn exp_is_close_everywhere() {
        let mut x = -87.0_f32;
        while x < 88.7 {
            assert!(relative(exp(x), f64::from(x).exp()) < 2e-7, "{x}: {} {}", exp(x), f64::from(x).exp());
            x += 0.000_97;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        let subnormal = f64::from(-100.0_f32).exp();
        assert!((f64::from(exp(-100.0)) / subnormal - 1.0).abs() < 0.05);
    }

    #[test]
    fn gelu_is_close_and_keeps_its_tail() {
        // x Phi(x) from tables of the normal distribution.
        for (x, y) in
            [(0.0, 0.0), (1.0, 0.841_344_746), (-1.0, -0.158_655_254), (-3.0, -0.004_049_694_1), (2.0, 1.954_499_74)]
        {
            assert!((f64::from(gelu_erf(x)) - y).abs() < 2e-7, "{x} {}", gelu_erf(x));
        }
        for (x, y) in [(-6.0_f32, -6.0 * 9.865_876_45e-10), (-5.0, -5.0 * 2.866_515_72e-7)] {
            assert!(relative(gelu_erf(x), y) < 1e-6);
        }
        assert_eq!(gelu_erf(10.0), 10.0);
        for f in [gelu_erf, gelu_tanh, silu] {
            assert!(f(f32::NAN).is_nan());
            assert_eq!(f(f32::INFINITY), f32::INFINITY);
        }
        let mut x = -8.0_f32;
        while x < 8.0 {
            let u = 0.797_884_560_802_865_4 * (f64::from(x) + 0.044_715 * f64::from(x).powi(3));
            let y = 0.5 * f64::from(x) * (1.0 + u.tanh());
            assert!((f64::from(gelu_tanh(x)) - y).abs() < 1e-6, "{x}");
            x += 0.013;
        }
    }
}
