//! What a server holds of a model, built again where it was lost.

use std::time::{Duration, Instant};

use genie_transport::client::blocking::Session;
use genie_transport::client::{BindInputs, Cache, ClientError, GenerateOptions, Program};
use genie_transport::wire::{Effect, ErrorCode, Handle};

use super::{Context, Live, Part, Plan, RemoteModel, RemoteModelError, Resident, Sampling, Stage, Uploaded, upload};

/// How often in a row a lost session is built again for one call.
const TRIES: u32 = 4;

/// For how long a device that took the session with it is waited for.
const DEVICE_AWAITED: Duration = Duration::from_secs(30);

impl RemoteModel {
    /// Does something that may find the session lost, again from a session that was built anew.
    pub(super) fn again<T>(
        &mut self,
        mut work: impl FnMut(&mut Self) -> Result<T, RemoteModelError>,
    ) -> Result<T, RemoteModelError> {
        let (lost, until) = (self.session.sessions_lost(), Instant::now() + DEVICE_AWAITED);
        let mut tries = 0;
        while tries < TRIES {
            match work(self) {
                Err(RemoteModelError::Client(error)) if is_loss(&error) => {
                    tracing::warn!(%error, "the session was lost: building it again");
                    tries += 1;
                    self.resident = None;
                    if is_farewell(&error) {
                        self.await_successor()?;
                    }
                }
                Err(RemoteModelError::Client(error)) if is_of_device(&error) => {
                    if Instant::now() >= until || !self.has_lost_session(lost)? {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, "the device failed: building again what was on it");
                    self.resident = None;
                }
                other => return other,
            }
        }
        Err(RemoteModelError::LostAgain(TRIES))
    }

