//! The index over real sled directories and real stores: what it promises when things go wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod child;
mod damage;
mod full_disk;
mod garbage;
mod log_damage;
mod resharding;
mod rpc;
mod shards;
mod summaries;
mod support;
mod writers;
