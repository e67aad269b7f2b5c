//! Memory while a long text streams in. Alone in its process, because it measures that process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use e2llm_store::Store;
use support::noise;

/// Peak resident memory of this process in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn a_text_many_times_larger_than_the_buffers_needs_no_more_memory() {
    const TEXT_BYTES: u64 = 96 << 20;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap()).await.unwrap();
    let before = peak();
    let mut writer = store.text_writer().unwrap();
    for seed in 0..TEXT_BYTES >> 20 {
        writer.write(noise(1 << 20, seed).as_bytes()).unwrap();
    }
    let text = writer.finish().await.unwrap();
    let grown = peak() - before;
    assert_eq!(text.bytes, TEXT_BYTES);
    assert!(grown < 48 << 20, "memory grew by {} MiB", grown >> 20);
    assert!(store.has_text(&text.hash).await.unwrap());
}
