//! Random requests, sent once or several times, over connections that break at any moment: each takes effect once, every
//! answer to it is the same, and in the end nothing is left.

use std::collections::HashMap;
use std::time::Duration;

use genie_executor::Mode;
use genie_graph::Phase;
use genie_transport::wire::{Arguments, ErrorCode, Handle, Request};

use crate::client::{Answer, Client, Model, Out, Server, Told, noise, private, put_request};
use crate::fake::next_token;

/// What the test believes.
#[derive(Default)]
struct World {
    tensors: Vec<(Handle, Vec<u8>)>,
    tokens: Vec<i32>,
    answers: HashMap<u64, Answer>,
}

#[derive(Clone, Debug)]
enum Deed {
    Put(Vec<u8>),
    Free(Handle),
    Copy(Handle),
    Step(i32),
    Truncate(u32),
}

struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn send(client: &Client<'_>, model: &Model, id: u64, deed: &Deed) {
    match deed {
        Deed::Put(bytes) => client.ask_as(id, put_request(private(None, None), bytes)),
        Deed::Free(handle) => client.ask_as(id, Request::Free(*handle)),
        Deed::Copy(handle) => client.ask_as(id, Request::Copy { handle: *handle, device: 0 }),
        Deed::Step(token) => {
            let bytes = model.tokens(&[*token]);
            let arguments = Arguments::new(1, &bytes).unwrap();
            client.ask_as(id, Request::Run { binding: model.binding, position: None, wanted: 1, keep: 0, arguments });
        }
        Deed::Truncate(length) => client.ask_as(id, Request::CacheTruncate { cache: model.cache, length: *length }),
    }
}

fn choose(dice: &mut Dice, world: &World) -> Deed {
    let any = |dice: &mut Dice| world.tensors.get(dice.throw(world.tensors.len().max(1) as u64) as usize);
    match (dice.throw(6), any(dice)) {
        (0, Some((handle, _))) => Deed::Free(*handle),
        (1, Some((handle, _))) => Deed::Copy(*handle),
        (2, _) => Deed::Truncate(dice.throw(world.tokens.len() as u64 + 1) as u32),
        (3 | 4, _) => Deed::Step(dice.throw(32) as i32),
        _ => Deed::Put(noise(1 + dice.throw(5000) as usize, dice.0)),
    }
}

/// Holds an answer against what the world says it must be, the first time; later it must be what it was.
fn note(world: &mut World, id: u64, deed: &Deed, answer: Answer) {
    if let Some(before) = world.answers.get(&id) {
        assert_eq!(&answer, before, "another answer to the same request");
        return;
    }
    match (deed, &answer) {
        (Deed::Put(bytes), Ok(Told::Tensor(handle, ..))) => world.tensors.push((*handle, bytes.clone())),
        (Deed::Free(handle), Ok(Told::Done)) => world.tensors.retain(|(h, _)| h != handle),
        (Deed::Copy(of), Ok(Told::Tensor(handle, ..))) => {
            let bytes = world.tensors.iter().find(|(h, _)| h == of).unwrap().1.clone();
            world.tensors.push((*handle, bytes));
        }
        (Deed::Step(token), Ok(Told::Ran { position, outputs, .. })) => {
            world.tokens.push(*token);
            assert_eq!(*position as usize, world.tokens.len());
            assert_eq!(outputs[..], [Out::Inline(0, next_token(&world.tokens).to_le_bytes().to_vec())]);
        }
        (Deed::Truncate(length), Ok(Told::Done)) => world.tokens.truncate(*length as usize),
        other => panic!("{other:?}"),
    }
    world.answers.insert(id, answer);
}

fn life(seed: u64) {
    let mut dice = Dice(seed);
    let mut server = Server::with(1, 8 << 20, |config| config.mode = Mode::Stepped);
    {
        let mut client = server.client();
        let model = client.model(Phase::Decode);
        let mut world = World::default();
        for _ in 0..40 {
            let (id, deed) = (client.next, choose(&mut dice, &world));
            client.next += 1;
            let mut answered = false;
            while !answered {
                send(&client, &model, id, &deed);
                match dice.throw(5) {
                    // The connection breaks before anything ran, or after.
                    0 => client.reconnect(id),
                    1 => {
                        server.run_all();
                        client.reconnect(id);
                    }
                    // It is asked twice at once.
                    2 => send(&client, &model, id, &deed),
                    _ => {}
                }
                server.run_all();
                for (of, answer) in client.heard() {
                    assert_eq!(of, id);
                    note(&mut world, id, &deed, answer);
                    answered = true;
                }
            }
        }
        for (handle, bytes) in world.tensors.clone() {
            assert_eq!(client.get(handle), bytes);
        }
        let forgotten = client.next;
        client.reconnect(forgotten);
        client.ask_as(forgotten - 1, Request::Close);
        assert_eq!(client.answer(forgotten - 1).unwrap_err().code, ErrorCode::Forgotten);
        client.break_off();
    }
    server.pass(Duration::from_secs(2));
    assert_eq!(server.counter("genie_session_bytes"), 0);
    let left = (8 << 20) - server.connect().devices()[0].1;
    assert!(left <= 4096, "only the shared weights: {left}");
}

#[test]
fn every_request_takes_effect_once() {
    for seed in 0..300 {
        let result = std::panic::catch_unwind(|| life(seed));
        assert!(result.is_ok(), "seed {seed}");
    }
}
