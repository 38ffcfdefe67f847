//! A server with a session on it that must not notice anything.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use genie_executor::Config;
use genie_tests::answer::{Outcome, Told};
use genie_tests::raw::Raw;
use genie_tests::serve::{Live, config};
use genie_tests::witness::Witness;
use genie_transport::client::{ConnectOptions, blocking};
use genie_transport::connection::ClientError;
use genie_transport::wire::{
    Effect, ErrorCode, Handle, OpenedSession, PutBody, PutRequest, PutTarget, RemoteError, Request, ResidencyCode,
    TensorSpec, Welcome,
};

/// Panics on threads of a server: a server must have none, whatever it is sent.
static PANICS: AtomicU64 = AtomicU64::new(0);

pub(crate) struct Scene {
    pub(crate) server: Live,
    pub(crate) witness: Witness,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With other settings than usual.
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                // Tests run on threads that are named after them; a server's have no name, or one of these.
                let of_a_server = |name: &str| name.starts_with("tokio") || name.starts_with("device");
                if std::thread::current().name().is_none_or(of_a_server) {
                    PANICS.fetch_add(1, Ordering::Relaxed);
                }
                usual(info);
            }));
        });
        let mut config = config(7);
        change(&mut config);
        let server = Live::start(config);
        let witness = Witness::new(&server);
        Self { server, witness }
    }

    /// A client with a session, to misbehave.
    pub(crate) fn session(&self) -> (Raw, Welcome, OpenedSession) {
        Raw::open(self.server.address(), 0)
    }

    /// The server lives, and nobody else has noticed anything; newcomers are served.
    pub(crate) fn is_unharmed(&mut self) {
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a thread of the server panicked");
        self.witness.is_unharmed();
        let newcomer = blocking::Session::connect(&self.server.uri, ConnectOptions::default());
        let mut newcomer = newcomer.expect("newcomers are served");
        let mut back = Vec::new();
        newcomer.echo(b"new", &mut back).expect("an echo");
        assert_eq!(back, b"new");
        newcomer.close().expect("it ends");
    }
}

/// The error that a request must have come to: this code, nothing changed, and a message that has these words. What to do is
/// among them.
#[track_caller]
pub(crate) fn refused(outcome: Outcome, code: ErrorCode, words: &[&str]) {
    match outcome {
        Err(ClientError::Remote(error)) => is(&error, code, words),
        other => panic!("{code:?} should have come, not {other:?}"),
    }
}

/// This error: this code, nothing changed, and these words.
#[track_caller]
pub(crate) fn is(error: &RemoteError, code: ErrorCode, words: &[&str]) {
    assert_eq!((error.code, error.effect), (code, Effect::None), "{error}");
    for word in words {
        assert!(error.message.contains(word), "{word:?} is not in {:?}", error.message);
    }
}

pub(crate) fn bytes_spec(bytes: usize) -> TensorSpec {
    TensorSpec::new(genie_graph::DType::U8, &[bytes as u64]).expect("a shape")
}

/// The put of a new private tensor.
pub(crate) fn put(spec: TensorSpec, body: PutBody<'_>) -> Request<'_> {
    let target = PutTarget::New { device: 0, residency: ResidencyCode::Private, hash: None, name: None };
    Request::Put(PutRequest { target, spec, body })
}

/// Makes bytes resident.
pub(crate) fn resident(raw: &mut Raw, bytes: &[u8]) -> Handle {
    match raw.ask(&put(bytes_spec(bytes.len()), PutBody::Inline(bytes))) {
        Ok(Told::Tensor { handle, .. }) => handle,
        other => panic!("{other:?}"),
    }
}

/// All of a tensor.
pub(crate) fn get(handle: Handle) -> Request<'static> {
    Request::Get { handle, offset: 0, length: 0, sliced: None }
}
