//! Functions of one f64 that the standard library lacks, to more digits than an f32 has.

use std::f64::consts::{FRAC_2_SQRT_PI, PI, TAU};

/// The inverse of the error function, for what an f32 can hold.
pub(super) fn erfinv(x: f64) -> f64 {
    let a = x.abs();
    if a >= 1.0 || a.is_nan() {
        return if a == 1.0 { x * f64::INFINITY } else { f64::NAN };
    }
    // Winitzki's approximation has some three digits; each step of Halley's method triples them.
    const A: f64 = 0.147;
    let log = (-a * a).ln_1p();
    let half = 2.0 / (PI * A) + log / 2.0;
    let mut y = ((half * half - log / A).sqrt() - half).max(0.0).sqrt();
    for _ in 0..2 {
        // Near 1 the complements keep the digits of the difference.
        let error = if a < 0.5 { libm::erf(y) - a } else { (1.0 - a) - libm::erfc(y) };
        let newton = error / (FRAC_2_SQRT_PI * (-y * y).exp());
        y -= newton / (1.0 + y * newton);
    }
    y.copysign(x)
}

/// The derivative of the logarithm of gamma, by its recurrence and the asymptotic series (Abramowitz and Stegun 6.3.5, 6.3.7, 6.3.18).
pub(super) fn digamma(x: f64) -> f64 {
    if x == 0.0 {
        return f64::INFINITY.copysign(-x);
    }
    if x < 0.0 {
        // The fraction is exact, so that the pole's neighbourhood keeps its digits.
        let fraction = x - x.floor();
        if fraction == 0.0 || x.is_infinite() {
            return f64::NAN;
        }
        return digamma(1.0 - x) - PI / (PI * fraction).tan();
    }
    if x.is_infinite() {
        return x;
    }
    let (mut x, mut sum) = (x, 0.0);
    while x < 10.0 {
        sum -= 1.0 / x;
        x += 1.0;
    }
    // Bernoulli numbers over twice their index.
    const TERMS: [f64; 7] =
        [1.0 / 12.0, -1.0 / 120.0, 1.0 / 252.0, -1.0 / 240.0, 1.0 / 132.0, -691.0 / 32_760.0, 1.0 / 12.0];
    let square = 1.0 / (x * x);
    let tail = TERMS.iter().rev().fold(0.0, |tail, term| square * (term + tail));
    sum + x.ln() - 0.5 / x - tail
}

/// The modified Bessel function of the first kind and order 0, by its series and far out the asymptotic one (Abramowitz and Stegun
/// 9.6.12, 9.7.1).
pub(super) fn i0(x: f64) -> f64 {
    let x = x.abs();
    if x.is_infinite() {
        return x;
    }
    let (mut term, mut sum, mut k) = (1.0, 1.0, 1.0);
    if x < 20.0 {
        while term > 1e-17 * sum {
            term *= x * x / (4.0 * k * k);
            sum += term;
            k += 1.0;
        }
        return sum;
    }
    // The terms fall until k is 2 x.
    while term > 1e-17 && k < 40.0 {
        term *= (2.0 * k - 1.0) * (2.0 * k - 1.0) / (8.0 * k * x);
        sum += term;
        k += 1.0;
    }
    sum * x.exp() / (TAU * x).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(f: fn(f64) -> f64, values: &[(f64, f64)]) {
        for &(x, y) in values {
            let found = f(x);
            assert!((found - y).abs() <= 1e-11 * y.abs(), "{x}: {found}, not {y}");
        }
    }

    /// Values of numbers that an f32 holds, worked out to 40 digits.
    #[test]
    fn values_are_those_of_the_functions() {
        near(
            erfinv,
            &[
                (1.000_000_003_171_076_9e-30, 8.862_269_282_630_517e-31),
                (9.999_999_747_378_752e-6, 8.862_269_030_879_841e-6),
                (0.100_000_001_490_116_12, 0.088_855_991_825_306_49),
                (0.490_000_009_536_743_16, 0.465_868_610_735_352_4),
                (0.5, 0.476_936_276_204_469_9),
                (0.509_999_990_463_256_8, 0.488_122_039_790_363_9),
                (0.899_999_976_158_142_1, 1.163_087_071_945_772_2),
                (0.999_000_012_874_603_4, 2.326_756_326_796_154_6),
                (0.999_999_940_395_355_2, 3.832_506_856_900_711),
                (-0.75, -0.813_419_847_597_618_5),
            ],
        );
        near(
            digamma,
            &[
                (9.999_999_974_752_427e-7, -1_000_000.579_738_777_2),
                (0.300_000_011_920_928_96, -3.502_524_076_224_017_5),
                (1.0, -0.577_215_664_901_532_9),
                (1.5, 0.036_489_973_978_576_52),
                (9.989_999_771_118_164, 2.250_700_348_735_219),
                (10.5, 2.303_001_034_297_686_5),
                (10_000_000_000.0, 23.025_850_929_890_456),
                (-0.5, 0.036_489_973_978_576_52),
                (-1.399_999_976_158_142, 1.673_666_748_262_349_5),
                (-2.999_900_102_615_356_4, -10_009.015_658_408_229),
                (-100.25, 7.754_238_959_208_646),
            ],
        );
        // Near its zero the digits are those of the numbers that cancel.
        assert!((digamma(1.461_632_132_530_212_4) + 1.203_605_254_910_666_9e-8).abs() < 1e-15);
        near(
            i0,
            &[
                (0.0, 1.0),
                (9.999_999_747_378_752e-6, 1.000_000_000_025),
                (1.0, 1.266_065_877_752_008_4),
                (3.75, 9.118_945_860_844_567),
                (10.0, 2_815.716_628_466_254_4),
                (19.989_999_771_118_164, 43_135_788.247_850_71),
                (20.010_000_228_881_836, 43_984_920.647_333_87),
                (-50.0, 2.932_553_783_849_336_2e20),
                (88.0, 7.034_019_697_322_304e36),
            ],
        );
    }

    #[test]
    fn ends_and_poles() {
        assert_eq!([erfinv(1.0), erfinv(-1.0)], [f64::INFINITY, f64::NEG_INFINITY]);
        assert!([1.5, -1.5, f64::INFINITY, f64::NAN].iter().all(|&x| erfinv(x).is_nan()));
        assert!(erfinv(-0.0).to_bits() == (-0.0_f64).to_bits());
        assert_eq!([digamma(0.0), digamma(-0.0)], [f64::NEG_INFINITY, f64::INFINITY]);
        assert_eq!(digamma(f64::INFINITY), f64::INFINITY);
        assert!([-1.0, -7.0, f64::NEG_INFINITY, f64::NAN].iter().all(|&x| digamma(x).is_nan()));
        assert_eq!([i0(f64::INFINITY), i0(f64::NEG_INFINITY), i0(800.0)], [f64::INFINITY; 3]);
        assert!(i0(f64::NAN).is_nan());
    }
}
