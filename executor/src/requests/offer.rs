//! Offers of weights: singly, or as a set.

use std::sync::Arc;

use genie_transport::wire::{ContentHash, ErrorCode, HandleSpan, Offered, RemoteError, TensorSpec};

use super::{From, Outcome};
use crate::account::Charge;
use crate::core::Core;
use crate::replies::Answer;
use crate::residents::{Content, Tensor};
use crate::rights::tenant;
use crate::session::{Object, Session};
use crate::stats::add;
use crate::weights::Found;

/// A weight that was offered: what there is of it, and what the session pays for it.
type Wanted = (ContentHash, TensorSpec, Found, Option<Charge>);

/// What becomes of it: a tensor of the session, or the word that there is none.
type Brought = Result<Arc<Tensor>, Offered>;

impl Core {
    pub(super) fn offer(
        self: &Arc<Self>,
        from: &From<'_>,
        device: u16,
        entries: &[(ContentHash, TensorSpec)],
    ) -> Outcome {
        self.device(device)?;
        let wanted = self.wanted(from.session, device, entries)?;
        // Whether they are here or not: this client may be about to put them.
        self.sets.remember(tenant(&from.session.owner), entries);
        self.bring_all(from, device, wanted, |session, brought| {
            let mut state = session.lock();
            state.objects.has_room_for(brought.iter().filter(|one| one.is_ok()).count())?;
            let mut offered = Vec::with_capacity(brought.len());
            for one in brought {
                offered.push(match one {
                    Ok(tensor) => Offered::Present(state.insert(Object::Tensor(tensor))?),
                    Err(offered) => offered,
                });
            }
            Ok(Answer::Offered(offered))
        })
    }

    /// All weights of a set, or none. What its hash lets a client have is what the hashes of its weights do: it knows them, or was told by
    /// somebody who does.
    pub(super) fn offer_set(self: &Arc<Self>, from: &From<'_>, device: u16, hash: &ContentHash) -> Outcome {
        self.device(device)?;
        let epoch = self.config.settings.epoch;
        let unknown = move || Answer::OfferedSet { epoch, spans: Vec::new() };
        let Some(entries) = self.sets.find(hash) else { return Ok(Some(unknown())) };
        let is_here = |(hash, spec): &(ContentHash, TensorSpec)| {
            matches!(self.find_weight(device, hash, spec.bytes()), Found::Present(_) | Found::Evicted(_))
        };
        // Nothing is charged for a set that is not whole.
        if !entries.iter().all(is_here) {
            return Ok(Some(unknown()));
        }
        let wanted = self.wanted(from.session, device, &entries)?;
        let core = self.clone();
        self.bring_all(from, device, wanted, move |session, brought| {
            let Ok(tensors) = brought.into_iter().collect::<Result<Vec<_>, _>>() else { return Ok(unknown()) };
            let mut state = session.lock();
            state.objects.has_room_for(tensors.len())?;
            let mut handles = Vec::with_capacity(tensors.len());
            for tensor in tensors {
                handles.push(state.insert(Object::Tensor(tensor))?);
            }
            add(&core.stats.sets_found, 1);
            Ok(Answer::OfferedSet { epoch, spans: HandleSpan::of(handles) })
        })
    }

    /// What there is of each, paid for before anything is brought back.
    fn wanted(
        &self,
        session: &Session,
        device: u16,
        entries: &[(ContentHash, TensorSpec)],
    ) -> Result<Vec<Wanted>, RemoteError> {
        let mut wanted = Vec::with_capacity(entries.len());
        for (hash, spec) in entries {
            let found = self.find_weight(device, hash, spec.bytes());
            let charge = match found {
                Found::Present(_) | Found::Evicted(_) => Some(session.account.charge(spec.bytes())?),
                Found::Partial(_) | Found::Absent => None,
            };
            wanted.push((*hash, spec.clone(), found, charge));
        }
        Ok(wanted)
    }

    /// Answers with what is made of the weights; those that were evicted come back first, on another thread.
    fn bring_all(
        self: &Arc<Self>,
        from: &From<'_>,
        device: u16,
        wanted: Vec<Wanted>,
        answer: impl FnOnce(&Session, Vec<Brought>) -> Result<Answer, RemoteError> + Send + 'static,
    ) -> Outcome {
        if !wanted.iter().any(|(_, _, found, _)| matches!(found, Found::Evicted(_))) {
            return answer(from.session, self.brought(device, wanted)?).map(Some);
        }
        let (session, id) = (from.session.clone(), from.id);
        self.spawn(move |core| {
            let answer = core.brought(device, wanted).and_then(|brought| answer(&session, brought));
            session.complete(id, answer.unwrap_or_else(Answer::Failed));
        });
        Ok(None)
    }

    /// Tensors of the weights that there are.
    fn brought(self: &Arc<Self>, device: u16, wanted: Vec<Wanted>) -> Result<Vec<Brought>, RemoteError> {
        let mut all = Vec::with_capacity(wanted.len());
        for (hash, spec, found, charge) in wanted {
            let memory = match found {
                Found::Present(memory) => Ok(memory),
                Found::Evicted(copy) => match self.bring_weight(device, hash, copy) {
                    Ok(memory) => Ok(memory),
                    // Putting it says so.
                    Err(error) if error.code == ErrorCode::OutOfMemory => Err(Offered::Absent),
                    Err(error) => return Err(error),
                },
                Found::Partial(upload) => Err(Offered::Partial(upload.landing.landed_bytes())),
                Found::Absent => Err(Offered::Absent),
            };
            all.push(match (memory, charge) {
                (Ok(memory), Some(charge)) => Ok(Tensor::new(device, spec, Some(hash), Content::new(memory, charge))),
                (Ok(_), None) => Err(Offered::Absent),
                (Err(offered), _) => Err(offered),
            });
        }
        Ok(all)
    }
}
