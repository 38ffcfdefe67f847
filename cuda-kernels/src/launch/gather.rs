//! Rows by ids: gathered, gathered and converted, replaced.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use super::create::fill;
use super::elementwise::{THREADS, blocks};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Address, Check, LaunchError, View};

/// The twin of `RowSplit` in `rows.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RowSplit {
    rows: u64,
    units: u32,
    shift: u32,
}

impl RowSplit {
    /// How threads share `rows` rows of `units` each, and the grid for it.
    fn new(check: Check, rows: u64, units: u64) -> Result<(Self, [u32; 3]), LaunchError> {
        let narrow = u32::try_from(units).unwrap_or(u32::MAX);
        check.size("the units of a row", units, narrow < 1 << 31, "under 2^31")?;
        let lanes = narrow.next_power_of_two().min(THREADS);
        let groups = rows.div_ceil(u64::from(THREADS / lanes)).clamp(1, 1 << 16) as u32;
        // A long row is shared by blocks, each of which takes four units a thread.
        let pieces = narrow.div_ceil(lanes.saturating_mul(4)).min((1 << 16) / groups).clamp(1, 1 << 10);
        Ok((Self { rows, units: narrow, shift: lanes.trailing_zeros() }, [groups, pieces, 1]))
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatherParams {
    table: u64,
    ids: u64,
    y: u64,
    fault: u64,
    bound: u64,
    split: RowSplit,
    width: u32,
    to: u32,
    is_wide: u32,
    padding: u32,
}

/// y\[i\] = table\[ids\[i\]\]: table `[bound, width]`, ids i32 or i64 `[count]`, y `[count, width]` of the table's type (any).
///
/// `fault` is a u64 in device memory, which an id outside of 0..bound lowers to its index in `ids`; its row becomes zeros. The host
/// sets it to `u64::MAX` before.
///
/// # Errors
/// [`LaunchError`].
pub fn gather(
    table: View,
    bound: u64,
    width: u64,
    ids: View,
    y: View,
    fault: Address,
) -> Result<Option<Launch>, LaunchError> {
    let check = Check("gather");
    check.same_type("y", y, table)?;
    if !checked(check, table, bound, width, ids, y, fault)? {
        return Ok(None);
    }
    let row_bytes = check.product("a row's bytes", &[width, table.dtype.bytes()])?;
    let unit = unit(&[table.at, y.at, row_bytes]);
    let kernel: &'static Kernel = match unit {
        1 => &kernel::GATHER_1,
        2 => &kernel::GATHER_2,
        4 => &kernel::GATHER_4,
        8 => &kernel::GATHER_8,
        _ => &kernel::GATHER_16,
    };
    let (split, grid) = RowSplit::new(check, ids.elements, row_bytes / unit)?;
    let params = GatherParams {
        table: table.at,
        ids: ids.at,
        y: y.at,
        fault,
        bound,
        split,
        width: 0,
        to: 0,
        is_wide: u32::from(ids.dtype == DType::I64),
        padding: 0,
    };
    Ok(Some(Launch::new(kernel, grid, [THREADS, 1, 1], 0, &params)))
}

/// As [`gather`], of a float table into a float y of any type.
///
/// # Errors
/// [`LaunchError`].
pub fn embedding(
    table: View,
    bound: u64,
    width: u64,
    ids: View,
    y: View,
    fault: Address,
) -> Result<Option<Launch>, LaunchError> {
    if table.dtype == y.dtype && table.dtype.is_float() {
        return gather(table, bound, width, ids, y, fault);
    }
    let check = Check("embedding");
    let kernel: &'static Kernel = match table.dtype {
        DType::F32 => &kernel::EMBEDDING_F32,
        DType::F16 => &kernel::EMBEDDING_F16,
        DType::BF16 => &kernel::EMBEDDING_BF16,
        other => return Err(check.wrong_type("table", other)),
    };
    if !y.dtype.is_float() {
        return Err(check.wrong_type("y", y.dtype));
    }
    if !checked(check, table, bound, width, ids, y, fault)? {
        return Ok(None);
    }
    let (split, grid) = RowSplit::new(check, ids.elements, width.div_ceil(4))?;
    let narrow = u32::try_from(width).unwrap_or(u32::MAX);
    check.size("the width", width, narrow < 1 << 31, "under 2^31")?;
    let params = GatherParams {
        table: table.at,
        ids: ids.at,
        y: y.at,
        fault,
        bound,
        split,
        width: narrow,
        to: y.dtype as u32,
        is_wide: u32::from(ids.dtype == DType::I64),
        padding: 0,
    };
    Ok(Some(Launch::new(kernel, grid, [THREADS, 1, 1], 0, &params)))
}

