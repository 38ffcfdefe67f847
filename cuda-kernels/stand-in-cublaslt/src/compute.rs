//! Products on the CPU.

use half::{bf16, f16};

use crate::descriptors::Layout;
use crate::shape::{Activation, Kind, Shape};

/// Rows and columns of D that are computed at once: sums that fit into registers.
const ROWS: usize = 8;
const COLUMNS: usize = 4;
/// Rows of op(A) that are unpacked at once.
const BLOCK: usize = 16 * ROWS;

/// Where everything is, and what it is multiplied by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) c: u64,
    pub(crate) d: u64,
    /// 0: none.
    pub(crate) bias: u64,
}

/// A matrix of a batch.
struct Matrix<'a> {
    kind: Kind,
    layout: &'a Layout,
    at: u64,
}

impl Matrix<'_> {
    fn place(&self, row: usize, column: usize) -> u64 {
        self.at + (row + column * self.layout.leading as usize) as u64 * self.kind.bytes()
    }

    /// # Safety
    /// The matrix is there.
    unsafe fn get(&self, row: usize, column: usize) -> f32 {
        // SAFETY: as the caller has it.
        unsafe { read(self.kind, self.place(row, column)) }
    }
}

/// # Safety
/// An element is there.
unsafe fn read(kind: Kind, at: u64) -> f32 {
    // SAFETY: as the caller has it.
    unsafe {
        match kind {
            Kind::F32 => (at as *const f32).read_unaligned(),
            Kind::F16 => (at as *const f16).read_unaligned().to_f32(),
            Kind::BF16 => (at as *const bf16).read_unaligned().to_f32(),
        }
    }
}

/// # Safety
/// An element is there, and nobody else uses it.
unsafe fn write(kind: Kind, at: u64, value: f32) {
    // SAFETY: as the caller has it.
    unsafe {
        match kind {
            Kind::F32 => (at as *mut f32).write_unaligned(value),
            Kind::F16 => (at as *mut f16).write_unaligned(f16::from_f32(value)),
            Kind::BF16 => (at as *mut bf16).write_unaligned(bf16::from_f32(value)),
        }
    }
}

/// Does the product.
///
/// # Safety
/// All that the shape speaks of is there, and nobody else writes it, or uses D.
pub(crate) unsafe fn multiply(shape: &Shape, places: &Places) {
    let [a, b, c, d] = shape.matrices();
    for i in 0..shape.batch as u64 {
        let nth = |(kind, layout): (Kind, _), at: u64| {
            let layout: &Layout = layout;
            Matrix { kind, layout, at: at + i * layout.step as u64 * kind.bytes() }
        };
        let bias = places.bias + i * shape.bias_step as u64 * shape.result.bytes();
        let one = One { a: nth(a, places.a), b: nth(b, places.b), c: nth(c, places.c), d: nth(d, places.d), bias };
        // SAFETY: as the caller has it.
        unsafe { one.multiply(shape, places) };
    }
}

/// One product of a batch.
struct One<'a> {
    a: Matrix<'a>,
    b: Matrix<'a>,
    c: Matrix<'a>,
    d: Matrix<'a>,
    bias: u64,
}

impl One<'_> {
    /// # Safety
    /// As [`multiply`].
    unsafe fn multiply(&self, shape: &Shape, places: &Places) {
        let Shape { m, n, k, transposed: [of_a, of_b], .. } = *shape;
        // SAFETY: here and below, within the matrices.
        let a = |row, i| unsafe { if of_a { self.a.get(i, row) } else { self.a.get(row, i) } };
        // SAFETY: see above.
        let b = |i, column| unsafe { if of_b { self.b.get(column, i) } else { self.b.get(i, column) } };
        // Columns beyond the last are zeros, and so are rows.
        let mut right = vec![[0.0; COLUMNS]; n.div_ceil(COLUMNS) * k];
        for (column, i) in (0..n).flat_map(|column| (0..k).map(move |i| (column, i))) {
            right[column / COLUMNS * k + i][column % COLUMNS] = b(i, column);
        }
        let mut left = vec![[0.0; ROWS]; BLOCK / ROWS * k];
        for first in (0..m).step_by(BLOCK) {
            let rows = BLOCK.min(m - first);
            left.fill([0.0; ROWS]);
            for (i, row) in (0..k).flat_map(|i| (0..rows).map(move |row| (i, row))) {
                left[row / ROWS * k + i][row % ROWS] = a(first + row, i);
            }
            for right_at in 0..n.div_ceil(COLUMNS) {
                let right = &right[right_at * k..][..k];
                for left_at in 0..rows.div_ceil(ROWS) {
                    let sums = tile(&left[left_at * k..][..k], right);
                    let (row, column) = (first + left_at * ROWS, right_at * COLUMNS);
                    // SAFETY: see above.
                    unsafe { self.finish(shape, places, &sums, [row, column]) };
                }
            }
        }
    }

    /// What becomes of the sums that begin at a row and a column.
    ///
    /// # Safety
    /// As [`multiply`].
    unsafe fn finish(&self, shape: &Shape, places: &Places, sums: &[[f32; ROWS]; COLUMNS], [row, column]: [usize; 2]) {
        for column in column..shape.n.min(column + COLUMNS) {
            for row in row..shape.m.min(row + ROWS) {
                let mut value = places.alpha * sums[column % COLUMNS][row % ROWS];
                // SAFETY: as the caller has it.
                unsafe {
                    if places.beta != 0.0 {
                        value += places.beta * self.c.get(row, column);
                    }
                    if places.bias != 0 {
                        value += read(shape.result, self.bias + row as u64 * shape.result.bytes());
                    }
                    let value = match shape.activation {
                        Activation::None => value,
                        Activation::Relu => value.max(0.0),
                        Activation::Gelu => gelu(value),
                    };
                    write(shape.result, self.d.place(row, column), value);
                }
            }
        }
    }
}

