//! When tensors were on the network and when they were copied, for a viewer: the trace event format of Chromium, which Perfetto reads.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Spans that are kept where nobody says otherwise: 128 GB in slices of a MiB, and some 15 MB of memory.
const MOST: usize = 1 << 18;

/// Spans of time on tracks, a process for each device. It keeps as many as it may, and counts those that came after.
#[derive(Debug)]
pub struct Trace {
    began: Instant,
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spans: Vec<Span>,
    left_out: u64,
    devices: BTreeMap<u32, String>,
    tracks: BTreeMap<(u32, u32), String>,
}

/// Something that took its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// What it was.
    pub(crate) what: What,
    /// The device's number.
    pub(crate) device: u32,
    /// One of the device's tracks. On one track, spans follow each other.
    pub(crate) track: u32,
    /// When it began.
    pub(crate) began: Instant,
    /// How long it took.
    pub(crate) took: Duration,
    /// Bytes that it was for.
    pub(crate) bytes: u64,
    /// Spans of one slice of a tensor have the same number.
    pub(crate) slice: u64,
}

/// What a span was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The network filled a slab. Its checksum is part of that.
    Receive,
    /// A copy from the host to the device.
    CopyIn,
    /// A copy from the device to the host.
    CopyOut,
    /// The network emptied a slab.
    Send,
}

impl What {
    /// As a viewer shows it, and the direction that it belongs to.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Receive => ("receive", "upload"),
            Self::CopyIn => ("copy to device", "upload"),
            Self::CopyOut => ("copy from device", "download"),
            Self::Send => ("send", "download"),
        }
    }
}

impl Trace {
    /// A trace that begins now.
    #[must_use]
    pub fn new() -> Self {
        Self::with_most(MOST)
    }

    /// One of so many spans at most.
    pub(crate) fn with_most(most: usize) -> Self {
        Self { began: Instant::now(), most, state: Mutex::default() }
    }

    /// Spans that there was no room for.
    pub fn left_out(&self) -> u64 {
        self.lock().left_out
    }

    /// What a device is called.
    pub(crate) fn name_device(&self, device: u32, name: String) {
        self.lock().devices.insert(device, name);
    }

    /// What one of a device's tracks is called.
    pub(crate) fn name_track(&self, device: u32, track: u32, name: String) {
        self.lock().tracks.insert((device, track), name);
    }

    /// Adds a span, if there is room.
    pub(crate) fn add(&self, span: Span) {
        let mut state = self.lock();
        if state.spans.len() < self.most {
            state.spans.push(span);
        } else {
            state.left_out += 1;
        }
    }

    /// Writes everything so far, as JSON: an object with `traceEvents`. Times are in microseconds since the trace began.
    ///
    /// # Errors
    /// What `to` says.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let state = self.lock();
        write!(to, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"left_out\":{}}},\"traceEvents\":[", state.left_out)?;
        let mut first = true;
        let mut next = |to: &mut dyn Write| {
            let comma = if std::mem::take(&mut first) { "\n" } else { ",\n" };
            to.write_all(comma.as_bytes())
        };
        // Viewers do without the events of a process or track 0. Names are the server's own: there is nothing in them to be escaped.
        for (device, name) in &state.devices {
            next(to)?;
            let pid = device + 1;
            write!(to, "{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{pid},\"args\":{{\"name\":\"{name}\"}}}}")?;
        }
        for ((device, track), name) in &state.tracks {
            next(to)?;
            let (pid, tid) = (device + 1, track + 1);
            write!(
                to,
                "{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":{pid},\"tid\":{tid},\"args\":{{\"name\":\"{name}\"}}}}"
            )?;
        }
        for span in &state.spans {
            next(to)?;
            let (name, category) = span.what.names();
            let at = micros(span.began.saturating_duration_since(self.began));
            let (took, pid, tid) = (micros(span.took), span.device + 1, span.track + 1);
            let (bytes, slice) = (span.bytes, span.slice);
            write!(
                to,
                "{{\"ph\":\"X\",\"name\":\"{name}\",\"cat\":\"{category}\",\"pid\":{pid},\"tid\":{tid},\"ts\":{at},\
                 \"dur\":{took},\"args\":{{\"bytes\":{bytes},\"slice\":{slice}}}}}"
            )?;
        }
        to.write_all(b"\n]}\n")
    }

    #[cfg(test)]
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.lock().spans.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

/// Microseconds, with what is below them behind the point.
fn micros(time: Duration) -> String {
    let nanos = time.as_nanos();
    format!("{}.{:03}", nanos / 1000, nanos % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(trace: &Trace, slice: u64) -> Span {
        Span {
            what: What::CopyIn,
            device: 1,
            track: 0,
            began: trace.began + Duration::from_nanos(1_234_005),
            took: Duration::from_nanos(70),
            bytes: 4096,
            slice,
        }
    }

    #[test]
    fn spans_are_written_in_microseconds_under_their_names() {
        let trace = Trace::new();
        trace.name_device(1, "cuda:1".to_owned());
        trace.name_track(1, 0, "copies to it".to_owned());
        trace.add(span(&trace, 7));
        let mut written = Vec::new();
        trace.write(&mut written).unwrap();
        let expected = "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"left_out\":0},\"traceEvents\":[\n\
            {\"ph\":\"M\",\"name\":\"process_name\",\"pid\":2,\"args\":{\"name\":\"cuda:1\"}},\n\
            {\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":2,\"tid\":1,\"args\":{\"name\":\"copies to it\"}},\n\
            {\"ph\":\"X\",\"name\":\"copy to device\",\"cat\":\"upload\",\"pid\":2,\"tid\":1,\"ts\":1234.005,\"dur\":0.070,\
            \"args\":{\"bytes\":4096,\"slice\":7}}\n]}\n";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }

    #[test]
    fn a_trace_that_is_full_counts_what_it_leaves_out() {
        let trace = Trace::with_most(2);
        (0..5).for_each(|slice| trace.add(span(&trace, slice)));
        assert_eq!((trace.spans().len(), trace.left_out()), (2, 3));
        let mut written = Vec::new();
        trace.write(&mut written).unwrap();
        assert!(String::from_utf8(written).unwrap().contains("\"left_out\":3"));
    }
}
