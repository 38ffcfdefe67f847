//! Puts, four in flight, beside a raw stream of as many bytes.

use std::collections::VecDeque;
use std::io::{Read, Write};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use genie_benches::{put_floor, session};
use genie_graph::DType;
use genie_transport::client::PutOptions;
use genie_transport::memory::copied_bytes;
use genie_transport::wire::TensorSpec;

const IN_FLIGHT: usize = 4;

fn put(c: &mut Criterion) {
    let mut session = session().expect("a server starts in this process");
    let mut group = c.benchmark_group("put");
    group.sample_size(20);
    for bytes in [4usize << 20, 16 << 20] {
        let data = Bytes::from(vec![3u8; bytes]);
        let spec = TensorSpec::new(DType::U8, &[bytes as u64]).expect("a valid shape");
        group.throughput(Throughput::Bytes((bytes * IN_FLIGHT) as u64));
        let before = copied_bytes();
        group.bench_function(BenchmarkId::new("genie", bytes), |b| {
            b.iter(|| {
                let mut pending = VecDeque::new();
                for _ in 0..IN_FLIGHT {
                    let put = session.start_put(&spec, data.clone(), PutOptions::default());
                    pending.push_back(put.expect("the data fits its shape"));
                }
                for put in pending {
                    let tensor = session.finish_put(put).expect("the server takes it");
                    session.free(tensor.handle).expect("it is there");
                }
            });
        });
        // Requests and replies are copied into buffers; the tensors are not.
        assert!(copied_bytes() - before < bytes as u64, "payload was copied");
        group.bench_function(BenchmarkId::new("floor: raw stream", bytes), |b| {
            let mut socket = put_floor(bytes).expect("loopback works");
            let mut answers = [0; IN_FLIGHT];
            b.iter(|| {
                for _ in 0..IN_FLIGHT {
                    socket.write_all(&data).expect("the floor reads");
                }
                socket.read_exact(&mut answers).expect("the floor answers");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, put);
criterion_main!(benches);
