//! The golden files are written by pyarrow: four rows in row groups of three.

use super::*;
use e2llm_api::v1::Row;

const NONE: &[u8] = include_bytes!("golden/documents-none.parquet");
const SNAPPY: &[u8] = include_bytes!("golden/documents-snappy.parquet");
const ZSTD: &[u8] = include_bytes!("golden/documents-zstd.parquet");
const GZIP: &[u8] = include_bytes!("golden/documents-gzip.parquet");
const QUESTIONS: &[u8] = include_bytes!("golden/questions.parquet");

fn written(name: &str, content: &[u8]) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn named(id: &str, text: &str, metadata: &[&str]) -> Columns {
    Columns { id: id.into(), text: text.into(), metadata: metadata.iter().map(|name| (*name).into()).collect() }
}

#[test]
fn rows_are_documents_whatever_the_compression() {
    for content in [NONE, SNAPPY, ZSTD, GZIP] {
        let rows = of_file("docs.parquet", content);
        let texts = [("7", "Erste Zeile\nzweite"), ("10", "naïve 👩‍🚀")];
        let good: Vec<_> = rows.iter().filter(|(_, text)| text.is_ok()).cloned().collect();
        assert_eq!(good, texts.map(|(id, text)| (id.to_owned(), Ok(text.to_owned()))), "integers are ids");
        assert_fails(&rows, "8", "EMPTY_DOCUMENT", &["docs.parquet row 2"]);
        assert_fails(&rows, "9", "EMPTY_DOCUMENT", &["docs.parquet row 3"]);
    }
}

#[test]
fn the_first_bytes_decide_and_streams_and_compressed_files_are_read_too() {
    let expected = of_file("docs.parquet", SNAPPY).remove(0);
    assert_eq!(of_file("table.bin", SNAPPY)[0], expected);
    assert_eq!(unnamed(SNAPPY)[0], expected);
    let packed = zstd::encode_all(SNAPPY, 1).unwrap();
    assert_eq!(of_file("docs.parquet.zst", &packed)[0], expected);
}

#[test]
fn structs_and_named_columns_become_metadata() {
    let (_dir, path) = written("docs.parquet", ZSTD);
    let rows = metadata(&path, Columns::default());
    assert_eq!(rows[0].1, Ok(r#"{"year":2020,"lang":"en","tags":["a","b"]}"#.into()));
    assert_eq!(rows[3].1, Ok(r#"{"year":null,"lang":"de","tags":null}"#.into()));
    let rows = metadata(&path, named("id", "text", &["score", "day", "lang"]));
    assert_eq!(rows[0].1, Ok(r#"{"score":1.5,"day":"2024-01-02","lang":"en"}"#.into()));
}

#[test]
fn binary_columns_are_texts_if_they_are_utf8() {
    let (_dir, path) = written("docs.parquet", NONE);
    let rows = metadata(&path, named("id", "raw", &[]));
    assert!(rows[0].1.is_ok());
    assert_fails(&rows, &format!("{} row 2", path.display()), "NOT_UTF8", &["column \"raw\"", "byte 1"]);
}

#[test]
fn a_missing_column_is_one_error_that_lists_what_there_is() {
    let (_dir, path) = written("docs.parquet", NONE);
    let rows = metadata(&path, named("doi", "text", &[]));
    assert_eq!(rows.len(), 1);
    let parts = ["no column \"doi\"", "id, text, metadata, score, day, raw, lang", "--id-column"];
    assert_fails(&rows, &path.display().to_string(), "INVALID_ARGUMENT", &parts);
}

#[test]
fn a_damaged_file_is_one_error_whatever_the_damage() {
    let (_dir, path) = written("docs.parquet", b"");
    let shown = path.display().to_string();
    for length in [0, 3, 4, 500, NONE.len() - 1] {
        fs::write(&path, &NONE[..length]).unwrap();
        let rows = documents(vec![Input::Path(path.clone())]);
        assert_eq!(rows.len(), 1, "cut to {length}");
        assert_fails(&rows, &shown, "UNREADABLE", &["docs.parquet", "damaged"]);
    }
    for position in (4..NONE.len()).step_by(7) {
        let mut content = NONE.to_vec();
        content[position] ^= 0xff;
        fs::write(&path, content).unwrap();
        let rows = documents(vec![Input::Path(path.clone())]);
        let damage = rows.iter().filter(|(id, _)| *id == shown).count();
        assert!(damage <= 1 && !rows.is_empty(), "byte {position}: {rows:?}");
    }
}

#[test]
fn rows_may_be_questions() {
    let (_dir, path) = written("questions.parquet", QUESTIONS);
    let mut parts = read_questions(Input::Path(path));
    let doc_ids = vec!["a".to_owned(), "b".to_owned()];
    let row = Row { id: "q1".into(), doc_ids, question: "Why?".into(), ..Row::default() };
    assert_eq!(parts.blocking_recv(), Some(Part::Question(Box::new(row))));
    let Some(Part::Failed { id, error }) = parts.blocking_recv() else { panic!("no documents to ask") };
    assert!(id == "q2" && error.message.contains("row 2: \"doc_ids\" is empty"), "{error:?}");
    assert_eq!(parts.blocking_recv(), None);
}
