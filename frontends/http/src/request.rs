//! A request that runs something, from its headers to its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use genie_graph::{DType, VerifiedGraph};
use genie_tensor_files::{Allowance, Contents, Format, Limits, ReadError, Tensor, WriteError, read_with, write};
use genie_transport::auth::Token;

use crate::body::{self, Charge};
use crate::connections::{Connection, Working};
use crate::door::Shared;
use crate::error::Failure;
use crate::form::{self, Part};
use crate::run;

/// What a form asks for.
pub(crate) struct Work {
    pub(crate) graph: VerifiedGraph,
    /// In the order of the graph's inputs.
    pub(crate) inputs: Vec<Tensor>,
    /// Where it is to run; `None`: wherever the token may.
    pub(crate) device: Option<String>,
    pub(crate) reply: Reply,
}

/// What the result is sent as.
pub(crate) struct Reply {
    pub(crate) format: Format,
    /// In a file where tensors have names.
    pub(crate) name: Option<String>,
}

/// What a request's tensors may take beyond its body, that others wait for: four times the body and a little.
const EXPANSION: u64 = 4;
const LITTLE: u64 = 1 << 20;
/// Bodies from here on are read apart from what serves connections.
const LARGE: usize = 16 << 10;

/// What reads the files of a request. All of them may take together what one may.
pub(crate) struct Files<'a> {
    limits: Limits,
    allowance: Allowance<'a>,
}

impl<'a> Files<'a> {
    /// They may take so many bytes beyond themselves. `grant` is asked for each number before it is taken.
    pub(crate) fn new(bytes: u64, grant: &'a mut dyn FnMut(u64) -> bool) -> Self {
        Self { limits: Limits::default(), allowance: Allowance::granted(bytes, grant) }
    }

    pub(crate) fn read(&mut self, file: &Bytes) -> Result<(Format, Contents), ReadError> {
        read_with(file, &self.limits, &mut self.allowance)
    }

    /// Tensors that there may be.
    pub(crate) fn tensors(&self) -> usize {
        self.limits.tensors
    }
}

/// Makes work of a form.
type ReadForm = fn(&[Part], &mut Files<'_>) -> Result<Work, Failure>;

/// Does what a request asks for: `read` makes work of its form.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    token: Option<Arc<Token>>,
    head: &Parts,
    body: &mut BodyDataStream,
    read: ReadForm,
) -> Result<Response, Failure> {
    let begun = Instant::now();
    let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let boundary = form::boundary(text(header::CONTENT_TYPE))?;
    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let mut charge = shared.budget.charge(token.as_ref().map(|token| token.name.clone()));
    let body = body::read(body, length, shared.settings.body_bytes, shared.settings.patience, &mut charge).await?;
    let received = begun.elapsed();
    // What was begun on the server comes to its end there, whether the client waits or not.
    let job = Job { shared, working: connection.work(), token, charge, begun, received };
    let done = tokio::spawn(job.run(body, boundary, read)).await;
    done.map_err(Failure::internal)?
}

struct Job {
    shared: Arc<Shared>,
    working: Working,
    token: Option<Arc<Token>>,
    charge: Charge,
    begun: Instant,
    received: Duration,
}

