use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use e2llm_api::MAX_PIECE_BYTES;
use tempfile::TempDir;

use super::*;

/// What a consumer makes of the parts: `Ok` is the document's text.
fn documents(inputs: Vec<Input>) -> Vec<(String, Result<String, RowError>)> {
    let mut parts = read_documents(inputs);
    let mut text = Vec::new();
    let mut out = Vec::new();
    while let Some(part) = parts.blocking_recv() {
        match part {
            Part::Piece(piece) => {
                assert!(!piece.is_empty() && piece.len() <= MAX_PIECE_BYTES);
                text.extend(piece);
            }
            Part::Document { id, bytes } => {
                assert_eq!(bytes, text.len() as u64);
                out.push((id, Ok(String::from_utf8(std::mem::take(&mut text)).unwrap())));
            }
            Part::Failed { id, error } => {
                text.clear();
                out.push((id, Err(error)));
            }
            Part::Question { .. } | Part::Stored { .. } => panic!("not read from files"),
        }
    }
    out
}

fn of_file(name: &str, content: &[u8]) -> Vec<(String, Result<String, RowError>)> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    documents(vec![Input::Path(path)])
}

/// The one row must have failed so.
fn assert_fails(rows: &[(String, Result<String, RowError>)], id: &str, code: &str, parts: &[&str]) {
    let found = rows.iter().find(|(row, result)| row == id && result.is_err());
    let Some((_, Err(error))) = found else { panic!("no error for {id}: {rows:?}") };
    assert_eq!(error.code, code, "{}", error.message);
    assert!(!error.message.contains('\n'), "{}", error.message);
    for part in parts {
        assert!(error.message.contains(part), "{part:?} is not in: {}", error.message);
    }
}

fn unnamed(content: &'static [u8]) -> Vec<(String, Result<String, RowError>)> {
    let (sender, mut receiver) = mpsc::channel(1000);
    read_unnamed(content, "stdin", "standard input", &mut Emitter::new(sender)).unwrap();
    let mut out = Vec::new();
    let mut text = String::new();
    while let Some(part) = receiver.blocking_recv() {
        match part {
            Part::Piece(piece) => text.push_str(std::str::from_utf8(&piece).unwrap()),
            Part::Document { id, .. } => out.push((id, Ok(std::mem::take(&mut text)))),
            Part::Failed { id, error } => out.push((id, Err(error))),
            Part::Question { .. } | Part::Stored { .. } => panic!("not read from files"),
        }
    }
    out
}

#[test]
fn a_directory_is_read_in_order_with_ids_from_paths() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("b/c")).unwrap();
    fs::create_dir_all(dir.path().join(".git")).unwrap();
    for (name, text) in [("b/c/z.md", "z"), ("a.txt", "a"), ("README", "r"), (".hidden.txt", "h"), (".git/x.txt", "g")]
    {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let rows = documents(vec![Input::Path(dir.path().to_owned())]);
    let expected = [("README", "r"), ("a.txt", "a"), ("b:c:z.md", "z")];
    assert_eq!(rows, expected.map(|(id, text)| (id.to_owned(), Ok(text.to_owned()))));
}

#[test]
fn what_is_not_text_in_a_directory_is_an_error_row_and_the_rest_is_read() {
    let dir = TempDir::new().unwrap();
    let long = "x".repeat(251) + ".txt";
    fs::create_dir(dir.path().join("sub")).unwrap();
    let files: [(&str, &[u8]); 8] = [
        ("a.pdf", b"%PDF-1.4"),
        ("b.txt", b"%PDF-1.4 inside a text name"),
        ("c.py", b"print()"),
        ("d.txt", b"latin \xe9 one"),
        ("e.txt", b" \n\t\n"),
        ("f.jsonl", b"{}"),
        (&format!("sub/{long}"), b"its id is too long"),
        ("z.txt", b"good"),
    ];
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let rows = documents(vec![Input::Path(dir.path().to_owned())]);
    assert_eq!(rows.len(), files.len());
    assert_fails(&rows, "a.pdf", "UNSUPPORTED_FORMAT", &["a.pdf is a PDF", "pdftotext"]);
    assert_fails(&rows, "b.txt", "UNSUPPORTED_FORMAT", &["b.txt is a PDF"]);
    assert_fails(&rows, "c.py", "UNSUPPORTED_FORMAT", &["not a text or Markdown file", "rename"]);
    assert_fails(&rows, "d.txt", "NOT_UTF8", &["d.txt", "byte 6", "iconv"]);
    assert_fails(&rows, "e.txt", "EMPTY_DOCUMENT", &["e.txt"]);
    assert_fails(&rows, "f.jsonl", "UNSUPPORTED_FORMAT", &["itself as an input"]);
    assert_fails(&rows, &format!("sub:{long}"), "INVALID_ID", &["259 bytes", "at most 255"]);
    assert_eq!(rows.last().unwrap(), &("z.txt".to_owned(), Ok("good".to_owned())));
}

