//! Functions and comparisons of two tensors with broadcasting, in many kinds; and choices.

use bytemuck::{Pod, Zeroable};
use genie_graph::{BinaryKind, CompareKind, DType};

use super::binary::joint;
use super::elementwise::{THREADS, blocks};
use super::strided::{Dims, MOST_DIMS, Walk, broadcast, contiguous};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Address, Check, LaunchError, View};

/// An operand with its dimensions, the outermost first.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// The tensor, contiguous.
    pub view: View,
    /// Its dimensions, up to 8.
    pub dims: &'a [u64],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PairParams {
    a: u64,
    b: u64,
    y: u64,
    fault: u64,
    count: u64,
    strides: [[u64; MOST_DIMS]; 2],
    dims: Dims,
    kind: u32,
    padding: u32,
}

/// y = kind(a, b), with a and b broadcast NumPy's way to y, which is contiguous. One type, which the kind takes. Floats are computed
/// in f32; integers wrap. y may be a or b where that has y's own dimensions.
///
/// `fault` is a u64 in device memory, which an integer's division by zero lowers to the element's index in y; the element is 0. The
/// host sets it to `u64::MAX` before.
///
/// # Errors
/// [`LaunchError`].
pub fn combine(
    kind: BinaryKind,
    a: Operand<'_>,
    b: Operand<'_>,
    y: View,
    fault: Address,
) -> Result<Option<Launch>, LaunchError> {
    let check = Check("combine");
    if !kind.takes(a.view.dtype) {
        return Err(check.wrong_type("a", a.view.dtype));
    }
    let kernel = match a.view.dtype {
        DType::F32 => &kernel::COMBINE_F32,
        DType::F16 => &kernel::COMBINE_F16,
        DType::BF16 => &kernel::COMBINE_BF16,
        DType::I64 => &kernel::COMBINE_I64,
        DType::I32 => &kernel::COMBINE_I32,
        DType::U8 => &kernel::COMBINE_U8,
        DType::Bool => &kernel::COMBINE_BOOL,
    };
    check.same_type("y", y, a.view)?;
    check.fault(fault)?;
    pairs(check, kernel, kind as u32, [a, b], y, fault)
}

/// y = a kind b, bool, with a and b, of one type, broadcast NumPy's way to y, which is contiguous.
///
/// # Errors
/// [`LaunchError`].
pub fn compare(kind: CompareKind, a: Operand<'_>, b: Operand<'_>, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("compare");
    let kernel = match a.view.dtype {
        DType::F32 => &kernel::COMPARE_F32,
        DType::F16 => &kernel::COMPARE_F16,
        DType::BF16 => &kernel::COMPARE_BF16,
        DType::I64 => &kernel::COMPARE_I64,
        DType::I32 => &kernel::COMPARE_I32,
        DType::U8 => &kernel::COMPARE_U8,
        DType::Bool => &kernel::COMPARE_BOOL,
    };
    if y.dtype != DType::Bool {
        return Err(check.wrong_type("y", y.dtype));
    }
    pairs(check, kernel, kind as u32, [a, b], y, 0)
}

fn pairs(
    check: Check,
    kernel: &'static Kernel,
    kind: u32,
    [a, b]: [Operand<'_>; 2],
    y: View,
    fault: Address,
) -> Result<Option<Launch>, LaunchError> {
    check.same_type("b", b.view, a.view)?;
    let dims = joint(check, a.dims, b.dims)?;
    let count = check.product("y", &dims)?;
    check.tensor("a", a.view, check.product("a", a.dims)?)?;
    check.tensor("b", b.view, check.product("b", b.dims)?)?;
    check.tensor("y", y, count)?;
    if count == 0 {
        return Ok(None);
    }
    let operands = [broadcast(a.dims, &dims), broadcast(b.dims, &dims)];
    let walk = Walk::new(&dims, [&operands[0], &operands[1], &contiguous(&dims)].map(Vec::as_slice));
    let [of_a, of_b, _] = walk.by_operand();
    let params = PairParams {
        a: a.view.at,
        b: b.view.at,
        y: y.at,
        fault,
        count,
        strides: [of_a, of_b],
        dims: Dims::new(check, &walk.sizes)?,
        kind,
        padding: 0,
    };
    Ok(Some(Launch::new(kernel, [blocks(count), 1, 1], [THREADS, 1, 1], 0, &params)))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ChooseParams {
    condition: u64,
    a: u64,
    b: u64,
    y: u64,
    count: u64,
    condition_step: u32,
    a_step: u32,
    b_step: u32,
    padding: u32,
}

/// y = a where the condition, bool, is true, else b; y, a and b of one type, any. Each of the three has y's elements, or one that is
/// meant everywhere. y may be one that has its elements and type.
///
/// # Errors
/// [`LaunchError`].
pub fn choose(condition: View, a: View, b: View, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("choose");
    if condition.dtype != DType::Bool {
        return Err(check.wrong_type("condition", condition.dtype));
    }
    let kernel = match y.dtype.bytes() {
        1 => &kernel::CHOOSE_1,
        2 => &kernel::CHOOSE_2,
        4 => &kernel::CHOOSE_4,
        _ => &kernel::CHOOSE_8,
    };
    let mut steps = [0; 3];
    for (step, (what, view)) in steps.iter_mut().zip([("condition", condition), ("a", a), ("b", b)]) {
        if what != "condition" {
            check.same_type(what, view, y)?;
        }
        *step = u32::from(view.elements != 1);
        check.tensor(what, view, if view.elements == 1 { 1 } else { y.elements })?;
    }
    check.tensor("y", y, y.elements)?;
    if y.elements == 0 {
        return Ok(None);
    }
    let [condition_step, a_step, b_step] = steps;
    let params = ChooseParams {
        condition: condition.at,
        a: a.at,
        b: b.at,
        y: y.at,
        count: y.elements,
        condition_step,
        a_step,
        b_step,
        padding: 0,
    };
    Ok(Some(Launch::new(kernel, [blocks(y.elements.div_ceil(4)), 1, 1], [THREADS, 1, 1], 0, &params)))
}
