use super::*;

fn counter(measure: Measure) -> Counter<'static> {
    Counter { services: None, collection: "c".into(), fingerprint: "b".into(), measure: Arc::new(measure) }
}

fn row(id: &str, text: &str, metadata: &str) -> Waiting {
    let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    let document = Document { text: text.into(), hash, metadata: metadata.into() };
    Waiting { id: id.into(), doc_ids: vec![id.into()], document: Some(document) }
}

/// A tokenizer of a few words.
fn measure() -> Measure {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "one": 1}, "unk_token": "[UNK]"}
    });
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let adapter = serde_json::json!({
        "form": "gated_segments", "ratio": 4, "d_enc": 3, "d_model": 5, "value_hidden": 1, "gate_hidden": 1,
        "segment_hidden": 1, "embedding_rms": 1.0
    });
    let tokenizer = Arc::new(e2llm_model::TextTokenizer::from_file(&path).unwrap());
    Measure { chunker: Chunker::new(tokenizer, 8).unwrap(), adapter: serde_json::from_value(adapter).unwrap() }
}

#[test]
fn a_record_decides_by_text_and_then_by_metadata() {
    let text_hash = blake3::hash(b"one").to_hex().to_string();
    let record = DocRecord { text_hash, metadata: "{\"year\":1874}".into(), ..Default::default() };
    let records = HashMap::from([("a".to_owned(), record)]);
    let counter = counter(measure());
    let verdict = |id, text, metadata| counter.verdict(&row(id, text, metadata), &records);
    assert_eq!(verdict("b", "one", ""), Verdict::New);
    assert_eq!(verdict("a", "two", ""), Verdict::Changed);
    assert_eq!(verdict("a", "one", "{\"year\":1875}"), Verdict::Annotated);
    assert_eq!(verdict("a", "one", "{ \"year\": 1874 }"), Verdict::Unchanged);
    assert_eq!(verdict("a", "one", ""), Verdict::Unchanged);
}

#[tokio::test]
async fn rows_are_told_in_their_order_and_sizes_follow_the_formula() {
    let (sender, receiver) = mpsc::channel(16);
    let document = |id: &str, bytes| Part::Document { id: id.into(), bytes, metadata: String::new() };
    let text = "one one one one one one one one one one";
    let parts = [
        Part::Piece(text.into()),
        document("a", text.len() as u64),
        Part::Piece(b"half".to_vec()),
        Part::Failed { id: "b".into(), error: row_error(ErrorCode::DuplicateId, "twice") },
        Part::Piece(vec![0xff]),
        document("c", 1),
        document("stored", 0),
    ];
    for part in parts {
        sender.send(part).await.unwrap();
    }
    drop(sender);
    let mut told = Vec::new();
    let counter = counter(measure());
    let counted = counter.count(receiver, |id, verdict| {
        told.push((id.to_owned(), matches!(verdict, Verdict::Failed(_))));
        Ok(())
    });
    let count = counted.await.unwrap();
    let told: Vec<(&str, bool)> = told.iter().map(|(id, failed)| (id.as_str(), *failed)).collect();
    assert_eq!(told, [("a", false), ("b", true), ("c", true), ("stored", true)]);
    let codes: Vec<&str> = count.errors.keys().map(String::as_str).collect();
    assert_eq!((count.new, count.failed(), codes), (1, 3, vec!["DUPLICATE_ID", "NOT_FOUND", "NOT_UTF8"]));
    // Ten tokens in chunks of eight and two are three soft tokens.
    let size = count.size;
    assert_eq!((size.tokens, size.chunks, size.soft_tokens), (10, 2, 3));
    assert_eq!(size.prompt_bytes, 3 * 5 * 2 + 2 * (3 * 2 + 32));
    assert!(size.compressed_bytes > 0 && size.text_bytes == text.len() as u64);
}
