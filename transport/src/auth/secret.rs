//! A shared secret.

use zeroize::Zeroize;

use crate::wire::Mac;

/// 32 random bytes that a client and a server share: too many to be guessed, so that nobody who hears a proof can try out
/// which secret made it. Shows itself only by [`Self::to_hex`]; wiped when dropped.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Draws one.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn draw() -> Result<Self, getrandom::Error> {
        Ok(Self(draw()?))
    }

    /// From these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |d: u8| char::from(d).to_digit(16);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Some(Self(bytes))
    }

    /// As 64 hexadecimal digits: for a file that nobody else can read.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Keyed BLAKE3 of these parts, one after another.
    pub(super) fn mac(&self, parts: &[&[u8]]) -> Mac {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(part);
        }
        Mac(*hasher.finalize().as_bytes())
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        // In constant time.
        Mac(self.0) == Mac(other.0)
    }
}

impl Eq for Secret {}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Random bytes of the system.
pub(super) fn draw<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_there_and_back() {
        let secret = Secret::draw().unwrap();
        assert_eq!(Secret::from_hex(&secret.to_hex()), Some(secret.clone()));
        assert_ne!(Secret::draw().unwrap(), secret);
        for bad in ["", "ab", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65), &"ä".repeat(32)] {
            assert_eq!(Secret::from_hex(bad), None, "{bad}");
        }
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
