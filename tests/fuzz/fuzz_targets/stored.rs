//! What is read back from object storage: soft prompts, texts, manifests.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &[u8])| {
    let (size, bytes) = input;
    e2llm_store::fuzz::soft_prompt(bytes);
    e2llm_store::fuzz::text(size, bytes);
    e2llm_store::fuzz::manifest(bytes);
});
