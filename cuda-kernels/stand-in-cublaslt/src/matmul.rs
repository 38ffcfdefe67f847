//! Products, put into streams.

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use cudarc::cublaslt::sys::{cublasLtMatmulAlgo_t, cublasStatus_t as Status};

use crate::compute::{Places, multiply};
use crate::driver::{self, Range};
use crate::heuristic::{Algorithm, aligned};
use crate::settings::Refuses;
use crate::shape::Shape;
use crate::state::{Answer, NO_WAY, answer, check};

/// What a workspace must be a multiple of.
const WORKSPACE_ALIGNED: u64 = 256;

/// A product that is in a stream.
struct Job {
    shape: Shape,
    places: Places,
    workspace: Range,
    done: Option<PathBuf>,
}

/// # Safety
/// `job` is a [`Job`], and what it touches can be touched.
unsafe extern "C" fn run(job: *const c_void) {
    // SAFETY: as the caller has it.
    let job = unsafe { &*job.cast::<Job>() };
    // SAFETY: as above.
    unsafe {
        multiply(&job.shape, &job.places);
        // Nothing may be left in it for others.
        (job.workspace.at as *mut u8).write_bytes(0xFF, job.workspace.bytes as usize);
    }
    if let Some(file) = &job.done {
        told(file, job);
    }
}

/// A line that says what was done.
fn told(file: &Path, job: &Job) {
    let Shape { kind, result, m, n, k, batch, activation, bias, .. } = job.shape;
    let also = if job.places.beta == 0.0 { "" } else { " added" };
    let bias = if bias { " bias" } else { "" };
    let (kind, result) = (kind.name(), result.name());
    let line = format!("{kind} {result} {m}x{n}x{k}x{batch} {activation:?}{bias}{also}\n");
    // One write of a few bytes: lines of several processes do not mix.
    let written =
        OpenOptions::new().create(true).append(true).open(file).and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!("stand-in cuBLASLt: {}: {error}", file.display());
    }
}

/// Whether the addresses are what the algorithm was found for.
fn fits(shape: &Shape, algorithm: &Algorithm, places: &Places) -> Answer {
    let Places { a, b, c, d, bias, .. } = *places;
    check(algorithm.product == shape.number(), "an algorithm for another product")?;
    let all = [a, b, c, d, bias].into_iter().zip(algorithm.aligned);
    let steps =
        [&shape.a, &shape.b, &shape.c, &shape.d].map(|layout| if shape.batch > 1 { layout.step as u64 } else { 0 });
    let kinds = [shape.kind, shape.kind, shape.result, shape.result];
    let steps = steps.into_iter().zip(kinds).map(|(step, kind)| step * kind.bytes()).chain([0]);
    let misaligned = all.zip(steps).any(|((at, wanted), step)| aligned(at).min(aligned(step)) < wanted);
    check(!misaligned, "addresses that are multiples of less than the algorithm was found for")
}

/// Memory that a product touches, once it was seen that no part of it is in another's way. C is not, where it is not read.
fn ranges(shape: &Shape, places: &Places, workspace: Range) -> Answer<Vec<Range>> {
    let [a, b, c, d] = shape.matrices();
    let range = |(kind, layout): (_, &crate::descriptors::Layout), at| layout.range(kind, at);
    let mut read = vec![range(a, places.a), range(b, places.b)];
    if shape.bias {
        check(places.bias != 0, "no bias")?;
        read.push(shape.bias_range(places.bias));
    }
    let (c_range, d_range) = (range(c, places.c), range(d, places.d));
    check(read.iter().all(|range| !range.overlaps(d_range)), "D lies over what is read")?;
    if places.beta != 0.0 {
        let same = places.c == places.d && shape.c == shape.d;
        check(same || !c_range.overlaps(d_range), "C lies over D, and is not D")?;
        read.push(c_range);
    }
    read.push(d_range);
    if workspace.bytes > 0 {
        check(read.iter().all(|range| !range.overlaps(workspace)), "the workspace lies over a matrix")?;
        read.push(workspace);
    }
    Ok(read)
}

