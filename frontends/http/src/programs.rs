//! Graphs that were defined once, and are run by their handle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use genie_graph::VerifiedGraph;
use genie_transport::client::{BindInputs, Binding, ClientError, Program, Session};
use genie_transport::wire::{ContentHash, Handle};
use tokio::sync::OnceCell;

/// Programs that one session keeps. A server gives one session an eighth of all it holds, which are 1024 as a rule.
const MOST: usize = 96;

/// The programs of one session, by device and the hash of their graph.
pub(crate) struct Programs {
    session: Session,
    runtime: tokio::runtime::Handle,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_graph: HashMap<(u16, ContentHash), Slot>,
    uses: u64,
}

struct Slot {
    cell: Arc<OnceCell<Arc<Defined>>>,
    used: u64,
}

/// A program, freed with the last who uses it.
pub(crate) struct Defined {
    pub(crate) program: Program,
    /// Bound to nothing: all its inputs come with each run.
    pub(crate) binding: Binding,
    _held: Held,
}

/// Handles that are freed when this is dropped, whoever waits for it or not.
pub(crate) struct Held {
    session: Session,
    runtime: tokio::runtime::Handle,
    handles: Vec<Handle>,
}

impl Programs {
    pub(crate) fn new(session: Session, runtime: tokio::runtime::Handle) -> Self {
        Self { session, runtime, known: Mutex::default() }
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Nothing yet; handles are added.
    pub(crate) fn hold(&self) -> Held {
        Held { session: self.session.clone(), runtime: self.runtime.clone(), handles: Vec::new() }
    }

    /// The program of a graph on a device; defined if it is not. Whoever asks for the same one meanwhile waits for it.
    pub(crate) async fn get(&self, device: u16, graph: &VerifiedGraph) -> Result<Arc<Defined>, ClientError> {
        let cell = self.slot((device, ContentHash(graph.hash().0)));
        Ok(cell.get_or_try_init(|| self.define(device, graph)).await?.clone())
    }

    fn slot(&self, key: (u16, ContentHash)) -> Arc<OnceCell<Arc<Defined>>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.uses += 1;
        let used = known.uses;
        if let Some(slot) = known.by_graph.get_mut(&key) {
            slot.used = used;
            return slot.cell.clone();
        }
        if known.by_graph.len() >= MOST
            && let Some(oldest) = known.by_graph.iter().min_by_key(|(_, slot)| slot.used).map(|(key, _)| *key)
        {
            known.by_graph.remove(&oldest);
        }
        let cell = Arc::new(OnceCell::new());
        known.by_graph.insert(key, Slot { cell: cell.clone(), used });
        cell
    }

    async fn define(&self, device: u16, graph: &VerifiedGraph) -> Result<Arc<Defined>, ClientError> {
        let mut held = self.hold();
        let program = match self.session.define_known(device, ContentHash(graph.hash().0)).await? {
            Some(program) => program,
            None => self.session.define(device, graph.encode()).await?,
        };
        held.add(program.handle);
        let binding = self.session.bind(&program, &BindInputs::default()).await?;
        held.add(binding.0);
        Ok(Arc::new(Defined { program, binding, _held: held }))
    }
}

impl Held {
    pub(crate) fn add(&mut self, handle: Handle) {
        self.handles.push(handle);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (session, handles) = (self.session.clone(), std::mem::take(&mut self.handles));
        self.runtime.spawn(async move {
            // What was made last reads what was made first.
            for handle in handles.into_iter().rev() {
                if let Err(error) = session.free(handle).await {
                    // With its session, then.
                    tracing::debug!(%error, "a handle of the HTTP door was not freed");
                    return;
                }
            }
        });
    }
}
