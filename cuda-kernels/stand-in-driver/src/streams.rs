//! Streams: what was put into them and is not done yet, and the events that order them.

pub(crate) mod capture;
mod graphs;
mod timing;

use std::collections::{HashMap, VecDeque};
use std::ffi::{c_int, c_uint};
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::sys::{CUevent, CUresult, CUstream};
use genie_cuda_kernels::Launch;

use self::capture::Recording;
pub(crate) use self::graphs::Executable;
use crate::libraries::Foreign;
use crate::state::{Answer, Driver, Id, give, handle, id, in_context, valid};

/// One thing to do. Sizes and places were checked when it was put into its stream.
#[derive(Clone)]
pub(crate) enum Op {
    /// `on_gpu`: whether the GPU's memory is written, and whether it is read.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
        on_gpu: [bool; 2],
    },
    Fill {
        to: u64,
        byte: u8,
        bytes: usize,
    },
    Launch(Box<Launch>),
    /// A kernel of another library.
    Foreign(Arc<Foreign>),
    Allocate(u64),
    Free(u64),
    Record(Id),
    Wait(Id),
    Replay(Arc<[Self]>),
}

/// A stream.
struct Stream {
    context: Id,
    waiting: VecDeque<Op>,
    recording: Option<Recording>,
}

/// All streams of all contexts.
#[derive(Default)]
pub(crate) struct Streams {
    all: HashMap<Id, Stream>,
    /// Moments that are still to come, with the streams that they are in.
    moments: HashMap<Id, Id>,
    /// How often it was asked whether they have come.
    asked: HashMap<Id, u32>,
    /// When those moments came that somebody may ask after; none of one that is still to come.
    times: HashMap<Id, Option<Instant>>,
}

/// An event: the moment that it was recorded at last.
pub(crate) struct Event {
    pub(crate) context: Id,
    moment: Option<Id>,
    timed: bool,
}

impl Streams {
    /// Puts something behind all that waits.
    pub(crate) fn push(&mut self, stream: Id, op: Op) {
        if let Some(stream) = self.all.get_mut(&stream) {
            stream.waiting.push_back(op);
        }
    }

    /// A context is gone, with what waits in its streams.
    pub(crate) fn forget(&mut self, context: Id) {
        self.all.retain(|_, stream| stream.context != context);
        let all = &self.all;
        self.moments.retain(|_, stream| all.contains_key(stream));
        let moments = &self.moments;
        self.asked.retain(|moment, _| moments.contains_key(moment));
    }

    /// Whether a copy that waits uses host memory from here to there.
    pub(crate) fn uses_host(&self, from: u64, to: u64) -> bool {
        let uses = |op: &Op| match op {
            Op::Copy { to: target, from: source, bytes, on_gpu } => {
                let touches = |at: u64| at < to && at + *bytes as u64 > from;
                (!on_gpu[0] && touches(*target)) || (!on_gpu[1] && touches(*source))
            }
            _ => false,
        };
        let all = |op: &Op| match op {
            Op::Replay(ops) => ops.iter().any(uses),
            op => uses(op),
        };
        self.all.values().flat_map(|stream| &stream.waiting).any(all)
    }

    #[cfg(test)]
    pub(crate) fn insert_for_test(&mut self, context: Id) -> Id {
        self.all.insert(1, Stream { context, waiting: VecDeque::new(), recording: None });
        1
    }
}

impl Driver {
    /// The stream, which is this context's.
    pub(crate) fn stream_of(&self, context: Id, stream: CUstream) -> Answer<Id> {
        let id = id(stream);
        let there = self.streams.all.get(&id).is_some_and(|stream| stream.context == context);
        if there { Ok(id) } else { Err(CUresult::CUDA_ERROR_INVALID_HANDLE) }
    }

    /// Puts work into a stream, or into what it records.
    pub(crate) fn put(&mut self, stream: Id, op: Op) -> Answer {
        let to = self.streams.all.get_mut(&stream).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        match &mut to.recording {
            Some(recording) => recording.add(op),
            None => {
                to.waiting.push_back(op);
                Ok(())
            }
        }
    }

    /// Does the oldest thing of a stream, and first what it waits for; false if there is none. A fault ends the stream's context.
    pub(crate) fn step(&mut self, stream: Id) -> Answer<bool> {
        let Some(of) = self.streams.all.get_mut(&stream) else { return Ok(false) };
        let context = of.context;
        if let Some(Op::Wait(moment)) = of.waiting.front() {
            let moment = *moment;
            self.reach(moment)?;
        }
        let Some(op) = self.streams.all.get_mut(&stream).and_then(|stream| stream.waiting.pop_front()) else {
            return Ok(false);
        };
        let done = self.perform(context, op);
        done.inspect_err(|&fault| self.broke(context, fault)).map(|()| true)
    }

