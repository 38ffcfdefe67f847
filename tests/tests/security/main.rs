//! Who gets in, what they may do, and what happens to everybody else: over every link that a machine has, against a real server.

mod pages;
mod rights;
mod tokens;

use std::sync::Arc;

use genie_tests::authority::Authority;
use genie_tests::here;
use genie_tests::serve::{Live, config};
use genie_transport::Uri;
use genie_transport::auth::{Guard, Token, Tokens};
use genie_transport::client::{ClientError, ConnectOptions, blocking};
use genie_transport::link::Access;
use genie_transport::link::tls::{TlsClient, TlsServer};
use tempfile::TempDir;

/// A server with tokens, on a link.
struct Scene {
    server: Live,
    guard: Arc<Guard>,
    tls: Option<TlsClient>,
    _authority: Option<Authority>,
    _folder: TempDir,
}

/// The links.
const LINKS: [&str; 5] = ["tcp", "tcps", "uring", "urings", "shm"];

impl Scene {
    fn new(tokens: &[&Token], scheme: &str) -> Self {
        let guard = Arc::new(Guard::with_tokens(Tokens::new(tokens.iter().map(|&t| t.clone()))));
        let mut config = config(7);
        config.settings.guard = guard.clone();
        let folder = tempfile::tempdir().unwrap();
        let authority = ["tcps", "urings"].contains(&scheme).then(Authority::new);
        let load = |a: &Authority| {
            let (cert, key) = a.sign("127.0.0.1", 30);
            Arc::new(TlsServer::load(&cert, &key, None).unwrap())
        };
        let access = Access { guard: guard.clone(), tls: authority.as_ref().map(load), ..Access::default() };
        let at = match scheme {
            "shm" => format!("shm://{}", folder.path().join("genie").display()),
            _ => format!("{scheme}://127.0.0.1:0"),
        };
        let server = Live::start_for(config, &at.parse::<Uri>().unwrap(), &access);
        let tls = authority.as_ref().map(|a| TlsClient::load(&a.ca(), None).unwrap());
        Self { server, guard, tls, _authority: authority, _folder: folder }
    }

    fn connect(&self, token: Option<&Token>) -> Result<blocking::Session, ClientError> {
        self.connect_with(token, |_| {})
    }

    fn connect_with(
        &self,
        token: Option<&Token>,
        more: impl FnOnce(&mut ConnectOptions),
    ) -> Result<blocking::Session, ClientError> {
        let mut options = ConnectOptions { tls: self.tls.clone(), ..ConnectOptions::default() };
        options.client.token = token.cloned().map(Arc::new);
        more(&mut options);
        blocking::Session::connect(&self.server.uri, options)
    }

    fn refused(&self, counter: &str) -> u64 {
        self.guard.refusals().find(|(name, _)| *name == counter).map_or(0, |(_, n)| n)
    }
}

/// The same over every link that this machine has.
fn over_all(tokens: &[&Token], test: impl Fn(&Scene)) {
    for scheme in here::links(&LINKS) {
        // Seen if the test fails.
        println!("over {scheme}");
        test(&Scene::new(tokens, scheme));
    }
}
