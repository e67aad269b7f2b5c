//! The command line with a store in a directory, and nothing else running.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2llm_e2e::{HARBOUR, TEXTS, Workplace, answer};
use serde_json::Value;

fn ids() -> Vec<&'static str> {
    TEXTS.iter().map(|(id, _)| *id).collect()
}

fn column<'a>(rows: &'a [Value], name: &str) -> Vec<&'a Value> {
    rows.iter().map(|row| &row[name]).collect()
}

#[test]
fn a_directory_is_encoded_once() {
    let place = Workplace::new();
    let first = place.json(&["encode", "texts"]).succeeded().rows();
    assert_eq!(column(&first, "id"), ids());
    assert_eq!(column(&first, "unchanged"), [false; 3]);
    let second = place.json(&["encode", "texts"]).succeeded().rows();
    assert_eq!(column(&second, "unchanged"), [true; 3]);
    assert_eq!(column(&second, "version"), column(&first, "version"));
    place.write("texts/bakery.txt", "The bakery has closed.");
    let third = place.json(&["encode", "texts"]).succeeded().rows();
    assert_eq!(column(&third, "unchanged"), [false, true, true]);
    assert_ne!(third[0]["text_hash"], first[0]["text_hash"]);
}

#[test]
fn records_can_be_listed_and_shown() {
    let place = Workplace::encoded();
    let listed = place.json(&["docs", "list"]).succeeded().rows();
    assert_eq!(column(&listed, "id"), ids());
    for (row, (id, text)) in listed.iter().zip(TEXTS) {
        assert_eq!(row["text_bytes"], text.len(), "{row}");
        let shown = place.json(&["docs", "show", id]).succeeded().rows().remove(0);
        let segments = shown["segments"].as_array().unwrap();
        assert_eq!((&segments[0]["text_start"], &segments[0]["text_end"]), (&0.into(), &text.len().into()), "{shown}");
        assert_eq!(shown["soft_tokens"], row["soft_tokens"]);
    }
}

#[test]
fn summaries_are_one_row_per_id() {
    let place = Workplace::encoded();
    let summaries = place.json(&["summarize", "--max-tokens", "4", "--id", HARBOUR, "nowhere", "bakery.txt"]);
    assert_eq!(summaries.code, 3, "{summaries:#?}");
    let expected = [(HARBOUR, ""), ("nowhere", "NOT_FOUND"), ("bakery.txt", "")];
    assert_eq!(summaries.codes(), expected.map(|(id, code)| (id.to_owned(), code.to_owned())));
    for row in summaries.rows().iter().filter(|row| row["error"].is_null()) {
        assert!(!row["summary"].as_str().unwrap().trim().is_empty(), "{row}");
        assert!((1..=4).contains(&row["usage"]["generated_tokens"].as_u64().unwrap()), "{row}");
    }
}

#[test]
fn a_long_document_is_summarised_in_one_window_or_as_a_whole() {
    let place = Workplace::new();
    place.write("long/licence.txt", include_str!("../../../LICENSE"));
    let usage = |windows: &[&str]| {
        let summarize =
            ["summarize", "long", "--max-tokens", "4", "--max-positions", "256", "--expand-positions", "128"];
        let usage = place.json(&[&summarize[..], windows].concat()).succeeded().rows()[0]["usage"].clone();
        ["windows", "chunks_total", "chunks_soft", "chunks_expanded", "chunks_left_out"]
            .map(|name| usage[name].as_u64().unwrap())
    };
    let [windows, total, soft, expanded, left_out] = usage(&[]);
    assert!(windows == 1 && expanded > 0 && soft > 0, "{windows} {expanded} {soft}");
    assert_eq!(left_out, total - soft - expanded, "no chunk is read both ways while others are left out");
    assert!(left_out > 0);
    let [all_windows, chunks, soft, _, left_out] = usage(&["--max-windows", "0"]);
    assert_eq!((chunks, soft, left_out), (total, total, 0));
    let [some_windows, _, _, _, fewer_left_out] = usage(&["--max-windows", "2"]);
    assert!(1 < some_windows && some_windows < all_windows && fewer_left_out > 0, "{some_windows} {all_windows}");
}

#[test]
fn a_question_to_several_documents_reads_the_right_one_as_text() {
    let place = Workplace::encoded();
    let asked = place.ask(HARBOUR, &["--expand", "1", "--id", "bakery.txt", "--id", "orchard.txt"]).succeeded();
    let row = asked.rows().remove(0);
    let usage = &row["usage"];
    let chunks = ["chunks_total", "chunks_expanded", "chunks_soft", "chunks_left_out"].map(|name| usage[name].as_u64());
    assert_eq!(chunks, [Some(3), Some(1), Some(3), Some(0)], "{row}");
    assert_eq!(usage["expanded"][0]["doc_id"], HARBOUR, "{row}");
    assert!(usage["soft_positions"].as_u64().unwrap() > 0, "{row}");
    assert!(!row["answer"].as_str().unwrap().trim().is_empty(), "{row}");
}

