//! What describes a product: its operation, its matrices, and what an algorithm for it must be content with.

use std::ffi::c_void;
use std::ptr::without_provenance_mut;

use cudarc::cublaslt::sys::{
    cublasLtMatmulDesc_t, cublasLtMatmulPreference_t, cublasLtMatrixLayout_t, cublasStatus_t as Status,
};

use crate::state::{Answer, answer, check, give, id, mistake};

/// `CUBLASLT_EPILOGUE_DEFAULT`.
const PLAIN: u32 = 1;
/// All of `cublasLtEpilogue_t`.
const EPILOGUES: [u32; 16] = [PLAIN, 2, 130, 4, 6, 134, 136, 152, 32, 160, 36, 164, 192, 208, 256, 512];
/// All of `cublasComputeType_t` of CUDA 13.0.
const COMPUTE_TYPES: [u32; 13] = [64, 65, 68, 69, 74, 75, 77, 78, 70, 71, 79, 72, 73];
/// The last of `cudaDataType_t` of CUDA 13.0.
const LAST_TYPE: u32 = 33;
/// `CUBLASLT_REDUCTION_SCHEME_MASK`: all of them.
const ALL_SCHEMES: u32 = 7;

/// An operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Description {
    pub(crate) compute: u32,
    pub(crate) scale: u32,
    pub(crate) pointer_mode: u32,
    /// Of A, B and C: 0 as it is, 1 transposed, 2 conjugated, too.
    pub(crate) operations: [i32; 3],
    pub(crate) epilogue: u32,
    pub(crate) bias: u64,
    pub(crate) bias_step: i64,
    /// None: as D.
    pub(crate) bias_type: Option<u32>,
}

/// A matrix, or a batch of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    pub(crate) kind: u32,
    /// 0: column-major.
    pub(crate) order: i32,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    pub(crate) leading: i64,
    pub(crate) batch: i32,
    pub(crate) step: i64,
}

/// What an algorithm must be content with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference {
    pub(crate) workspace: u64,
    pub(crate) schemes: u32,
    /// Of A, B, C and D.
    pub(crate) aligned: [u32; 4],
}

/// An attribute's value, which has as many bytes as its type.
///
/// # Safety
/// `from` is null, or `bytes` of it can be read.
unsafe fn value<T: Copy>(from: *const c_void, bytes: usize) -> Answer<T> {
    check(!from.is_null() && bytes == size_of::<T>(), "an attribute of another size")?;
    // SAFETY: as the caller has it, and it was just seen that there are as many.
    Ok(unsafe { from.cast::<T>().read_unaligned() })
}

/// A value that its type has.
fn among<T: PartialEq + Copy>(all: &[T], value: T) -> Answer<T> {
    check(all.contains(&value), "a value that its type has not").map(|()| value)
}

fn data_type(kind: u32) -> Answer<u32> {
    check(kind <= LAST_TYPE, "an unknown data type").map(|()| kind)
}

/// # Safety
/// Here, and for every function below: what is written to can be written, and what is read can be read.
#[unsafe(export_name = "cublasLtMatmulDescCreate")]
unsafe extern "C" fn describe(description: *mut cublasLtMatmulDesc_t, compute: u32, scale: u32) -> Status {
    answer("cublasLtMatmulDescCreate", |library| {
        let new = Description {
            compute: among(&COMPUTE_TYPES, compute)?,
            scale: data_type(scale)?,
            pointer_mode: 0,
            operations: [0; 3],
            epilogue: PLAIN,
            bias: 0,
            bias_step: 0,
            bias_type: None,
        };
        let id = library.new_id();
        library.descriptions.insert(id, new);
        // SAFETY: as the caller has it.
        unsafe { give(description, without_provenance_mut(id as usize)) }
    })
}