/// Sums of products, each in the order of the factors.
fn tile(left: &[[f32; ROWS]], right: &[[f32; COLUMNS]]) -> [[f32; ROWS]; COLUMNS] {
    let mut sums = [[0.0; ROWS]; COLUMNS];
    for (left, right) in left.iter().zip(right) {
        for column in 0..COLUMNS {
            for row in 0..ROWS {
                sums[column][row] += left[row] * right[column];
            }
        }
    }
    sums
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(rows: u64, columns: u64, leading: i64, step: i64) -> Layout {
        Layout { kind: 0, order: 0, rows, columns, leading, batch: 2, step }
    }

    /// Sizes that are no multiples of the tiles', gaps between columns, each way to lie.
    #[test]
    fn products_are_those_of_plain_sums() {
        let (m, n, k) = (BLOCK + 13, 7, 19);
        for (of_a, of_b) in [(false, false), (true, false), (false, true), (true, true)] {
            let turned = |of: bool, rows: usize, columns: usize| if of { (columns, rows) } else { (rows, columns) };
            let ((a_rows, a_columns), (b_rows, b_columns)) = (turned(of_a, m, k), turned(of_b, k, n));
            let whole = |rows: usize, columns: usize| layout(rows as u64, columns as u64, rows as i64 + 3, 5000);
            let shape = Shape {
                kind: Kind::F32,
                result: Kind::F32,
                m,
                n,
                k,
                batch: 2,
                a: whole(a_rows, a_columns),
                b: whole(b_rows, b_columns),
                c: whole(m, n),
                d: whole(m, n),
                transposed: [of_a, of_b],
                activation: Activation::Relu,
                bias: true,
                bias_step: 0,
            };
            let fill = |seed: usize| (0..10_000).map(|i| ((i * 7 + seed) % 11) as f32 - 5.0).collect::<Vec<f32>>();
            let [a, b, c, bias] = [1, 2, 3, 4].map(fill);
            let mut d = vec![f32::NAN; 10_000];
            let at = |of: &[f32]| of.as_ptr().addr() as u64;
            let places = Places {
                alpha: 2.0,
                beta: 0.5,
                a: at(&a),
                b: at(&b),
                c: at(&c),
                d: d.as_mut_ptr().expose_provenance() as u64,
                bias: at(&bias),
            };
            for of in [&a, &b, &c, &bias] {
                of.as_ptr().expose_provenance();
            }
            // SAFETY: all lie within the vectors.
            unsafe { multiply(&shape, &places) };
            for (i, row, column) in (0..2).flat_map(|i| (0..m).flat_map(move |r| (0..n).map(move |c| (i, r, c)))) {
                let element = |of: &[f32], rows: usize, turned: bool, row: usize, column: usize| {
                    let (row, column) = if turned { (column, row) } else { (row, column) };
                    of[i * 5000 + column * (rows + 3) + row]
                };
                let term = |j| element(&a, a_rows, of_a, row, j) * element(&b, b_rows, of_b, j, column);
                let sum: f32 = (0..k).map(term).sum();
                let expected = (2.0 * sum + 0.5 * element(&c, m, false, row, column) + bias[row]).max(0.0);
                assert_eq!(element(&d, m, false, row, column), expected, "{of_a} {of_b} {i} {row} {column}");
            }
            assert!(d[m].is_nan(), "between the columns");
        }
    }

    #[test]
    fn gelu_is_the_one_by_the_hyperbolic_tangent() {
        assert!((gelu(1.0) - 0.841_192).abs() < 1e-6 && gelu(-20.0) == 0.0 && gelu(20.0) == 20.0);
    }
}
