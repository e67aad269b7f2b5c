use super::*;
use e2llm_api::v1::Row;

#[test]
fn jsonl_rows_that_are_wrong_name_their_line() {
    let long = "x".repeat(300);
    let content = [
        br#"{"id": "a", "text": "first", "other": 1}"#.to_vec(),
        b"".to_vec(),
        br#"{"id": "b", "text": "#.to_vec(),
        br#"["id"]"#.to_vec(),
        br#"{"text": "no id"}"#.to_vec(),
        br#"{"id": 7, "text": "t"}"#.to_vec(),
        br#"{"id": null, "text": "t"}"#.to_vec(),
        br#"{"id": "c"}"#.to_vec(),
        br#"{"id": "d", "text": ["t"]}"#.to_vec(),
        br#"{"id": "a", "text": "again"}"#.to_vec(),
        br#"{"id": "e", "text": " \n"}"#.to_vec(),
        br#"{"id": "a/b", "text": "t"}"#.to_vec(),
        br#"{"id": "..", "text": "t"}"#.to_vec(),
        br#"{"id": "a\u0007b", "text": "t"}"#.to_vec(),
        format!("{{\"id\": \"{long}\", \"text\": \"t\"}}").into_bytes(),
        b"{\"id\": \"f\", \"text\": \"\xff\"}".to_vec(),
        br#"{"id": "", "text": "t"}"#.to_vec(),
        br#"{"id": "z", "text": "last"}"#.to_vec(),
    ]
    .join(&b'\n');
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("docs.jsonl");
    fs::write(&path, content).unwrap();
    let rows = documents(vec![Input::Path(path.clone())]);
    assert_eq!(rows.len(), 17);
    assert_eq!(rows[0], ("a".to_owned(), Ok("first".to_owned())));
    assert_eq!(rows[16], ("z".to_owned(), Ok("last".to_owned())));
    let at = |line: u32| format!("{}:{line}", path.display());
    assert_fails(&rows, &at(3), "INVALID_ARGUMENT", &[":3: it is not JSON"]);
    assert_fails(&rows, &at(4), "INVALID_ARGUMENT", &[":4: it is an array"]);
    assert_fails(&rows, &at(5), "INVALID_ARGUMENT", &[":5: \"id\" is missing"]);
    assert_fails(&rows, &at(6), "INVALID_ARGUMENT", &[":6:", "the number 7", "\"7\""]);
    assert_fails(&rows, &at(7), "INVALID_ARGUMENT", &[":7: \"id\" is null"]);
    assert_fails(&rows, "c", "INVALID_ARGUMENT", &[":8: \"text\" is missing"]);
    assert_fails(&rows, "d", "INVALID_ARGUMENT", &[":9: \"text\" is an array"]);
    assert_fails(&rows, "a", "DUPLICATE_ID", &[":10:", "twice"]);
    assert_fails(&rows, "e", "EMPTY_DOCUMENT", &[":11"]);
    assert_fails(&rows, "a/b", "INVALID_ID", &[":12:", "slash"]);
    assert_fails(&rows, "..", "INVALID_ID", &[":13:", "path step"]);
    assert_fails(&rows, "a\u{7}b", "INVALID_ID", &[":14:", "control character"]);
    assert_fails(&rows, &long, "INVALID_ID", &[":15:", "300 bytes"]);
    assert_fails(&rows, &at(16), "NOT_UTF8", &[":16", "byte 21"]);
    assert_fails(&rows, "", "INVALID_ID", &[":17:", "empty"]);
}

#[test]
fn standard_input_is_jsonl_if_it_begins_with_a_brace() {
    let rows = unnamed(b"\n {\"id\": \"a\", \"text\": \"t\"}\nnot json\n");
    assert_eq!(rows[0], ("a".to_owned(), Ok("t".to_owned())));
    assert_fails(&rows, "standard input:3", "INVALID_ARGUMENT", &["not JSON"]);
    assert_eq!(unnamed(b"just text"), [("stdin".to_owned(), Ok("just text".to_owned()))]);
    assert_fails(&unnamed(b"%PDF-1.5"), "stdin", "UNSUPPORTED_FORMAT", &["standard input is a PDF"]);
    assert_fails(&unnamed(b"{\\rtf1"), "stdin", "UNSUPPORTED_FORMAT", &["RTF"]);
    assert_fails(&unnamed(b""), "stdin", "EMPTY_DOCUMENT", &["standard input"]);
}

