//! What the ops that come in many kinds compute. Semantics are PyTorch's, corner cases included.

use crate::types::DType;

/// Enumerations whose codes are their places, with a list of all in that order.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every kind, in codec order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
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
        Sin,
        /// Cosine, of radians.
        Cos,
        /// Tangent, of radians.
        Tan,
        /// Inverse sine; NaN outside -1..=1.
        Asin,
        /// Inverse cosine; NaN outside -1..=1.
        Acos,
        /// Inverse tangent.
        Atan,
        /// Hyperbolic sine.
        Sinh,
        /// Hyperbolic cosine.
        Cosh,
        /// Inverse hyperbolic sine.
        Asinh,
        /// Inverse hyperbolic cosine; NaN below 1.
        Acosh,
        /// Inverse hyperbolic tangent; infinite at -1 and 1, NaN beyond.
        Atanh,
        /// The error function.
        Erf,
        /// 1 - erf x, without the loss of digits.
        Erfc,
        /// Inverse of erf; infinite at -1 and 1, NaN beyond.
        Erfinv,
        /// Logarithm of |gamma(x)|; infinite at 0 and the negative integers.
        Lgamma,
        /// Derivative of the logarithm of gamma; at 0 the infinity of the other sign, at the negative integers NaN.
        Digamma,
        /// e^x - 1, without the loss of digits.
        Expm1,
        /// ln(1 + x), without the loss of digits.
        Log1p,
        /// Logarithm to base 2.
        Log2,
        /// Logarithm to base 10.
        Log10,
        /// 2^x.
        Exp2,
        /// 1 / sqrt(x).
        Rsqrt,
        /// 1 / x.
        Reciprocal,
        /// Modified Bessel function of the first kind, order 0.
        I0,
        /// Down to a whole number.
        Floor,
        /// Up to a whole number.
        Ceil,
        /// To the nearest whole number, the even one of two.
        Round,
        /// Towards zero to a whole number.
        Trunc,
        /// -1, 0 or 1; 0 for NaN.
        Sign,
        /// Each bit the other way; of bool the other value.
        Not,
        /// Whether it is NaN.
        IsNan,
        /// Whether it is an infinity.
        IsInf,
        /// Whether it is neither NaN nor an infinity.
        IsFinite,
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
        Pow,
        /// The larger; NaN if either is.
        Maximum,
        /// The smaller; NaN if either is.
        Minimum,
        /// What is left of a divided by b, with the sign of b. An integer b of 0 is a run-time error.
        Remainder,
        /// What is left of a divided by b, with the sign of a. An integer b of 0 is a run-time error.
        Fmod,
        /// a / b rounded down; such that `b * floor_divide(a, b) + remainder(a, b)` is a. An integer b of 0 is a run-time error.
        FloorDivide,
        /// The angle of the point (b, a), -pi to pi.
        Atan2,
        /// sqrt(a^2 + b^2), without overflow on the way; infinite if either is, NaN or not.
        Hypot,
        /// |a| with the sign of b, be it that of a zero.
        Copysign,
        /// The next number of the type from a towards b; b where they are equal, NaN if either is.
        Nextafter,
        /// Bits that are 1 in both.
        BitAnd,
        /// Bits that are 1 in either.
        BitOr,
        /// Bits that differ.
        BitXor,
        /// a times 2^b, wrapping; 0 where b is negative or not below the type's bits.
        ShiftLeft,
        /// a / 2^b rounded down; where b is negative or not below the type's bits, as if all bits were shifted out.
        ShiftRight,
    }

    /// How two elements are compared. Nothing but `Ne` is true of a NaN; false is below true.
    CompareKind {
        /// a = b.
        Eq,
        /// a != b.
        Ne,
        /// a < b.
        Lt,
        /// a <= b.
        Le,
        /// a > b.
        Gt,
        /// a >= b.
        Ge,
    }

    /// What is carried from element to element.
    CumulativeKind {
        /// The sum so far; integers wrap.
        Sum,
        /// The product so far; integers wrap.
        Prod,
        /// The largest so far; NaN from the first NaN on.
        Max,
        /// The smallest so far; NaN from the first NaN on.
        Min,
    }

    /// What an update does to the element that it is for.
    ScatterKind {
        /// Takes its place; of several the last in row-major order counts. Any type.
        Set,
        /// Is added. As the others, of any type but bool; integers wrap.
        Add,
        /// Multiplies it.
        Mul,
        /// The larger stays; NaN if either is.
        Max,
        /// The smaller stays; NaN if either is.
        Min,
    }

    /// Which element is looked for. NaN counts as the most extreme of all; of equals the first is meant.
    ArgReduceKind {
        /// The largest.
        Max,
        /// The smallest.
        Min,
    }

    /// How words become samples.
    RandomKind {
        /// Uniform in [0, 1), float: as [`crate::Op::Rand`].
        Uniform,
        /// Standard normal, float: as [`crate::Op::Randn`].
        Normal,
        /// Uniform in 0..2^63, i64.
        Bits,
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
