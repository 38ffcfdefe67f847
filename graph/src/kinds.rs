//! What the ops that come in many kinds compute. Semantics are PyTorch's, corner cases included.

use crate::types::DType;

/// Enumerations whose codes are their places, with a list of all in that order, and the name of each.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every kind, in codec order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Every kind with its name, in codec order.
            pub const NAMED: &'static [(&'static str, Self)] = &[$(($text, Self::$variant),)+];

            /// The name that frontends use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The kind of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::NAMED.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
            }
        }
    )+};
}

kinds! {
    /// A function of one element.
    ///
    /// | kinds | element types | result |
    /// |---|---|---|
    /// | `Sin` to `I0` | floats | the same |
    /// | `Floor` to `Sign` | numbers (integers are whole already) | the same |
    /// | `Not` | integers, bool | the same |
    /// | `IsNan`, `IsInf`, `IsFinite` | floats | bool |
    UnaryKind {
        /// Sine, of radians.
        Sin = "sin",
        /// Cosine, of radians.
        Cos = "cos",
        /// Tangent, of radians.
        Tan = "tan",
        /// Inverse sine; NaN outside -1..=1.
        Asin = "asin",
        /// Inverse cosine; NaN outside -1..=1.
        Acos = "acos",
        /// Inverse tangent.
        Atan = "atan",
        /// Hyperbolic sine.
        Sinh = "sinh",
        /// Hyperbolic cosine.
        Cosh = "cosh",
        /// Inverse hyperbolic sine.
        Asinh = "asinh",
        /// Inverse hyperbolic cosine; NaN below 1.
        Acosh = "acosh",
        /// Inverse hyperbolic tangent; infinite at -1 and 1, NaN beyond.
        Atanh = "atanh",
        /// The error function.
        Erf = "erf",
        /// 1 - erf x, without the loss of digits.
        Erfc = "erfc",
        /// Inverse of erf; infinite at -1 and 1, NaN beyond.
        Erfinv = "erfinv",
        /// Logarithm of |gamma(x)|; infinite at 0 and the negative integers.
        Lgamma = "lgamma",
        /// Derivative of the logarithm of gamma; at 0 the infinity of the other sign, at the negative integers NaN.
        Digamma = "digamma",
        /// e^x - 1, without the loss of digits.
        Expm1 = "expm1",
        /// ln(1 + x), without the loss of digits.
        Log1p = "log1p",
        /// Logarithm to base 2.
        Log2 = "log2",
        /// Logarithm to base 10.
        Log10 = "log10",
        /// 2^x.
        Exp2 = "exp2",
        /// 1 / sqrt(x).
        Rsqrt = "rsqrt",
        /// 1 / x.
        Reciprocal = "reciprocal",
        /// Modified Bessel function of the first kind, order 0.
        I0 = "i0",
        /// Down to a whole number.
        Floor = "floor",
        /// Up to a whole number.
        Ceil = "ceil",
        /// To the nearest whole number, the even one of two.
        Round = "round",
        /// Towards zero to a whole number.
        Trunc = "trunc",
        /// -1, 0 or 1; 0 for NaN.
        Sign = "sign",
        /// Each bit the other way; of bool the other value.
        Not = "not",
        /// Whether it is NaN.
        IsNan = "is_nan",
        /// Whether it is an infinity.
        IsInf = "is_inf",
        /// Whether it is neither NaN nor an infinity.
        IsFinite = "is_finite",
    }

    /// A function of two elements of one type.
    ///
    /// | kinds | element types |
    /// |---|---|
    /// | `Pow`, `Remainder`, `Fmod`, `FloorDivide` | numbers |
    /// | `Maximum`, `Minimum` | all |
    /// | `Atan2`, `Hypot`, `Copysign`, `Nextafter` | floats |
    /// | `BitAnd`, `BitOr`, `BitXor` | integers, bool |
    /// | `ShiftLeft`, `ShiftRight` | integers |
    BinaryKind {
        /// a^b. Integers wrap; to a negative power 1 is 1, -1 is 1 or -1, and others are 0.
        Pow = "pow",
        /// The larger; NaN if either is.
        Maximum = "maximum",
        /// The smaller; NaN if either is.
        Minimum = "minimum",
        /// What is left of a divided by b, with the sign of b. An integer b of 0 is a run-time error.
        Remainder = "remainder",
        /// What is left of a divided by b, with the sign of a. An integer b of 0 is a run-time error.
        Fmod = "fmod",
        /// a / b rounded down; such that `b * floor_divide(a, b) + remainder(a, b)` is a. An integer b of 0 is a run-time error.
        FloorDivide = "floor_divide",
        /// The angle of the point (b, a), -pi to pi.
        Atan2 = "atan2",
        /// sqrt(a^2 + b^2), without overflow on the way; infinite if either is, NaN or not.
        Hypot = "hypot",
        /// |a| with the sign of b, be it that of a zero.
        Copysign = "copysign",
        /// The next number of the type from a towards b; b where they are equal, NaN if either is.
        Nextafter = "nextafter",
        /// Bits that are 1 in both.
        BitAnd = "bit_and",
        /// Bits that are 1 in either.
        BitOr = "bit_or",
        /// Bits that differ.
        BitXor = "bit_xor",
        /// a times 2^b, wrapping; 0 where b is negative or not below the type's bits.
        ShiftLeft = "shift_left",
        /// a / 2^b rounded down; where b is negative or not below the type's bits, as if all bits were shifted out.
        ShiftRight = "shift_right",
    }

    /// How two elements are compared. Nothing but `Ne` is true of a NaN; false is below true.
    CompareKind {
        /// a = b.
        Eq = "eq",
        /// a != b.
        Ne = "ne",
        /// a < b.
        Lt = "lt",
        /// a <= b.
        Le = "le",
        /// a > b.
        Gt = "gt",
        /// a >= b.
        Ge = "ge",
    }

    /// What is carried from element to element.
    CumulativeKind {
        /// The sum so far; integers wrap.
        Sum = "sum",
        /// The product so far; integers wrap.
        Prod = "prod",
        /// The largest so far; NaN from the first NaN on.
        Max = "max",
        /// The smallest so far; NaN from the first NaN on.
        Min = "min",
    }

    /// What an update does to the element that it is for.
    ScatterKind {
        /// Takes its place; of several the last in row-major order counts. Any type.
        Set = "set",
        /// Is added. As the others, of any type but bool; integers wrap.
        Add = "add",
        /// Multiplies it.
        Mul = "mul",
        /// The larger stays; NaN if either is.
        Max = "max",
        /// The smaller stays; NaN if either is.
        Min = "min",
    }

    /// Which element is looked for. NaN counts as the most extreme of all; of equals the first is meant.
    ArgReduceKind {
        /// The largest.
        Max = "max",
        /// The smallest.
        Min = "min",
    }

    /// How words become samples.
    RandomKind {
        /// Uniform in [0, 1), float: as [`crate::Op::Rand`].
        Uniform = "uniform",
        /// Standard normal, float: as [`crate::Op::Randn`].
        Normal = "normal",
        /// Uniform in 0..2^63, i64.
        Bits = "bits",
    }
}

