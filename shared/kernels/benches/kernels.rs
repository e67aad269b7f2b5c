//! `cargo bench -p e2llm-kernels`: GFLOP/s of each workload on one thread.
#![allow(clippy::expect_used, missing_docs, unreachable_pub)]

mod workloads;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    for mut workload in workloads::all() {
        group.throughput(Throughput::Elements(workload.flops));
        group.bench_function(workload.name, |bencher| bencher.iter(|| workload.run()));
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
