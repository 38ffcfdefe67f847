//! Weights on their way to a server.

use std::collections::VecDeque;
use std::sync::mpsc;

use bytes::Bytes;
use genie_transport::client::blocking::{Pending, PendingOffer, Session};
use genie_transport::client::{ClientError, PutOptions};
use genie_transport::wire::{ContentHash, Handle, Offered, TensorSpec};

use super::RemoteModelError;
use super::rebuild::release;
use crate::{Model, Weight};

/// What an upload came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// Weights that the server had.
    pub present: usize,
    /// Weights that were sent.
    pub sent: usize,
    /// Bytes of those that were sent.
    pub sent_bytes: u64,
}

/// Uploads in flight together.
const FLYING: usize = 8;

/// Type and shape of a weight as the wire has them.
///
/// # Errors
/// If it is larger than tensors can be.
pub fn weight_spec(weight: &Weight) -> Result<TensorSpec, RemoteModelError> {
    Ok(TensorSpec::new(weight.dtype(), weight.dims()).map_err(ClientError::from)?)
}

/// What a model's weights are offered as, in the order in which a program's nodes take them: their handles then are consecutive for a
/// bind, too. Beside each its place in [`Model::weights`].
pub(super) struct Entries {
    offered: Vec<(ContentHash, TensorSpec)>,
    order: Vec<usize>,
}

impl Entries {
    /// `nodes`: the node of each weight.
    pub(super) fn new(model: &Model, hashes: &[ContentHash], nodes: &[u32]) -> Result<Self, RemoteModelError> {
        let mut order: Vec<usize> = (0..model.weights().len()).collect();
        order.sort_by_key(|&i| nodes.get(i));
        let entry = |&i: &usize| Ok((hashes[i], weight_spec(&model.weights()[i])?));
        let offered = order.iter().map(entry).collect::<Result<Vec<_>, RemoteModelError>>()?;
        Ok(Self { offered, order })
    }

    /// Begins to offer them.
    pub(super) fn start(&self, session: &mut Session, device: u16) -> PendingOffer {
        session.start_offer(device, &self.offered)
    }
}

/// Makes a model's weights residents of the session, after they were offered: sends what the server lacks. `progress` gets the bytes
/// sent, and those to send. Gives handles in the order of [`Model::weights`]; where it fails, none of them is held there.
pub(super) fn upload(
    session: &mut Session,
    device: u16,
    model: &Model,
    entries: &Entries,
    offered: &[Offered],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Vec<Handle>, Uploaded), RemoteModelError> {
    let Entries { offered: entries, order } = entries;
    let mut handles: Vec<Option<Handle>> = vec![None; entries.len()];
    let mut missing = Vec::new();
    for (i, answer) in offered.iter().enumerate().take(entries.len()) {
        match answer {
            Offered::Present(handle) => handles[i] = Some(*handle),
            Offered::Absent | Offered::Partial(_) => missing.push(i),
        }
    }
    let total: u64 = missing.iter().map(|&i| entries[i].1.bytes()).sum();
    let uploaded = Uploaded { present: entries.len() - missing.len(), sent: missing.len(), sent_bytes: total };
    let mut done = 0;
    let sent = send(session, device, model, (entries, order), &missing, |i, handle| {
        handles[i] = Some(handle);
        done += entries[i].1.bytes();
        progress(done, total);
    });
    let mut placed: Vec<(usize, Handle)> =
        order.iter().copied().zip(handles).filter_map(|(i, h)| Some((i, h?))).collect();
    placed.sort_unstable_by_key(|(place, _)| *place);
    let handles: Vec<Handle> = placed.into_iter().map(|(_, handle)| handle).collect();
    let (got, all) = (handles.len(), entries.len());
    let complete = sent.map_err(RemoteModelError::from).and_then(|()| {
        let short = || format!("the server answered for {got} of {all} weights that were offered");
        if got == all { Ok(()) } else { Err(RemoteModelError::Inputs(short())) }
    });
    match complete {
        Ok(()) => Ok((handles, uploaded)),
        Err(error) => {
            release(session, handles);
            Err(error)
        }
    }
}

/// Sends the weights that are missing; `arrived` sees each that is there. Weights are converted on a thread of their own while
/// others are sent. Nothing is under way when it returns.
fn send(
    session: &mut Session,
    device: u16,
    model: &Model,
    (entries, order): (&[(ContentHash, TensorSpec)], &[usize]),
    missing: &[usize],
    mut arrived: impl FnMut(usize, Handle),
) -> Result<(), ClientError> {
    std::thread::scope(|scope| {
        // One waits while one is made: memory for converted weights is bounded by what flies and these two.
        let (give, take) = mpsc::sync_channel(1);
        scope.spawn(move || {
            for &i in missing {
                if give.send((i, Bytes::from_owner(model.weights()[order[i]].bytes()))).is_err() {
                    return;
                }
            }
        });
        let mut finish = |session: &mut Session, (i, pending): (usize, Pending)| {
            session.finish_put(pending).map(|tensor| arrived(i, tensor.handle))
        };
        let (mut flying, mut sent) = (VecDeque::new(), Ok(()));
        while sent.is_ok()
            && let Ok((i, data)) = take.recv()
        {
            let (hash, spec) = &entries[i];
            let options = PutOptions { device, name: None, weight: Some(*hash) };
            sent = session.start_put(spec, data, options).map(|pending| flying.push_back((i, pending)));
            if flying.len() == FLYING
                && let Some(first) = flying.pop_front()
            {
                sent = sent.and(finish(session, first));
            }
        }
        // What flies holds memory at both ends: its end is waited for, whatever became of the others.
        for one in flying {
            sent = sent.and(finish(session, one));
        }
        sent
    })
}
