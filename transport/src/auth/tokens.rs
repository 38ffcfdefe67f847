//! Token files.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::identity::Rights;
use super::secret::Secret;
use crate::wire::token_name;

/// One token: a line of a token file.
///
/// `NAME SECRET [devices=cpu:0,cuda:1] [quota=BYTES] [weights=read-only] [sessions=N]`. The secret is 64 hexadecimal digits; bytes
/// may end in K, M, G or T. A client's file has one such line; what stands after the secret means nothing there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Names it in logs, and to the server.
    pub name: String,
    /// What is proven.
    pub secret: Secret,
    /// What whoever proves it may do.
    pub rights: Rights,
}

/// The tokens that a server knows.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    by_name: HashMap<String, Arc<Token>>,
}

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFileError {
    /// The system refuses.
    #[error("cannot use the token file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can read the secrets in it.
    #[error("the token file {} can be read by others (mode {mode:04o}): chmod 600 it, and make new tokens if it was long so", path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not a plain file, or far too large for one of tokens.
    #[error("{} is no token file: write one with `genie token new NAME`", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// A line is not a token. Says nothing of what stands there: it may be a secret.
    #[error("line {line} of the token file {}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A client's file with no token, or several.
    #[error("the token file {} has {found} tokens: a client's has one line, NAME SECRET", path.display())]
    NotOne {
        /// The file.
        path: PathBuf,
        /// How many it has.
        found: usize,
    },
    /// The name is taken.
    #[error("the token file {} has a token '{name}' already: take another name, or remove its line", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

/// More than ten thousand tokens.
const MOST_BYTES: u64 = 4 << 20;

impl Tokens {
    /// Reads a server's file.
    ///
    /// # Errors
    /// [`TokenFileError`]; a file that others can read is not used.
    pub fn load(path: &Path) -> Result<Self, TokenFileError> {
        let mut tokens = Self::default();
        for (line, token) in read(path)? {
            let name = token.name.clone();
            if tokens.by_name.insert(name, Arc::new(token)).is_some() {
                return Err(TokenFileError::Line { path: path.into(), line, what: "the name stands there twice" });
            }
        }
        Ok(tokens)
    }

    /// These tokens; of two with one name the later.
    pub fn new(tokens: impl IntoIterator<Item = Token>) -> Self {
        Self { by_name: tokens.into_iter().map(|token| (token.name.clone(), Arc::new(token))).collect() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none: then nobody gets in.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(super) fn find(&self, name: &str) -> Option<&Arc<Token>> {
        self.by_name.get(name)
    }
}

impl Token {
    /// A new token with this name and a secret just drawn, and no limits.
    ///
    /// # Errors
    /// The name cannot be one, or the system has no random bytes.
    pub fn draw(name: &str) -> io::Result<Self> {
        let invalid = |_| {
            let what = "a token's name has 1 to 64 letters, digits, or -_.@";
            io::Error::new(io::ErrorKind::InvalidInput, what)
        };
        let name = token_name(name.as_bytes()).map_err(invalid)?.to_owned();
        let secret = Secret::draw().map_err(|e| io::Error::other(e.to_string()))?;
        Ok(Self { name, secret, rights: Rights::ALL })
    }

    /// Reads a client's file: one token.
    ///
    /// # Errors
    /// [`TokenFileError`]; a file that others can read is not used.
    pub fn load(path: &Path) -> Result<Self, TokenFileError> {
        let mut tokens = read(path)?;
        match (tokens.pop(), tokens.len()) {
            (Some((_, token)), 0) => Ok(token),
            (last, others) => {
                Err(TokenFileError::NotOne { path: path.into(), found: others + usize::from(last.is_some()) })
            }
        }
    }

    /// Adds this token to a file, which is made (readable by its owner alone) if it is not there.
    ///
    /// # Errors
    /// [`TokenFileError`]; nothing was written.
    pub fn append(&self, path: &Path) -> Result<(), TokenFileError> {
        let io = |source| TokenFileError::Io { path: path.into(), source };
        if path.exists() && read(path)?.iter().any(|(_, token)| token.name == self.name) {
            return Err(TokenFileError::Taken { path: path.into(), name: self.name.clone() });
        }
        let mut file = OpenOptions::new().read(true).create(true).append(true).mode(0o600).open(path).map_err(io)?;
        // An editor may have left the last line without its end.
        let mut last = [b'\n'];
        if let Some(at) = file.metadata().map_err(io)?.len().checked_sub(1) {
            file.read_exact_at(&mut last, at).map_err(io)?;
        }
        let start = if last == [b'\n'] { "" } else { "\n" };
        // In one write: a server that reads the file now finds the whole line or nothing of it.
        file.write_all(format!("{start}{}\n", self.line()).as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)
    }

    /// Its line in a file.
    pub fn line(&self) -> String {
        let Self { name, secret, rights } = self;
        let mut line = format!("{name} {}", secret.to_hex());
        let mut add = |key: &str, value: &dyn std::fmt::Display| line.push_str(&format!(" {key}={value}"));
        if let Some(devices) = &rights.devices {
            add("devices", &devices.join(","));
        }
        if let Some(quota) = rights.quota {
            add("quota", &quota);
        }
        if !rights.upload_weights {
            add("weights", &"read-only");
        }
        if let Some(sessions) = rights.sessions {
            add("sessions", &sessions);
        }
        line
    }

    /// Reads a line of a file.
    ///
    /// # Errors
    /// What such a line has to have. Says nothing of what stands there.
    pub fn parse(line: &str) -> Result<Self, &'static str> {
        let mut words = line.split_ascii_whitespace();
        let name = words.next().unwrap_or_default();
        let name = token_name(name.as_bytes()).map_err(|_| "a token's name has 1 to 64 letters, digits, or -_.@")?;
        let secret = words.next().and_then(Secret::from_hex).ok_or("after the name stand 64 hexadecimal digits")?;
        let mut rights = Rights::ALL;
        for word in words {
            let number = || word.split_once('=').and_then(|(_, value)| value.parse().ok());
            match word.split_once('=') {
                Some(("devices", list)) if !list.is_empty() => {
                    rights.devices = Some(list.split(',').map(str::to_owned).collect());
                }
                Some(("quota", size)) => rights.quota = Some(bytes(size).ok_or("quota= takes bytes: 8G")?),
                Some(("weights", "read-only")) => rights.upload_weights = false,
                Some(("sessions", _)) => rights.sessions = Some(number().ok_or("sessions= takes a number")?),
                _ => return Err("known are devices=, quota=, weights=read-only and sessions="),
            }
        }
        Ok(Self { name: name.into(), secret, rights })
    }
}

/// The tokens of a file, with their lines' numbers.
fn read(path: &Path) -> Result<Vec<(usize, Token)>, TokenFileError> {
    let io = |source| TokenFileError::Io { path: path.into(), source };
    // Permissions are those of what was opened: nobody can exchange the file in between. A FIFO is not waited for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file: File = file.map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() || meta.len() > MOST_BYTES {
        return Err(TokenFileError::NoFile { path: path.into() });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TokenFileError::Readable { path: path.into(), mode });
    }
    let mut text = String::new();
    file.take(MOST_BYTES).read_to_string(&mut text).map_err(io)?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = number + 1;
        match Token::parse(line) {
            Ok(token) => tokens.push((number, token)),
            Err(what) => return Err(TokenFileError::Line { path: path.into(), line: number, what }),
        }
    }
    Ok(tokens)
}

