//! Define, bind, run, generate.

use std::sync::Arc;

use genie_transport::wire::{Arguments, BindEntry, ContentHash, ErrorCode, Handle, HandleSpan, RemoteError};

use super::{From, Outcome};
use crate::account::HostMemory;
use crate::buffers::{With, inline_bytes};
use crate::core::Core;
use crate::error::fail;
use crate::generate::{Generation, Wish};
use crate::programs::{Binding, Program};
use crate::replies::Answer;
use crate::scheduler::Job;
use crate::session::{Object, State, Work};

/// One session may have one in so many of the server's programs.
const SHARE: usize = 8;

impl Core {
    /// Verifying and planning a graph takes long enough to be done elsewhere.
    pub(super) fn define(self: &Arc<Self>, from: &From<'_>, device: u16, graph: &[u8]) -> Outcome {
        self.device(device)?;
        self.may_define(from)?;
        // What a program takes beside its graph is of the graph's order.
        let charge = Arc::new(from.session.account.charge(graph.len() as u64)?);
        let (session, id, graph) = (from.session.clone(), from.id, graph.to_vec());
        self.spawn(move |core| {
            let program = core.plan(device, &graph);
            session.complete_with(id, |state| {
                let program = match program {
                    Ok(program) => program,
                    Err(error) => return Answer::Failed(error),
                };
                let hash = program.hash();
                if let Err(error) = core.has_room_for_program(state) {
                    return Answer::Failed(error);
                }
                match state.insert(Object::Program { program, _charge: charge }) {
                    Ok(handle) => Answer::Program { handle, hash },
                    Err(error) => Answer::Failed(error),
                }
            });
        });
        Ok(None)
    }

    /// A graph that is planned already, by its hash: whoever has the weights needs not send what runs on them.
    pub(super) fn define_known(&self, from: &From<'_>, device: u16, hash: &ContentHash) -> Outcome {
        self.device(device)?;
        self.may_define(from)?;
        let Some(program) = self.programs.find(device, hash) else {
            return Err(fail(ErrorCode::NoSuchName, format!("no graph here hashes to {hash:?}..: send it whole")));
        };
        let charge = Arc::new(from.session.account.charge(program.graph.encode().len() as u64)?);
        let handle = from.session.lock().insert(Object::Program { program, _charge: charge })?;
        Ok(Some(Answer::Program { handle, hash: *hash }))
    }

    fn may_define(&self, from: &From<'_>) -> Result<(), RemoteError> {
        let state = from.session.lock();
        state.objects.has_room()?;
        self.has_room_for_program(&state)
    }

    /// Programs are the whole server's, and few: no session may have all of them.
    fn has_room_for_program(&self, state: &State) -> Result<(), RemoteError> {
        let most = (self.config.max_programs / SHARE).max(1);
        if state.programs() < most {
            return Ok(());
        }
        let message = format!("the session has {most} programs, all that one may have: free some, and their bindings");
        Err(fail(ErrorCode::Busy, message))
    }

    fn plan(&self, device: u16, graph: &[u8]) -> Result<Arc<Program>, RemoteError> {
        let bad_graph =
            |what: &dyn std::fmt::Display| fail(ErrorCode::BadGraph, format!("the graph is refused: {what}"));
        let graph = genie_graph::decode(graph).map_err(|e| bad_graph(&e))?;
        let graph = genie_graph::verify(graph).map_err(|e| bad_graph(&e))?;
        let hash = ContentHash(graph.hash().0);
        if let Some(program) = self.programs.find(device, &hash) {
            return Ok(program);
        }
        let graph = Arc::new(graph);
        let loaded = self.device(device)?.load(graph.clone())?;
        self.programs.share(Program::new(graph, loaded, device)?)
    }

    pub(super) fn bind(
        &self,
        from: &From<'_>,
        program: Handle,
        (bound, weights): (&[BindEntry], &[HandleSpan]),
        arguments: Arguments<'_>,
    ) -> Outcome {
        let epoch = program.epoch;
        let program = from.session.program(program)?;
        let bound: Vec<BindEntry> = program.weight_entries(weights, epoch)?.chain(bound.iter().copied()).collect();
        let binding = Binding::new(from.session, program, &bound, arguments)?;
        let handle = from.session.lock().insert(Object::Binding(binding))?;
        Ok(Some(Answer::Bound(handle)))
    }

    pub(super) fn run(
        self: &Arc<Self>,
        from: &From<'_>,
        binding: Handle,
        position: Option<u32>,
        (wanted, keep): (u64, u64),
        arguments: Arguments<'_>,
    ) -> Outcome {
        let binding = from.session.binding(binding)?;
        let taken = binding.fixed_bytes().saturating_add(inline_bytes(arguments));
        let host = HostMemory::new(&from.session.account, taken)?;
        let mut buffers = binding.buffers();
        let filled = binding.fill(&mut buffers, arguments, With::Run(from.session));
        let sizes = match filled.and_then(|()| binding.sizes(&buffers)) {
            Ok(sizes) => sizes,
            Err(error) => {
                binding.recycle(buffers);
                return Err(error);
            }
        };
        let job = Job {
            session: from.session.clone(),
            id: from.id,
            binding,
            buffers,
            sizes,
            position,
            wanted,
            keep,
            kept: Vec::new(),
            host,
            generation: None,
            turns: 0,
            changed: false,
        };
        job.start(self);
        Ok(None)
    }

    pub(super) fn generate(self: &Arc<Self>, from: &From<'_>, wish: &Wish<'_>) -> Outcome {
        let job = Generation::job(self, from.session.clone(), from.id, wish)?;
        if let Some(pending) = from.session.lock().pending.iter_mut().find(|p| p.id == from.id) {
            let device = job.binding.program.device;
            pending.work = Work::Generate { device, position: 0, tokens: Vec::new() };
        }
        job.start(self);
        Ok(None)
    }
}