    /// A request failed with its device: whether more than `lost` sessions were lost. The server ends a session that had anything on a
    /// device that lost everything, right after it said that the request failed.
    fn has_lost_session(&mut self, lost: u64) -> Result<bool, RemoteModelError> {
        /// A session that does not end goes on within this time.
        const LONGEST: Duration = Duration::from_secs(2);
        let until = Instant::now() + LONGEST;
        loop {
            // Also for a device that is not back yet.
            std::thread::sleep(Duration::from_millis(20));
            match self.session.ping() {
                Ok(_) => {}
                Err(error) if is_loss(&error) || error == ClientError::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            let is_lost = self.session.sessions_lost() != lost;
            if is_lost || Instant::now() >= until {
                return Ok(is_lost);
            }
        }
    }

    /// The server said that it is shutting down: waits until another has taken its place, for as long as the session tries to
    /// reach one.
    fn await_successor(&mut self) -> Result<(), RemoteModelError> {
        /// A server that has said so is gone within this time.
        const LONGEST: Duration = Duration::from_secs(30);
        let (until, lost) = (Instant::now() + LONGEST, self.session.sessions_lost());
        while self.session.sessions_lost() == lost && Instant::now() < until {
            match self.session.ping() {
                Ok(_) => {}
                Err(error) if is_loss(&error) || error == ClientError::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Weights and programs, brought to the server if they are not there. Holds nothing there if it fails.
    pub(super) fn resident(&mut self, progress: &mut dyn FnMut(Stage)) -> Result<&Resident, RemoteModelError> {
        let lost = self.session.sessions_lost();
        if lost != self.lost {
            // It was lost where no request of this told of it.
            self.resident = None;
        }
        if self.resident.is_none() {
            self.lost = lost;
            let mut made = Vec::new();
            let (resident, uploaded) = match self.establish_resident(&mut made, progress) {
                Ok(both) => both,
                Err(error) => {
                    release(&mut self.session, made);
                    return Err(error);
                }
            };
            self.uploaded = uploaded;
            self.life += 1;
            return Ok(self.resident.insert(resident));
        }
        self.resident.as_ref().ok_or_else(|| RemoteModelError::Inputs("it is not on the server".to_owned()))
    }

    /// Asks for weights and programs by their hashes, all at once, and sends what the server lacks. `made`: handles that it makes on its
    /// way, which are to be freed if it fails.
    fn establish_resident(
        &mut self,
        made: &mut Vec<Handle>,
        progress: &mut dyn FnMut(Stage),
    ) -> Result<(Resident, Uploaded), RemoteModelError> {
        let (session, device) = (&mut self.session, self.device);
        let entries = upload::Entries::new(&self.model, &self.hashes, &self.decode.weights)?;
        let offer = entries.start(session, device);
        let plans = [&self.prefill, &self.decode];
        let asked = plans.map(|plan| session.start_define_known(device, plan.hash));
        let offered = session.finish_offer(offer);
        let known = asked.map(|pending| session.finish_define_known(pending));
        made.extend(known.iter().flatten().flatten().map(|program| program.handle));
        let mut sent = |done, total| progress(Stage::Uploading(done, total));
        let (weights, uploaded) = upload::upload(session, device, &self.model, &entries, &offered?, &mut sent)?;
        made.extend(&weights);
        let [prefill, decode] = known;
        let mut define = |plan: &Plan, known: Result<Option<Program>, ClientError>| -> Result<Program, ClientError> {
            let known = known?;
            let program = plan.define_unless(session, device, known)?;
            if known.is_none() {
                made.push(program.handle);
            }
            Ok(program)
        };
        let (prefill, decode) = (define(&self.prefill, prefill)?, define(&self.decode, decode)?);
        Ok((Resident { weights, prefill, decode }, uploaded))
    }

    /// The server's side of a context, built again if it was lost. Holds nothing more there if that fails.
    pub(super) fn live(&mut self, context: &mut Context) -> Result<Live, RemoteModelError> {
        let program = self.resident(&mut |_| ())?.prefill;
        if let Some(live) = context.live.filter(|_| context.life == self.life) {
            return Ok(live);
        }
        let cache = self.session.create_cache(&program, self.prefill.kv, context.length)?;
        let live = self.bind(cache, context.sampling)?;
        if let Err(error) = self.replay(live, &context.history) {
            release(&mut self.session, live.handles());
            return Err(error);
        }
        context.live = Some(live);
        context.life = self.life;
        Ok(live)
    }

    /// Runs what was run, in the way in which it was.
    fn replay(&mut self, live: Live, history: &[Part]) -> Result<(), RemoteModelError> {
        let mut position = 0;
        for part in history {
            match part {
                Part::Whole(tokens) => {
                    self.run_prefill(live, tokens, position)?;
                    position += tokens.len() as u32;
                }
                Part::Prompt(tokens) => {
                    let options = GenerateOptions { position: Some(position), ..GenerateOptions::default() };
                    self.session.generate(live.prefill, live.decode, tokens, &options, |_| true)?;
                    position += tokens.len() as u32;
                }
                Part::Token(token) => {
                    self.run_decode(live, *token, position)?;
                    position += 1;
                }
            }
        }
        Ok(())
    }

    /// Bindings for a cache; frees it if that fails.
    pub(super) fn bind(&mut self, cache: Cache, sampling: Sampling) -> Result<Live, RemoteModelError> {
        let mut made = vec![cache.0];
        let bound = self.bind_both(cache, sampling, &mut made);
        if bound.is_err() {
            release(&mut self.session, made);
        }
        bound
    }

    /// `made`: handles that it makes on its way.
    fn bind_both(
        &mut self,
        cache: Cache,
        sampling: Sampling,
        made: &mut Vec<Handle>,
    ) -> Result<Live, RemoteModelError> {
        let values = sampling.values();
        let resident = self.resident(&mut |_| ())?;
        let (prefill, decode) = (resident.prefill, resident.decode);
        let weights = resident.weights.clone();
        let mut start = |program: &Program, plan: &Plan| {
            let residents = vec![(plan.kv, cache.0)];
            let inputs =
                BindInputs { weights: plan.bound(&weights), residents, fixed: plan.sampling(&values).to_vec() };
            self.session.start_bind(program, &inputs)
        };
        // Both are under way together.
        let started = [start(&prefill, &self.prefill), start(&decode, &self.decode)];
        let bound = started.map(|pending| self.session.finish_bind(pending?));
        made.extend(bound.iter().flatten().map(|binding| binding.0));
        let [prefill, decode] = bound;
        Ok(Live { cache, prefill: prefill?, decode: decode? })
    }

    /// After a run that failed: the server forgets what it ran of it, so that the context is there as it is here. Gives the
    /// error.
    pub(super) fn settled(&mut self, context: &mut Context, error: RemoteModelError) -> RemoteModelError {
        let ran = match &error {
            RemoteModelError::Client(ClientError::Remote(e)) => e.effect != Effect::None,
            RemoteModelError::Client(_) => true,
            _ => false,
        };
        if ran && !matches!(&error, RemoteModelError::Client(e) if is_loss(e)) {
            self.cut_back(context);
        }
        error
    }

    /// Makes the server's cache as long as the context. Where that fails, the context is built again when it is next used.
    pub(super) fn cut_back(&mut self, context: &mut Context) {
        let Some(live) = context.live else { return };
        if let Err(error) = self.session.truncate_cache(live.cache, context.length) {
            tracing::debug!(%error, "the context will be built again");
            context.live = None;
            if !is_loss(&error) {
                release(&mut self.session, live.handles());
            }
        }
    }
}

impl Live {
    /// Bindings before what they are bound to.
    pub(super) fn handles(&self) -> [Handle; 3] {
        [self.prefill.0, self.decode.0, self.cache.0]
    }
}

/// Frees what a failure leaves behind, as far as that is possible: the rest goes with the session.
pub(super) fn release(session: &mut Session, handles: impl IntoIterator<Item = Handle>) {
    for handle in handles {
        match session.free(handle) {
            Ok(()) => {}
            Err(error @ ClientError::Remote(_)) if !is_loss(&error) => {
                tracing::debug!(%error, ?handle, "not freed");
            }
            // The session is gone, and all it held with it.
            Err(_) => return,
        }
    }
}

/// Whether an error says that what the session held is gone, or about to go.
pub(super) fn is_loss(error: &ClientError) -> bool {
    match error {
        ClientError::SessionLost(_) => true,
        // A session that another connection has taken up is not lost: it is that one's now.
        ClientError::Remote(e) => matches!(e.code, ErrorCode::EpochGone | ErrorCode::ShuttingDown),
        _ => false,
    }
}

/// Whether a device failed: what was on it may be lost, and the session with it.
fn is_of_device(error: &ClientError) -> bool {
    matches!(error, ClientError::Remote(e) if e.code == ErrorCode::DeviceFailed)
}

/// Whether the server said that it is shutting down.
fn is_farewell(error: &ClientError) -> bool {
    matches!(error, ClientError::Remote(e) if e.code == ErrorCode::ShuttingDown)
}