#[test]
fn chunks_that_do_not_fit_are_counted_as_left_out() {
    let place = Workplace::encoded();
    let flags = ["--expand", "0", "--max-positions", "10", "--id", "bakery.txt", "--id", "orchard.txt"];
    let row = place.ask(HARBOUR, &flags).succeeded().rows().remove(0);
    let usage = |name: &str| row["usage"][name].as_u64().unwrap();
    assert!(usage("chunks_left_out") > 0 && usage("soft_positions") <= 10, "{row}");
    assert_eq!(usage("chunks_total"), usage("chunks_expanded") + usage("chunks_soft") + usage("chunks_left_out"));
}

#[test]
fn the_same_answer_comes_again_even_without_the_index_view() {
    let place = Workplace::encoded();
    let records = place.json(&["docs", "list"]).succeeded().stdout;
    let first = answer(place.ask(HARBOUR, &[]));
    assert_eq!(answer(place.ask(HARBOUR, &[])), first);
    std::fs::remove_dir_all(place.path("store/view")).unwrap();
    assert_eq!(place.json(&["docs", "list"]).succeeded().stdout, records);
    assert_eq!(answer(place.ask(HARBOUR, &[])), first);
}

#[test]
fn bad_documents_are_error_rows_and_the_others_are_encoded() {
    let place = Workplace::new();
    place.write("mixed/a-empty.txt", " \n");
    place.write("mixed/b-latin.txt", b"caf\xe9 au lait");
    place.write("mixed/c-report.txt", "%PDF-1.7\n%binary");
    place.write("mixed/d-good.txt", TEXTS[0].1);
    let encoded = place.json(&["encode", "mixed"]);
    assert_eq!(encoded.code, 3, "{encoded:#?}");
    let expected = [
        ("a-empty.txt", "EMPTY_DOCUMENT"),
        ("b-latin.txt", "NOT_UTF8"),
        ("c-report.txt", "UNSUPPORTED_FORMAT"),
        ("d-good.txt", ""),
    ];
    assert_eq!(encoded.codes(), expected.map(|(id, code)| (id.to_owned(), code.to_owned())));
    let listed = place.json(&["docs", "list"]).succeeded().rows();
    assert_eq!(column(&listed, "id"), ["d-good.txt"]);
}

#[test]
fn bad_lines_are_error_rows_and_the_others_are_encoded() {
    let place = Workplace::new();
    let lines = [
        r#"{"id": "one", "text": "The mill stands on the river Orre."}"#,
        r#"{"id": "one", "text": "The mill has moved."}"#,
        r#"{"id": "a/b", "text": "The mill."}"#,
        r#"{"id": "two", "text": ""}"#,
        "not json",
        r#"{"id": "three", "text": "The miller keeps geese."}"#,
    ];
    place.write("rows.jsonl", lines.join("\n"));
    let encoded = place.json(&["encode", "rows.jsonl"]);
    assert_eq!(encoded.code, 3, "{encoded:#?}");
    let expected = [
        ("one", ""),
        ("one", "DUPLICATE_ID"),
        ("a/b", "INVALID_ID"),
        ("two", "EMPTY_DOCUMENT"),
        ("rows.jsonl:5", "INVALID_ARGUMENT"),
        ("three", ""),
    ];
    assert_eq!(encoded.codes(), expected.map(|(id, code)| (id.to_owned(), code.to_owned())));
    assert_eq!(encoded.rows()[0]["text_bytes"], "The mill stands on the river Orre.".len());
}

#[test]
fn a_question_to_an_unknown_or_bad_id_is_refused_in_one_line() {
    let place = Workplace::encoded();
    place.ask("nowhere", &[]).refused(&["nowhere", "encode it first"]);
    place.ask("a/b", &[]).refused(&["a/b", "slash"]);
}

#[test]
fn an_index_gets_another_number_of_shards_and_its_first_one_back() {
    let place = Workplace::encoded();
    let documents = |place: &Workplace| {
        let rows = place.json(&["docs", "list"]).succeeded().rows();
        rows.iter().map(|row| (row["id"].clone(), row["text_hash"].clone())).collect::<Vec<_>>()
    };
    let before = documents(&place);
    let answered = answer(place.ask(HARBOUR, &["--expand", "0"]));
    let moved = place.json(&["reshard", "--from", "1", "--to", "2"]).succeeded().rows();
    assert_eq!(moved[0]["records"], before.len(), "{moved:?}");
    for command in ["list", "doctor"] {
        let args: &[&str] = if command == "list" { &["docs", "list"] } else { &["doctor"] };
        place.json(args).refused(&["2 shards, not 1", "--server"]);
    }
    place.json(&["reshard", "--from", "1", "--to", "3"]).refused(&["2 shards, not 1", "--from 2"]);
    place.json(&["reshard", "--from", "2", "--to", "1"]).succeeded();
    assert_eq!(documents(&place), before);
    assert_eq!(answer(place.ask(HARBOUR, &["--expand", "0"])), answered);
    assert!(place.json(&["doctor"]).succeeded().stdout.is_empty());
}
