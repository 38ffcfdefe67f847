//! The small round trip: an echo through client, server and back, beside raw sockets that poll.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use genie_benches::{echo_floor, poll_read, poll_write, session};

fn echo(c: &mut Criterion) {
    let mut session = session().expect("a server starts in this process");
    let mut group = c.benchmark_group("echo");
    for bytes in [64, 4096] {
        let sent = vec![7u8; bytes];
        group.bench_function(BenchmarkId::new("genie", bytes), |b| {
            let mut back = Vec::new();
            b.iter(|| session.echo(&sent, &mut back).expect("the server answers"));
            assert_eq!(back, sent);
        });
        group.bench_function(BenchmarkId::new("floor: raw sockets", bytes), |b| {
            let mut socket = echo_floor(bytes).expect("loopback works");
            let mut back = vec![0; bytes];
            b.iter(|| {
                poll_write(&mut socket, &sent).expect("the floor reads");
                poll_read(&mut socket, &mut back).expect("the floor answers");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, echo);
criterion_main!(benches);