/// Whether there is something to do.
fn checked(
    check: Check,
    table: View,
    bound: u64,
    width: u64,
    ids: View,
    rows: View,
    fault: Address,
) -> Result<bool, LaunchError> {
    if !matches!(ids.dtype, DType::I32 | DType::I64) {
        return Err(check.wrong_type("ids", ids.dtype));
    }
    check.tensor("table", table, check.product("table", &[bound, width])?)?;
    check.tensor("ids", ids, ids.elements)?;
    check.tensor("a row for each id", rows, check.product("a row for each id", &[ids.elements, width])?)?;
    check.fault(fault)?;
    Ok(ids.elements != 0 && width != 0)
}

/// The largest power of two up to 16 that all of these are multiples of.
fn unit(of: &[u64]) -> u64 {
    1 << of.iter().fold(4, |shift, n| n.trailing_zeros().min(shift))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScatterMarkParams {
    ids: u64,
    owners: u64,
    fault: u64,
    count: u64,
    bound: u64,
    is_wide: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScatterParams {
    x: u64,
    updates: u64,
    owners: u64,
    y: u64,
    split: RowSplit,
}

/// What [`scatter`] reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Scatter {
    /// `[bound, width]`, of any type.
    pub x: View,
    /// Rows.
    pub bound: u64,
    /// Elements a row.
    pub width: u64,
    /// i32 or i64 `[count]`.
    pub ids: View,
    /// `[count, width]`, of x's type.
    pub updates: View,
    /// As x, and x itself is allowed.
    pub y: View,
    /// Working space: i32 `[bound]`.
    pub scratch: View,
    /// As in [`gather`]: an id that is no row replaces nothing.
    pub fault: Address,
}

/// y = x with row ids\[i\] replaced by updates\[i\]; of equal ids the last wins. The launches run one after another.
///
/// # Errors
/// [`LaunchError`].
pub fn scatter(s: Scatter) -> Result<Vec<Launch>, LaunchError> {
    let check = Check("scatter");
    check.same_type("updates", s.updates, s.x)?;
    check.same_type("y", s.y, s.x)?;
    let any = checked(check, s.x, s.bound, s.width, s.ids, s.updates, s.fault)?;
    check.tensor("y", s.y, s.x.elements)?;
    if s.scratch.dtype != DType::I32 {
        return Err(check.wrong_type("scratch", s.scratch.dtype));
    }
    check.tensor("scratch", s.scratch, s.bound)?;
    check.size("the number of ids", s.ids.elements, s.ids.elements < u64::from(u32::MAX), "under 2^32 - 1")?;
    if s.width == 0 || (!any && s.x.at == s.y.at) {
        return Ok(Vec::new());
    }
    let mark = ScatterMarkParams {
        ids: s.ids.at,
        owners: s.scratch.at,
        fault: s.fault,
        count: s.ids.elements,
        bound: s.bound,
        is_wide: u32::from(s.ids.dtype == DType::I64),
        padding: 0,
    };
    let row_bytes = check.product("a row's bytes", &[s.width, s.x.dtype.bytes()])?;
    let unit = unit(&[s.x.at, s.updates.at, s.y.at, row_bytes]);
    let kernel: &'static Kernel = match unit {
        1 => &kernel::SCATTER_1,
        2 => &kernel::SCATTER_2,
        4 => &kernel::SCATTER_4,
        8 => &kernel::SCATTER_8,
        _ => &kernel::SCATTER_16,
    };
    let (split, grid) = RowSplit::new(check, s.bound, row_bytes / unit)?;
    let params = ScatterParams { x: s.x.at, updates: s.updates.at, owners: s.scratch.at, y: s.y.at, split };
    let mut launches: Vec<Launch> = fill(s.scratch, 0)?.into_iter().collect();
    if any {
        launches.push(Launch::new(&kernel::SCATTER_MARK, [blocks(mark.count), 1, 1], [THREADS, 1, 1], 0, &mark));
    }
    if s.bound != 0 {
        launches.push(Launch::new(kernel, grid, [THREADS, 1, 1], 0, &params));
    }
    Ok(launches)
}
