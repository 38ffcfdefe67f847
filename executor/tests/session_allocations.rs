//! A request on the small path allocates nothing: an echo, and a decode step as far as it is not the device's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use genie_executor::device::{
    Device, DeviceError, DeviceInfo, HostTensor, KvCache, KvSpec, Loaded, Memory, Row, Space,
};
use genie_executor::{Config, Executor, Mode};
use genie_graph::{Annotation, DType, Dim, GraphBuilder, InputRole, Op, Phase, Symbol, TensorType, VerifiedGraph};
use genie_transport::connection::{Peer, Recorder, Service};
use genie_transport::memory::Pool;
use genie_transport::wire::{
    Argument, Arguments, BindEntry, Handle, PutBody, PutRequest, PutTarget, Reply, Request, ResidencyCode, TensorSpec,
    write_argument, write_resident, write_token_of,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; counting touches a thread-local without a destructor, which never allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn an_echo_allocates_nothing() {
    let (executor, peer, _recorder) = server(Mode::Inline);
    let payload = [7; 64];
    let echo = |id| executor.request(&peer, id, Request::Echo(&payload), Instant::now());
    // The recorder's memory grows now and then: that much room and more is left after this.
    executor.request(&peer, 1, Request::Echo(&vec![0; 2 << 20]), Instant::now());
    (0..100).for_each(echo);
    assert_eq!(allocations(|| (100..1100).for_each(echo)), 0);
}

#[test]
fn a_decode_step_allocates_nothing() {
    let (executor, peer, recorder) = server(Mode::Inline);
    let binding = bound(&executor, &peer, &recorder);
    let mut bytes = Vec::new();
    write_argument(&mut bytes, 1, DType::I32, &[1, 1], &[3, 0, 0, 0]).unwrap();
    let arguments = Arguments::new(1, &bytes).unwrap();
    let run = |id| {
        let run = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments };
        executor.request(&peer, id, run, Instant::now());
    };
    // Until the window of replies is full and gives buffers back.
    (5..600).for_each(run);
    // The recorder's memory grows now and then: that much room and more is left after this.
    executor.request(&peer, 1, Request::Echo(&vec![0; 2 << 20]), Instant::now());
    (600..610).for_each(run);
    let n = 1000;
    let counted = allocations(|| (610..610 + n).for_each(run));
    assert_eq!(counted, 0, "in {n} steps");
    let frames = recorder.take();
    assert!(frames.len() as u64 >= n);
}

#[test]
fn a_decode_step_on_a_token_that_is_yet_to_come_allocates_nothing() {
    let (executor, peer, recorder) = server(Mode::Stepped);
    let binding = bound(&executor, &peer, &recorder);
    let first = {
        let mut bytes = Vec::new();
        write_argument(&mut bytes, 1, DType::I32, &[1, 1], &[3, 0, 0, 0]).unwrap();
        bytes
    };
    let ahead = (5..1610).map(|before| {
        let mut bytes = Vec::new();
        write_token_of(&mut bytes, 1, before);
        bytes
    });
    let all: Vec<Vec<u8>> = std::iter::once(first).chain(ahead).collect();
    let ask = |id: u64| {
        let arguments = Arguments::new(1, &all[id as usize - 5]).unwrap();
        let run = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments };
        executor.request(&peer, id, run, Instant::now());
    };
    ask(5);
    // Each is asked for before the one whose token it takes has run.
    let run = |id| {
        ask(id);
        assert!(executor.step());
    };
    (6..600).for_each(run);
    // As above.
    executor.request(&peer, 1, Request::Echo(&vec![0; 2 << 20]), Instant::now());
    (600..610).for_each(run);
    let counted = allocations(|| (610..1610).for_each(run));
    assert_eq!(counted, 0, "in 1000 steps");
    let last = recorder.take().pop().unwrap();
    let told = Reply::decode(&last.header, &last.meta, &last.payload).unwrap();
    // What the first was given, from run to run.
    let Reply::Ran { outputs, .. } = told else { panic!("{told:?}") };
    assert!(matches!(outputs.iter().next(), Some(Argument::Inline { data: [3, 0, 0, 0], .. })), "{outputs:?}");
    assert_eq!(last.header.id, 1608);
}

