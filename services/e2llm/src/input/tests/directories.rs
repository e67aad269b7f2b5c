use super::*;

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