impl Job {
    async fn run(self, body: Bytes, boundary: String, read: ReadForm) -> Result<Response, Failure> {
        let Self { shared, working, token, charge, begun, received } = self;
        let bytes_in = body.len();
        let parse = move || parse(&body, &boundary, read, charge);
        let (work, mut charge) = if bytes_in < LARGE {
            parse()
        } else {
            let _turn = shared.readers.acquire().await.map_err(Failure::internal)?;
            tokio::task::spawn_blocking(parse).await.map_err(Failure::internal)?
        }?;
        // Before it runs for nothing.
        if work.reply.format == Format::Npy && run::output_dtype(&work.graph) == Some(DType::BF16) {
            return Err(WriteError::NoSuchType.into());
        }
        let result = run::output_bytes(&work.graph).unwrap_or(u64::MAX);
        if result > shared.settings.body_bytes {
            return Err(Failure::too_large(format!("the result would have {result} bytes, which is over the limit")));
        }
        charge.grow(result)?;
        let read = begun.elapsed() - received;

        let sessions = &shared.sessions;
        let opened = sessions.of(token).await?;
        let device = device(&opened.devices, work.device.as_deref())?;
        let ran = sessions.seen(&opened, run::run(&opened, device, &work.graph, &work.inputs).await)?;

        let bytes_out = ran.tensor.data.len();
        let contents = match work.reply.name {
            Some(name) => Contents::Dict(vec![(name, ran.tensor)]),
            None => Contents::One(ran.tensor),
        };
        let pieces = write(work.reply.format, &contents)?;
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        let file = format!("attachment; filename=\"result.{}\"", work.reply.format.extension());
        set(headers, header::CONTENT_DISPOSITION.as_str(), &file)?;
        set(headers, header::CONTENT_LENGTH.as_str(), &pieces.iter().map(Bytes::len).sum::<usize>().to_string())?;
        set(headers, "x-genie-device", &ran.device)?;
        set(headers, "x-genie-bytes-in", &bytes_in.to_string())?;
        set(headers, "x-genie-bytes-out", &bytes_out.to_string())?;
        let ms = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        set(headers, "x-genie-server-ms", &ms(begun.elapsed() - received))?;
        let timing = format!("receive;dur={}, read;dur={}, run;dur={}", ms(received), ms(read), ms(ran.took));
        set(headers, "server-timing", &timing)?;
        *response.body_mut() = streamed(pieces, charge, working);
        Ok(response)
    }
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Failure> {
    headers.insert(name, value.parse().map_err(Failure::internal)?);
    Ok(())
}

/// The pieces as a body, with what it holds for as long as it goes out.
fn streamed(pieces: Vec<Bytes>, charge: Charge, working: Working) -> Body {
    let held = (pieces.into_iter(), charge, working);
    Body::from_stream(stream::unfold(held, |mut held| async move {
        let piece = held.0.find(|piece| !piece.is_empty())?;
        Some((Ok::<_, std::convert::Infallible>(piece), held))
    }))
}

/// Makes work of a body, and charges what that takes before it is taken.
fn parse(body: &Bytes, boundary: &str, read: ReadForm, mut charge: Charge) -> Result<(Work, Charge), Failure> {
    let parts = form::parts(body, boundary)?;
    let most = (body.len() as u64).saturating_mul(EXPANSION).saturating_add(LITTLE);
    let mut refused = None;
    let mut grant = |bytes| match charge.grow(bytes) {
        Ok(()) => true,
        Err(failure) => {
            refused = Some(failure);
            false
        }
    };
    let work = read(&parts, &mut Files::new(most, &mut grant));
    let work = match refused {
        Some(failure) => return Err(failure),
        None => work?,
    };
    // Tensors may share bytes of the file, and are put each by itself.
    let inputs = work.inputs.iter().map(|tensor| tensor.data.len() as u64).fold(0, u64::saturating_add);
    charge.grow(inputs.saturating_sub(charge.bytes()))?;
    Ok((work, charge))
}

/// The device that is asked for, or the first; `cuda` is the first of its kind.
fn device(devices: &[genie_transport::client::DeviceInfo], name: Option<&str>) -> Result<u16, Failure> {
    let found = match name {
        None => devices.first(),
        Some(name) => devices.iter().find(|device| {
            let kind = device.name.split_once(':').map_or(device.name.as_str(), |(kind, _)| kind);
            device.name == name || kind == name
        }),
    };
    let names = || devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
    let missing = || Failure::fields(format!("there is no such device; there are: {}", names()));
    found.and_then(|device| u16::try_from(device.index).ok()).ok_or_else(missing)
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