#[test]
fn a_decode_step_on_a_resident_allocates_nothing() {
    let (executor, peer, recorder) = server(Mode::Inline);
    let binding = bound(&executor, &peer, &recorder);
    let spec = TensorSpec::new(DType::I32, &[1, 1]).unwrap();
    let target = PutTarget::New { device: 0, residency: ResidencyCode::Private, hash: None, name: None };
    let put = PutRequest { target, spec: spec.clone(), body: PutBody::Inline(&[3, 0, 0, 0]) };
    let resident = ask(&executor, &peer, &recorder, 5, Request::Put(put));
    let mut bytes = Vec::new();
    write_resident(&mut bytes, 1, &spec, resident).unwrap();
    let arguments = Arguments::new(1, &bytes).unwrap();
    let run = |id| {
        let run = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments };
        executor.request(&peer, id, run, Instant::now());
    };
    (6..600).for_each(run);
    // As above.
    executor.request(&peer, 1, Request::Echo(&vec![0; 2 << 20]), Instant::now());
    (600..610).for_each(run);
    let counted = allocations(|| (610..1610).for_each(run));
    assert_eq!(counted, 0, "in 1000 steps");
    let last = recorder.take().pop().unwrap();
    let told = Reply::decode(&last.header, &last.meta, &last.payload).unwrap();
    let Reply::Ran { outputs, .. } = told else { panic!("{told:?}") };
    assert!(matches!(outputs.iter().next(), Some(Argument::Inline { data: [3, 0, 0, 0], .. })), "{outputs:?}");
}

fn ask(executor: &Executor, peer: &Arc<Peer>, recorder: &Recorder, id: u64, request: Request<'_>) -> Handle {
    recorder.take();
    executor.request(peer, id, request, Instant::now());
    while executor.step() {}
    let frame = recorder.take().pop().unwrap();
    handle(&Reply::decode(&frame.header, &frame.meta, &frame.payload).unwrap())
}

/// The program, bound to a cache with room, over requests 1 to 4.
fn bound(executor: &Executor, peer: &Arc<Peer>, recorder: &Recorder) -> Handle {
    let ask = |id, request: Request<'_>| ask(executor, peer, recorder, id, request);
    ask(1, Request::Open { quota: 0, lease_ms: 0 });
    let graph = graph().encode();
    let program = ask(2, Request::Define { device: 0, graph: &graph });
    let cache = ask(3, Request::CacheCreate { program, input: 0, reserve: 10_000 });
    let bound = vec![BindEntry { input: 0, handle: cache }];
    ask(4, Request::Bind { program, bound, weights: Vec::new(), arguments: Arguments::EMPTY })
}

fn server(mode: Mode) -> (Executor, Arc<Peer>, Recorder) {
    let mut config = Config::new(vec![Arc::new(Still(Pool::new(64 << 20)))], 1);
    config.mode = mode;
    let (peer, recorder) = Peer::detached();
    (Executor::new(config).unwrap(), peer, recorder)
}

fn handle(reply: &Reply<'_>) -> Handle {
    match reply {
        Reply::Program { handle, .. } | Reply::Bound(handle) | Reply::Tensor { handle, .. } => *handle,
        Reply::Opened(_) => Handle { index: 0, generation: 0, epoch: 0 },
        other => panic!("{other:?}"),
    }
}

/// The token back as the next token.
fn graph() -> VerifiedGraph {
    let (b, s) = (Dim::Symbol(Symbol::Batch), Dim::Symbol(Symbol::Sequence));
    let mut g = GraphBuilder::new("still");
    g.annotate(Annotation { phase: Phase::Decode, ..Annotation::default() });
    let dims = [Symbol::Position.into(), 1.into(), 2.into(), 1.into(), Op::KV_BLOCK.into(), 4.into()];
    g.input("cache", InputRole::KvCache, TensorType::new(DType::F32, dims)).unwrap();
    let tokens = g.input("tokens", InputRole::Tokens, TensorType::new(DType::I32, [b, s])).unwrap();
    let largest = genie_graph::ReduceKind::Max;
    let token = g.push(Op::Reduce { kind: largest, axes: vec![1], keep_dims: false }, &[tokens]).unwrap();
    g.output("token", token);
    g.finish().unwrap()
}

/// A device that does nothing, and allocates nothing.
struct Still(Pool);

impl Device for Still {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            index: 0,
            name: "still:0".to_owned(),
            model: String::new(),
            total_bytes: self.0.limit(),
            free_bytes: self.0.limit() - self.0.used(),
            capability: String::new(),
        }
    }

    fn allocate(&self, bytes: u64) -> Result<Space, DeviceError> {
        Ok(Space::Host(self.0.take(bytes as usize)?))
    }

    fn reads_host_memory(&self) -> bool {
        true
    }

    fn cache(&self, spec: KvSpec) -> Result<KvCache, DeviceError> {
        KvCache::new(spec, Arc::new(self.0.clone()))
    }

    fn load(&self, _graph: Arc<VerifiedGraph>) -> Result<Arc<dyn Loaded>, DeviceError> {
        Ok(Arc::new(Nothing))
    }
}

struct Nothing;

impl Loaded for Nothing {
    fn run(&self, _weights: &[Memory], rows: &mut [Row<'_>]) -> Result<(), DeviceError> {
        for row in rows {
            if row.outputs.is_empty() {
                let output = HostTensor { dtype: Some(DType::I32), dims: vec![1], data: vec![0; 4] };
                row.outputs.push(output);
            }
            let token = match row.residents.first() {
                Some(Some(memory)) => memory.host().unwrap(),
                _ => &row.arguments[0].data[..],
            };
            row.outputs[0].data.copy_from_slice(token);
        }
        Ok(())
    }
}
