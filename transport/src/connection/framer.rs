//! Frames of a control lane on their way in.

use crate::wire::{DecodeError, HEADER_BYTES, Header, body_crc, whole_header, why_no_header};

/// Cuts a control lane's bytes into frames. One buffer, grown only for a frame whose header was checked and is within its
/// caps; many frames that came with one read are handed out one after another.
#[derive(Debug)]
pub struct Framer {
    buf: Vec<u8>,
    /// Bytes `start..end` of `buf` are received and not yet handed out.
    start: usize,
    end: usize,
    payload_cap: u32,
    /// The header at `start`, once it was checked.
    header: Option<Header>,
    /// Reads into an empty buffer since the last large frame.
    small_since_large: u32,
}

/// A frame, borrowed from the framer.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The checked header.
    pub header: Header,
    /// Metadata.
    pub meta: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
    /// Whether the body's checksum is right; if not, nothing in it may be used.
    pub intact: Result<(), Corrupted>,
}

/// A body whose checksum is another than its header says. As small as that: it is handed on with every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupted {
    /// As sent.
    pub found: u32,
    /// As computed.
    pub expected: u32,
}

impl From<Corrupted> for DecodeError {
    fn from(Corrupted { found, expected }: Corrupted) -> Self {
        Self::BodyChecksum { found, expected }
    }
}

/// Small until a peer has shown that it speaks the protocol, and may send payloads: ten thousand silent connections cost little, and
/// ten thousand that have said a byte no more.
const FIRST_BYTES: usize = 512;
const READ_BYTES: usize = 64 << 10;
/// Reads without a large frame after which its memory is given back: traffic of large frames keeps it.
const SMALL_READS: u32 = 64;

impl Framer {
    /// A framer that refuses payloads over `payload_cap` bytes.
    pub fn new(payload_cap: u32) -> Self {
        Self { buf: Vec::new(), start: 0, end: 0, payload_cap, header: None, small_since_large: 0 }
    }

    /// From here on payloads may have so many bytes.
    pub fn set_payload_cap(&mut self, payload_cap: u32) {
        self.payload_cap = payload_cap;
    }

