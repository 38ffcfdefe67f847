//! Products of matrices as a library does them.

use genie_graph::DType;

use crate::view::{Check, LaunchError, View};

/// How the weight of a product is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// `[n, k]`.
    OutIn,
    /// `[k, n]`.
    InOut,
}

/// `c = gelu(a x b + added + bias)`, by a library: `a [batch, m, k]`, `b` as its layout says, `c [batch, m, n]`, all in f32 and rounded
/// once. Batches lie one after another; `b_step` and so on are elements from one to the next (0: the same for all).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Element type of a and b: a float type.
    pub dtype: DType,
    /// Element type of c: that of a and b, or f32.
    pub c_type: DType,
    /// How `b` lies.
    pub layout: WeightLayout,
    /// Rows of `a` and `c`.
    pub m: u64,
    /// Columns of `c`.
    pub n: u64,
    /// What is summed over.
    pub k: u64,
    /// How many products.
    pub batch: u64,
    /// Elements from one `a` to the next.
    pub a_step: u64,
    /// Elements from one `b` to the next.
    pub b_step: u64,
    /// Elements from one `c` to the next, and of what is added.
    pub c_step: u64,
    /// Whether each element becomes its gelu, by the hyperbolic tangent.
    pub gelu: bool,
}

/// What a [`Product`] reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// The first factor.
    pub a: View,
    /// The second.
    pub b: View,
    /// The result.
    pub c: View,
    /// As c in shape, steps and type. It may be c itself.
    pub added: Option<View>,
    /// `[n]`, of c's type: libraries take no other. Each row of each c gets it.
    pub bias: Option<View>,
}

impl Operands {
    /// Nothing but the product.
    pub const fn new(a: View, b: View, c: View) -> Self {
        Self { a, b, c, added: None, bias: None }
    }
}

impl Product {
    /// Whether there is nothing to compute.
    pub const fn is_empty(&self) -> bool {
        self.m == 0 || self.n == 0 || self.batch == 0
    }

    /// Whether the views hold what it reads and writes, and no two of its products write the same.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn check(&self, operands: &Operands) -> Result<(), LaunchError> {
        let check = Check("multiply");
        let Self { dtype, c_type, m, n, k, batch, a_step, b_step, c_step, .. } = *self;
        if !dtype.is_float() {
            return Err(check.wrong_type("a", dtype));
        }
        if c_type != dtype && c_type != DType::F32 {
            return Err(check.wrong_type("c", c_type));
        }
        if self.is_empty() {
            return Ok(());
        }
        let Operands { a, b, c, added, bias } = *operands;
        let all = [
            ("a", Some(a), dtype, [m, k], a_step),
            ("b", Some(b), dtype, [k, n], b_step),
            ("c", Some(c), c_type, [m, n], c_step),
            ("added", added, c_type, [m, n], c_step),
            ("bias", bias, c_type, [1, n], 0),
        ];
        for (what, view, dtype, sizes, step) in all {
            let Some(view) = view else { continue };
            if view.dtype != dtype {
                return Err(check.wrong_type(what, view.dtype));
            }
            check.aligned(what, view, dtype.bytes())?;
            let before = check.product(what, &[batch - 1, step])?;
            let needed = check.product(what, &sizes)?.saturating_add(before);
            if needed > view.elements {
                return Err(LaunchError::Elements { kernel: check.0, what, expected: needed, got: view.elements });
            }
        }
        check.size("the step of c", c_step, batch == 1 || c_step >= m.saturating_mul(n), "at least one product")
    }
}
