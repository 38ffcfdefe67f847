//! The server's side: who gets in.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::exchange::{Channel, Exchange};
use super::identity::Identity;
use super::secret::{Secret, draw};
use super::tokens::{Token, Tokens};
use crate::wire::{ErrorCode, Mac, Proof, RemoteError, token_name};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $counter:literal),+ $(,)?) => {
        /// Why somebody was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Refused { $($(#[$doc])* $name),+ }

        impl Refused {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its counter's name.
            pub fn counter(self) -> &'static str {
                match self { $(Self::$name => $counter),+ }
            }
        }
    };
}

reasons! {
    /// It was asked for proof of a token, and gave none.
    NoProof = "genie_refused_no_proof_total",
    /// No token of this name, or another secret.
    WrongToken = "genie_refused_token_total",
    /// A proof that was made for an earlier connection.
    Replay = "genie_refused_replay_total",
    /// A bulk lane that does not know its connection's key, or an attempt at one that was made before.
    Lane = "genie_refused_lane_total",
    /// A client certificate is asked for, and there was none.
    NoCertificate = "genie_refused_no_certificate_total",
    /// A certificate that has expired, that nobody trusted has signed, or that is none; or a client that says so of ours.
    Certificate = "genie_refused_certificate_total",
    /// Bytes that are no TLS handshake.
    Handshake = "genie_refused_handshake_total",
    /// Somebody known asked for what it may not do.
    Forbidden = "genie_refused_forbidden_total",
    /// Somebody asked for a session of somebody else's.
    Session = "genie_refused_session_total",
    /// A process of another user asked to share memory.
    User = "genie_refused_user_total",
    /// A client's device reached for memory without a right to it, or with one that was revoked.
    Memory = "genie_refused_memory_total",
}

/// Asks connections who they are, and remembers what it refused.
pub struct Guard {
    /// `None`: nobody is asked.
    tokens: RwLock<Option<Arc<Tokens>>>,
    /// `None`: a certificate that was good once stays so.
    trust: RwLock<Option<Arc<dyn Trust>>>,
    /// Counts changes of the two.
    changes: AtomicU64,
    /// Stands for the secret of a token that there is not: to find that out takes as long as a wrong secret.
    nobody: Secret,
    refused: [AtomicU64; Refused::ALL.len()],
    seen: Mutex<Seen>,
    log: Mutex<Log>,
}

/// Judges the certificates that clients have shown.
pub trait Trust: Send + Sync {
    /// Whether somebody who shows these, its own first (DER), would come in now.
    fn trusts(&self, certificates: &[Vec<u8>]) -> bool;
}

/// Who a connection turned out to speak for.
pub(crate) struct Admitted {
    pub(crate) identity: Identity,
    /// That the server knows the token, too.
    pub(crate) proof: Mac,
    pub(crate) lane_secret: Option<Secret>,
}

/// Proofs that were good once: who shows one again heard it on the way.
#[derive(Default)]
struct Seen {
    set: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

/// A replay is refused however old it is; that it is called by its name holds for so many proofs back.
const SEEN: usize = 4096;

/// What was logged lately.
#[derive(Default)]
struct Log {
    since: Option<Instant>,
    lines: u32,
    silent: u64,
}

/// Lines in the log that strangers may cause in a second.
const LINES: u32 = 8;

impl Guard {
    /// Asks nobody.
    pub fn open() -> Self {
        Self::new(None)
    }

    /// Asks everybody for one of these tokens.
    pub fn with_tokens(tokens: Tokens) -> Self {
        Self::new(Some(Arc::new(tokens)))
    }

    fn new(tokens: Option<Arc<Tokens>>) -> Self {
        // Should the system have no random bytes now: no proof passes for a token that there is not, whatever this is.
        let nobody = Secret::draw().unwrap_or(Secret::from_bytes([0; 32]));
        Self {
            tokens: RwLock::new(tokens),
            trust: RwLock::default(),
            changes: AtomicU64::new(0),
            nobody,
            refused: Default::default(),
            seen: Mutex::default(),
            log: Mutex::default(),
        }
    }

    /// From now on these tokens hold. Connections that proved another one stay: see [`Self::is_current`].
    pub fn set_tokens(&self, tokens: Tokens) {
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(tokens));
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// From now on certificates are judged by this; to be said again when it has come to judge otherwise.
    pub fn set_trust(&self, trust: Arc<dyn Trust>) {
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = Some(trust);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes whenever somebody who came in before may not come in any more.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether connections must prove a token.
    pub fn asks_for_tokens(&self) -> bool {
        self.tokens().is_some()
    }

    /// Whether who came in as this would come in as the same now.
    pub fn is_current(&self, identity: &Identity) -> bool {
        self.trusts(identity) && self.has_token_of(identity)
    }

    /// Judges many at once.
    pub fn judge(&self) -> Judge<'_> {
        Judge { guard: self, judged: HashMap::new() }
    }