/// Bytes: a number, alone or with K, M, G or T.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn a_line_comes_back_as_it_was_written() {
        let mut token = Token::draw("alice").unwrap();
        token.rights = Rights {
            devices: Some(vec!["cpu:0".into(), "cuda:1".into()]),
            quota: Some(8 << 30),
            upload_weights: false,
            sessions: Some(3),
        };
        assert_eq!(Token::parse(&token.line()).unwrap(), token);
        let plain = Token::draw("bob").unwrap();
        assert_eq!(Token::parse(&plain.line()).unwrap(), plain);
        let line = format!("a {} quota=8G", token.secret.to_hex());
        assert_eq!(Token::parse(&line).unwrap().rights.quota, Some(8 << 30));
    }

    #[test]
    fn what_is_no_token_is_told_by_its_line_and_not_shown() {
        let secret = Secret::from_bytes([7; 32]).to_hex();
        for bad in [
            "alice".to_owned(),
            format!("alice {}", &secret[1..]),
            format!("al/ice {secret}"),
            format!("alice {secret} quota=all"),
            format!("alice {secret} quota=99999999999999999999T"),
            format!("alice {secret} sessions=-1"),
            format!("alice {secret} weights=yes"),
            format!("alice {secret} devices="),
            format!("alice {secret} secret"),
            format!("alice {secret}\nalice {secret}"),
        ] {
            let (_folder, path) = file(&format!("# tokens\n\n{bad}\n"), 0o600);
            let error = Tokens::load(&path).unwrap_err();
            assert!(matches!(error, TokenFileError::Line { line: 3 | 4, .. }), "{error}");
            assert!(!error.to_string().contains(&secret[..60]), "{error}");
        }
    }

    /// Whoever could read the file could be anybody in it.
    #[test]
    fn a_file_that_others_can_read_is_not_used() {
        let token = Token::draw("alice").unwrap();
        for mode in [0o644, 0o640, 0o604, 0o660, 0o601] {
            let (_folder, path) = file(&token.line(), mode);
            let refused = |error| matches!(error, TokenFileError::Readable { mode: m, .. } if m == mode);
            assert!(refused(Tokens::load(&path).unwrap_err()), "{mode:o}");
            assert!(refused(Token::load(&path).unwrap_err()), "{mode:o}");
        }
        for mode in [0o600, 0o400] {
            let (_folder, path) = file(&token.line(), mode);
            assert_eq!(Tokens::load(&path).unwrap().len(), 1);
            assert_eq!(Token::load(&path).unwrap(), token);
        }
        let (folder, _) = file("", 0o600);
        assert!(matches!(Tokens::load(folder.path()), Err(TokenFileError::NoFile { .. } | TokenFileError::Io { .. })));
    }

    #[test]
    fn tokens_are_added_to_a_file_of_ones_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let (a, b) = (Token::draw("a").unwrap(), Token::draw("b").unwrap());
        a.append(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        b.append(&path).unwrap();
        assert!(matches!(a.append(&path), Err(TokenFileError::Taken { .. })));
        // An editor left the last line without its end: the next token stood on it, and none of the file could be read.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.trim_end()).unwrap();
        Token::draw("c").unwrap().append(&path).unwrap();
        assert_eq!(Tokens::load(&path).unwrap().len(), 3);
        std::fs::write(&path, text).unwrap();
        let tokens = Tokens::load(&path).unwrap();
        assert_eq!((tokens.len(), &**tokens.find("b").unwrap()), (2, &b));
        assert!(matches!(Token::load(&path), Err(TokenFileError::NotOne { found: 2, .. })));
    }
}