#[test]
fn files_that_cannot_be_opened_are_error_rows() {
    let dir = TempDir::new().unwrap();
    std::os::unix::fs::symlink(dir.path().join("gone"), dir.path().join("dangling.txt")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    std::os::unix::net::UnixListener::bind(dir.path().join("socket.txt")).unwrap();
    fs::write(dir.path().join("z.txt"), "good").unwrap();
    let rows = documents(vec![Input::Path(dir.path().to_owned())]);
    assert_fails(&rows, "dangling.txt", "NOT_FOUND", &["dangling.txt", "check the path"]);
    assert_fails(&rows, "loop", "UNREADABLE", &["link to a directory above"]);
    assert_fails(&rows, "socket.txt", "UNREADABLE", &["pipe, socket or device"]);
    assert_eq!(rows.last().unwrap(), &("z.txt".to_owned(), Ok("good".to_owned())));
}

#[test]
fn a_file_without_read_permission_is_an_error_row() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("secret.txt");
    fs::write(&path, "s").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        // The superuser reads everything.
        let denied = io_error("secret.txt", &io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(denied.code, "UNREADABLE");
        return;
    }
    assert_fails(&documents(vec![Input::Path(path)]), "secret.txt", "UNREADABLE", &["permission denied"]);
}

#[test]
fn a_missing_input_does_not_stop_the_others() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("b.txt"), "b").unwrap();
    let rows = documents(vec![Input::Path(dir.path().join("a.txt")), Input::Path(dir.path().join("b.txt"))]);
    assert_fails(&rows, "a.txt", "NOT_FOUND", &["a.txt: there is no such file"]);
    assert_eq!(rows[1], ("b.txt".to_owned(), Ok("b".to_owned())));
}

#[test]
fn the_same_id_in_two_inputs_is_a_duplicate() {
    let dir = TempDir::new().unwrap();
    for name in ["a", "b"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("x.txt"), name).unwrap();
    }
    let rows = documents(["a", "b"].map(|name| Input::Path(dir.path().join(name))).to_vec());
    assert_eq!(rows[0], ("x.txt".to_owned(), Ok("a".to_owned())));
    assert_fails(&rows, "x.txt", "DUPLICATE_ID", &["\"x.txt\"", "b/x.txt", "rename"]);
}

#[test]
fn a_named_file_is_read_whatever_its_extension() {
    assert_eq!(of_file("session.log", b"text"), [("session.log".to_owned(), Ok("text".to_owned()))]);
    assert_fails(&of_file("page.html", b"<p>hi"), "page.html", "UNSUPPORTED_FORMAT", &["HTML", "pandoc"]);
    assert_fails(&of_file("x.log", b"\xfd7zXZ\0"), "x.log", "UNSUPPORTED_FORMAT", &["unxz"]);
    assert_fails(&of_file("x.json", b"[]"), "x.json", "UNSUPPORTED_FORMAT", &["jq -c"]);
    assert_fails(&of_file("x.jsonl", b"\xfd7zXZ\0"), "x.jsonl", "UNSUPPORTED_FORMAT", &["unxz"]);
    assert_fails(&of_file("x.txt", b"\xff\xfeh\0"), "x.txt", "NOT_UTF8", &["UTF-16", "iconv"]);
    assert_fails(&of_file("x.txt", b""), "x.txt", "EMPTY_DOCUMENT", &["x.txt"]);
}

