//! One workload by its name, or without one the names and their multiplications and additions: what `cargo xtask instructions` runs under callgrind.
#![allow(clippy::expect_used, missing_docs, unreachable_pub)]

#[path = "../benches/workloads/mod.rs"]
mod workloads;

use std::process::ExitCode;

use workloads::Workload;

fn main() -> ExitCode {
    let mut all = workloads::all();
    let Some(name) = std::env::args().nth(1) else {
        all.iter().for_each(|workload| println!("{} {}", workload.name, workload.flops));
        return ExitCode::SUCCESS;
    };
    let Some(workload) = all.iter_mut().find(|workload| workload.name == name) else {
        eprintln!("there is no workload {name:?}");
        return ExitCode::FAILURE;
    };
    // Once before it counts: what is looked up once (which instructions the processor has) is no part of it.
    workload.run();
    counted(workload);
    ExitCode::SUCCESS
}

/// What callgrind counts: it knows the function by its name.
#[inline(never)]
fn counted(workload: &mut Workload) {
    workload.run();
}
