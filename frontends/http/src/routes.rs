//! What is asked for, and who answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::BodyDataStream;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use genie_transport::auth::Token;
use serde_json::{Value, json};

use crate::body;
use crate::connections::Connection;
use crate::door::Shared;
use crate::error::Failure;
use crate::sessions::Opened;
use crate::stats::Stats;
use crate::{execute, ops, request, subgraph};

/// What there is: path, method, and whether it runs something.
const ENDPOINTS: [(&str, Method, bool); 5] = [
    ("/", Method::GET, false),
    ("/health", Method::GET, false),
    ("/metrics", Method::GET, false),
    ("/execute", Method::POST, true),
    ("/execute_subgraph", Method::POST, true),
];

/// Answers a request, and counts it.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    from: SocketAddr,
    request: Request,
) -> Response {
    let (endpoint, runs) = match ENDPOINTS.iter().find(|(path, ..)| *path == request.uri().path()) {
        Some((path, _, runs)) => (*path, *runs),
        None => ("other", false),
    };
    let answer = Answer { stats: &shared.stats, endpoint, runs, status: GONE, begun: Instant::now() };
    let (head, body) = request.into_parts();
    let mut body = body.into_data_stream();
    let response = match respond(&shared, connection, from, &head, &mut body).await {
        Ok(response) => response,
        Err(failure) => {
            // Who waits to be told to go on sends nothing.
            if !head.headers.contains_key(header::EXPECT) {
                body::linger(&mut body).await;
            }
            failure.into_response()
        }
    };
    answer.given(&response);
    response
}

/// What is counted for a client that left before its answer: nginx calls it so.
const GONE: u16 = 499;

/// A request that is counted when this is dropped, whether its client has waited for the answer or not.
struct Answer<'a> {
    stats: &'a Stats,
    endpoint: &'static str,
    runs: bool,
    status: u16,
    begun: Instant,
}

impl Answer<'_> {
    fn given(mut self, response: &Response) {
        self.status = response.status().as_u16();
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.stats.answered(self.endpoint, self.runs, self.status, self.begun.elapsed());
    }
}

async fn respond(
    shared: &Arc<Shared>,
    connection: Arc<Connection>,
    from: SocketAddr,
    head: &Parts,
    body: &mut BodyDataStream,
) -> Result<Response, Failure> {
    let token = shared.gate.admit(&head.uri, &head.headers, from)?;
    let Some((path, wanted, _)) = ENDPOINTS.iter().find(|(path, ..)| *path == head.uri.path()) else {
        return Err(Failure::new(StatusCode::NOT_FOUND, "there is nothing here; GET / says what there is"));
    };
    if head.method != *wanted && !(*wanted == Method::GET && head.method == Method::HEAD) {
        let failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {wanted}"));
        return Err(Failure { allow: Some(wanted.clone()), ..failure });
    }
    match *path {
        "/" => Ok(Json(index()).into_response()),
        "/health" => Ok(Json(health(shared, token).await?).into_response()),
        "/metrics" => {
            let text = metrics(shared, token).await?;
            Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
        }
        "/execute" => request::answer(shared.clone(), connection, token, head, body, execute::read_form).await,
        _ => request::answer(shared.clone(), connection, token, head, body, subgraph::read_form).await,
    }
}

fn index() -> Value {
    let endpoints: Vec<_> = ENDPOINTS.iter().map(|(path, method, _)| format!("{method} {path}")).collect();
    json!({
        "service": "genie",
        "version": env!("CARGO_PKG_VERSION"),
        "status": "running",
        "endpoints": endpoints,
        "operations": ops::names(),
    })
}

async fn health(shared: &Shared, token: Option<Arc<Token>>) -> Result<Value, Failure> {
    let opened = shared.sessions.brief(token).await?;
    let devices = shared.sessions.seen(&opened, opened.session.devices().await)?;
    let kind = |name: &str| name.split_once(':').map_or(name, |(kind, _)| kind).to_owned();
    let first = devices.first().map(|device| device.name.clone());
    let listed: Vec<_> = devices
        .iter()
        .map(|device| {
            json!({
                "name": device.name,
                "type": kind(&device.name),
                "model": device.model,
                "memory_total_bytes": device.total_bytes,
                "memory_free_bytes": device.free_bytes,
            })
        })
        .collect();
    Ok(json!({
        "status": "healthy",
        "device": first,
        "device_type": first.as_deref().map(kind),
        "cuda_available": devices.iter().any(|device| kind(&device.name) == "cuda"),
        "devices": listed,
        "uptime_seconds": shared.started.elapsed().as_secs_f64(),
        "stats": shared.stats.runs(),
    }))
}

async fn metrics(shared: &Shared, token: Option<Arc<Token>>) -> Result<String, Failure> {
    let opened: Arc<Opened> = shared.sessions.brief(token).await?;
    let server = shared.sessions.seen(&opened, opened.session.stats().await)?;
    let gauges = [
        ("genie_http_connections", shared.connections.count() as u64),
        ("genie_http_held_bytes", shared.budget.held()),
    ];
    Ok(shared.stats.render(&gauges, &server))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that left before the answer were in no count: hyper drops the future then.
    #[test]
    fn a_request_whose_client_leaves_is_counted() {
        let stats = Stats::default();
        let answer = || Answer { stats: &stats, endpoint: "/execute", runs: true, status: GONE, begun: Instant::now() };
        drop(answer());
        answer().given(&Failure::bad("x").into_response());
        answer().given(&Json(1).into_response());
        let runs = stats.runs();
        assert_eq!((runs.total_requests, runs.successful, runs.failed), (3, 1, 2));
        let text = stats.render(&[], &[]);
        for status in [200, 400, 499] {
            assert!(text.contains(&format!("status=\"{status}\"}} 1")), "{text}");
        }
    }
}
