//! `genie bench http`: one op by HTTP, and by a session.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Args;
use genie_graph::{DType, GraphBuilder, InputRole, Op, Shape, TensorType};
use genie_tensor_files::{Contents, Format, Tensor, write};
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
use genie_transport::client::{BindInputs, ConnectOptions, Program, PutOptions, RunOptions, Value};
use genie_transport::wire::TensorSpec;
use serde::Serialize;

use super::{median, rounded};
use crate::connect::size;
use crate::say::{self, Say};
use crate::server::OwnServer;

/// Measure a tensor through relu and back by HTTP, and the same by a session over loopback TCP.
///
/// The server is one of its own, with a CPU device. By HTTP it is POST /execute with an .npy file, over a connection that stays open; by a
/// session a put, a bind, a run that keeps its output, and a get. Both are measured in turns.
///
/// With --json: a list with a row for each size: bytes, session_ms and http_ms (medians), ratio (the median of the turns' ratios).
///
/// Example: genie bench http --sizes 64K,4M
#[derive(Debug, Args)]
pub(crate) struct HttpArgs {
    /// Bytes of a tensor, rounded up to whole elements.
    #[arg(long, value_delimiter = ',', default_value = "64,65536,4000000,67108864", value_parser = size)]
    sizes: Vec<u64>,
    /// Turns of each size; the median counts.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
}

#[derive(Debug, Serialize)]
struct Row {
    bytes: u64,
    session_ms: f64,
    http_ms: f64,
    ratio: f64,
}

/// Turns that warm both up.
const WARMING: u32 = 3;

/// Runs the command.
pub(crate) fn run(args: &HttpArgs, say: Say) -> Result<()> {
    let listen: Uri = "tcp://127.0.0.1:0".parse()?;
    let server = OwnServer::start_at(&[listen], "cpu", &["--http", "127.0.0.1:0"])?;
    let mut session = Session::connect(server.uri(), ConnectOptions::default())?;
    let address = server.http().and_then(|url| url.strip_prefix("http://")).context("the server has no HTTP door")?;
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let rows = args.sizes.iter().map(|&bytes| measure(&mut session, &mut socket, bytes, args.turns));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    session.close()?;
    say.result(&rows, |rows| {
        say::table(
            ["bytes", "session ms", "HTTP ms", "ratio"],
            rows.iter().map(|row| {
                let number = |n: f64| format!("{n:.3}");
                [row.bytes.to_string(), number(row.session_ms), number(row.http_ms), format!("{:.2}", row.ratio)]
            }),
        )
    })
}

fn measure(session: &mut Session, socket: &mut TcpStream, bytes: u64, turns: u32) -> Result<Row> {
    let count = bytes.div_ceil(4).max(1);
    let bytes = count * 4;
    let data: Vec<u8> = (0..count).flat_map(|i| ((i % 7) as f32 - 3.0).to_le_bytes()).collect();
    let data = Bytes::from(data);
    let mut graph = GraphBuilder::new("relu");
    let ty = TensorType { dtype: DType::F32, shape: Shape::fixed(&[count]) };
    let x = graph.input("x", InputRole::Argument, ty)?;
    let y = graph.push(Op::Relu, &[x])?;
    graph.output("y", y);
    let program = session.define(0, &graph.finish()?.encode())?;
    let spec = TensorSpec::new(DType::F32, &[count])?;
    let request = request(Tensor { dtype: DType::F32, dims: vec![count], data: data.clone() })?;
    let (mut by_session, mut by_http) = (Vec::new(), Vec::new());
    for turn in 0..WARMING + turns {
        let (result, session_took) = through_session(session, &program, &spec, &data)?;
        let (answer, http_took) = through_http(socket, &request)?;
        ensure!(answer.ends_with(&result), "HTTP and the session give different results");
        if turn >= WARMING {
            by_session.push(session_took.as_secs_f64());
            by_http.push(http_took.as_secs_f64());
        }
    }
    session.free(program.handle)?;
    let ratios: Vec<_> = by_http.iter().zip(&by_session).map(|(http, session)| http / session).collect();
    let ms = |times: &[f64]| rounded(median(times) * 1e3);
    Ok(Row { bytes, session_ms: ms(&by_session), http_ms: ms(&by_http), ratio: rounded(median(&ratios)) })
}

fn through_session(
    session: &mut Session,
    program: &Program,
    spec: &TensorSpec,
    data: &Bytes,
) -> Result<(Vec<u8>, Duration)> {
    let begun = Instant::now();
    let x = session.put(spec, data.clone(), PutOptions::default())?;
    let inputs = BindInputs { residents: vec![(0, x.handle)], ..BindInputs::default() };
    let binding = session.bind(program, &inputs)?;
    let mut outputs = session.run(binding, &[], RunOptions { wanted: 0, keep: 1, ..RunOptions::default() })?;
    let Some(Value::Resident { tensor, .. }) = outputs.values.pop() else { bail!("the output was not kept") };
    let result = session.get(&tensor)?;
    let took = begun.elapsed();
    for handle in [tensor.handle, binding.0, x.handle] {
        session.free(handle)?;
    }
    Ok((result.to_vec(), took))
}

fn through_http(socket: &mut TcpStream, request: &[u8]) -> Result<(Vec<u8>, Duration)> {
    let begun = Instant::now();
    socket.write_all(request)?;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    let mut total = None;
    while total.is_none_or(|total| bytes.len() < total) {
        let taken = socket.read(&mut buffer)?;
        ensure!(taken > 0, "the door has closed the connection");
        bytes.extend_from_slice(&buffer[..taken]);
        if total.is_none() {
            total = whole(&bytes)?;
        }
    }
    Ok((bytes, begun.elapsed()))
}

/// Bytes of an answer that begins like this, once its headers are there.
fn whole(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200 "), "the door answers: {head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
    Ok(Some(end + 4 + length.trim().parse::<usize>()?))
}

fn request(tensor: Tensor) -> Result<Vec<u8>> {
    const BOUNDARY: &str = "genie-bench-http";
    let mut body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"operation\"\r\n\r\nrelu\r\n--{BOUNDARY}\r\n\
         Content-Disposition: form-data; name=\"tensor_file\"; filename=\"x.npy\"\r\n\r\n"
    )
    .into_bytes();
    body.extend(write(Format::Npy, &Contents::One(tensor))?.concat());
    body.extend(format!("\r\n--{BOUNDARY}--\r\n").bytes());
    let head = format!(
        "POST /execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    Ok([head.into_bytes(), body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_an_answer_is_read() {
        assert_eq!(whole(b"HTTP/1.1 200 OK\r\ncontent-").unwrap(), None);
        assert_eq!(whole(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").unwrap(), Some(43));
        assert!(whole(b"HTTP/1.1 422 No\r\nContent-Length: 5\r\n\r\n").is_err());
    }
}