#[test]
fn questions_that_are_wrong_name_their_line() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("questions.jsonl");
    let content = [
        r#"{"id": "q1", "doc_ids": ["a", "b"], "question": "Why?"}"#,
        r#"{"id": "q2", "question": "Why?"}"#,
        r#"{"id": "q3", "doc_ids": [], "question": "Why?"}"#,
        r#"{"id": "q4", "doc_ids": "a", "question": "Why?"}"#,
        r#"{"id": "q5", "doc_ids": [1], "question": "Why?"}"#,
        r#"{"id": "q6", "doc_ids": ["../x"], "question": "Why?"}"#,
        r#"{"id": "q7", "doc_ids": ["a"], "question": " "}"#,
        r#"{"id": "q1", "doc_ids": ["a"], "question": "Again?"}"#,
    ];
    fs::write(&path, content.join("\n")).unwrap();
    let mut parts = read_questions(Input::Path(path));
    let doc_ids = vec!["a".to_owned(), "b".to_owned()];
    let row = Row { id: "q1".into(), doc_ids, question: "Why?".into(), ..Row::default() };
    let first = Part::Question(Box::new(row));
    assert_eq!(parts.blocking_recv(), Some(first));
    let mut rows = Vec::new();
    while let Some(Part::Failed { id, error }) = parts.blocking_recv() {
        rows.push((id, Err(error)));
    }
    assert_eq!(rows.len(), 7);
    assert_fails(&rows, "q2", "INVALID_ARGUMENT", &[":2: \"doc_ids\" is missing"]);
    assert_fails(&rows, "q3", "INVALID_ARGUMENT", &[":3: \"doc_ids\" is empty"]);
    assert_fails(&rows, "q4", "INVALID_ARGUMENT", &[":4: \"doc_ids\" is a string"]);
    assert_fails(&rows, "q5", "INVALID_ARGUMENT", &[":5: \"doc_ids\" holds a number"]);
    assert_fails(&rows, "q6", "INVALID_ID", &[":6:", "../x"]);
    assert_fails(&rows, "q7", "INVALID_ARGUMENT", &[":7: \"question\" is empty"]);
    assert_fails(&rows, "q1", "DUPLICATE_ID", &[":8:"]);
}

fn lines(content: &str, columns: Columns) -> Vec<(String, Result<String, RowError>)> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("docs.jsonl");
    fs::write(&path, content).unwrap();
    metadata(&path, columns)
}

#[test]
fn metadata_of_a_line_is_kept_as_it_stands() {
    let content = [
        r#"{"id": "a", "text": "t", "metadata": {"year": 2020, "tags": ["x"]}}"#,
        r#"{"id": "b", "text": "t", "metadata": null}"#,
        r#"{"id": "c", "text": "t", "metadata": "2020"}"#,
        &format!(r#"{{"id": "d", "text": "t", "metadata": {{"long": "{}"}}}}"#, "x".repeat(16 << 10)),
    ];
    let rows = lines(&content.join("\n"), Columns::default());
    assert_eq!(rows[0], ("a".into(), Ok(r#"{"year":2020,"tags":["x"]}"#.into())));
    assert_eq!(rows[1], ("b".into(), Ok(String::new())));
    assert_fails(&rows, "c", "INVALID_ARGUMENT", &[":3:", "\"metadata\" is a string", "--metadata-column"]);
    assert_fails(&rows, "d", "INVALID_ARGUMENT", &[":4:", "16395 bytes", "at most 16384", "shorten"]);
}

#[test]
fn columns_have_the_names_that_the_options_give() {
    let content = r#"{"doi": "a", "body": "t", "year": 2020, "lang": null, "kind": {"k": 1}, "metadata": {"no": 1}}"#;
    let columns = |metadata: &[&str]| Columns {
        id: "doi".into(),
        text: "body".into(),
        metadata: metadata.iter().map(|name| (*name).to_owned()).collect(),
    };
    let of = |names: &[&str]| lines(content, columns(names)).remove(0).1.unwrap();
    assert_eq!(of(&["year", "lang", "kind"]), r#"{"year":2020,"kind":{"k":1}}"#);
    assert_eq!(of(&["kind"]), r#"{"k":1}"#, "an object is taken as it is");
    assert_eq!(of(&["year"]), r#"{"year":2020}"#);
    assert_eq!(of(&["lang"]), "");
}
