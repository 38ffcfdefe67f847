//! A product as its descriptors have it, once it was seen that they fit each other.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::descriptors::{Description, Layout};
use crate::driver::Range;
use crate::state::{Answer, NO_WAY, can, check};

/// `CUBLAS_COMPUTE_32F` and `CUBLAS_COMPUTE_32F_PEDANTIC`.
const SUMS: [u32; 2] = [68, 69];
/// `CUDA_R_32F`.
const F32: u32 = 0;

/// The type of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    F32,
    F16,
    BF16,
}

impl Kind {
    /// None: there is no way for it.
    fn of(kind: u32) -> Option<Self> {
        match kind {
            F32 => Some(Self::F32),
            2 => Some(Self::F16),
            14 => Some(Self::BF16),
            _ => None,
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

/// What becomes of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Activation {
    None,
    Relu,
    /// By the hyperbolic tangent.
    Gelu,
}

/// `D = activation(alpha op(A) op(B) + beta C + bias)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    pub(crate) result: Kind,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) batch: usize,
    pub(crate) a: Layout,
    pub(crate) b: Layout,
    pub(crate) c: Layout,
    pub(crate) d: Layout,
    /// Of A and B.
    pub(crate) transposed: [bool; 2],
    pub(crate) activation: Activation,
    pub(crate) bias: bool,
    pub(crate) bias_step: i64,
}

impl Shape {
    /// What a description and the layouts of A, B, C and D come to.
    pub(crate) fn new(description: &Description, [a, b, c, d]: [Layout; 4]) -> Answer<Self> {
        for layout in [&a, &b, &c, &d] {
            can(layout.order == 0 && layout.step >= 0 && layout.rows > 0 && layout.columns > 0)?;
            check(i128::from(layout.leading) >= i128::from(layout.rows), "a leading dimension below the rows")?;
            check(layout.batch == d.batch, "batches of unlike sizes")?;
            check(layout.checked_elements().is_some(), "a matrix that no memory holds")?;
        }
        let [of_a, of_b, of_c] = description.operations.map(|operation| operation != 0);
        can(SUMS.contains(&description.compute) && description.scale == F32 && !of_c && description.pointer_mode == 0)?;
        let turned = |layout: &Layout, transposed| match transposed {
            true => (layout.columns, layout.rows),
            false => (layout.rows, layout.columns),
        };
        let ((m, k), (inner, n)) = (turned(&a, of_a), turned(&b, of_b));
        check(k == inner && (d.rows, d.columns) == (m, n), "matrices that do not fit each other")?;
        check((c.rows, c.columns) == (m, n), "a C unlike D")?;
        let kinds = [a.kind, b.kind, c.kind, d.kind].map(Kind::of);
        let [Some(kind), Some(b_kind), Some(c_kind), Some(result)] = kinds else { return Err(NO_WAY) };
        can(kind == b_kind && c_kind == result && (result == kind || result == Kind::F32))?;
        let one = (d.columns - 1) * d.leading as u64 + d.rows;
        check(d.batch == 1 || d.step as u64 >= one, "batches of D that overlap")?;
        let (activation, bias) = match description.epilogue {
            1 => (Activation::None, false),
            2 => (Activation::Relu, false),
            4 => (Activation::None, true),
            6 => (Activation::Relu, true),
            32 => (Activation::Gelu, false),
            36 => (Activation::Gelu, true),
            _ => return Err(NO_WAY),
        };
        can(!bias || (description.bias_type.is_none_or(|kind| kind == d.kind) && description.bias_step >= 0))?;
        let batch = d.batch as usize;
        let (m, n, k) = (m as usize, n as usize, k as usize);
        let transposed = [of_a, of_b];
        let bias_step = description.bias_step;
        Ok(Self { kind, result, m, n, k, batch, a, b, c, d, transposed, activation, bias, bias_step })
    }

    /// Whether it does more than the sums.
    pub(crate) fn does_more(&self) -> bool {
        self.bias || self.activation != Activation::None
    }

    /// Types and sizes of A, B, C and D.
    pub(crate) fn matrices(&self) -> [(Kind, &Layout); 4] {
        [(self.kind, &self.a), (self.kind, &self.b), (self.result, &self.c), (self.result, &self.d)]
    }

    /// The memory of a bias that begins there.
    pub(crate) fn bias_range(&self, at: u64) -> Range {
        let elements = (self.batch as u64 - 1) * self.bias_step as u64 + self.m as u64;
        Range { at, bytes: elements * self.result.bytes() }
    }

