//! Tests of the codecs.

mod properties;
mod refusals;

use super::header::RawHeader;
use super::*;

fn encoded(request: &Request<'_>) -> (Kind, Vec<u8>, Vec<u8>) {
    let (mut meta, mut payload) = (Vec::new(), Vec::new());
    let kind = request.encode(&mut meta, &mut payload);
    let payload = request.payload().map_or(payload, <[u8]>::to_vec);
    (kind, meta, payload)
}

fn encoded_reply(reply: &Reply<'_>) -> (Flags, Vec<u8>, Vec<u8>) {
    let (mut meta, mut payload) = (Vec::new(), Vec::new());
    let flags = reply.encode(&mut meta, &mut payload);
    let payload = reply.payload().map_or(payload, <[u8]>::to_vec);
    (flags, meta, payload)
}

/// The header of a frame, through its bytes.
fn header(kind: Kind, flags: Flags, meta: &[u8], payload: &[u8]) -> Header {
    let crc = body_crc(meta, payload);
    let bytes = encode_header(kind, flags, 9, meta.len() as u32, payload.len() as u32, crc);
    decode_header(&bytes, limits::CONTROL_PAYLOAD_BYTES).unwrap()
}

/// Feeds a body to every decoder. What decodes, encodes again to what decodes to the same.
/// Gives a header the checksum that fits.
fn fix_header(bytes: &mut [u8; HEADER_BYTES]) {
    let at = std::mem::offset_of!(RawHeader, header_crc);
    let crc = body_crc(&bytes[..at], &[]);
    bytes[at..].copy_from_slice(&crc.to_le_bytes());
}