    /// Does all that comes before a moment.
    fn reach(&mut self, moment: Id) -> Answer {
        while let Some(&stream) = self.streams.moments.get(&moment) {
            self.step(stream)?;
        }
        Ok(())
    }

    /// Does all that waits in a stream.
    fn finish(&mut self, stream: Id) -> Answer {
        while self.step(stream)? {}
        Ok(())
    }

    /// Does all that waits in the streams of a context.
    pub(crate) fn finish_all(&mut self, context: Id) -> Answer {
        let of = |(&id, stream): (&Id, &Stream)| (stream.context == context).then_some(id);
        let streams: Vec<Id> = self.streams.all.iter().filter_map(of).collect();
        streams.into_iter().try_for_each(|stream| self.finish(stream))
    }

    fn perform(&mut self, context: Id, op: Op) -> Answer {
        self.open_memory();
        match op {
            Op::Copy { to, from, bytes, on_gpu } => {
                for (at, is_gpu) in [(to, on_gpu[0]), (from, on_gpu[1])] {
                    if is_gpu && !self.can_touch(at, bytes) {
                        return Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
                    }
                }
                // SAFETY: the GPU's memory is there, as was just seen; the host's is as whoever put the copy into the stream said.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
            }
            Op::Fill { to, byte, bytes } => {
                if !self.can_touch(to, bytes) {
                    return Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
                }
                // SAFETY: it is there, as was just seen.
                unsafe { (to as *mut u8).write_bytes(byte, bytes) };
            }
            Op::Launch(launch) if !self.settings.wrong.as_ref().is_some_and(|file| file.exists()) => {
                self.run(context, &launch)?;
            }
            Op::Launch(_) => {}
            Op::Foreign(kernel) => self.run_foreign(context, &kernel)?,
            Op::Allocate(at) => self.allocated(at),
            Op::Free(at) => self.freed(at),
            Op::Record(moment) => {
                self.streams.moments.remove(&moment);
                self.streams.asked.remove(&moment);
                self.streams.times.entry(moment).and_modify(|time| *time = Some(Instant::now()));
            }
            Op::Wait(_) => {}
            Op::Replay(ops) => ops.iter().cloned().try_for_each(|op| self.perform(context, op))?,
        }
        Ok(())
    }

    fn event_of(&self, context: Id, event: CUevent) -> Answer<&Event> {
        let event = self.events.get(&id(event)).filter(|event| event.context == context);
        event.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }

    /// The moment of an event, if it is still to come.
    fn coming(&self, context: Id, event: CUevent) -> Answer<Option<(Id, Id)>> {
        let moment = self.event_of(context, event)?.moment;
        Ok(moment.and_then(|moment| self.streams.moments.get(&moment).map(|&stream| (moment, stream))))
    }
}

