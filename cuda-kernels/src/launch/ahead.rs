//! What of a weight is brought to the second-level cache before its product's turn: kernels between two large products read little, and
//! memory would have nothing to do.

use genie_graph::LinearLayout;

use super::matvec::{Matvec, WARPS};
use super::workspace::Machine;
use crate::view::{Address, Check, LaunchError, View};

/// A part of a weight: rows of bytes that lie `pitch` apart. All numbers are multiples of [`GRANULE`], but for that of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes in front of the first row.
    pub offset: u64,
    /// Bytes from row to row.
    pub pitch: u64,
    /// Rows.
    pub rows: u32,
    /// Bytes of each row.
    pub bytes: u32,
}

/// A part of a later product's weight, which a product asks for when its own is under way. It changes no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// All of the weight, which no kernel writes.
    pub weight: View,
    /// What of it; nothing is asked for where it does not begin at a multiple of [`GRANULE`].
    pub part: Part,
}

/// Bytes that requests begin and end at multiples of.
pub const GRANULE: u64 = 16;
/// Bytes of a line of the cache.
const LINE: u64 = 128;
/// Bytes that are asked for at the most: several times what any such cache holds.
const MOST: u64 = 1 << 30;

impl Ahead {
    /// Where the first row lies; `None` where nothing is asked for.
    pub(super) fn address(&self, check: Check) -> Result<Option<Address>, LaunchError> {
        let Part { offset, pitch, rows, bytes } = self.part;
        let whole = [offset, pitch, bytes.into()].iter().all(|n| n.is_multiple_of(GRANULE));
        check.size("bytes ahead", bytes.into(), whole, "in a part of multiples of 16 bytes")?;
        if rows == 0 || bytes == 0 {
            return Ok(None);
        }
        let all = u64::from(rows) * u64::from(bytes);
        check.size("bytes ahead in all", all, all <= MOST, "at most 1 GiB")?;
        let before_last = check.product("rows ahead", &[u64::from(rows) - 1, pitch])?;
        let end = offset.saturating_add(before_last).saturating_add(bytes.into());
        check.size("end of what is asked for", end, end <= self.weight.bytes(), "within the weight")?;
        Ok(Some(self.weight.at + offset).filter(|at| at.is_multiple_of(GRANULE)))
    }
}

impl Matvec {
    /// What of the weight this product's blocks come to behind the copies that they begin with before they wait for anything, which need
    /// nobody's help: the same of each block, the next first, and at most `most` bytes. `None` where they begin with all of it, or what
    /// they come to next has no such form.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn later(&self, machine: Machine, most: u64) -> Result<Option<Part>, LaunchError> {
        let &Self { weight, n, k, .. } = self;
        let plan = self.plan(machine)?;
        let (size, splits) = (weight.view.dtype.bytes(), plan.splits);
        let row = size * if weight.layout == LinearLayout::OutIn { k } else { n };
        if weight.format.is_some() || self.rows == 0 || n == 0 || row == 0 || !row.is_multiple_of(GRANULE) {
            return Ok(None);
        }
        let most = most.min(MOST);
        let begun = (plan.stages - 1) * WARPS * plan.policy.step;
        // The last part of the sums may be shorter than the others.
        let shortest = k - (splits - 1) * plan.chunk;
        let rest = shortest.saturating_sub(begun);
        // Columns of y that blocks begin with.
        let first = (plan.columns(machine, self.shared(&plan)) * plan.policy.tile).min(n);
        let part = match weight.layout {
            LinearLayout::OutIn if splits == 1 || k == splits * plan.chunk => {
                let rows = first * splits;
                let bytes = (rest * size).min(most / rows / LINE * LINE);
                Some((begun * size, row / splits, rows, bytes))
            }
            LinearLayout::InOut if first == n => {
                let bytes = (rest * row).min(most / splits / LINE * LINE);
                Some((begun * row, plan.chunk * row, splits, bytes))
            }
            LinearLayout::InOut if splits == 1 => {
                let bytes = first * size;
                Some((begun * row, row, rest.min(most / bytes), bytes))
            }
            _ => None,
        };
        let made = |(offset, pitch, rows, bytes): (u64, u64, u64, u64)| {
            let (rows, bytes) = (u32::try_from(rows).ok()?, u32::try_from(bytes).ok()?);
            (rows > 0 && bytes > 0).then_some(Part { offset, pitch, rows, bytes })
        };
        Ok(part.and_then(made))
    }
}

#[cfg(test)]
mod tests {
    use genie_graph::DType;

    use super::*;
    use crate::launch::epilogue::{Epilogue, Prologue};
    use crate::launch::weight::Weight;

    const H200: Machine = Machine { sms: 132, shared: 227 << 10 };
    const IN_OUT: LinearLayout = LinearLayout::InOut;
    const OUT_IN: LinearLayout = LinearLayout::OutIn;
    const MIB: u64 = 1 << 20;

