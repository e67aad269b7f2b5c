//! Every text and Markdown file below a directory, in the order of their paths. Hidden files are skipped.

use std::path::Path;

use walkdir::{DirEntry, WalkDir};

use super::compressed::{self, Content};
use super::emitter::{Emitter, Stopped};
use super::{io_error, path_id, shown, sniff, text};

/// Reads the tree. Names that do not say text are reported, so that nothing is left out silently.
pub(super) fn read(root: &Path, out: &mut Emitter) -> Result<(), Stopped> {
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| !is_hidden(entry)) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {}
            Ok(entry) => read_entry(root, &entry, out)?,
            Err(error) => fail_walk(root, error, out)?,
        }
    }
    Ok(())
}

fn read_entry(root: &Path, entry: &DirEntry, out: &mut Emitter) -> Result<(), Stopped> {
    let path = entry.path();
    let id = path_id::encode(path.strip_prefix(root).unwrap_or(path));
    let shown = shown(path);
    if !entry.file_type().is_file() {
        // Opening a pipe would wait for whoever writes into it.
        let message = format!("{shown} is a pipe, socket or device; put its text into a file");
        return out.fail(&id, e2llm_api::row_error(e2llm_api::ErrorCode::Unreadable, message));
    }
    if let Some(format) = sniff::Extension::of(&compressed::inner_name(path)).refusal() {
        return out.fail(&id, compressed::foreign(format, path));
    }
    match Content::open(path) {
        Ok((content, _)) => text::read(content.reader, &id, &shown, out),
        Err(error) => out.fail(&id, io_error(&shown, &error)),
    }
}

fn fail_walk(root: &Path, error: walkdir::Error, out: &mut Emitter) -> Result<(), Stopped> {
    let path = error.path().unwrap_or(root).to_owned();
    let id = path_id::encode(path.strip_prefix(root).unwrap_or(&path));
    let id = if id.is_empty() { shown(&path) } else { id };
    if error.loop_ancestor().is_some() {
        let message = format!("{} is a link to a directory above it; remove the link", shown(&path));
        return out.lose(&id, e2llm_api::row_error(e2llm_api::ErrorCode::Unreadable, message));
    }
    let error = error.into_io_error().unwrap_or_else(|| std::io::Error::other("directory walk failed"));
    out.lose(&id, io_error(&shown(&path), &error))
}

/// Below the root only: `e2llm encode .notes` means what it says.
fn is_hidden(entry: &DirEntry) -> bool {
    entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".")
}
