//! Directories of texts: `.txt`, `.md`, `.rst` and `.html`, compressed or not.

use super::files::{self, Found};
use super::{Files, Job, Report, html, shown};
use crate::error::{DataError, Result};
use crate::hash;
use crate::io;
use crate::line::{PlainLine, Split};

const TEXTS: [&str; 5] = [".txt", ".md", ".markdown", ".rst", ".text"];
const PAGES: [&str; 2] = [".html", ".htm"];
/// Letters and digits of the shortest text that is worth a line.
const SHORTEST: usize = 400;
/// A page with more of its letters in links than this is an index.
const MOST_LINKED: f64 = 0.6;

/// Turns files into text lines whose id is the path from the input's own name on.
///
/// Left out: what is not UTF-8, shorter than 400 letters, mostly links, or a duplicate; symbolic links, hidden directories,
/// and `_sources` directories, which hold once more what pages beside them show.
pub fn text(job: &mut Job<'_>) -> Result<Report> {
    let found = files::below(job.inputs, |name| is_text(name) || is_page(name))?;
    if found.is_empty() {
        let remedy = "give directories or files of text";
        return Err(DataError::Nothing { expected: ".txt, .md, .rst or .html", inputs: shown(job.inputs), remedy });
    }
    let mut files = Files::create(job.output)?;
    let of = found.len() as u64;
    let split_of = |found: &Found| Split::of_hash(hash::sequence(&[job.seed, hash::text(&found.name)]));
    for split in Split::ALL {
        for found in found.iter().filter(|found| split_of(found) == split) {
            document(&mut files, split, found)?;
            files.report.read += 1;
            (job.progress)(files.report.read, Some(of));
        }
    }
    files.commit()
}

fn is_text(name: &str) -> bool {
    !name.contains("/_sources/") && ends_with(name, &TEXTS)
}

fn is_page(name: &str) -> bool {
    ends_with(name, &PAGES)
}

fn ends_with(name: &str, suffixes: &[&str]) -> bool {
    let name = files::inner(name).to_ascii_lowercase();
    suffixes.iter().any(|suffix| name.ends_with(suffix))
}

fn document(files: &mut Files, split: Split, found: &Found) -> Result<()> {
    let Ok(content) = String::from_utf8(io::read(&found.path)?) else {
        files.report.drop("not UTF-8");
        return Ok(());
    };
    match readable(&found.name, &content) {
        Err(reason) => files.report.drop(reason),
        Ok(text) if files.is_new(&text) => {
            files.text(split, PlainLine { id: found.name.clone(), text, summary: None, split: None })?;
        }
        Ok(_) => {}
    }
    Ok(())
}

/// The text, or why it is of no use.
fn readable(name: &str, content: &str) -> Result<String, &'static str> {
    let (text, letters, linked) = if is_page(name) {
        let page = html::page(content);
        (page.text, page.letters, page.linked)
    } else {
        let text = content.trim_start_matches('\u{feff}').replace("\r\n", "\n");
        let letters = text.chars().filter(|c| c.is_alphanumeric()).count();
        (text, letters, 0)
    };
    if letters < SHORTEST {
        return Err("shorter than 400 letters");
    }
    if linked as f64 > MOST_LINKED * letters as f64 {
        return Err("mostly links");
    }
    Ok(format!("{}\n", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Lines;
    use std::collections::BTreeMap;
    use std::fs;

    fn run(files: &[(&str, &[u8])], seed: u64) -> (Report, BTreeMap<String, Split>) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("docs");
        for (name, content) in files {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), content).unwrap();
        }
        let (inputs, output) = ([root], dir.path().join("out"));
        let progress = &mut |_, _| {};
        let report =
            text(&mut Job { inputs: &inputs, output: &output, seed, summarize: "", question: str::to_owned, progress })
                .unwrap();
        let mut found = BTreeMap::new();
        for split in report.texts.keys() {
            let lines = Lines::open(&output.join(format!("{}.jsonl", split.name()))).unwrap();
            found.extend(lines.map(|line| (line.unwrap().id().to_owned(), *split)));
        }
        (report, found)
    }

    fn long(seed: u32) -> String {
        (0..200).map(|n| format!("word{}", n * 7 + seed * 10_000)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn usable_files_become_lines_and_others_are_counted_by_reason() {
        let page = format!("<html><body><p>{}</p></body></html>", long(2));
        let index = format!("<p><a href=x>{}</a></p>", long(3));
        let (report, found) = run(
            &[
                ("a.txt", long(1).as_bytes()),
                ("b/copy.md", long(1).to_uppercase().as_bytes()),
                ("b/page.html", page.as_bytes()),
                ("index.html", index.as_bytes()),
                ("short.rst", b"short"),
                ("latin.txt", b"\xe9\xe8"),
                ("_sources/page.txt", long(4).as_bytes()),
                ("image.png", b"png"),
            ],
            0,
        );
        let reasons = [("duplicate", 1), ("mostly links", 1), ("not UTF-8", 1), ("shorter than 400 letters", 1)];
        assert_eq!(report.dropped, reasons.into());
        assert_eq!(found.len(), 2);
        assert!(found.contains_key("docs/b/page.html"), "{found:?}");
    }

    #[test]
    fn the_split_depends_on_id_and_seed_alone() {
        let texts: Vec<(String, String)> = (0..400).map(|n| (format!("{n}.txt"), long(n))).collect();
        let files: Vec<(&str, &[u8])> = texts.iter().map(|(name, text)| (name.as_str(), text.as_bytes())).collect();
        let (report, found) = run(&files, 0);
        assert!(report.texts[&Split::Train] > 370 && report.texts[&Split::Test] > 0, "{report:?}");
        assert_eq!(run(&files, 0).1, found);
        assert_ne!(run(&files, 1).1, found);
        let (_, half) = run(&files[200..], 0);
        assert!(half.iter().all(|(id, split)| found[id] == *split));
    }
}
