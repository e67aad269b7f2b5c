//! What several test files share.
#![allow(dead_code)]

pub(crate) mod moto;

use e2llm_store::{ChunkMeta, ContentHash, SoftPrompt, Store};
use half::f16;

/// A soft prompt of `chunks` chunks whose values depend on `seed`.
pub(crate) fn soft_prompt(input: &str, chunks: usize, seed: u32) -> SoftPrompt {
    let (d_model, d_enc, soft_tokens) = (24, 8, 4);
    let value = |n: usize| f16::from_f32(((n as u32 * 31 + seed) % 97) as f32 / 13.0 - 3.0);
    let chunk = |n: usize| ChunkMeta {
        text_start: n as u64 * 50,
        text_end: (n as u64 + 1) * 50,
        tokens: 16,
        soft_tokens: soft_tokens as u32,
    };
    SoftPrompt {
        fingerprint: "bundle-4x".into(),
        ratio: 4,
        input_key: ContentHash::of(input.as_bytes()).to_string(),
        text_hash: ContentHash::of(b"some text").to_string(),
        text_start: 0,
        text_end: chunks as u64 * 50,
        d_model,
        d_enc,
        chunks: (0..chunks).map(chunk).collect(),
        soft: (0..chunks * soft_tokens * d_model).map(value).collect(),
        vectors: (0..chunks * d_enc).map(value).collect(),
    }
}

/// `bytes` lower-case hex digits that hardly compress, different for each `seed`.
pub(crate) fn noise(bytes: usize, seed: u64) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut raw = vec![0; bytes.div_ceil(2)];
    hasher.finalize_xof().fill(&mut raw);
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    let mut text: String = raw.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
    text.truncate(bytes);
    text
}

/// Replaces an object's bytes, as a fault of the medium would.
pub(crate) async fn damage(store: &Store, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = store.get(path).await.unwrap().expect(path).to_vec();
    change(&mut bytes);
    store.delete(path).await.unwrap();
    let _ = store.create(path, bytes).await.unwrap();
}