    /// Where the next bytes should be read to; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.give_back();
        }
        let body = self.header.as_ref().map_or(0, Header::body_len);
        let needed = self.start + HEADER_BYTES + body;
        let least = if self.buf.is_empty() || self.payload_cap == 0 { FIRST_BYTES } else { READ_BYTES };
        if body > READ_BYTES {
            self.small_since_large = 0;
        }
        if self.buf.len() < needed || self.end == self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            // Grown as the bytes come: a peer that announces much and sends little takes little.
            let size = (HEADER_BYTES + body).min(2 * self.end).max(least);
            if self.buf.len() < size {
                self.buf.resize(size, 0);
            }
        } else if self.buf.len() < least && self.end > 0 {
            self.buf.resize(least, 0);
        }
        &mut self.buf[self.end..]
    }

    /// Large frames that come now and then do not keep their memory for the connection's life.
    fn give_back(&mut self) {
        if self.buf.len() <= READ_BYTES {
            return;
        }
        self.small_since_large += 1;
        if self.small_since_large > SMALL_READS {
            self.buf.truncate(READ_BYTES);
            self.buf.shrink_to_fit();
        }
    }

    /// As [`Self::space`], but for the frame that is arriving and no byte after it: what follows belongs to somebody else.
    /// Never empty if [`Self::next_frame`] was called after the last bytes.
    pub fn space_of_frame(&mut self) -> &mut [u8] {
        let wanted = HEADER_BYTES + self.header.as_ref().map_or(0, Header::body_len);
        let missing = wanted.saturating_sub(self.end - self.start);
        let space = self.space();
        let most = missing.min(space.len());
        &mut space[..most]
    }

    /// `n` bytes of [`Self::space`] were filled.
    pub fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.buf.len());
    }

    /// Whether a frame has begun to arrive and is not whole.
    pub fn in_frame(&self) -> bool {
        self.start != self.end
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// The stream cannot be trusted any further.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, DecodeError> {
        let received = &self.buf[self.start..self.end];
        let header = match self.header.take() {
            Some(header) => header,
            None => {
                let Some(head) = received.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
                match whole_header(head, self.payload_cap) {
                    Some(header) => header,
                    None => return Err(why_no_header(head, self.payload_cap)),
                }
            }
        };
        let whole = HEADER_BYTES + header.body_len();
        if received.len() < whole {
            self.header = Some(header);
            return Ok(None);
        }
        let at = self.start;
        self.start += whole;
        let (meta, payload) = self.buf[at + HEADER_BYTES..at + whole].split_at(header.meta_len as usize);
        let expected = body_crc(meta, payload);
        let intact =
            if expected == header.body_crc { Ok(()) } else { Err(Corrupted { found: header.body_crc, expected }) };
        Ok(Some(Frame { header, meta, payload, intact }))
    }

    /// Forgets everything: a new stream begins.
    pub fn reset(&mut self) {
        (self.start, self.end) = (0, 0);
        self.header = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Flags, Kind, encode_header};

    fn frame(id: u64, payload: &[u8]) -> Vec<u8> {
        let crc = body_crc(&[], payload);
        let mut bytes = encode_header(Kind::Echo, Flags::default(), id, 0, payload.len() as u32, crc).to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Whatever pieces the bytes come in, the same frames come out.
    #[test]
    fn frames_do_not_depend_on_how_bytes_arrive() {
        let sent: Vec<Vec<u8>> = (0..20).map(|i| vec![i as u8; i * 977]).collect();
        let bytes: Vec<u8> = sent.iter().enumerate().flat_map(|(i, p)| frame(i as u64, p)).collect();
        for step in [1, 7, 31, 32, 33, 1000, 100_000] {
            let mut framer = Framer::new(1 << 20);
            let mut seen = Vec::new();
            for mut piece in bytes.chunks(step) {
                while !piece.is_empty() {
                    let space = framer.space();
                    let n = space.len().min(piece.len());
                    space[..n].copy_from_slice(&piece[..n]);
                    framer.filled(n);
                    piece = &piece[n..];
                    while let Some(frame) = framer.next_frame().unwrap() {
                        frame.intact.unwrap();
                        assert_eq!(frame.header.id, seen.len() as u64);
                        seen.push(frame.payload.to_vec());
                    }
                }
            }
            assert_eq!(seen, sent, "pieces of {step}");
            assert!(!framer.in_frame());
        }
    }

    /// Whoever had said one byte had 64 KiB from then on: four thousand strangers a quarter of a gigabyte.
    #[test]
    fn who_may_send_no_payload_takes_no_room_for_one() {
        let mut framer = Framer::new(0);
        let bytes = frame(1, &[]);
        for byte in &bytes[..bytes.len() - 1] {
            framer.space()[0] = *byte;
            framer.filled(1);
            assert!(framer.next_frame().unwrap().is_none());
            assert!(framer.buf.len() <= FIRST_BYTES);
        }
        framer.space()[0] = bytes[bytes.len() - 1];
        framer.filled(1);
        framer.next_frame().unwrap().unwrap().intact.unwrap();
        framer.set_payload_cap(1 << 20);
        framer.space()[0] = bytes[0];
        framer.filled(1);
        assert!(framer.space().len() > FIRST_BYTES);
    }

    #[test]
    fn one_frame_is_taken_and_nothing_after_it() {
        let mut bytes = frame(1, &[7; 1000]);
        let whole = bytes.len();
        bytes.extend(frame(2, b"another reader's"));
        let mut framer = Framer::new(1 << 20);
        let mut taken = 0;
        loop {
            if let Some(frame) = framer.next_frame().unwrap() {
                assert_eq!(frame.header.id, 1);
                break;
            }
            let space = framer.space_of_frame();
            let n = space.len().min(37);
            space[..n].copy_from_slice(&bytes[taken..taken + n]);
            framer.filled(n);
            taken += n;
        }
        assert_eq!(taken, whole);
    }

    #[test]
    fn a_corrupted_body_is_marked_and_the_next_frame_comes() {
        let mut bytes = frame(1, b"payload");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes.extend(frame(2, b"good"));
        let mut framer = Framer::new(1 << 20);
        framer.space()[..bytes.len()].copy_from_slice(&bytes);
        framer.filled(bytes.len());
        assert!(framer.next_frame().unwrap().unwrap().intact.is_err());
        assert!(framer.next_frame().unwrap().unwrap().intact.is_ok());
    }
}
