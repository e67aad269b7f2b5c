use e2llm_api::ErrorCode;

use super::count::Size;
use super::*;

fn count() -> Count {
    let errors = [(ErrorCode::DuplicateId, 1), (ErrorCode::NotUtf8, 2)];
    let size = Size {
        text_bytes: 2_000_000,
        tokens: 400_000,
        chunks: 7000,
        soft_tokens: 100_000,
        prompt_bytes: 120_000_000,
        compressed_bytes: 700_000,
    };
    Count {
        rows: 50,
        new: 40,
        changed: 2,
        unchanged: 5,
        errors: errors.map(|(code, rows)| (code.as_str().to_owned(), rows)).into(),
        size,
        ..Count::default()
    }
}

#[test]
fn a_report_tells_documents_tokens_bytes_and_time() {
    let estimate = Some((Estimate { encode_s: 61.2, decode_s: 7.0 }, 3));
    let text = to_text(JobKind::Summarize, &count(), estimate);
    let expected = "50 rows: 40 new, 2 changed, 5 unchanged, 3 failed (1 duplicates)\n\
        to encode: 2.00 MB of text, 400,000 tokens in 7,000 chunks\n\
        to store: 120.00 MB of soft prompts, and of texts an estimated 700.00 kB\n\
        time: about 1 min 02 s of encoding and 7 s of decoding, at the pace of 3 finished jobs";
    assert_eq!(text, expected);
    let json = to_json(JobKind::Summarize, &count(), estimate);
    assert_eq!((&json["duplicates"], &json["failed"], &json["errors"]["NOT_UTF8"]), (&1.into(), &3.into(), &2.into()));
    assert_eq!((&json["source_tokens"], &json["estimate"]["encode_s"]), (&400_000.into(), &61.2.into()));
}

#[test]
fn time_that_was_never_measured_is_not_invented() {
    assert!(to_text(JobKind::Encode, &count(), None).contains("time: not measured yet"));
    assert!(to_json(JobKind::Encode, &count(), None)["estimate"].is_null());
}

#[test]
fn a_store_that_is_not_there_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!may_exist(&dir.path().display().to_string()));
    std::fs::write(dir.path().join("store.json"), "{}").unwrap();
    assert!(may_exist(&dir.path().display().to_string()));
    assert!(may_exist("s3://bucket/store"));
}
