//! Genie as the transport of another frontend: registered memory, puts and gets in flight together, and their completions.
//!
//! `cargo run --release -p genie-transport --example mover -- tcp://127.0.0.1:7070 64` moves 64 blocks of 1 MiB there and back.

use std::error::Error;

use bytes::Bytes;
use genie_graph::DType;
use genie_transport::client::blocking::{Pending, Session};
use genie_transport::client::{ConnectOptions, PutOptions, Tensor};
use genie_transport::memory::Region;
use genie_transport::wire::TensorSpec;

const BLOCK: usize = 1 << 20;
const IN_FLIGHT: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let uri = arguments.next().ok_or("usage: mover URI [BLOCKS]")?;
    let blocks = arguments.next().map_or(Ok(16), |n| n.parse())?;
    println!("{}", run(&uri, blocks)?);
    Ok(())
}

/// Moves so many blocks there and back; says how.
pub(crate) fn run(uri: &str, blocks: usize) -> Result<String, Box<dyn Error>> {
    let mut session = Session::connect(&uri.parse()?, ConnectOptions::default())?;

    // Memory that the server maps, too, where the link shares memory: a put from it sends a few bytes. Elsewhere it is ordinary.
    let mut slab = session.shared(blocks * BLOCK)?;
    for (i, byte) in slab.iter_mut().enumerate() {
        *byte = (i * 7 + i / BLOCK) as u8;
    }
    let memory = slab.freeze();
    let block = |i: usize| memory.slice(i * BLOCK..(i + 1) * BLOCK).ok_or("a block lies within the memory");
    let spec = TensorSpec::new(DType::U8, &[BLOCK as u64])?;

    let mut tensors: Vec<Option<Tensor>> = vec![None; blocks];
    let mut flying: Vec<(usize, Pending)> = Vec::new();
    let mut next = 0;
    while next < blocks || !flying.is_empty() {
        while flying.len() < IN_FLIGHT && next < blocks {
            // The region is in the transport's hands until nothing looks there any more: no copy, and no lifetime to keep in mind.
            let data = Bytes::from_owner(block(next)?);
            flying.push((next, session.start_put(&spec, data, PutOptions::default())?));
            next += 1;
        }
        let (i, pending) = completed(&mut session, &mut flying)?;
        // The server has it, checked: whatever is asked from now on finds it.
        tensors[i] = Some(session.finish_put(pending)?);
    }

    next = 0;
    while next < blocks || !flying.is_empty() {
        while flying.len() < IN_FLIGHT && next < blocks {
            let tensor = tensors[next].as_ref().ok_or("it was put")?;
            flying.push((next, session.start_get(tensor.handle, 0, BLOCK as u64)?));
            next += 1;
        }
        let (i, pending) = completed(&mut session, &mut flying)?;
        let got: Region = session.finish_get(pending)?;
        if got[..] != block(i)?[..] {
            return Err(format!("block {i} came back different").into());
        }
        // Memory for the next get of this size.
        session.recycle(got);
    }

    let (sent, _) = session.traffic();
    let how = if sent < (blocks * BLOCK / 10) as u64 { "passed" } else { "sent" };
    session.close()?;
    Ok(format!("{blocks} MB there and back, {how}"))
}

/// Waits for whichever is done first. Meanwhile the bytes of all move.
fn completed(session: &mut Session, flying: &mut Vec<(usize, Pending)>) -> Result<(usize, Pending), Box<dyn Error>> {
    session.wait_any(flying.iter().map(|(_, pending)| pending), None);
    let done = flying.iter().position(|(_, pending)| session.is_done(pending)).ok_or("one of them is done")?;
    Ok(flying.swap_remove(done))
}