    fn trusts(&self, identity: &Identity) -> bool {
        identity.certificates().is_none_or(|certificates| self.trusts_chain(certificates))
    }

    fn trusts_chain(&self, certificates: &[Vec<u8>]) -> bool {
        let trust = self.trust.read().unwrap_or_else(PoisonError::into_inner).clone();
        trust.is_none_or(|trust| trust.trusts(certificates))
    }

    fn has_token_of(&self, identity: &Identity) -> bool {
        match (identity.token(), self.tokens()) {
            (None, None) => true,
            (Some(token), Some(tokens)) => tokens.find(&token.name).is_some_and(|now| **now == *token),
            _ => false,
        }
    }

    /// A nonce for a new connection.
    pub(crate) fn nonce(&self) -> Result<[u8; 32], RemoteError> {
        draw().map_err(|e| RemoteError::new(ErrorCode::Internal, format!("no random bytes: {e}; try again")))
    }

    /// Who comes over this channel, where nobody is asked for a token.
    pub(crate) fn unasked(&self, channel: Channel) -> Admitted {
        let identity = channel.peer.map_or(Identity::ANYONE, Identity::of_channel).showing(channel.certificates);
        Admitted { identity, proof: Mac([0; 32]), lane_secret: None }
    }

    /// Checks the answer to a challenge.
    pub(crate) fn check(
        &self,
        nonce: &[u8; 32],
        channel: &Channel,
        proof: &Proof,
        now: Instant,
    ) -> Result<Admitted, RemoteError> {
        let tokens = self.tokens();
        let exchange =
            Exchange { server_nonce: nonce, client_nonce: &proof.nonce, name: &proof.name, binding: channel.binding };
        let token = tokens.as_ref().and_then(|tokens| tokens.find(&proof.name));
        let secret = token.map_or(&self.nobody, |token| &token.secret);
        let proven = exchange.client_proof(secret) == proof.proof;
        let seen = self.saw(proof, proven && token.is_some());
        match token {
            Some(token) if proven => Ok(Admitted {
                identity: Identity::of_token(token.clone()).showing(channel.certificates.clone()),
                proof: exchange.server_proof(secret),
                lane_secret: Some(exchange.lane_secret(secret)),
            }),
            _ if seen => Err(self.refuse(
                Refused::Replay,
                channel,
                &proof.name,
                "the proof was made for an earlier connection: each needs one of its own",
                now,
            )),
            // Not which of the two.
            _ => Err(self.refuse(
                Refused::WrongToken,
                channel,
                &proof.name,
                "this token is not known here, or its secret is another: check the token file on both sides",
                now,
            )),
        }
    }

    /// Checks a token that is shown itself, as an HTTP client shows it, where tokens are asked for.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthorized`], for a name as for a secret; it was counted and logged as a proof is.
    pub fn admit_secret(
        &self,
        name: &str,
        secret: &Secret,
        channel: &Channel,
        now: Instant,
    ) -> Result<Arc<Token>, RemoteError> {
        let tokens = self.tokens();
        let token = tokens.as_ref().and_then(|tokens| tokens.find(name));
        // As long for a name that there is not as for a wrong secret.
        let right = token.map_or(&self.nobody, |token| &token.secret) == secret;
        match token {
            Some(token) if right => Ok(token.clone()),
            _ => {
                // What is no name may be anything, and is not logged.
                let name = token_name(name.as_bytes()).unwrap_or_default();
                let message =
                    "this token is not known here, or its secret is another: check the token file on both sides";
                Err(self.refuse(Refused::WrongToken, channel, name, message, now))
            }
        }
    }

    /// Counts and logs a refusal, and gives what the client is told.
    pub fn refuse(&self, why: Refused, channel: &Channel, name: &str, message: &str, now: Instant) -> RemoteError {
        self.count(why);
        let from = channel.from.as_deref().unwrap_or("here");
        if let Some(silent) = self.may_log(now) {
            tracing::warn!(reason = ?why, from, name, unlogged_before = silent, "refused: {message}");
        }
        let code = match why {
            Refused::Forbidden => ErrorCode::Forbidden,
            _ => ErrorCode::Unauthorized,
        };
        RemoteError::new(code, message)
    }