/// # Safety
/// `alpha` and `beta` are null, or can be read; so is `algorithm`.
#[unsafe(export_name = "cublasLtMatmul")]
unsafe extern "C" fn matmul(
    handle: *mut c_void,
    description: *mut c_void,
    alpha: *const f32,
    a: u64,
    a_layout: *mut c_void,
    b: u64,
    b_layout: *mut c_void,
    beta: *const f32,
    c: u64,
    c_layout: *mut c_void,
    d: u64,
    d_layout: *mut c_void,
    algorithm: *const cublasLtMatmulAlgo_t,
    workspace: u64,
    workspace_bytes: usize,
    stream: *mut c_void,
) -> Status {
    answer("cublasLtMatmul", |library| {
        library.handle(handle)?;
        let description = library.description(description)?;
        let shape = library.shape(&description, [a_layout, b_layout, c_layout, d_layout])?;
        // SAFETY: as the caller has it.
        let (alpha, beta, algorithm) = unsafe { (alpha.as_ref(), beta.as_ref(), algorithm.as_ref()) };
        let (Some(&alpha), Some(&beta), Some(algorithm)) = (alpha, beta, algorithm) else {
            return check(false, "no factors, or no algorithm: Genie always has one");
        };
        let algorithm = Algorithm::read(algorithm)?;
        let places = Places { alpha, beta, a, b, c, d, bias: if shape.bias { description.bias } else { 0 } };
        check(a != 0 && b != 0 && d != 0 && (c != 0 || beta == 0.0), "a matrix that is nowhere")?;
        fits(&shape, &algorithm, &places)?;
        let enough = workspace_bytes as u64 >= algorithm.workspace && (workspace != 0 || algorithm.workspace == 0);
        check(enough && aligned(workspace) >= WORKSPACE_ALIGNED, "a workspace that is too small, or not aligned")?;
        let workspace = Range { at: workspace, bytes: algorithm.workspace };
        let touched = ranges(&shape, &places, workspace)?;
        match library.settings.refuses {
            Refuses::Late => return Err(NO_WAY),
            Refuses::Unknown => return Err(Status::CUBLAS_STATUS_INVALID_VALUE),
            Refuses::Full => return Err(Status::CUBLAS_STATUS_ALLOC_FAILED),
            Refuses::Failing => return Err(Status::CUBLAS_STATUS_EXECUTION_FAILED),
            _ => {}
        }
        let loads = library.handle(handle)?.loaded.insert(algorithm.product);
        let job = Box::new(Job { shape, places, workspace, done: library.settings.done.clone() });
        // SAFETY: it touches what `ranges` says.
        unsafe { driver::launch(stream, job, run, &touched, loads) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::Layout;
    use crate::shape::{Activation, Kind};

    fn shape() -> Shape {
        let layout =
            |rows, columns| Layout { kind: 0, order: 0, rows, columns, leading: rows as i64, batch: 1, step: 0 };
        let (a, b, c) = (layout(8, 8), layout(8, 8), layout(8, 8));
        let (kind, activation, transposed) = (Kind::F32, Activation::None, [false; 2]);
        let [m, n, k] = [8; 3];
        Shape { kind, result: kind, m, n, k, batch: 1, a, b, c, d: c, transposed, activation, bias: true, bias_step: 0 }
    }

    const PLACES: Places = Places { alpha: 1.0, beta: 1.0, a: 0x1000, b: 0x1100, c: 0x1200, d: 0x1300, bias: 0x1400 };
    const WORKSPACE: Range = Range { at: 0x2000, bytes: 0x1000 };

    #[test]
    fn nothing_that_is_read_lies_under_what_is_written() {
        let touched = |places| ranges(&shape(), &places, WORKSPACE).map(|ranges| ranges.len());
        assert_eq!(touched(PLACES), Ok(6));
        assert_eq!(touched(Places { c: PLACES.d, ..PLACES }), Ok(6), "in place");
        assert_eq!(touched(Places { beta: 0.0, c: PLACES.d + 4, ..PLACES }), Ok(5), "C is not read");
        for wrong in [
            Places { c: PLACES.d + 4, ..PLACES },
            Places { a: PLACES.d, ..PLACES },
            Places { b: PLACES.d - 4, ..PLACES },
            Places { bias: PLACES.d + 252, ..PLACES },
            Places { bias: 0, ..PLACES },
            Places { a: WORKSPACE.at, ..PLACES },
        ] {
            assert!(touched(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_algorithm_is_for_one_product_and_as_aligned() {
        let shape = shape();
        let found = Algorithm { product: shape.number(), workspace: 0, aligned: [256, 16, 256, 256, 16] };
        assert!(fits(&shape, &found, &PLACES).is_ok());
        assert!(fits(&shape, &found, &Places { b: PLACES.b + 16, bias: PLACES.bias + 16, ..PLACES }).is_ok());
        assert!(fits(&shape, &found, &Places { bias: PLACES.bias + 8, ..PLACES }).is_err());
        assert!(fits(&shape, &found, &Places { a: PLACES.a + 16, ..PLACES }).is_err());
        let other = Shape { bias: false, ..shape };
        assert!(fits(&other, &found, &PLACES).is_err());
    }
}
