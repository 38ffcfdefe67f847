//! A session that others' faults must not touch.

use bytes::Bytes;
use genie_graph::DType;
use genie_transport::client::{BindInputs, Binding, ConnectOptions, Input, PutOptions, RunOptions, Tensor, blocking};
use genie_transport::wire::TensorSpec;

use crate::graphs::{Tiny, VOCABULARY, WIDTH, tiny};
use crate::serve::Live;

/// Opened before a fault, it has a tensor larger than a slice and a model with a KV cache, and knows what each must say.
pub struct Witness {
    session: blocking::Session,
    tensor: Tensor,
    bytes: Bytes,
    model: Tiny,
    binding: Binding,
    said: usize,
    expected: Vec<i32>,
}

/// Steps that it can take.
const STEPS: usize = 200;
/// The token that it begins with.
const FIRST: i32 = 3;

impl Witness {
    /// A session on this server.
    ///
    /// # Panics
    /// If the server refuses anything of it.
    pub fn new(server: &Live) -> Self {
        let mut session = blocking::Session::connect(&server.uri, ConnectOptions::default()).expect("a session");
        let bytes: Bytes = (0..700_001_u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        let spec = TensorSpec::new(DType::U8, &[bytes.len() as u64]).expect("a shape");
        let tensor = session.put(&spec, bytes.clone(), PutOptions::default()).expect("a tensor");
        let model = tiny().expect("the model is valid");
        let rehearsal = bind(&mut session, &model);
        let mut expected = vec![FIRST];
        for _ in 0..STEPS {
            let last = expected[expected.len() - 1];
            expected.push(step(&mut session, &model, rehearsal, last, expected.len() - 1));
        }
        let binding = bind(&mut session, &model);
        Self { session, tensor, bytes, model, binding, said: 0, expected }
    }

    /// Looks at all that it has, and goes on a little.
    ///
    /// # Panics
    /// If anything is not as it should be.
    pub fn is_unharmed(&mut self) {
        assert_eq!(self.session.sessions_lost(), 0);
        self.steps(3);
        let got = self.session.get(&self.tensor).expect("its tensor is there");
        assert!(got[..] == self.bytes[..], "its tensor has other bytes");
        self.session.recycle(got);
        let mut back = Vec::new();
        self.session.echo(b"unharmed", &mut back).expect("an echo");
        assert_eq!(back, b"unharmed");
    }

    /// Takes some decode steps, which must say what they said before.
    ///
    /// # Panics
    /// If they do not.
    pub fn steps(&mut self, count: usize) {
        for _ in 0..count {
            if self.said == STEPS {
                self.binding = bind(&mut self.session, &self.model);
                self.said = 0;
            }
            let next = step(&mut self.session, &self.model, self.binding, self.expected[self.said], self.said);
            self.said += 1;
            assert_eq!(next, self.expected[self.said], "token {} of its text", self.said);
        }
    }

    /// Its session, to ask for more.
    pub fn session(&mut self) -> &mut blocking::Session {
        &mut self.session
    }

    /// Its tensor, of which others may try the handle.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}

/// The tiny model with a cache of its own.
fn bind(session: &mut blocking::Session, model: &Tiny) -> Binding {
    let spec = TensorSpec::new(DType::F32, &[VOCABULARY, WIDTH]).expect("the table's shape");
    let table = session.put(&spec, Tiny::table_bytes().into(), PutOptions::default()).expect("the table");
    let program = session.define(0, &model.graph.encode()).expect("the program");
    let cache = session.create_cache(&program, model.cache, 0).expect("a cache");
    let real: Vec<u8> = [0_f32, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let fixed = vec![
        Input { index: model.real, dtype: DType::F32, dims: &[1, 2], data: &real },
        Input { index: model.int, dtype: DType::I64, dims: &[1, 2], data: &[0; 16] },
    ];
    let residents = vec![(model.table, table.handle), (model.cache, cache.0)];
    session.bind(&program, &BindInputs { weights: Vec::new(), residents, fixed }).expect("a binding")
}

fn step(session: &mut blocking::Session, model: &Tiny, binding: Binding, token: i32, position: usize) -> i32 {
    let data = token.to_le_bytes();
    let input = Input { index: model.tokens, dtype: DType::I32, dims: &[1, 1], data: &data };
    let options = RunOptions { position: Some(position as u32), ..RunOptions::default() };
    session.step(binding, &[input], options).expect("a step")
}
