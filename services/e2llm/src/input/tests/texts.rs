use super::*;

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
        let part = read_documents(vec![Input::Path(dir.path().join(name))], Columns::default()).blocking_recv();
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
