//! Host memory: what is registered, and copies of it.

use std::ffi::{c_uint, c_void};

use cudarc::driver::sys::{CUdeviceptr, CUresult, CUstream};

use crate::MISTAKE;
use crate::state::{Answer, Driver, Id, in_context, valid};
use crate::streams::{Op, capture};

const PAGE: usize = 4096;

/// Host memory that is registered.
pub(crate) struct HostRange {
    bytes: usize,
    pub(crate) context: Id,
}

impl Driver {
    /// Whether host memory is within one registered range, or outside of all: the driver takes no copy across an end of one.
    fn on_host(&self, at: *const c_void, bytes: usize) -> Answer {
        let from = at.addr();
        let to = from.checked_add(bytes).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let last = self.host.range(..to).next_back().map(|(&start, range)| (start, start + range.bytes));
        let whole = last.is_none_or(|(start, end)| end <= from || (start <= from && to <= end));
        valid(!at.is_null() && whole)
    }

    fn copy(&mut self, context: Id, stream: CUstream, copy: Op) -> Answer {
        let stream = self.stream_of(context, stream)?;
        self.put(stream, copy)
    }
}

/// Whether the process has all of this memory, and may write it.
fn is_mapped(from: usize, to: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut next = from;
    for line in maps.lines() {
        let Some((range, rest)) = line.split_once(' ') else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let number = |hex| usize::from_str_radix(hex, 16).unwrap_or(0);
        if (number(start)..number(end)).contains(&next) {
            if !rest.starts_with("rw") {
                return false;
            }
            next = number(end);
            if next >= to {
                return true;
            }
        }
    }
    false
}

#[unsafe(export_name = "cuMemHostRegister_v2")]
extern "C" fn register(at: *mut c_void, bytes: usize, flags: c_uint) -> CUresult {
    in_context("cuMemHostRegister_v2", |driver, context| {
        capture::unsafe_call(driver)?;
        let from = at.addr();
        let to = from.checked_add(bytes).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        if let Some(refusal) = driver.settings.pinning {
            return Err(refusal);
        }
        // Memory that is only read would have to be registered as such, which Genie never does.
        valid(from != 0 && bytes > 0 && flags <= 7 && is_mapped(from, to))?;
        // Pages are what is locked.
        let pages = (from / PAGE * PAGE, to.next_multiple_of(PAGE));
        let overlaps = |(&start, range): (&usize, &HostRange)| {
            start / PAGE * PAGE < pages.1 && (start + range.bytes).next_multiple_of(PAGE) > pages.0
        };
        if driver.host.iter().any(overlaps) {
            return Err(CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        }
        driver.host.insert(from, HostRange { bytes, context });
        Ok(())
    })
}

#[unsafe(export_name = "cuMemHostUnregister")]
extern "C" fn unregister(at: *mut c_void) -> CUresult {
    in_context("cuMemHostUnregister", |driver, _| {
        capture::unsafe_call(driver)?;
        let from = at.addr();
        let Some(range) = driver.host.get(&from) else {
            return Err(CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
        };
        if driver.streams.uses_host(from as u64, (from + range.bytes) as u64) {
            eprintln!("{MISTAKE} cuMemHostUnregister: a copy of this memory is under way");
            return Err(CUresult::CUDA_ERROR_ILLEGAL_STATE);
        }
        driver.host.remove(&from);
        Ok(())
    })
}

#[unsafe(export_name = "cuMemcpyHtoDAsync_v2")]
extern "C" fn to_gpu(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream) -> CUresult {
    in_context("cuMemcpyHtoDAsync_v2", |driver, context| {
        driver.on_gpu(to, bytes)?;
        driver.on_host(from, bytes)?;
        let copy = Op::Copy { to, from: from.addr() as u64, bytes, on_gpu: [true, false] };
        driver.copy(context, stream, copy)
    })
}

#[unsafe(export_name = "cuMemcpyDtoHAsync_v2")]
extern "C" fn from_gpu(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult {
    in_context("cuMemcpyDtoHAsync_v2", |driver, context| {
        driver.on_gpu(from, bytes)?;
        driver.on_host(to, bytes)?;
        let copy = Op::Copy { to: to.addr() as u64, from, bytes, on_gpu: [false, true] };
        driver.copy(context, stream, copy)
    })
}

#[unsafe(export_name = "cuMemcpyDtoDAsync_v2")]
extern "C" fn within(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult {
    in_context("cuMemcpyDtoDAsync_v2", |driver, context| {
        driver.on_gpu(from, bytes)?;
        driver.on_gpu(to, bytes)?;
        // What overlaps is copied in no order that anybody knows.
        valid(from.abs_diff(to) >= bytes as u64)?;
        driver.copy(context, stream, Op::Copy { to, from, bytes, on_gpu: [true, true] })
    })
}

#[unsafe(export_name = "cuMemsetD8Async")]
extern "C" fn fill(to: CUdeviceptr, byte: u8, bytes: usize, stream: CUstream) -> CUresult {
    in_context("cuMemsetD8Async", |driver, context| {
        driver.on_gpu(to, bytes)?;
        driver.copy(context, stream, Op::Fill { to, byte, bytes })
    })
}