/// # Safety
/// Here, and for every function below: what is written to can be written.
#[unsafe(export_name = "cuStreamCreate")]
unsafe extern "C" fn create(stream: *mut CUstream, flags: c_uint) -> CUresult {
    // SAFETY: as the caller has it.
    unsafe { create_with_priority(stream, flags, 0) }
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuStreamCreateWithPriority")]
unsafe extern "C" fn create_with_priority(stream: *mut CUstream, flags: c_uint, _priority: c_int) -> CUresult {
    in_context("cuStreamCreateWithPriority", |driver, context| {
        valid(flags <= 1)?;
        let new = driver.new_id();
        driver.streams.all.insert(new, Stream { context, waiting: VecDeque::new(), recording: None });
        // SAFETY: as the caller has it.
        unsafe { give(stream, handle(new)) }
    })
}

#[unsafe(export_name = "cuStreamDestroy_v2")]
extern "C" fn destroy(stream: CUstream) -> CUresult {
    in_context("cuStreamDestroy_v2", |driver, context| {
        let stream = driver.stream_of(context, stream)?;
        // The driver does the rest later, by itself.
        driver.finish(stream)?;
        driver.streams.all.remove(&stream);
        Ok(())
    })
}

#[unsafe(export_name = "cuStreamSynchronize")]
extern "C" fn synchronize(stream: CUstream) -> CUresult {
    in_context("cuStreamSynchronize", |driver, context| {
        let stream = driver.stream_of(context, stream)?;
        capture::never(driver, stream)?;
        capture::unsafe_call(driver)?;
        driver.finish(stream)
    })
}

#[unsafe(export_name = "cuStreamQuery")]
extern "C" fn query(stream: CUstream) -> CUresult {
    in_context("cuStreamQuery", |driver, context| {
        let stream = driver.stream_of(context, stream)?;
        capture::never(driver, stream)?;
        capture::unsafe_call(driver)?;
        driver.step(stream)?;
        let empty = driver.streams.all.get(&stream).is_none_or(|stream| stream.waiting.is_empty());
        if empty { Ok(()) } else { Err(CUresult::CUDA_ERROR_NOT_READY) }
    })
}

#[unsafe(export_name = "cuStreamWaitEvent")]
extern "C" fn wait(stream: CUstream, event: CUevent, flags: c_uint) -> CUresult {
    in_context("cuStreamWaitEvent", |driver, context| {
        valid(flags == 0)?;
        let stream = driver.stream_of(context, stream)?;
        let recorded = driver.event_of(context, event)?.moment.is_some();
        let coming = driver.coming(context, event)?;
        if recorded {
            // What is outside of a recording cannot be waited for in it.
            capture::isolated(driver, stream)?;
        }
        if let Some((moment, _)) = coming {
            driver.streams.push(stream, Op::Wait(moment));
        }
        Ok(())
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuEventCreate")]
unsafe extern "C" fn event(event: *mut CUevent, flags: c_uint) -> CUresult {
    const TIMING_OFF: u32 = 2;
    const BETWEEN_PROCESSES: u32 = 4;
    in_context("cuEventCreate", |driver, context| {
        valid(flags <= 7 && (flags & BETWEEN_PROCESSES == 0 || flags & TIMING_OFF != 0))?;
        let new = driver.new_id();
        driver.events.insert(new, Event { context, moment: None, timed: flags & TIMING_OFF == 0 });
        // SAFETY: as the caller has it.
        unsafe { give(event, handle(new)) }
    })
}

#[unsafe(export_name = "cuEventDestroy_v2")]
extern "C" fn event_destroy(event: CUevent) -> CUresult {
    in_context("cuEventDestroy_v2", |driver, context| {
        let moment = driver.event_of(context, event)?.moment;
        driver.events.remove(&id(event));
        moment.map(|moment| driver.streams.times.remove(&moment));
        Ok(())
    })
}

#[unsafe(export_name = "cuEventRecord")]
extern "C" fn event_record(event: CUevent, stream: CUstream) -> CUresult {
    in_context("cuEventRecord", |driver, context| {
        let stream = driver.stream_of(context, stream)?;
        driver.event_of(context, event)?;
        capture::never(driver, stream)?;
        let moment = driver.new_id();
        driver.streams.moments.insert(moment, stream);
        driver.streams.push(stream, Op::Record(moment));
        if let Some(event) = driver.events.get_mut(&id(event)) {
            let before = event.moment.replace(moment);
            before.map(|before| driver.streams.times.remove(&before));
            if event.timed {
                driver.streams.times.insert(moment, None);
            }
        }
        Ok(())
    })
}

#[unsafe(export_name = "cuEventQuery")]
extern "C" fn event_query(event: CUevent) -> CUresult {
    /// From so many times on nothing is held back.
    const DOUBLED: u32 = 20;
    in_context("cuEventQuery", |driver, context| {
        capture::unsafe_call(driver)?;
        if let Some(hang) = driver.settings.hang.as_ref().filter(|file| file.exists()) {
            driver.event_of(context, event)?;
            // Who made it hang waits for this. Where it cannot be written, they say so.
            let _ = std::fs::write(hang.with_extension("seen"), "");
            return Err(CUresult::CUDA_ERROR_NOT_READY);
        }
        // Who asks once is told no; who asks in a loop gets there, the quicker the longer it has asked.
        if let Some((moment, stream)) = driver.coming(context, event)? {
            let asked = driver.streams.asked.entry(moment).or_insert(0);
            let steps = 1_u32 << (*asked).min(DOUBLED);
            *asked += 1;
            for _ in 0..steps {
                if !driver.streams.moments.contains_key(&moment) {
                    break;
                }
                driver.step(stream)?;
            }
        }
        if driver.coming(context, event)?.is_some() { Err(CUresult::CUDA_ERROR_NOT_READY) } else { Ok(()) }
    })
}
