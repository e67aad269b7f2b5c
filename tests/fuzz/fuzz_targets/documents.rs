//! Users' files: JSON Lines, Parquet, texts, gzip and zstd around them.
#![no_main]

use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 6] = ["a.jsonl", "a.parquet", "a.txt", "a.jsonl.gz", "a.txt.zst", "a"];

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    e2llm::fuzz::documents(NAMES[usize::from(kind) % NAMES.len()], bytes);
});
