use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use e2llm_api::MAX_PIECE_BYTES;
use tempfile::TempDir;

use super::*;

mod directories;
mod parquet;
mod tables;
mod texts;

/// What a consumer makes of the parts: `Ok` is the document's text.
fn documents(inputs: Vec<Input>) -> Vec<(String, Result<String, RowError>)> {
    let mut parts = read_documents(inputs, Columns::default());
    let mut text = Vec::new();
    let mut out = Vec::new();
    while let Some(part) = parts.blocking_recv() {
        match part {
            Part::Piece(piece) => {
                assert!(!piece.is_empty() && piece.len() <= MAX_PIECE_BYTES);
                text.extend(piece);
            }
            Part::Document { id, bytes, .. } => {
                assert_eq!(bytes, text.len() as u64);
                out.push((id, Ok(String::from_utf8(std::mem::take(&mut text)).unwrap())));
            }
            Part::Failed { id, error } => {
                text.clear();
                out.push((id, Err(error)));
            }
            Part::Question(_) | Part::Stored { .. } => panic!("not read from files"),
        }
    }
    out
}

/// Ids and metadata of the documents.
fn metadata(path: &Path, columns: Columns) -> Vec<(String, Result<String, RowError>)> {
    let mut parts = read_documents(vec![Input::Path(path.to_owned())], columns);
    let mut out = Vec::new();
    while let Some(part) = parts.blocking_recv() {
        match part {
            Part::Document { id, metadata, .. } => out.push((id, Ok(metadata))),
            Part::Failed { id, error } => out.push((id, Err(error))),
            _ => {}
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
    let reader = Reader { rows: Rows::Documents(Columns::default()), runtime: None };
    reader.unnamed(content, "stdin", "standard input", &mut Emitter::new(sender)).unwrap();
    let mut out = Vec::new();
    let mut text = String::new();
    while let Some(part) = receiver.blocking_recv() {
        match part {
            Part::Piece(piece) => text.push_str(std::str::from_utf8(&piece).unwrap()),
            Part::Document { id, .. } => out.push((id, Ok(std::mem::take(&mut text)))),
            Part::Failed { id, error } => out.push((id, Err(error))),
            Part::Question(_) | Part::Stored { .. } => panic!("not read from files"),
        }
    }
    out
}
