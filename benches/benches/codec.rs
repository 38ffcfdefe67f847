//! The wire codec on the path of a decode step, and the checksum of a slice; floors: copying the same bytes.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use genie_graph::DType;
use genie_transport::wire::{
    Arguments, Flags, HEADER_BYTES, Handle, Kind, Request, SLICE_FRAME_BYTES, SliceHead, body_crc, decode_header,
    encode_header, limits, write_argument,
};

fn step(c: &mut Criterion) {
    let mut inputs = Vec::new();
    write_argument(&mut inputs, 0, DType::I32, &[1, 1], &7i32.to_le_bytes()).expect("a token is a valid argument");
    let binding = Handle { index: 3, generation: 1, epoch: 9 };
    let arguments = Arguments::new(1, &inputs).expect("just written");
    let request = Request::Run { binding, position: Some(72), wanted: 1, keep: 0, arguments };
    let mut frame = Vec::new();
    let encode = |frame: &mut Vec<u8>| {
        frame.clear();
        frame.resize(HEADER_BYTES, 0);
        let kind = request.encode(frame, &mut Vec::new());
        let meta = frame.len() - HEADER_BYTES;
        let crc = body_crc(&frame[HEADER_BYTES..], &inputs);
        frame.extend_from_slice(&inputs);
        let head = encode_header(kind, Flags::default(), 1, meta as u32, inputs.len() as u32, crc);
        frame[..HEADER_BYTES].copy_from_slice(&head);
    };
    encode(&mut frame);

    let mut group = c.benchmark_group("decode step");
    group.bench_function("encode", |b| {
        let mut out = Vec::new();
        b.iter(|| encode(black_box(&mut out)));
    });
    group.bench_function("decode", |b| {
        b.iter(|| {
            let (head, body) = black_box(&frame[..]).split_first_chunk().expect("a whole header");
            let header = decode_header(head, limits::CONTROL_PAYLOAD_BYTES).expect("a valid header");
            let (meta, payload) = body.split_at(header.meta_len as usize);
            assert_eq!(body_crc(meta, payload), header.body_crc);
            let request = Request::decode(&header, meta, payload).expect("a valid request");
            assert!(matches!(request, Request::Run { .. }));
            black_box(header.kind == Ok(Kind::Run))
        });
    });
    group.bench_function("floor: copy the frame", |b| {
        let mut out = vec![0; frame.len()];
        b.iter(|| out.copy_from_slice(black_box(&frame)));
    });
    group.finish();
}

fn slice(c: &mut Criterion) {
    let payload = vec![5u8; 256 << 10];
    let head: [u8; SLICE_FRAME_BYTES] = SliceHead::encode(1, 0, payload.len() as u64, &payload);
    let head = SliceHead::decode(&head).expect("a valid slice");
    let mut group = c.benchmark_group("slice of 256 KiB");
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("encode with checksum", |b| {
        b.iter(|| SliceHead::encode(1, 0, payload.len() as u64, black_box(&payload)));
    });
    group.bench_function("check", |b| {
        b.iter(|| {
            let mut check = head.checker();
            check.update(black_box(&payload));
            assert!(check.matches());
        });
    });
    group.bench_function("floor: memcpy", |b| {
        let mut out = vec![0; payload.len()];
        b.iter(|| out.copy_from_slice(black_box(&payload)));
    });
    group.finish();
}

criterion_group!(benches, step, slice);
criterion_main!(benches);
