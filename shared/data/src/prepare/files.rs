//! Files below the inputs, in an order that is the same on every machine.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::error::{DataError, Result};

/// A file, and its name within the input that holds it: `input/path/below`.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) name: String,
}

/// Regular files below each input, sorted by path; symbolic links and hidden directories are left out.
pub(super) fn below(inputs: &[PathBuf], wanted: impl Fn(&str) -> bool) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for input in inputs {
        let root = input.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let hidden = |entry: &walkdir::DirEntry| entry.depth() > 0 && entry.file_name().as_encoded_bytes()[0] == b'.';
        for entry in WalkDir::new(input).sort_by_file_name().into_iter().filter_entry(|entry| !hidden(entry)) {
            let entry = entry.map_err(|error| {
                let path = error.path().unwrap_or(input).to_owned();
                DataError::Io { path, source: error.into() }
            })?;
            let name = name(&root, input, entry.path());
            if entry.file_type().is_file() && wanted(&name) {
                found.push(Found { path: entry.into_path(), name });
            }
        }
    }
    Ok(found)
}

fn name(root: &str, input: &Path, path: &Path) -> String {
    let below = path.strip_prefix(input).unwrap_or(path).to_string_lossy();
    match (root.is_empty(), below.is_empty()) {
        (true, _) => below.into_owned(),
        (false, true) => root.to_owned(),
        (false, false) => format!("{root}/{below}"),
    }
}

/// The name without the suffix of a compression.
pub(super) fn inner(name: &str) -> &str {
    [".gz", ".zst", ".zstd"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_are_named_from_their_input_and_sorted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("docs");
        for path in ["b/2.txt", "a.txt", "b/1.txt.gz", ".git/c.txt", "d.bin"] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), "x").unwrap();
        }
        std::os::unix::fs::symlink(root.join("a.txt"), root.join("e.txt")).unwrap();
        let found = below(std::slice::from_ref(&root), |name| inner(name).ends_with(".txt")).unwrap();
        let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["docs/a.txt", "docs/b/1.txt.gz", "docs/b/2.txt"]);
        let single = below(&[root.join("a.txt")], |_| true).unwrap();
        assert_eq!(single[0].name, "a.txt");
    }

    #[test]
    fn a_missing_input_is_named() {
        let error = below(&["/nowhere/at/all".into()], |_| true).err().unwrap().to_string();
        assert!(error.contains("/nowhere/at/all"), "{error}");
    }
}