#[unsafe(export_name = "cublasLtMatmulDescDestroy")]
extern "C" fn description_destroy(description: *mut c_void) -> Status {
    answer("cublasLtMatmulDescDestroy", |library| {
        library.descriptions.remove(&id(description)).map(drop).ok_or_else(|| mistake("there is no such description"))
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cublasLtMatmulDescSetAttribute")]
unsafe extern "C" fn description_set(
    description: *mut c_void,
    attribute: u32,
    from: *const c_void,
    bytes: usize,
) -> Status {
    answer("cublasLtMatmulDescSetAttribute", |library| {
        let of =
            library.descriptions.get_mut(&id(description)).ok_or_else(|| mistake("there is no such description"))?;
        // SAFETY: here and below, as the caller has it.
        let number = || unsafe { value::<u32>(from, bytes) };
        match attribute {
            0 => of.compute = among(&COMPUTE_TYPES, number()?)?,
            1 => of.scale = data_type(number()?)?,
            2 => of.pointer_mode = among(&[0, 1, 2, 3, 4], number()?)?,
            // SAFETY: see above.
            3..=5 => of.operations[attribute as usize - 3] = among(&[0, 1, 2], unsafe { value(from, bytes) }?)?,
            7 => of.epilogue = among(&EPILOGUES, number()?)?,
            // SAFETY: see above.
            8 => of.bias = unsafe { value(from, bytes) }?,
            // SAFETY: see above.
            10 => of.bias_step = unsafe { value(from, bytes) }?,
            26 => of.bias_type = Some(data_type(number()?)?),
            _ => return Err(mistake("an attribute of products that is not known here")),
        }
        Ok(())
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cublasLtMatrixLayoutCreate")]
unsafe extern "C" fn layout(
    layout: *mut cublasLtMatrixLayout_t,
    kind: u32,
    rows: u64,
    columns: u64,
    leading: i64,
) -> Status {
    answer("cublasLtMatrixLayoutCreate", |library| {
        let new = Layout { kind: data_type(kind)?, order: 0, rows, columns, leading, batch: 1, step: 0 };
        let id = library.new_id();
        library.layouts.insert(id, new);
        // SAFETY: as the caller has it.
        unsafe { give(layout, without_provenance_mut(id as usize)) }
    })
}

#[unsafe(export_name = "cublasLtMatrixLayoutDestroy")]
extern "C" fn layout_destroy(layout: *mut c_void) -> Status {
    answer("cublasLtMatrixLayoutDestroy", |library| {
        library.layouts.remove(&id(layout)).map(drop).ok_or_else(|| mistake("there is no such layout"))
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cublasLtMatrixLayoutSetAttribute")]
unsafe extern "C" fn layout_set(layout: *mut c_void, attribute: u32, from: *const c_void, bytes: usize) -> Status {
    answer("cublasLtMatrixLayoutSetAttribute", |library| {
        let of = library.layouts.get_mut(&id(layout)).ok_or_else(|| mistake("there is no such layout"))?;
        // SAFETY: here and below, as the caller has it.
        unsafe {
            match attribute {
                0 => of.kind = data_type(value(from, bytes)?)?,
                1 => of.order = among(&[0, 1, 2, 3, 4], value(from, bytes)?)?,
                2 => of.rows = value(from, bytes)?,
                3 => of.columns = value(from, bytes)?,
                4 => of.leading = value(from, bytes)?,
                5 => {
                    of.batch = value(from, bytes)?;
                    check(of.batch > 0, "a batch of none")?;
                }
                6 => of.step = value(from, bytes)?,
                _ => return Err(mistake("an attribute of layouts that is not known here")),
            }
        }
        Ok(())
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cublasLtMatmulPreferenceCreate")]
unsafe extern "C" fn preference(preference: *mut cublasLtMatmulPreference_t) -> Status {
    answer("cublasLtMatmulPreferenceCreate", |library| {
        let id = library.new_id();
        library.preferences.insert(id, Preference { workspace: 0, schemes: ALL_SCHEMES, aligned: [256; 4] });
        // SAFETY: as the caller has it.
        unsafe { give(preference, without_provenance_mut(id as usize)) }
    })
}

#[unsafe(export_name = "cublasLtMatmulPreferenceDestroy")]
extern "C" fn preference_destroy(preference: *mut c_void) -> Status {
    answer("cublasLtMatmulPreferenceDestroy", |library| {
        library.preferences.remove(&id(preference)).map(drop).ok_or_else(|| mistake("there is no such preference"))
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cublasLtMatmulPreferenceSetAttribute")]
unsafe extern "C" fn preference_set(
    preference: *mut c_void,
    attribute: u32,
    from: *const c_void,
    bytes: usize,
) -> Status {
    answer("cublasLtMatmulPreferenceSetAttribute", |library| {
        let of = library.preferences.get_mut(&id(preference)).ok_or_else(|| mistake("there is no such preference"))?;
        // SAFETY: here and below, as the caller has it.
        let number = || unsafe { value::<u32>(from, bytes) };
        match attribute {
            // SAFETY: see above.
            1 => of.workspace = unsafe { value(from, bytes) }?,
            3 => {
                of.schemes = number()?;
                check(of.schemes & !ALL_SCHEMES == 0, "an unknown way to add parts")?;
            }
            5..=8 => {
                let aligned = number()?;
                check(aligned.is_power_of_two(), "an alignment that is no power of two")?;
                of.aligned[attribute as usize - 5] = aligned;
            }
            _ => return Err(mistake("an attribute of preferences that is not known here")),
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use Status::{CUBLAS_STATUS_INVALID_VALUE as INVALID, CUBLAS_STATUS_SUCCESS as GOOD};

    use super::*;

    /// Sets an attribute to a value of this type.
    fn set<T>(
        of: *mut c_void,
        attribute: u32,
        value: T,
        with: unsafe extern "C" fn(*mut c_void, u32, *const c_void, usize) -> Status,
    ) -> Status {
        // SAFETY: as many bytes as it says.
        unsafe { with(of, attribute, (&raw const value).cast(), size_of::<T>()) }
    }

    #[test]
    fn attributes_have_the_size_and_the_values_of_their_types() {
        let mut made = null_mut();
        // SAFETY: here and below, a descriptor is written.
        assert_eq!(unsafe { describe(&mut made, 68, 0) }, GOOD);
        // SAFETY: see above.
        assert_eq!(unsafe { describe(null_mut(), 68, 0) }, INVALID);
        // SAFETY: see above.
        assert_eq!(unsafe { describe(&mut null_mut(), 67, 0) }, INVALID, "no type of sums");
        let of = made.cast::<c_void>();
        assert_eq!(set(of, 3, 1_i32, description_set), GOOD);
        assert_eq!(set(of, 3, 1_i64, description_set), INVALID, "too wide");
        assert_eq!(set(of, 3, 7_i32, description_set), INVALID, "no operation");
        assert_eq!(set(of, 7, 36_u32, description_set), GOOD);
        assert_eq!(set(of, 7, 35_u32, description_set), INVALID, "no epilogue");
        assert_eq!(set(of, 8, 256_u64, description_set), GOOD);
        assert_eq!(set(of, 8, 256_u32, description_set), INVALID, "too narrow");
        assert_eq!(set(of, 99, 0_u32, description_set), INVALID);
        assert_eq!(description_destroy(of), GOOD);
        assert_eq!(description_destroy(of), INVALID, "it is gone");
        assert_eq!(set(of, 3, 1_i32, description_set), INVALID);

        let mut made = null_mut();
        // SAFETY: see above.
        assert_eq!(unsafe { layout(&mut made, 0, 4, 4, 4) }, GOOD);
        // SAFETY: see above.
        assert_eq!(unsafe { layout(&mut null_mut(), 99, 4, 4, 4) }, INVALID, "no data type");
        let of = made.cast::<c_void>();
        assert_eq!((set(of, 5, 2_i32, layout_set), set(of, 5, 2_i64, layout_set)), (GOOD, INVALID));
        assert_eq!((set(of, 6, 2_i64, layout_set), set(of, 6, 2_i32, layout_set)), (GOOD, INVALID));
        assert_eq!(set(of, 5, 0_i32, layout_set), INVALID, "a batch of none");
        assert_eq!((layout_destroy(of), layout_destroy(of)), (GOOD, INVALID));

        let mut made = null_mut();
        // SAFETY: see above.
        assert_eq!(unsafe { preference(&mut made) }, GOOD);
        let of = made.cast::<c_void>();
        assert_eq!((set(of, 1, 1_u64, preference_set), set(of, 1, 1_u32, preference_set)), (GOOD, INVALID));
        assert_eq!((set(of, 3, 2_u32, preference_set), set(of, 3, 8_u32, preference_set)), (GOOD, INVALID));
        assert_eq!((set(of, 5, 16_u32, preference_set), set(of, 5, 24_u32, preference_set)), (GOOD, INVALID));
        assert_eq!(set(of, 5, 16_u64, preference_set), INVALID);
        assert_eq!((preference_destroy(of), preference_destroy(of)), (GOOD, INVALID));
    }
}