    /// Counts a refusal.
    pub fn count(&self, why: Refused) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was refused so far, by counter.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refused::ALL.iter().map(|&why| (why.counter(), self.refused[why as usize].load(Ordering::Relaxed)))
    }

    fn tokens(&self) -> Option<Arc<Tokens>> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this proof was good once before. A good one is remembered.
    fn saw(&self, proof: &Proof, good: bool) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.set.contains(&proof.proof.0);
        if good && !known {
            if seen.order.len() >= SEEN
                && let Some(oldest) = seen.order.pop_front()
            {
                seen.set.remove(&oldest);
            }
            seen.set.insert(proof.proof.0);
            seen.order.push_back(proof.proof.0);
        }
        known
    }

    /// Whether a line may be logged now; how many were not since the last.
    fn may_log(&self, now: Instant) -> Option<u64> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (log.since, log.lines) = (Some(now), 0);
        }
        if log.lines >= LINES {
            log.silent += 1;
            return None;
        }
        log.lines += 1;
        Some(std::mem::take(&mut log.silent))
    }
}

/// Judges many identities, each chain of certificates once: to verify one takes longer than all else, and one client may have thousands
/// of sessions.
pub struct Judge<'a> {
    guard: &'a Guard,
    judged: HashMap<&'a [Vec<u8>], bool>,
}

impl<'a> Judge<'a> {
    /// Whether what belongs to this identity may stay: if it has a token, whatever certificate it showed beside that may be replaced.
    pub fn is_current_owner(&mut self, identity: &'a Identity) -> bool {
        if identity.token().is_some() { self.guard.has_token_of(identity) } else { self.is_current(identity) }
    }