    /// A number that no other product has, or nearly.
    pub(crate) fn number(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

impl Layout {
    /// Elements from its first to its last.
    fn checked_elements(&self) -> Option<u64> {
        let (leading, step) = (u64::try_from(self.leading).ok()?, u64::try_from(self.step).ok()?);
        let one = self.columns.checked_sub(1)?.checked_mul(leading)?.checked_add(self.rows)?;
        let all = (self.batch as u64).checked_sub(1)?.checked_mul(step)?.checked_add(one)?;
        (all < 1 << 60).then_some(all)
    }

    /// The memory of one that begins there.
    pub(crate) fn range(&self, kind: Kind, at: u64) -> Range {
        Range { at, bytes: self.checked_elements().map_or(u64::MAX, |elements| elements * kind.bytes()) }
    }
}

#[cfg(test)]
mod tests {
    use cudarc::cublaslt::sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE as INVALID;

    use super::*;

    const PRODUCT: Description = Description {
        compute: 68,
        scale: 0,
        pointer_mode: 0,
        operations: [1, 0, 0],
        epilogue: 1,
        bias: 0,
        bias_step: 0,
        bias_type: None,
    };

    fn layout(kind: u32, rows: u64, columns: u64) -> Layout {
        Layout { kind, order: 0, rows, columns, leading: rows as i64, batch: 1, step: 0 }
    }

    /// 4 x 3 of 5 terms, A transposed.
    fn layouts([kind, result]: [u32; 2]) -> [Layout; 4] {
        [layout(kind, 5, 4), layout(kind, 5, 3), layout(result, 4, 3), layout(result, 4, 3)]
    }

    #[test]
    fn types_go_together_as_the_documentation_has_it() {
        for kinds in [[0, 0], [2, 2], [2, 0], [14, 14], [14, 0]] {
            assert!(Shape::new(&PRODUCT, layouts(kinds)).is_ok(), "{kinds:?}");
        }
        for kinds in [[0, 2], [2, 14], [14, 2], [3, 0], [1, 1]] {
            assert_eq!(Shape::new(&PRODUCT, layouts(kinds)), Err(NO_WAY), "{kinds:?}");
        }
        let [a, _, c, d] = layouts([2, 2]);
        assert_eq!(Shape::new(&PRODUCT, [a, layout(14, 5, 3), c, d]), Err(NO_WAY), "two types of factors");
        assert_eq!(Shape::new(&PRODUCT, [a, layout(2, 5, 3), layout(0, 4, 3), d]), Err(NO_WAY), "C unlike D");
        for (compute, scale) in [(64, 2), (70, 1), (68, 2), (77, 0)] {
            let other = Description { compute, scale, ..PRODUCT };
            assert_eq!(Shape::new(&other, layouts([0, 0])), Err(NO_WAY), "{other:?}");
        }
    }

    #[test]
    fn sizes_fit_each_other_or_it_is_a_mistake() {
        let all = layouts([0, 0]);
        let with = |i: usize, layout: Layout| {
            let mut all = all;
            all[i] = layout;
            Shape::new(&PRODUCT, all)
        };
        let plain = Description { operations: [0; 3], ..PRODUCT };
        assert_eq!(Shape::new(&plain, all), Err(INVALID), "not transposed");
        assert_eq!(with(0, layout(0, 6, 4)), Err(INVALID));
        assert_eq!(with(2, layout(0, 3, 4)), Err(INVALID));
        assert_eq!(with(3, Layout { leading: 3, ..all[3] }), Err(INVALID), "below the rows");
        assert_eq!(with(1, Layout { leading: -5, ..all[1] }), Err(INVALID));
        assert_eq!(with(1, Layout { batch: 2, step: 15, ..all[1] }), Err(INVALID), "a batch beside single ones");
        assert_eq!(with(1, Layout { leading: i64::MAX, ..all[1] }), Err(INVALID), "beyond all memory");
        assert_eq!(with(1, Layout { order: 1, ..all[1] }), Err(NO_WAY));
        assert!(with(3, Layout { leading: 9, ..all[3] }).is_ok());
        let batches = |step| all.map(|layout| Layout { batch: 2, step, ..layout });
        assert!(Shape::new(&PRODUCT, batches(12)).is_ok());
        assert_eq!(Shape::new(&PRODUCT, batches(11)), Err(INVALID), "they overlap in D");
    }

    #[test]
    fn epilogues_are_those_that_genie_asks_for() {
        let with = |epilogue, bias_type| {
            let shape = Shape::new(&Description { epilogue, bias_type, ..PRODUCT }, layouts([2, 0]));
            shape.map(|shape| (shape.activation, shape.bias))
        };
        assert_eq!(with(4, None), Ok((Activation::None, true)));
        assert_eq!(with(36, Some(0)), Ok((Activation::Gelu, true)));
        assert_eq!(with(36, Some(2)), Err(NO_WAY), "a bias of another type than D");
        assert_eq!(with(32, Some(2)), Ok((Activation::Gelu, false)));
        assert_eq!(with(164, None), Err(NO_WAY));
    }

    #[test]
    fn ranges_are_all_that_is_touched() {
        let [a, ..] = layouts([2, 2]);
        let range = Layout { leading: 8, batch: 3, step: 100, ..a }.range(Kind::F16, 1000);
        assert_eq!((range.at, range.bytes), (1000, 2 * (200 + 3 * 8 + 5)));
    }
}
