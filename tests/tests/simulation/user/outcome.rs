//! What came of a request: whether it may be so, and what the user knows from then on.

use genie_executor::Executor;
use genie_tests::answer::{Outcome, Told};
use genie_tests::graphs::VOCABULARY;
use genie_transport::connection::ClientError;
use genie_transport::link::sim::Sim;
use genie_transport::wire::{Effect, ErrorCode, Offered};

use super::{Flight, User, What};
use crate::register::{tag_of, tagged};
use crate::world::Shared;

impl User {
    pub(super) fn over(
        &mut self,
        flight: &Flight,
        outcome: Outcome,
        sim: &mut Sim<Executor>,
        shared: &mut Shared,
    ) -> Result<(), String> {
        match outcome {
            Ok(told) => self.succeeded(flight, told, sim, shared),
            Err(error) => self.failed(flight, &error, shared),
        }
    }

    fn succeeded(
        &mut self,
        flight: &Flight,
        told: Told,
        sim: &mut Sim<Executor>,
        shared: &mut Shared,
    ) -> Result<(), String> {
        let now = shared.moment();
        match (&flight.what, told) {
            (What::Table, Told::Tensor { handle, .. }) => self.table = Some(handle),
            (What::Define, Told::Program(handle, _)) => self.program = Some(handle),
            (What::New { tag, bytes, name }, Told::Tensor { handle, .. }) => {
                match name {
                    Some(name) if handle.epoch == shared.epoch => shared.names[*name].applied(*tag, now),
                    // It was applied to a server that is gone.
                    Some(name) => shared.names[*name].void(*tag),
                    None => {}
                }
                self.add_tensor(handle, *bytes, vec![*tag], false, now);
            }
            (What::Weight { tag, bytes }, Told::Tensor { handle, .. }) => {
                self.add_tensor(handle, *bytes, vec![*tag], true, now);
            }
            (What::Offer { tag, bytes }, Told::Offered(offered)) => match offered[..] {
                [Offered::Present(handle)] => self.add_tensor(handle, *bytes, vec![*tag], true, now),
                [Offered::Absent | Offered::Partial(_)] => {
                    self.put_weight(sim, shared, tagged(*tag, *bytes), What::Weight { tag: *tag, bytes: *bytes });
                }
                _ => return Err(format!("one offer, {} answers", offered.len())),
            },
            (What::OfferSet { members }, Told::OfferedSet(handles)) if handles.is_empty() => {
                shared.asked.sets_unknown += 1;
                self.offer_all(sim, shared, members.clone());
            }
            (What::OfferSet { members }, Told::OfferedSet(handles)) if handles.len() == members.len() => {
                shared.asked.sets_found += 1;
                for (&(tag, bytes), handle) in members.iter().zip(handles) {
                    self.add_tensor(handle, bytes, vec![tag], true, now);
                }
            }
            (What::OfferAll { members }, Told::Offered(offered)) if offered.len() == members.len() => {
                for (&(tag, bytes), answer) in members.iter().zip(offered) {
                    match answer {
                        Offered::Present(handle) => self.add_tensor(handle, bytes, vec![tag], true, now),
                        Offered::Absent | Offered::Partial(_) => {
                            self.put_weight(sim, shared, tagged(tag, bytes), What::Weight { tag, bytes });
                        }
                    }
                }
            }
            (What::Write { tensor, tag }, Told::Tensor { .. }) => self.tensor(*tensor)?.value.applied(*tag, now),
            (What::Read { tensor, bytes }, Told::Bytes(inline)) => {
                let landed = flight.landing.as_ref().map(|l| l.finish().ok_or("the landing is not whole"));
                let got = match landed {
                    Some(slabs) => slabs?.iter().flat_map(|s| s.to_vec()).collect(),
                    None => inline,
                };
                if got.len() != *bytes {
                    return Err(format!("{} bytes came, {bytes} were asked for", got.len()));
                }
                let tag = tag_of(&got)?;
                let allowed = self.tensor(*tensor)?.value.allowed(flight.began, now);
                if !allowed.contains(&tag) {
                    return Err(format!("read tag {tag:#x}; it may be one of {allowed:x?}"));
                }
            }
            (What::Copy { tensor }, Told::Tensor { handle, .. }) => {
                let source = self.tensor(*tensor)?;
                let (bytes, weight) = (source.bytes, source.weight);
                let tags = source.value.allowed(flight.began, now);
                self.add_tensor(handle, bytes, tags, weight, now);
            }
            (What::Free { tensor }, Told::Done) => self.tensors.retain(|t| t.number != *tensor),
            (What::Lookup { name }, Told::Tensor { handle, spec, .. }) => {
                let mut tags = shared.names[*name].allowed(flight.began, now);
                if flight.began < shared.lost_names.0 {
                    tags.extend(shared.lost_names.1[*name].any());
                }
                let bytes = spec.bytes() as usize;
                self.add_tensor(handle, bytes, tags, false, now);
            }
            (What::CreateCache, Told::Tensor { handle, .. }) => self.add_cache(handle, 0, 0),
            (What::Bind { cache }, Told::Bound(handle)) => {
                let cache = self.cache(*cache)?;
                cache.binding = Some(handle);
                cache.exclusive = false;
            }
            (What::Run { cache, on }, Told::Ran { position, outputs }) => {
                shared.asked.ahead += u64::from(*on);
                let cache = self.cache(*cache)?;
                let most = cache.most + cache.begun;
                if position <= cache.least || position > most {
                    return Err(format!("the cache has {position} tokens; it can have {} to {most}", cache.least + 1));
                }
                if !cache.positions.insert(position) {
                    return Err(format!("two runs made the cache {position} tokens long"));
                }
                let token = outputs.first().and_then(|o| o.first_chunk()).map(|t| i32::from_le_bytes(*t));
                if token.is_none_or(|t| !(0..VOCABULARY as i32).contains(&t)) {
                    return Err(format!("no token came: {outputs:?}"));
                }
            }
            (What::Generate { cache, prompt, new }, Told::Generated { position, tokens, .. }) => {
                let count = flight.tokens.len() + tokens.len();
                let cache = self.cache(*cache)?;
                cache.exclusive = false;
                let grown = prompt + new - 1;
                if count != *new as usize || !(cache.least + grown..=cache.most + grown).contains(&position) {
                    let (least, most) = (cache.least, cache.most);
                    return Err(format!("{count} tokens came, and the cache has {position} after {least} to {most}"));
                }
                (cache.least, cache.most) = (position, position);
            }
            (What::Fork { cache }, Told::Tensor { handle, .. }) => {
                let cache = self.cache(*cache)?;
                cache.exclusive = false;
                let (least, most) = (cache.least, cache.most);
                if self.caches.len() < 4 {
                    self.add_cache(handle, least, most);
                }
            }
            (What::Truncate { cache, length }, Told::Done) => {
                let cache = self.cache(*cache)?;
                cache.exclusive = false;
                (cache.least, cache.most) = (*length, *length);
            }
            (What::Echo { bytes }, Told::Bytes(back)) if *bytes == back => {}
            (_, told) => return Err(format!("the answer is {told:?}")),
        }
        Ok(())
    }

