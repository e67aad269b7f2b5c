//! The layout of RFCs: page furniture, the abstract, what a document obsoletes, and paragraphs shared with others.
//!
//! Rules and their results are those of the Python program by which the released adapters' corpus was made.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use crate::hash;

/// Consecutive words that make a paragraph shared.
const SHARED_WORDS: usize = 13;
/// Characters of the longest abstract believed.
const LONGEST_ABSTRACT: usize = 6000;
/// Characters of front matter.
const FRONT: usize = 3000;

#[expect(clippy::unwrap_used, reason = "the patterns are constants, and every test compiles them")]
fn pattern(source: &str) -> Regex {
    Regex::new(source).unwrap()
}

macro_rules! patterns {
    ($($name:ident = $source:literal;)*) => { $(static $name: LazyLock<Regex> = LazyLock::new(|| pattern($source));)* };
}

patterns! {
    FOOTER = r"^.*\[Page\s+\w+\]\s*$";
    HEADER = r"^RFC \d+ .*\d{4}\s*$";
    ABSTRACT = r"(?m)^Abstract\s*$";
    HEADING = r"(?m)^(?:\d+\.?|[A-Z])[^\n]*$";
    BLANKS = r"\n{3,}";
    PARAGRAPH = r"\n\s*\n";
    RELATED = r"(?m)^(?:Obsoletes|Updates):([^A-Z]*)";
    NUMBER = r"\d+";
}

/// White space as Python's `str.split` and `strip` have it: Unicode's and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// UTF-8 with or without a byte order mark, else Latin-1.
pub(super) fn decode(bytes: Vec<u8>) -> String {
    match String::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text),
        Err(error) => error.as_bytes().iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// Removes form feeds, page headers and footers, and the blank lines they leave.
pub(super) fn clean(raw: &str) -> String {
    let lines = raw.replace("\r\n", "\n").replace('\u{c}', "\n");
    let lines = lines.split('\n').map(|line| line.trim_end_matches(is_space));
    let kept: Vec<&str> = lines.filter(|line| !FOOTER.is_match(line) && !HEADER.is_match(line)).collect();
    let text = kept.join("\n");
    format!("{}\n", BLANKS.replace_all(&text, "\n\n").trim_matches(is_space))
}

/// The body without its abstract, and the abstract with one line per paragraph.
pub(super) fn cut_abstract(text: &str) -> (String, Option<String>) {
    let Some(start) = ABSTRACT.find(text) else { return (text.to_owned(), None) };
    let Some(end) = HEADING.find_at(text, start.end()) else { return (text.to_owned(), None) };
    let between = &text[start.end()..end.start()];
    if between.chars().count() > LONGEST_ABSTRACT {
        return (text.to_owned(), None);
    }
    let paragraphs = PARAGRAPH.split(between.trim_matches(is_space));
    let lines: Vec<String> = paragraphs.map(one_line).collect();
    let summary = Some(lines.join("\n\n")).filter(|summary| !summary.is_empty());
    (format!("{}{}", &text[..start.start()], &text[end.start()..]), summary)
}

fn one_line(paragraph: &str) -> String {
    paragraph.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Numbers of the RFCs that the front matter obsoletes or updates.
pub(super) fn related(text: &str) -> Vec<u32> {
    let front = text.char_indices().nth(FRONT).map_or(text, |(end, _)| &text[..end]);
    let lists = RELATED.captures_iter(front).filter_map(|captures| captures.get(1));
    lists.flat_map(|list| NUMBER.find_iter(list.as_str())).filter_map(|n| n.as_str().parse().ok()).collect()
}

/// Every run of [`SHARED_WORDS`] words in some texts, as hashes.
#[derive(Debug, Default)]
pub(super) struct Runs(HashSet<u64>);

impl Runs {
    /// Adds those of a text.
    pub(super) fn add(&mut self, text: &str) {
        self.0.extend(hash::word_hashes(text).windows(SHARED_WORDS).map(hash::sequence));
    }

    /// `text` less the paragraphs that any known run touches, runs across paragraphs included.
    pub(super) fn taken_out_of(&self, text: &str) -> String {
        let paragraphs: Vec<&str> = PARAGRAPH.split(text).collect();
        let (mut words, mut at) = (Vec::new(), Vec::new());
        for (number, paragraph) in paragraphs.iter().enumerate() {
            words.extend(hash::word_hashes(paragraph));
            at.resize(words.len(), number);
        }
        let mut kept = vec![true; paragraphs.len()];
        for (first, run) in words.windows(SHARED_WORDS).enumerate() {
            if self.0.contains(&hash::sequence(run)) {
                touched(&at, first).for_each(|paragraph| kept[paragraph] = false);
            }
        }
        let left: Vec<&str> = paragraphs.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(p, _)| p).collect();
        format!("{}\n", left.join("\n\n").trim_matches(is_space))
    }
}

