//! Objects of an object store: one, all below a prefix as in a directory, or those that a pattern matches.

use std::io;
use std::path::Path;

use e2llm_api::{ErrorCode, row_error};
use glob::{MatchOptions, Pattern};
use tokio::runtime::Handle;

use super::compressed::{self, Content};
use super::emitter::{Emitter, Stopped};
use super::reader::Reader;
use super::{io_error, lose_io, path_id, sniff, text};
use crate::objects::Object;

const WILDCARDS: [char; 3] = ['*', '?', '['];

/// Reads what the URL names. A name with a slash at its end, or below which there are objects, is a directory.
pub(super) fn read(reader: &Reader, named: &Object, out: &mut Emitter) -> Result<(), Stopped> {
    let url = named.url();
    let Some(runtime) = &reader.runtime else {
        return lose_io(out, &url, &url, &io::Error::other("no runtime"));
    };
    if named.key.contains(WILDCARDS) {
        return matching(reader, runtime, named, out);
    }
    let is_directory = named.key.is_empty() || named.key.ends_with('/');
    if is_directory && reader.takes_texts() {
        return directory(runtime, named, out);
    }
    match open(runtime, named) {
        Ok(content) => object(reader, content, named, file_name(&named.key), out),
        Err(error) if error.kind() == io::ErrorKind::NotFound && reader.takes_texts() => directory(runtime, named, out),
        Err(error) => lose_io(out, &url, &url, &error),
    }
}

fn open(runtime: &Handle, object: &Object) -> io::Result<Content> {
    Content::of(object.read(runtime)?)
}

fn file_name(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// An object that was named, whatever it holds; `name` becomes its id.
fn object(reader: &Reader, content: Content, object: &Object, name: &str, out: &mut Emitter) -> Result<(), Stopped> {
    reader.named(content, Path::new(&object.key), &path_id::encode(Path::new(name)), &object.url(), out)
}

/// Every text below a prefix, like [`super::directory`].
fn directory(runtime: &Handle, prefix: &Object, out: &mut Emitter) -> Result<(), Stopped> {
    let root = prefix.key.trim_end_matches('/').to_owned();
    let found = each(runtime, prefix, &root, out, |object, name, out| {
        let (id, shown) = (path_id::encode(Path::new(name)), object.url());
        if is_hidden(name) {
            return Ok(false);
        }
        if let Some(format) = sniff::Extension::of(&compressed::inner_name(Path::new(name))).refusal() {
            out.fail(&id, compressed::foreign(format, Path::new(&shown)))?;
            return Ok(true);
        }
        match open(runtime, object) {
            Ok(content) => text::read(content.reader, &id, &shown, out)?,
            Err(error) => out.fail(&id, io_error(&shown, &error))?,
        }
        Ok(true)
    })?;
    if found { Ok(()) } else { none(prefix, "there is no such object, and none below it", out) }
}

fn matching(reader: &Reader, runtime: &Handle, wanted: &Object, out: &mut Emitter) -> Result<(), Stopped> {
    let start = wanted.key.find(WILDCARDS).unwrap_or(0);
    let root = wanted.key[..start].rsplit_once('/').map_or("", |(root, _)| root).to_owned();
    let Ok(pattern) = Pattern::new(&wanted.key) else {
        return none(wanted, "it is no pattern; write names with * ? [ as [*] [?] [[]", out);
    };
    let options =
        MatchOptions { require_literal_separator: true, require_literal_leading_dot: true, ..MatchOptions::new() };
    let found = each(runtime, &wanted.with_key(root.clone()), &root, out, |found, name, out| {
        if !pattern.matches_with(&found.key, options) {
            return Ok(false);
        }
        match open(runtime, found) {
            Ok(content) => object(reader, content, found, name, out)?,
            Err(error) => lose_io(out, &found.url(), &found.url(), &error)?,
        }
        Ok(true)
    })?;
    if found {
        Ok(())
    } else {
        none(wanted, "no object matches; check the pattern, ** stands for any directories", out)
    }
}

fn none(object: &Object, problem: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let url = object.url();
    out.lose(&url, row_error(ErrorCode::NotFound, format!("{url}: {problem}")))
}

/// Calls `visit` for every object below `root` with its name there; whether any call found something to read.
fn each(
    runtime: &Handle,
    prefix: &Object,
    root: &str,
    out: &mut Emitter,
    mut visit: impl FnMut(&Object, &str, &mut Emitter) -> Result<bool, Stopped>,
) -> Result<bool, Stopped> {
    let url = prefix.url();
    let mut found = false;
    let listing = match prefix.list(runtime) {
        Ok(listing) => listing,
        Err(error) => return lose_io(out, &url, &url, &error).map(|()| true),
    };
    for key in listing {
        let key = match key {
            Ok(key) => key,
            Err(error) => return lose_io(out, &url, &url, &error).map(|()| true),
        };
        let name = key.strip_prefix(root).unwrap_or(&key).trim_start_matches('/');
        // Some tools keep an empty object for the directory itself.
        if !name.is_empty() {
            found |= visit(&prefix.with_key(&key), name, out)?;
        }
    }
    Ok(found)
}

fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.'))
}
