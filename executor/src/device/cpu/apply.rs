//! Functions applied to elements in memory: what elementwise kernels share.

/// `y[i] = f(x[i])`.
///
/// # Safety
/// Both are valid for `count`, and do not overlap.
#[inline(always)]
pub(super) unsafe fn map<X: Copy, Y>(x: *const X, y: *mut Y, count: usize, f: impl Fn(X) -> Y) {
    // SAFETY: as the caller's.
    (0..count).for_each(|i| unsafe { y.add(i).write(f(*x.add(i))) });
}

/// `y[i] = f(a[i * step_a], b[i * step_b])`.
///
/// # Safety
/// `y` is valid for `count`, `a` and `b` for as many elements `step_*` apart, and `y` overlaps neither.
#[inline(always)]
pub(super) unsafe fn zip<A: Copy, B: Copy, Y>(
    (a, step_a): (*const A, usize),
    (b, step_b): (*const B, usize),
    y: *mut Y,
    count: usize,
    f: impl Fn(A, B) -> Y,
) {
    // SAFETY: as the caller's. The common steps have loops of their own, which the compiler makes vectors of.
    unsafe {
        match (step_a, step_b) {
            (1, 1) => (0..count).for_each(|i| y.add(i).write(f(*a.add(i), *b.add(i)))),
            (1, 0) => {
                let b = *b;
                (0..count).for_each(|i| y.add(i).write(f(*a.add(i), b)));
            }
            (0, 1) => {
                let a = *a;
                (0..count).for_each(|i| y.add(i).write(f(a, *b.add(i))));
            }
            _ => (0..count).for_each(|i| y.add(i).write(f(*a.add(i * step_a), *b.add(i * step_b)))),
        }
    }
}
