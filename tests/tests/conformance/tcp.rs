//! Sockets, with and without io_uring and TLS, over the loopback, with a relay between that can cut, hold back and corrupt.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use genie_graph::DType;
use genie_tests::authority::Authority;
use genie_tests::graphs::{Tiny, VOCABULARY, WIDTH, relu, tiny};
use genie_tests::here;
use genie_tests::proxy::{LaneFault, Proxy};
use genie_tests::serve::{Live, config};
use genie_transport::client::{
    BindInputs, Binding, ClientError, ConnectOptions, GenerateOptions, Input, Outputs, PutOptions, RunOptions, Tensor,
    Value, blocking,
};
use genie_transport::link::Access;
use genie_transport::link::tls::{TlsClient, TlsServer};
use genie_transport::wire::{ContentHash, Handle, Offered, OpenedSession, TensorSpec};

use crate::link::{Client, EAGER, Lanes, Link, Relayed, SLICE};

/// `SERVER` and `CLIENT`: whether that side is uring. `TLS`: whether both encrypt.
pub(crate) struct Sockets<const SERVER: bool, const CLIENT: bool, const TLS: bool = false> {
    proxy: Proxy,
    tls: Option<TlsClient>,
    _server: Live,
}

/// Both sides plain.
pub(crate) type Tcp = Sockets<false, false>;
/// The same, encrypted.
pub(crate) type Tcps = Sockets<false, false, true>;

impl<const SERVER: bool, const CLIENT: bool, const TLS: bool> Sockets<SERVER, CLIENT, TLS> {
    fn session(&self, more: impl FnOnce(&mut ConnectOptions)) -> blocking::Session {
        let mut options = ConnectOptions { tls: self.tls.clone(), ..ConnectOptions::default() };
        more(&mut options);
        let through = self.proxy.uri.to_string().replacen("tcp", scheme(CLIENT, TLS), 1);
        blocking::Session::connect(&through.parse().expect("an address"), options).expect("a session")
    }
}

fn scheme(uring: bool, tls: bool) -> &'static str {
    match (uring, tls) {
        (false, false) => "tcp",
        (false, true) => "tcps",
        (true, false) => "uring",
        (true, true) => "urings",
    }
}

impl<const SERVER: bool, const CLIENT: bool, const TLS: bool> Link for Sockets<SERVER, CLIENT, TLS> {
    type Client = blocking::Session;

    fn is_here() -> bool {
        [SERVER, CLIENT].iter().all(|&uring| here::has(scheme(uring, TLS)))
    }

    fn start() -> Self {
        let mut config = config(3);
        config.settings.eager_bytes = EAGER as u32;
        config.settings.slice_bytes = SLICE as u32;
        config.settings.stuck = Duration::from_millis(100);
        let uri = format!("{}://127.0.0.1:0", scheme(SERVER, TLS)).parse().expect("an address");
        if !TLS {
            let server = Live::start_at(config, &uri);
            return Self { proxy: Proxy::to(server.address()), tls: None, _server: server };
        }
        let authority = Authority::new();
        let (cert, key) = authority.sign("127.0.0.1", 30);
        let tls = Some(Arc::new(TlsServer::load(&cert, &key, None).expect("a certificate")));
        let server = Live::start_for(config, &uri, &Access { tls, ..Access::anybody() });
        let tls = Some(TlsClient::load(&authority.ca(), None).expect("a CA"));
        Self { proxy: Proxy::to_encrypted(server.address()), tls, _server: server }
    }

    fn connect(&self, resume: Option<OpenedSession>) -> Self::Client {
        self.session(|options| {
            options.client.lanes = 2;
            options.client.resume = resume;
        })
    }

    fn arrived(&self) -> u64 {
        self.proxy.passed().0
    }

    fn cut_after(&self, first: u64, each: u64) {
        self.proxy.cut_after(first, each);
    }

    fn cuts(&self) -> u64 {
        self.proxy.cuts()
    }

    fn hold_bulk(&self, held: bool) {
        self.proxy.hold_bulk_from(if held { 0 } else { u64::MAX });
    }

    fn corrupt(&self) {
        self.proxy.flip(10);
    }

    fn flipped(&self) -> u64 {
        self.proxy.flipped()
    }
}

impl<const SERVER: bool, const CLIENT: bool, const TLS: bool> Lanes for Sockets<SERVER, CLIENT, TLS> {
    fn connect_lanes(&self, lanes: u32) -> Self::Client {
        self.session(|options| {
            options.client.lanes = lanes;
            options.client.stuck = Duration::from_millis(100);
        })
    }

    fn lane_fault_after(&self, bytes: u64, fault: LaneFault) {
        self.proxy.lane_fault_after(bytes, fault);
    }

    fn lane_faults(&self) -> u64 {
        self.proxy.lane_faults()
    }

    fn opened_lanes(&self) -> (u64, u64) {
        self.proxy.lanes()
    }
}

impl<const SERVER: bool, const CLIENT: bool, const TLS: bool> Relayed for Sockets<SERVER, CLIENT, TLS> {
    fn relay(&self) -> &Proxy {
        &self.proxy
    }
}

