//! What a reader may see of something that is overwritten.

/// Moments are numbered in the order in which the test sees them.
pub(crate) type Moment = u64;

/// The value of a tensor or a name, as a history of writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Register {
    writes: Vec<Write>,
}

#[derive(Clone, Debug)]
struct Write {
    /// What it writes; several where the test cannot know which (the source of a copy was being written).
    tags: Vec<u32>,
    began: Moment,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// In flight, or nobody knows whether it took effect.
    Open,
    Applied(Moment),
    /// It failed, and changed nothing.
    Void,
}

impl Register {
    /// A register with a value.
    pub(crate) fn holding(tags: Vec<u32>, now: Moment) -> Self {
        Self { writes: vec![Write { tags, began: now, end: End::Applied(now) }] }
    }

    pub(crate) fn begin(&mut self, tag: u32, now: Moment) {
        self.writes.push(Write { tags: vec![tag], began: now, end: End::Open });
    }

    pub(crate) fn applied(&mut self, tag: u32, now: Moment) {
        self.set_end(tag, End::Applied(now));
    }

    pub(crate) fn void(&mut self, tag: u32) {
        self.set_end(tag, End::Void);
    }

    fn set_end(&mut self, tag: u32, end: End) {
        // A name's writes are forgotten with the server that had it.
        if let Some(write) = self.writes.iter_mut().find(|w| w.tags == [tag]) {
            write.end = end;
        }
    }

    /// What a read may give that began and ended at these moments: every write that began before the read ended, and was not
    /// overwritten by one that lay wholly between it and the read.
    pub(crate) fn allowed(&self, began: Moment, ended: Moment) -> Vec<u32> {
        let overwritten = |write: &Write| {
            let End::Applied(end) = write.end else { return false };
            self.writes.iter().any(|w| w.began > end && matches!(w.end, End::Applied(e) if e < began))
        };
        let seen = |w: &&Write| w.end != End::Void && w.began < ended && !overwritten(w);
        self.writes.iter().filter(seen).flat_map(|w| w.tags.iter().copied()).collect()
    }

    /// The server has lost it. Writes in flight may yet reach the next one.
    pub(crate) fn lose(&mut self) {
        self.writes.retain(|w| w.end == End::Open);
    }

    /// Everything that was ever written and may have been applied.
    pub(crate) fn any(&self) -> Vec<u32> {
        self.writes.iter().filter(|w| w.end != End::Void).flat_map(|w| w.tags.iter().copied()).collect()
    }

    /// Whether some write is over for sure, so that a reader finds something.
    pub(crate) fn is_set(&self, began: Moment) -> bool {
        self.writes.iter().any(|w| matches!(w.end, End::Applied(e) if e < began))
    }
}

/// Bytes that all carry one tag.
pub(crate) fn tagged(tag: u32, bytes: usize) -> Vec<u8> {
    tag.to_le_bytes().into_iter().cycle().take(bytes).collect()
}

/// The one tag of these bytes.
pub(crate) fn tag_of(bytes: &[u8]) -> Result<u32, String> {
    let (words, rest) = bytes.as_chunks::<4>();
    let first = words.first().ok_or("no bytes")?;
    match words.iter().position(|w| w != first) {
        None if rest.is_empty() => Ok(u32::from_le_bytes(*first)),
        None => Err(format!("{} odd bytes", rest.len())),
        Some(at) => Err(format!(
            "torn: tag {:#x} up to byte {}, then {:#x}",
            u32::from_le_bytes(*first),
            at * 4,
            u32::from_le_bytes(words[at])
        )),
    }
}