#[test]
fn strange_but_valid_text_passes_unchanged() {
    for text in ["a\r\nb\r\n", "nul \0 inside", "👩‍👩‍👧‍👦 \u{202e}rtl", "x"] {
        assert_eq!(of_file("a.txt", text.as_bytes()), [("a.txt".to_owned(), Ok(text.to_owned()))]);
    }
    let with_mark = of_file("a.txt", b"\xef\xbb\xbftext");
    assert_eq!(with_mark, [("a.txt".to_owned(), Ok("text".to_owned()))]);
}

#[test]
fn a_large_text_travels_in_pieces_of_one_mebibyte() {
    let text = "é".repeat(3 * MAX_PIECE_BYTES / 2 + 1);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("large.txt");
    fs::write(&path, format!("x{text}")).unwrap();
    let rows = documents(vec![Input::Path(path)]);
    assert_eq!(rows[0].1.as_ref().unwrap().len(), text.len() + 1);
}

#[test]
fn a_wrong_byte_deep_in_a_large_text_is_named_by_its_offset() {
    let mut text = vec![b'a'; 2 * MAX_PIECE_BYTES];
    text[MAX_PIECE_BYTES + 7] = 0xff;
    assert_fails(&of_file("a.txt", &text), "a.txt", "NOT_UTF8", &["byte 1048583"]);
}

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
    let mut parts = read_questions(path.display().to_string());
    let doc_ids = vec!["a".to_owned(), "b".to_owned()];
    let first = Part::Question { id: "q1".into(), doc_ids, question: "Why?".into() };
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

#[test]
fn a_reader_whose_consumer_went_away_stops() {
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let mut emitter = Emitter::new(sender);
    assert!(text::read(&b"text"[..], "a", "a", &mut emitter).is_err());
}

#[test]
fn a_short_text_that_is_refused_sends_nothing() {
    let dir = TempDir::new().unwrap();
    for (name, content) in [("a.txt", b" \n".as_slice()), ("b.txt", b"a\xe2\x82"), ("c.txt", b"\xef\xbb\xbf")] {
        fs::write(dir.path().join(name), content).unwrap();
        let part = read_documents(vec![Input::Path(dir.path().join(name))]).blocking_recv();
        assert!(matches!(part, Some(Part::Failed { .. })), "{name}: {part:?}");
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_files_are_read_as_what_is_inside() {
    let rows = b"{\"id\": \"a\", \"text\": \"one\"}\n{\"id\": \"b\", \"text\": \"two\"}\n";
    let expected = [("a", "one"), ("b", "two")].map(|(id, text)| (id.to_owned(), Ok(text.to_owned())));
    let (first, second) = rows.split_at(31);
    assert_eq!(of_file("corpus.jsonl.gz", &gzip(rows)), expected);
    assert_eq!(of_file("parts.jsonl.gz", &[gzip(first), gzip(second)].concat()), expected);
    assert_eq!(of_file("corpus.jsonl.zst", &zstd::encode_all(&rows[..], 0).unwrap()), expected);
    assert_eq!(of_file("rfc1.txt.gz", &gzip(b"Host")), [("rfc1.txt.gz".to_owned(), Ok("Host".to_owned()))]);
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("rfc1.txt.gz"), gzip(b"Host")).unwrap();
    fs::write(dir.path().join("photo.jpg.gz"), gzip(b"x")).unwrap();
    let rows = documents(vec![Input::Path(dir.path().to_owned())]);
    assert_eq!(rows[1], ("rfc1.txt.gz".to_owned(), Ok("Host".to_owned())));
    assert_fails(&rows, "photo.jpg.gz", "UNSUPPORTED_FORMAT", &["an image"]);
}

#[test]
fn compressed_archives_and_broken_streams_are_named() {
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert_fails(&of_file("a.txt.gz", &gzip(&tar)), "a.txt.gz", "UNSUPPORTED_FORMAT", &["a tar archive"]);
    let whole = gzip(&b"line of text that goes on\n".repeat(100_000));
    let cut = of_file("a.txt.gz", &whole[..whole.len() - 20]);
    assert_fails(&cut, "a.txt.gz", "UNREADABLE", &["a.txt.gz"]);
    let twice = of_file("a.txt.gz", &gzip(&gzip(b"text")));
    assert_fails(&twice, "a.txt.gz", "UNSUPPORTED_FORMAT", &["gzip"]);
}