    fn product(layout: LinearLayout, dtype: DType, n: u64, k: u64) -> Matvec {
        let view = |elements| View::new(1 << 20, dtype, elements);
        Matvec {
            x: view(k),
            x_as: dtype,
            y: view(n),
            weight: Weight::plain(view(n * k), layout),
            gate: None,
            prologue: Prologue::None,
            epilogue: Epilogue::default(),
            ahead: None,
            rows: 1,
            n,
            k,
        }
    }

    fn later(layout: LinearLayout, n: u64, k: u64, most: u64) -> Option<Part> {
        product(layout, DType::BF16, n, k).later(H200, most).expect("a product")
    }

    #[test]
    fn blocks_find_what_they_come_to_next() {
        // GPT-2 XL: 75 tiles, eight stages, of which seven are under way: 896 of 1600 rows.
        let rest = Part { offset: 896 * 9600, pitch: 1600 * 9600, rows: 1, bytes: 704 * 9600 };
        assert_eq!(later(IN_OUT, 4800, 1600, 12 * MIB), Some(rest));
        assert_eq!(later(IN_OUT, 4800, 1600, MIB), Some(Part { bytes: MIB as u32, ..rest }));
        // Three parts of the sums, each of which lacks the same.
        let down = Part { offset: 896 * 3200, pitch: 2144 * 3200, rows: 3, bytes: (4 * MIB / 3 / 128 * 128) as u32 };
        assert_eq!(later(IN_OUT, 1600, 6400, 4 * MIB), Some(down));
        // Its blocks begin with all that they read.
        assert_eq!(later(IN_OUT, 1600, 1600, 12 * MIB), None);
        // The rows that the first turn's blocks read, from element 768 on.
        let head = later(OUT_IN, 50_257, 1600, 4 * MIB).expect("there is more");
        assert_eq!((head.offset, head.pitch), (2 * 768, 3200));
        assert!(u64::from(head.rows) * u64::from(head.bytes) > 3 * MIB && head.bytes.is_multiple_of(128));
        // GPT-J: two halves of each row, of which other blocks read one.
        let halves = later(OUT_IN, 4096, 16_384, 4 * MIB).expect("there is more");
        assert_eq!((halves.pitch, halves.rows), (16_384, 8192));
    }

    #[test]
    fn it_lies_within_the_weight_and_is_no_more_than_was_asked_for() {
        for layout in [IN_OUT, OUT_IN] {
            for dtype in [DType::BF16, DType::F32] {
                for sms in [1, 7, 132] {
                    let machine = Machine { sms, ..H200 };
                    for (n, k) in [(4800, 1600), (1600, 6400), (4096, 16_384), (50_264, 1600), (264, 72), (8, 100_000)]
                    {
                        for most in [0, 100, 5000, 4 * MIB, u64::MAX] {
                            let product = product(layout, dtype, n, k);
                            let Some(part) = product.later(machine, most).expect("a product") else { continue };
                            assert!(u64::from(part.rows) * u64::from(part.bytes) <= most, "{part:?}");
                            let ahead = Ahead { weight: product.weight.view, part };
                            assert_eq!(ahead.address(Check("test")), Ok(Some((1 << 20) + part.offset)), "{part:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_has_no_such_form_is_left_out() {
        // Rows that do not begin at multiples of 16 bytes, and nothing at all.
        assert_eq!(later(IN_OUT, 4801, 1600, 12 * MIB), None);
        assert_eq!(later(OUT_IN, 4801, 1601, 12 * MIB), None);
        assert_eq!((later(IN_OUT, 0, 1600, MIB), later(OUT_IN, 0, 1600, MIB)), (None, None));
        assert_eq!((later(IN_OUT, 64, 0, MIB), later(OUT_IN, 64, 0, MIB)), (None, None));
        let part = Part { offset: 0, pitch: 3200, rows: 2, bytes: 3200 };
        let ahead = |at, elements, part| Ahead { weight: View::new(at, DType::BF16, elements), part };
        let check = Check("test");
        assert_eq!(ahead(1 << 20, 3200, part).address(check), Ok(Some(1 << 20)));
        assert_eq!(ahead((1 << 20) + 2, 3200, part).address(check), Ok(None));
        assert_eq!(ahead(1 << 20, 3200, Part { rows: 0, ..part }).address(check), Ok(None));
        for wrong in [
            Part { rows: 3, ..part },
            Part { offset: 16, ..part },
            Part { bytes: 3208, ..part },
            Part { pitch: 0, rows: u32::MAX, ..part },
        ] {
            assert!(ahead(1 << 20, 3200, wrong).address(check).is_err(), "{wrong:?}");
        }
    }
}