    /// As [`Guard::is_current`].
    pub fn is_current(&mut self, identity: &'a Identity) -> bool {
        let trusted = identity.certificates().is_none_or(|certificates| {
            *self.judged.entry(certificates).or_insert_with(|| self.guard.trusts_chain(certificates))
        });
        trusted && self.guard.has_token_of(identity)
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("asks_for_tokens", &self.asks_for_tokens()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(token: &Token, nonce: &[u8; 32], binding: Option<[u8; 32]>) -> Proof {
        let client_nonce = [9; 32];
        let exchange = Exchange { server_nonce: nonce, client_nonce: &client_nonce, name: &token.name, binding };
        Proof { nonce: client_nonce, proof: exchange.client_proof(&token.secret), name: token.name.clone() }
    }

    fn counted(guard: &Guard, why: Refused) -> u64 {
        guard.refusals().find(|(name, _)| *name == why.counter()).unwrap().1
    }

    #[test]
    fn only_a_fresh_proof_of_a_token_that_there_is_gets_in() {
        let (alice, other) = (Token::draw("alice").unwrap(), Token::draw("alice").unwrap());
        let guard = Guard::with_tokens(Tokens::new([alice.clone()]));
        let (plain, now) = (Channel::default(), Instant::now());
        let (first, second) = (guard.nonce().unwrap(), guard.nonce().unwrap());
        assert_ne!(first, second);
        let good = proof(&alice, &first, None);
        assert_eq!(guard.check(&first, &plain, &good, now).unwrap_or_else(|e| panic!("{e}")).identity.name(), "alice");
        // Heard on the way, and shown again.
        let again = guard.check(&second, &plain, &good, now).err().unwrap();
        assert_eq!(again.code, ErrorCode::Unauthorized);
        assert_eq!(counted(&guard, Refused::Replay), 1);
        let wrong = guard.check(&second, &plain, &proof(&other, &second, None), now).err().unwrap();
        let unknown = Token { name: "mallory".into(), ..other };
        let nobody = guard.check(&second, &plain, &proof(&unknown, &second, None), now).err().unwrap();
        assert_eq!(wrong, nobody, "nobody learns which names there are");
        // Made for another channel: by somebody in the middle.
        let tls = Channel { binding: Some([1; 32]), ..Channel::default() };
        assert!(guard.check(&second, &tls, &proof(&alice, &second, Some([2; 32])), now).is_err());
        assert!(guard.check(&second, &tls, &proof(&alice, &second, None), now).is_err());
        assert_eq!(counted(&guard, Refused::WrongToken), 4);
        assert!(guard.check(&second, &tls, &proof(&alice, &second, Some([1; 32])), now).is_ok());
    }

    #[test]
    fn a_secret_that_is_shown_must_be_that_of_its_name() {
        let (alice, bob) = (Token::draw("alice").unwrap(), Token::draw("bob").unwrap());
        let guard = Guard::with_tokens(Tokens::new([alice.clone(), bob.clone()]));
        let (plain, now) = (Channel::default(), Instant::now());
        let shown = |name: &str, secret: &Secret| guard.admit_secret(name, secret, &plain, now);
        assert_eq!(*shown("alice", &alice.secret).unwrap(), alice);
        for (name, secret) in
            [("alice", &bob.secret), ("carol", &alice.secret), ("", &alice.secret), ("a\nb", &alice.secret)]
        {
            assert_eq!(shown(name, secret).unwrap_err().code, ErrorCode::Unauthorized, "{name}");
        }
        assert_eq!(counted(&guard, Refused::WrongToken), 4);
        assert!(Guard::open().admit_secret("alice", &alice.secret, &plain, now).is_err());
    }

    #[test]
    fn an_entry_that_changed_is_no_longer_current() {
        let alice = Arc::new(Token::draw("alice").unwrap());
        let guard = Guard::with_tokens(Tokens::new([(*alice).clone()]));
        let identity = Identity::of_token(alice);
        assert!(guard.is_current(&identity) && !guard.is_current(&Identity::ANYONE));
        guard.set_tokens(Tokens::new([Token::draw("alice").unwrap()]));
        assert!(!guard.is_current(&identity));
        guard.set_tokens(Tokens::default());
        assert!(!guard.is_current(&identity) && guard.asks_for_tokens());
    }

    #[test]
    fn a_certificate_that_is_not_trusted_any_more_is_not_current() {
        struct Only(u8);
        impl Trust for Only {
            fn trusts(&self, certificates: &[Vec<u8>]) -> bool {
                certificates[0] == [self.0]
            }
        }
        let shown = |byte: u8| Some(Arc::new(vec![vec![byte]]));
        let (open, alice) = (Guard::open(), Arc::new(Token::draw("alice").unwrap()));
        let channel = Channel { peer: Some("certificate 1".into()), certificates: shown(1), ..Channel::default() };
        let identity = open.unasked(channel).identity;
        assert!(open.is_current(&identity));
        open.set_trust(Arc::new(Only(1)));
        assert!(open.is_current(&identity) && open.is_current(&Identity::ANYONE));
        let before = open.changes();
        open.set_trust(Arc::new(Only(2)));
        assert!(!open.is_current(&identity) && !open.judge().is_current_owner(&identity) && open.changes() != before);
        let guard = Guard::with_tokens(Tokens::new([(*alice).clone()]));
        guard.set_trust(Arc::new(Only(2)));
        let identity = Identity::of_token(alice).showing(shown(1));
        assert!(!guard.is_current(&identity), "its connection ends");
        assert!(guard.judge().is_current_owner(&identity), "and may be opened again with another certificate");
        guard.set_tokens(Tokens::default());
        assert!(!guard.judge().is_current_owner(&identity));
    }

    /// A chain was verified once for each session that its owner had, and every tick: a thousand sessions took all of a tick.
    #[test]
    fn a_chain_is_judged_once_for_all_that_its_owner_has() {
        #[derive(Default)]
        struct Counts(AtomicU64);
        impl Trust for Counts {
            fn trusts(&self, certificates: &[Vec<u8>]) -> bool {
                self.0.fetch_add(1, Ordering::Relaxed);
                certificates[0] == [1]
            }
        }
        let (guard, counts) = (Guard::open(), Arc::new(Counts::default()));
        guard.set_trust(counts.clone());
        // Each connection has a copy of its own.
        let of = |byte: u8| {
            let certificates = Some(Arc::new(vec![vec![byte]]));
            guard.unasked(Channel { peer: Some("somebody".into()), certificates, ..Channel::default() }).identity
        };
        let owners: Vec<_> = (0..100).map(|i| of(i % 2)).collect();
        let mut judge = guard.judge();
        let stay: Vec<_> = owners.iter().map(|owner| judge.is_current_owner(owner)).collect();
        assert!(stay.iter().enumerate().all(|(i, stays)| *stays == (i % 2 == 1)));
        assert_eq!(counts.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn strangers_do_not_fill_the_log() {
        let guard = Guard::open();
        let now = Instant::now();
        let lines = (0..1000).filter(|_| guard.may_log(now).is_some()).count();
        assert_eq!(lines, LINES as usize);
        assert_eq!(guard.may_log(now + Duration::from_secs(1)), Some(1000 - u64::from(LINES)));
    }
}
