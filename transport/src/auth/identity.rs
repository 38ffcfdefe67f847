//! Who a connection speaks for.

use std::sync::Arc;

use super::tokens::Token;

/// What an identity may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// The devices that it may use, by name (`cpu:0`); `None`: all.
    pub devices: Option<Vec<String>>,
    /// Bytes that one session may hold, at the most; `None`: what the server allows.
    pub quota: Option<u64>,
    /// Whether it may upload weights. Without, it uses those that are there.
    pub upload_weights: bool,
    /// Sessions that it may have at a time; `None`: what the server allows.
    pub sessions: Option<usize>,
}

impl Rights {
    /// No limits but the server's own.
    pub const ALL: Self = Self { devices: None, quota: None, upload_weights: true, sessions: None };

    /// Whether the device with this name may be used.
    pub fn has_device(&self, name: &str) -> bool {
        self.devices.as_ref().is_none_or(|devices| devices.iter().any(|d| d == name))
    }
}

/// Who a connection speaks for. Sessions belong to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    who: Who,
    /// What it showed besides, if it did.
    certificates: Option<Arc<Vec<Vec<u8>>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// The server asks nobody who they are.
    Anyone,
    /// Proved a token.
    Token(Arc<Token>),
    /// Showed a certificate, or what else the link knows it by.
    Channel(Arc<str>),
}

impl Identity {
    /// Who comes to a server that asks nobody.
    pub const ANYONE: Self = Self { who: Who::Anyone, certificates: None };

    /// Who proved this token.
    pub fn of_token(token: Arc<Token>) -> Self {
        Self { who: Who::Token(token), certificates: None }
    }

    /// Whom the link itself knows by this name.
    pub fn of_channel(peer: Arc<str>) -> Self {
        Self { who: Who::Channel(peer), certificates: None }
    }

    /// With the certificates that it showed, its own first.
    #[must_use]
    pub fn showing(self, certificates: Option<Arc<Vec<Vec<u8>>>>) -> Self {
        Self { certificates, ..self }
    }

    /// The certificates that it showed, its own first (DER).
    pub fn certificates(&self) -> Option<&[Vec<u8>]> {
        self.certificates.as_deref().map(Vec::as_slice)
    }

    /// The name: of the token, or the link's for it.
    pub fn name(&self) -> &str {
        match &self.who {
            Who::Anyone => "anyone",
            Who::Token(token) => &token.name,
            Who::Channel(peer) => peer,
        }
    }

    /// What it may do.
    pub fn rights(&self) -> &Rights {
        match &self.who {
            Who::Token(token) => &token.rights,
            Who::Anyone | Who::Channel(_) => &Rights::ALL,
        }
    }

    /// Whether both are the same one. A token whose rights have changed is still the same; one with another secret is not.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.who, &other.who) {
            (Who::Token(a), Who::Token(b)) => a.name == b.name && a.secret == b.secret,
            (a, b) => a == b,
        }
    }

    pub(super) fn token(&self) -> Option<&Token> {
        match &self.who {
            Who::Token(token) => Some(token),
            _ => None,
        }
    }
}