impl Client for blocking::Session {
    type Ticket = blocking::Pending;

    fn opened(&mut self) -> OpenedSession {
        self.opened().expect("a session")
    }

    fn echo(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ClientError> {
        let mut back = Vec::new();
        self.echo(bytes, &mut back).map(|()| back)
    }

    fn start_put(&mut self, spec: &TensorSpec, data: Bytes) -> Self::Ticket {
        self.start_put(spec, data, PutOptions::default()).expect("the bytes fit the shape")
    }

    fn finish_put(&mut self, ticket: Self::Ticket) -> Result<Tensor, ClientError> {
        self.finish_put(ticket)
    }

    fn put_range(&mut self, tensor: &Tensor, offset: u64, data: Bytes) -> Result<Tensor, ClientError> {
        self.put_range(tensor, offset, data)
    }

    fn start_get(&mut self, handle: Handle, offset: u64, length: u64) -> Self::Ticket {
        self.start_get(handle, offset, length).expect("there is memory")
    }

    fn finish_get(&mut self, ticket: Self::Ticket) -> Result<Vec<u8>, ClientError> {
        self.finish_get(ticket).map(|region| region.to_vec())
    }

    fn put_weight(&mut self, spec: &TensorSpec, data: Bytes) -> Result<Tensor, ClientError> {
        let weight = Some(ContentHash::of(&data));
        self.put(spec, data, PutOptions { weight, ..PutOptions::default() })
    }

    fn offer(&mut self, entries: &[(ContentHash, TensorSpec)]) -> Result<Vec<Offered>, ClientError> {
        self.offer(0, entries)
    }

    fn free(&mut self, handle: Handle) -> Result<(), ClientError> {
        self.free(handle)
    }

    fn stats(&mut self) -> Result<Vec<(String, u64)>, ClientError> {
        self.stats()
    }

    fn generate(&mut self, max_new: u32, wanted: usize) -> (usize, Result<(), ClientError>) {
        let (_, binding) = bound(self);
        let options = GenerateOptions { max_new, ..GenerateOptions::default() };
        let mut came = 0;
        let end = self.generate(binding, binding, &[1, 2, 3], &options, |generated| {
            came += generated.tokens.len();
            came < wanted
        });
        (came, end.map(|_| ()))
    }

    fn steps(&mut self, count: u32, ahead: usize) -> Result<Vec<i32>, ClientError> {
        let (model, binding) = bound(self);
        let (mut asked, mut tokens) = (VecDeque::new(), vec![1_i32]);
        for position in 0..count {
            let options = RunOptions { position: Some(position), ..RunOptions::default() };
            let next = match asked.back() {
                Some(before) => self.start_run_on(before, binding, model.tokens, options)?,
                None => {
                    let data = tokens[tokens.len() - 1].to_le_bytes();
                    let input = Input { index: model.tokens, dtype: DType::I32, dims: &[1, 1], data: &data };
                    self.start_run(binding, &[input], options)?
                }
            };
            asked.push_back(next);
            let over = if position + 1 == count { asked.len() } else { asked.len().saturating_sub(ahead) };
            for step in asked.drain(..over) {
                tokens.push(self.finish_step(step)?);
            }
        }
        Ok(tokens.split_off(1))
    }

    fn relu(&mut self, tensors: &[Tensor]) -> Result<Vec<Vec<u8>>, ClientError> {
        let program = self.define(0, &relu().expect("the program is valid").encode())?;
        let binding = self.bind(&program, &BindInputs::default())?;
        let runs: Result<Vec<_>, _> = tensors
            .iter()
            .map(|tensor| self.start_run_with(binding, &[], &[(0, tensor)], RunOptions::default()))
            .collect();
        // Each is ended, whatever became of those before it.
        let ended: Vec<_> = runs?.into_iter().map(|run| self.finish_run(run)).collect();
        let output = |outputs: Outputs| match &outputs.values[..] {
            [Value::Inline { data, .. }] => data.clone(),
            other => panic!("{other:?}"),
        };
        ended.into_iter().map(|ran| ran.map(output)).collect()
    }
}

/// The tiny model, bound to a new cache.
fn bound(session: &mut blocking::Session) -> (Tiny, Binding) {
    let model = tiny().expect("the model is valid");
    let spec = TensorSpec::new(DType::F32, &[VOCABULARY, WIDTH]).expect("the table's shape");
    let table = session.put(&spec, Tiny::table_bytes().into(), PutOptions::default()).expect("the table");
    let program = session.define(0, &model.graph.encode()).expect("the program");
    let cache = session.create_cache(&program, model.cache, 0).expect("a cache");
    let real: Vec<u8> = [0_f32, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let fixed = vec![
        Input { index: model.real, dtype: DType::F32, dims: &[1, 2], data: &real },
        Input { index: model.int, dtype: DType::I64, dims: &[1, 2], data: &[0; 16] },
    ];
    let (weights, residents) = (vec![(model.table, table.handle)], vec![(model.cache, cache.0)]);
    let binding = session.bind(&program, &BindInputs { weights, residents, fixed }).expect("a binding");
    (model, binding)
}