/// The paragraphs from that of a run's first word to that of its last.
fn touched(at: &[usize], first: usize) -> Range<usize> {
    at[first]..at[first + SHARED_WORDS - 1] + 1
}

/// [`Runs::taken_out_of`] for an abstract: `None` if nothing is left.
pub(super) fn without(runs: &Runs, summary: &str) -> Option<String> {
    let left = runs.taken_out_of(summary);
    Some(left.trim_matches(is_space).to_owned()).filter(|left| !left.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made up, with the furniture of a real one.
    const PAGES: &str = "Network Working Group                                        A. Author\r
Request for Comments: 7777                                    May 2042\r
Obsoletes: 1111, 2222\r
Updates: 3333\r
Category: Informational\r
\r
                       The Carrier Pigeon Queue\r
\r
Abstract\r
\r
   This memo describes how pigeons\r
   wait.\r
\r
   It has two paragraphs.\r
\r
1.  Introduction\r
\r
   Pigeons wait in a line.\r
\r
\r
\r
Author                       Informational                     [Page 1]\r
\u{c}\r
RFC 7777                  Carrier Pigeon Queue                  May 2042\r
\r
\r
   They leave in order.\r
\r
Author                       Informational                    [Page ii]\r
";

    #[test]
    fn page_furniture_goes_and_the_text_stays() {
        let text = clean(PAGES);
        assert!(!text.contains("[Page") && !text.contains("RFC 7777") && !text.contains(['\r', '\u{c}']), "{text}");
        assert!(text.ends_with("   Pigeons wait in a line.\n\n   They leave in order.\n"), "{text}");
        assert!(!text.contains("\n\n\n"));
    }

    #[test]
    fn the_abstract_is_cut_out_of_the_body() {
        let (body, summary) = cut_abstract(&clean(PAGES));
        assert_eq!(summary.as_deref(), Some("This memo describes how pigeons wait.\n\nIt has two paragraphs."));
        assert!(!body.contains("Abstract") && !body.contains("two paragraphs"), "{body}");
        assert!(body.contains("Queue\n\n1.  Introduction"), "{body}");
    }

    #[test]
    fn a_text_without_an_abstract_or_with_one_that_never_ends_is_left_as_it_is() {
        for text in ["1. Introduction\n\n   No abstract here.\n".to_owned(), "Abstract\n\n   no heading\n".to_owned()] {
            assert_eq!(cut_abstract(&text), (text.clone(), None));
        }
        let long = format!("Abstract\n\n   {}\n\n1. End\n", "words ".repeat(1100));
        assert_eq!(cut_abstract(&long), (long.clone(), None));
    }

    #[test]
    fn what_a_document_obsoletes_and_updates_is_read_from_its_front_matter() {
        assert_eq!(related(&clean(PAGES)), [1111, 2222, 3333]);
        assert!(related(&format!("{}\nUpdates: 5\n", "x".repeat(3001))).is_empty());
    }

    #[test]
    fn paragraphs_that_share_thirteen_words_go_also_where_the_run_crosses_them() {
        let mut runs = Runs::default();
        runs.add("a b c d e f g h i j k l m n");
        let text = "Keep this.\n\nx A b c d\n\ne f g h i j k l M\n\nKeep that.\n";
        assert_eq!(runs.taken_out_of(text), "Keep this.\n\nKeep that.\n");
        let twelve = "a b c d e f g h i j k l\n";
        assert_eq!(runs.taken_out_of(twelve), twelve);
        assert_eq!(without(&runs, "a b c d e f g h i j k l m"), None);
    }

    #[test]
    fn bytes_are_utf_8_or_else_latin_1() {
        assert_eq!(decode(b"\xef\xbb\xbfa".to_vec()), "a");
        assert_eq!(decode(b"Andr\xe9".to_vec()), "André");
        assert_eq!(decode("André".into()), "André");
    }
}
