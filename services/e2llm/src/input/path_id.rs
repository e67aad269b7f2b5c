//! Document ids from paths: readable, reversible, and different for different paths.
//!
//! Names are joined with `:`. A byte that an id cannot hold, or that would make two paths the same, is written
//! `%XX`: `%`, `:`, `\`, control characters, bytes that are not UTF-8, the second of two dots, and white space at
//! either end of a name.

use std::path::{Component, Path};

/// The id of a relative path, such as `notes:2024:may.md`. It may be too long for a [`e2llm_api::DocId`].
pub(super) fn encode(relative: &Path) -> String {
    let mut id = String::new();
    for component in relative.components() {
        let Component::Normal(name) = component else { continue };
        if !id.is_empty() {
            id.push(':');
        }
        encode_name(name.as_encoded_bytes(), &mut id);
    }
    id
}

fn encode_name(name: &[u8], id: &mut String) {
    let mut previous = None;
    let mut position = 0;
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            let at_end = position == 0 || position + c.len_utf8() == name.len();
            let escaped = matches!(c, '%' | ':' | '\\')
                || c.is_control()
                || (c == '.' && previous == Some('.'))
                || (at_end && c.is_whitespace());
            if escaped {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| push_escaped(byte, id));
            } else {
                id.push(c);
            }
            previous = (!escaped).then_some(c);
            position += c.len_utf8();
        }
        for &byte in chunk.invalid() {
            push_escaped(byte, id);
            previous = None;
            position += 1;
        }
    }
}

fn push_escaped(byte: u8, id: &mut String) {
    id.push_str(&format!("%{byte:02X}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2llm_api::DocId;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    /// The inverse, as proof that there is one.
    fn decode(id: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut bytes = id.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b':' => out.push(b'/'),
                b'%' => {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                }
                _ => out.push(byte),
            }
        }
        out
    }

    #[test]
    fn ordinary_paths_stay_readable() {
        assert_eq!(encode(Path::new("rfc9000.txt")), "rfc9000.txt");
        assert_eq!(encode(Path::new("notes/2024/may (final).md")), "notes:2024:may (final).md");
        assert_eq!(encode(Path::new("文書/ü.txt")), "文書:ü.txt");
    }

    #[test]
    fn any_path_becomes_a_valid_id_and_back() {
        let paths: [&[u8]; 10] = [
            b"a/b.txt",
            b"a:b.txt",
            b"a%3Ab.txt",
            b"a\\b",
            b"a..b...c",
            b" a /b\t",
            b"a\nb\x7f",
            b"\xff\xfe/x.txt",
            "\u{3000}a\u{85}".as_bytes(),
            b"...",
        ];
        for path in paths {
            let id = encode(Path::new(OsStr::from_bytes(path)));
            assert_eq!(decode(&id), path, "{id}");
            DocId::new(id.clone()).unwrap_or_else(|error| panic!("{id}: {error}"));
        }
    }

    #[test]
    fn different_paths_never_collide() {
        let ids: Vec<String> = ["a/b", "a:b", "a%3Ab", "a__b"].map(|path| encode(Path::new(path))).to_vec();
        let distinct: std::collections::HashSet<&String> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    }
}
