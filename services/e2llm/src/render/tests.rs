use e2llm_api::v1::RowError;

use super::*;

fn usage() -> Usage {
    Usage {
        chunks_total: 1340,
        chunks_expanded: 1,
        chunks_soft: 1300,
        chunks_left_out: 39,
        soft_positions: 1200,
        text_positions: 300,
        reused_positions: 1088,
        generated_tokens: 64,
        first_token_us: 420_000,
        total_us: 2_100_000,
        finish_reason: "stop".into(),
        windows: 1,
        expanded: vec![ExpandedChunk { doc_id: "a".into(), chunk: 7, text_start: 10, text_end: 20, score: 0.5 }],
    }
}

fn summary(id: &str, text: &str) -> RowResult {
    RowResult { id: id.into(), text: text.into(), usage: Some(usage()), ..Default::default() }
}

fn failed(id: &str, message: &str) -> RowResult {
    let error = RowError { code: "NOT_UTF8".into(), message: message.into() };
    RowResult { id: id.into(), error: Some(error), ..Default::default() }
}

#[test]
fn a_summary_is_json_with_its_usage() {
    let value = row_json(JobKind::Summarize, &summary("a", "It says\n\"no\"."));
    assert_eq!(value["id"], "a");
    assert_eq!(value["summary"], "It says\n\"no\".");
    assert_eq!(value["usage"]["chunks_left_out"], 39);
    assert_eq!(value["usage"]["first_token_ms"], 420.0);
    assert_eq!(value["usage"]["expanded"][0]["text_end"], 20);
    assert!(!value.to_string().contains('\n'));
}

#[test]
fn an_answer_has_its_own_name() {
    let value = row_json(JobKind::Ask, &summary("q", "Yes."));
    assert_eq!(value["answer"], "Yes.");
    assert!(value.get("summary").is_none());
}

#[test]
fn a_failed_row_is_id_and_error_alone() {
    let value = row_json(JobKind::Summarize, &failed("a", "m"));
    assert_eq!(value, json!({"id": "a", "error": {"code": "NOT_UTF8", "message": "m"}}));
}

#[test]
fn an_encoded_document_is_its_record() {
    let record =
        DocRecord { doc_id: "a".into(), chunks: 3, soft_tokens: 90, source_tokens: 1360, ..Default::default() };
    let row = RowResult { id: "a".into(), record: Some(record), unchanged: true, ..Default::default() };
    let value = row_json(JobKind::Encode, &row);
    assert_eq!((&value["chunks"], &value["soft_tokens"], &value["unchanged"]), (&json!(3), &json!(90), &json!(true)));
    let text = row_text(JobKind::Encode, &row, 80);
    assert_eq!(text, "a: unchanged, 1,360 tokens in 3 chunks kept as 90 soft tokens");
}

#[test]
fn a_summary_for_people_is_a_heading_and_wrapped_text() {
    let text = row_text(JobKind::Summarize, &summary("a", "one two three\n\nfour"), 10);
    assert_eq!(text, "a\n  one two\n  three\n\n  four\n  [39 chunks did not fit and were left out]\n");
}

#[test]
fn an_error_for_people_is_one_line_that_names_its_row() {
    assert_eq!(row_error_text(&failed("a.txt", "dir/a.txt is\nbad")), "error: dir/a.txt is bad");
    assert_eq!(row_error_text(&failed("x", "is bad")), "error: x: is bad");
}

#[test]
fn escape_sequences_do_not_reach_a_terminal() {
    let text = row_text(JobKind::Summarize, &summary("a\u{1b}[2J", "red \u{1b}[31m\u{9b}alarm\u{7}"), 80);
    assert!(!text.contains('\u{1b}') && !text.contains('\u{9b}') && !text.contains('\u{7}'), "{text:?}");
}

#[test]
fn words_longer_than_the_line_stand_alone() {
    assert_eq!(wrap("a verylongword b", 6, ""), "a\nverylongword\nb\n");
    assert_eq!(wrap("", 6, ""), "");
    assert_eq!(wrap("x", 0, "  "), "  x\n");
}

#[test]
fn usage_for_people_names_what_was_read_and_left_out() {
    let text = usage_text(&usage());
    for part in [
        "1 of 1,340 chunks as text",
        "left out 39",
        "1,500 positions",
        "1,088 read before",
        "0.42 s",
        "a bytes 10–20 (0.50)",
    ] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn numbers_are_for_reading() {
    assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    assert_eq!([0, 59, 125, 11_220].map(duration), ["0 s", "59 s", "2 min 05 s", "3 h 07 min"]);
}
