//! TLS 1.3 records (RFC 8446, section 5): sealed on the way out, opened on the way in.

use std::io;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Bytes of a record's head.
pub(super) const HEAD: usize = 5;
/// Bytes that a record's body may have, at the most: what is in it, its type, a tag, and padding.
pub(super) const RECORD: usize = PLAIN + 256;
/// Bytes that may be in a record.
pub(super) const PLAIN: usize = 16 << 10;
const TAG: usize = 16;

/// Records that one key seals, at the most, before the next: well within what AES-GCM bears (2^24.5).
const RECORDS_PER_KEY: u64 = 1 << 23;

/// Bytes of a record that holds so many.
pub(super) const fn sealed(length: usize) -> usize {
    HEAD + length + 1 + TAG
}

/// What a record holds.
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;
pub(super) const HEARTBEAT: u8 = 24;

/// Keys for one direction.
pub(super) struct Direction {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Direction {
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> io::Result<Self> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "a cipher suite that was not offered")),
        };
        let key =
            UnboundKey::new(algorithm, key.as_ref()).map_err(|_| io::Error::other("a key of the wrong length"))?;
        let iv =
            iv.as_ref().try_into().map_err(|_| io::Error::other("an initialisation vector of the wrong length"))?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// Whether it is time for other keys.
    pub(super) fn is_worn(&self) -> bool {
        self.sequence >= RECORDS_PER_KEY
    }

    /// Makes a record that holds these bytes (`PLAIN` at the most), of one kind, at the front of `out`. How long it is. The bytes
    /// themselves never stand in `out`, which another process may be reading.
    pub(super) fn seal(&mut self, kind: u8, bytes: &[u8], out: &mut [u8]) -> io::Result<usize> {
        let head = head(bytes.len() + 1 + TAG);
        let whole = sealed(bytes.len());
        let (place, rest) = out[..whole].split_at_mut(HEAD + bytes.len());
        place[..HEAD].copy_from_slice(&head);
        let (nonce, aad) = (self.nonce()?, Aad::from(head));
        self.key
            .seal_out_of_place_scatter(nonce, aad, bytes, &mut place[HEAD..], &[kind], rest)
            .map_err(|_| io::Error::other("a record could not be sealed"))?;
        Ok(whole)
    }

    /// Opens a record's body in place: how many bytes from its front are its content, and of what kind.
    pub(super) fn open(&mut self, body: &mut [u8]) -> io::Result<(usize, u8)> {
        let head = head(body.len());
        let nonce = self.nonce()?;
        let plain = self.key.open_in_place(nonce, Aad::from(head), body).map_err(|_| forged())?;
        content(plain)
    }

    /// Opens a record's body to the front of `out`, which is as long at least: how many bytes there are its content, and of what
    /// kind.
    pub(super) fn open_into(&mut self, body: &[u8], out: &mut [u8]) -> io::Result<(usize, u8)> {
        let head = head(body.len());
        let nonce = self.nonce()?;
        let (sealed, tag) = body.split_at_checked(body.len() - TAG).ok_or_else(forged)?;
        let out = &mut out[..sealed.len()];
        self.key.open_separate_gather(nonce, Aad::from(head), sealed, tag, out).map_err(|_| forged())?;
        content(out)
    }

    fn nonce(&mut self) -> io::Result<Nonce> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or_else(|| io::Error::other("a key has sealed all it may"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// The body's length of a record with this head.
///
/// # Errors
/// It is no record that can come after a handshake.
pub(super) fn body_len(head: [u8; HEAD]) -> io::Result<usize> {
    let [kind, major, _, high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if kind != DATA || major != 3 || !(TAG + 1..=RECORD).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what came is no TLS record"));
    }
    Ok(length)
}

/// How many bytes of an opened record are its content, and of what kind.
fn content(plain: &[u8]) -> io::Result<(usize, u8)> {
    // Zeros after the kind are padding.
    let kind = plain.iter().rposition(|&b| b != 0).ok_or_else(forged)?;
    if kind > PLAIN {
        return Err(forged());
    }
    Ok((kind, plain[kind]))
}

fn head(body: usize) -> [u8; HEAD] {
    // `RECORD` bytes at the most.
    let [high, low] = (body as u16).to_be_bytes();
    [DATA, 3, 3, high, low]
}

fn forged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a TLS record was changed on the way")
}