    fn failed(&mut self, flight: &Flight, error: &ClientError, shared: &mut Shared) -> Result<(), String> {
        let (gone, effect) = match error {
            ClientError::SessionLost(_) => (true, Effect::Unknown),
            ClientError::Remote(e) => {
                let expected = match e.code {
                    ErrorCode::Cancelled => flight.cancelled,
                    // Slices or frames were corrupted more often than anybody is patient.
                    ErrorCode::Corrupt => true,
                    ErrorCode::NoSuchName => match flight.what {
                        What::Lookup { name } => !shared.names[name].is_set(flight.began),
                        _ => false,
                    },
                    // The run whose token it takes was cancelled, came corrupted, or was answered while another came between.
                    ErrorCode::BadArgument => {
                        matches!(flight.what, What::Run { on: true, .. }) && e.effect == Effect::None
                    }
                    ErrorCode::StalePosition => false,
                    _ => false,
                };
                if !expected {
                    return Err(format!("failed: {error}"));
                }
                (false, e.effect)
            }
            ClientError::Corrupt(_) => (false, Effect::None),
            _ => return Err(format!("failed: {error}")),
        };
        let nothing = effect == Effect::None;
        match &flight.what {
            What::New { tag, name: Some(name), .. } if nothing => shared.names[*name].void(*tag),
            _ if gone => {}
            What::Write { tensor, tag } if nothing => self.tensor(*tensor)?.value.void(*tag),
            What::Free { tensor } if nothing => self.tensor(*tensor)?.freed = false,
            What::Run { cache, .. } => {
                let cache = self.cache(*cache)?;
                if nothing { cache.begun -= 1 } else { cache.unknown += 1 }
            }
            What::Generate { cache, prompt, new } => {
                let grown = if nothing { 0 } else { prompt + new };
                let cache = self.cache(*cache)?;
                cache.most += grown;
                cache.exclusive = false;
            }
            What::Bind { cache } | What::Fork { cache } | What::Truncate { cache, .. } => {
                if !nothing {
                    return Err(format!("its effect is unknown: {error}"));
                }
                self.cache(*cache)?.exclusive = false;
            }
            _ => {}
        }
        Ok(())
    }
}
