//! Who is let in: the same who may open a session.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderMap, StatusCode, Uri, header};
use genie_transport::auth::{Channel, Guard, Refused, Secret, Token};

use crate::error::Failure;

/// Judges requests by their headers.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) guard: Arc<Guard>,
    /// It speaks TLS.
    pub(crate) encrypted: bool,
    /// Only this machine can reach it.
    pub(crate) loopback: bool,
}

impl Gate {
    /// Whose session a request is for: a token's, or where nobody is asked for one, everybody's.
    ///
    /// # Errors
    /// 401 without a token that is known, 403 for a page of another site that a browser shows.
    pub(crate) fn admit(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        from: SocketAddr,
    ) -> Result<Option<Arc<Token>>, Failure> {
        let channel = Channel { from: Some(Arc::from(from.to_string())), ..Channel::default() };
        let forbidden = |detail: String| {
            let error = self.guard.refuse(Refused::Forbidden, &channel, "", &detail, Instant::now());
            Failure::new(StatusCode::FORBIDDEN, error.message)
        };
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("\u{fffd}"));
        let host = uri.authority().map(axum::http::uri::Authority::as_str).or(text(header::HOST));
        if !self.guard.asks_for_tokens() {
            // A page of any site may ask a browser on this machine to come here. Its own name, made to lead here, stands in Host.
            let host = host.ok_or_else(|| Failure::bad("the request has no Host header"))?;
            if self.loopback && !is_loopback(host) {
                return Err(forbidden(format!("this server answers to localhost, not to '{}'", host.escape_default())));
            }
            let own = |origin: &str| {
                let scheme = if self.encrypted { "https://" } else { "http://" };
                origin.strip_prefix(scheme).is_some_and(|origin| origin.eq_ignore_ascii_case(host))
            };
            if let Some(origin) = text(header::ORIGIN).filter(|origin| !own(origin)) {
                return Err(forbidden(format!("pages of '{}' may not use this server", origin.escape_default())));
            }
            return Ok(None);
        }
        let refuse = |why, name: &str, detail: &str| {
            let error = self.guard.refuse(why, &channel, name, detail, Instant::now());
            Failure::new(StatusCode::UNAUTHORIZED, error.message)
        };
        let wanted = "this server asks for a token: send the header Authorization: Bearer NAME:SECRET, with both as in the token file";
        let Some(shown) = text(header::AUTHORIZATION) else { return Err(refuse(Refused::NoProof, "", wanted)) };
        let parsed = shown
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .and_then(|(_, token)| token.trim().split_once(':'))
            .and_then(|(name, secret)| Some((name, Secret::from_hex(secret)?)));
        let Some((name, secret)) = parsed else { return Err(refuse(Refused::WrongToken, "", wanted)) };
        let token = self.guard.admit_secret(name, &secret, &channel, Instant::now());
        token.map(Some).map_err(|error| Failure::new(StatusCode::UNAUTHORIZED, error.message))
    }
}

/// Whether a Host header names this machine as only it can reach it.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use genie_transport::auth::Tokens;

    fn admit(gate: &Gate, headers: &[(header::HeaderName, &str)]) -> Result<Option<Arc<Token>>, StatusCode> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let from = "127.0.0.1:9".parse().unwrap();
        gate.admit(&Uri::from_static("/health"), &headers, from).map_err(|failure| failure.status)
    }

    #[test]
    fn a_browser_brings_no_page_of_another_site_in() {
        let gate = Gate { guard: Arc::new(Guard::open()), encrypted: false, loopback: true };
        for host in
            ["localhost", "localhost:8888", "LocalHost.:1", "127.0.0.1:8888", "127.9.9.9", "[::1]:8888", "[::1]"]
        {
            assert_eq!(admit(&gate, &[(header::HOST, host)]), Ok(None), "{host}");
            let own = format!("http://{host}");
            assert_eq!(admit(&gate, &[(header::HOST, host), (header::ORIGIN, &own)]), Ok(None), "{host}");
        }
        for host in
            ["evil.example", "evil.example:8888", "localhost.evil.example", "192.0.2.1", "[::2]", "", "localhost:1:2"]
        {
            assert_eq!(admit(&gate, &[(header::HOST, host)]), Err(StatusCode::FORBIDDEN), "{host}");
        }
        for origin in
            ["http://evil.example", "null", "https://localhost:8888", "http://localhost:9999", "http://localhost"]
        {
            let headers = [(header::HOST, "localhost:8888"), (header::ORIGIN, origin)];
            assert_eq!(admit(&gate, &headers), Err(StatusCode::FORBIDDEN), "{origin}");
        }
        assert_eq!(admit(&gate, &[]), Err(StatusCode::BAD_REQUEST));
        let refused = gate.guard.refusals().find(|(name, _)| *name == "genie_refused_forbidden_total").unwrap();
        assert_eq!(refused.1, 12);
    }

    #[test]
    fn a_token_is_asked_for_and_found() {
        let token = Token::draw("alice").unwrap();
        let guard = Arc::new(Guard::with_tokens(Tokens::new([token.clone()])));
        let gate = Gate { guard: guard.clone(), encrypted: true, loopback: false };
        let secret = token.secret.to_hex();
        let shown =
            |text: &str| admit(&gate, &[(header::AUTHORIZATION, text)]).map(|token| token.unwrap().name.clone());
        assert_eq!(shown(&format!("Bearer alice:{secret}")), Ok("alice".into()));
        assert_eq!(shown(&format!("bearer  alice:{secret}")), Ok("alice".into()));
        let other = Secret::from_bytes([1; 32]).to_hex();
        for bad in [
            format!("Bearer alice:{other}"),
            format!("Bearer bob:{secret}"),
            format!("Basic alice:{secret}"),
            format!("Bearer {secret}"),
            "Bearer alice:".to_owned(),
            "Bearer".to_owned(),
        ] {
            assert_eq!(shown(&bad), Err(StatusCode::UNAUTHORIZED), "{bad}");
        }
        assert_eq!(admit(&gate, &[]), Err(StatusCode::UNAUTHORIZED));
        let counted = |name: &str| guard.refusals().find(|(counter, _)| *counter == name).unwrap().1;
        assert_eq!((counted("genie_refused_token_total"), counted("genie_refused_no_proof_total")), (6, 1));
    }
}