impl UnaryKind {
    /// Whether it takes elements of this type.
    pub const fn takes(self, dtype: DType) -> bool {
        match self {
            Self::Floor | Self::Ceil | Self::Round | Self::Trunc | Self::Sign => !matches!(dtype, DType::Bool),
            Self::Not => !dtype.is_float(),
            _ => dtype.is_float(),
        }
    }

    /// The type of the result for elements of this type.
    pub const fn result(self, dtype: DType) -> DType {
        match self {
            Self::IsNan | Self::IsInf | Self::IsFinite => DType::Bool,
            _ => dtype,
        }
    }
}

impl BinaryKind {
    /// Whether it takes elements of this type.
    pub const fn takes(self, dtype: DType) -> bool {
        match self {
            Self::Maximum | Self::Minimum => true,
            Self::Pow | Self::Remainder | Self::Fmod | Self::FloorDivide => !matches!(dtype, DType::Bool),
            Self::Atan2 | Self::Hypot | Self::Copysign | Self::Nextafter => dtype.is_float(),
            Self::BitAnd | Self::BitOr | Self::BitXor => !dtype.is_float(),
            Self::ShiftLeft | Self::ShiftRight => !dtype.is_float() && !matches!(dtype, DType::Bool),
        }
    }
}

impl RandomKind {
    /// Whether it makes elements of this type.
    pub const fn makes(self, dtype: DType) -> bool {
        match self {
            Self::Uniform | Self::Normal => dtype.is_float(),
            Self::Bits => matches!(dtype, DType::I64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_kinds_and_the_kinds_only_one() {
        for (i, kind) in UnaryKind::ALL.iter().enumerate() {
            assert_eq!((UnaryKind::from_name(kind.name()), UnaryKind::NAMED[i]), (Some(*kind), (kind.name(), *kind)));
        }
        for kind in BinaryKind::ALL {
            assert_eq!(BinaryKind::from_name(kind.name()), Some(*kind));
        }
        assert_eq!((UnaryKind::IsNan.name(), BinaryKind::FloorDivide.name()), ("is_nan", "floor_divide"));
        assert_eq!((UnaryKind::from_name("Sin"), BinaryKind::from_name("")), (None, None));
    }
}
