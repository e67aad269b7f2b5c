//! What kind of break lies between two tokens, and which of several to take.

use unicode_segmentation::GraphemeCursor;

use crate::tokenizer::Piece;

/// Kinds of break, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Break {
    Paragraph,
    Sentence,
    Line,
    /// White space between words.
    Word,
    /// Between words without white space: around punctuation, between ideographs.
    Joint,
    /// Through a word.
    Character,
}

const KINDS: [Break; 6] = [Break::Paragraph, Break::Sentence, Break::Line, Break::Word, Break::Joint, Break::Character];

/// The part of the largest possible chunk, in percent, that a chunk must fill to end at a paragraph, sentence, line, word,
/// punctuation mark or character: otherwise the next worse break is tried.
pub const MIN_FILL: [usize; 6] = [50, 25, 50, 0, 0, 0];

/// How many bytes of white space are looked at for line breaks.
const GAP: usize = 256;
/// How many closing marks may stand between a full stop and the break.
const CLOSERS: usize = 4;

/// The last break of every kind within a chunk's budget.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Pieces before the break, by kind; 0 is none.
    last: [usize; KINDS.len()],
}

impl Candidates {
    /// Notes a break after `used` pieces; calls come in ascending order.
    pub(super) fn add(&mut self, kind: Break, used: usize) {
        self.last[kind as usize] = used;
    }

    /// Pieces before the best break, and whether it goes through a word; `None` if there is no break at all.
    pub(super) fn best(&self) -> Option<(usize, bool)> {
        let largest = self.last.into_iter().max().unwrap_or(0);
        let full = |kind: &Break| self.last[*kind as usize] * 100 >= largest * MIN_FILL[*kind as usize];
        let kind = KINDS.into_iter().find(|kind| self.last[*kind as usize] > 0 && full(kind))?;
        Some((self.last[kind as usize], kind == Break::Character))
    }
}

/// The kind of break between two neighbouring tokens of a chunk that begins at `start`; `None` if it would go through a
/// character or grapheme.
pub(super) fn classify(text: &str, start: usize, before: Piece, after: Piece) -> Option<Break> {
    if after.start < before.end || !is_grapheme_boundary(text, start, after.start) {
        return None;
    }
    if after.word == before.word {
        return Some(Break::Character);
    }
    let gap = &text.as_bytes()[before.end..after.start.min(before.end + GAP)];
    let lines = line_breaks(gap);
    if lines > 1 {
        return Some(Break::Paragraph);
    }
    if ends_sentence(&text[start..before.end], &text[after.start..], !gap.is_empty()) {
        return Some(Break::Sentence);
    }
    Some(match (lines, gap) {
        (1, _) => Break::Line,
        (_, []) => Break::Joint,
        _ => Break::Word,
    })
}

/// Line breaks in blank text, `\r\n` counted once; a form feed starts a new page, which is more than a line.
fn line_breaks(gap: &[u8]) -> usize {
    let breaks = gap.iter().zip(gap.iter().skip(1).chain(&[0])).map(|pair| match pair {
        (b'\r', b'\n') => 0,
        (b'\n' | b'\r', _) => 1,
        (b'\x0c', _) => 2,
        _ => 0,
    });
    breaks.sum()
}

/// Whether a sentence ends with `before`, judged by its last characters and the first of `after`.
fn ends_sentence(before: &str, after: &str, gap: bool) -> bool {
    let next = after.chars().next().unwrap_or(' ');
    if is_closer(next) || matches!(next, '.' | '!' | '?' | '。' | '！' | '？') {
        return false;
    }
    let closers = before.chars().rev().take(CLOSERS).take_while(|c| is_closer(*c));
    let before = &before[..before.len() - closers.map(char::len_utf8).sum::<usize>()];
    match before.chars().next_back() {
        Some('。' | '！' | '？' | '｡') => true,
        Some('!' | '?' | '…') => gap && !next.is_lowercase(),
        Some('.') => gap && !next.is_lowercase() && !is_abbreviation(&before[..before.len() - 1]),
        _ => false,
    }
}

/// Initials ("J. Smith") and the numbers of headings and lists ("3.1. Terms", at the beginning of a line).
fn is_abbreviation(before: &str) -> bool {
    let mut last = before.chars().rev();
    let (stop, ahead) = (last.next(), last.next());
    if stop.is_some_and(char::is_uppercase) && ahead.is_none_or(|c| !c.is_alphanumeric()) {
        return true;
    }
    let number = before.chars().rev().take(CLOSERS * 4).take_while(|c| c.is_ascii_digit() || *c == '.').count();
    let ahead = before[..before.len() - number].chars().rev().find(|c| !matches!(c, ' ' | '\t'));
    number > 0 && matches!(ahead, None | Some('\n' | '\r'))
}

fn is_closer(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '»' | '」' | '』' | '）')
}

/// Whether `at` is between two graphemes of the chunk from `start`. Text before the chunk has no say, so that a long run of
/// joined characters costs no more than its chunk.
fn is_grapheme_boundary(text: &str, start: usize, at: usize) -> bool {
    let bytes = text.as_bytes();
    if !text.is_char_boundary(at) {
        return false;
    }
    // Between two ASCII characters only CR LF is joined, and that is blank in every tokenizer.
    if at == 0 || at >= bytes.len() || (bytes[at - 1].is_ascii() && bytes[at].is_ascii()) {
        return true;
    }
    let chunk = &text[start..text.ceil_char_boundary((at + 1).min(text.len()))];
    let mut cursor = GraphemeCursor::new(at - start, chunk.len(), true);
    cursor.is_boundary(chunk, 0).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The break at `|` in a text.
    fn at(marked: &str) -> Option<Break> {
        let (before, after) = marked.split_once('|').unwrap();
        let text = format!("{before}{after}");
        let end = before.trim_end().len();
        let before = Piece { id: 0, start: 0, end, word: 0 };
        let start = text[end..].find(|c: char| !c.is_whitespace()).unwrap() + end;
        classify(&text, 0, before, Piece { id: 0, start, end: text.len(), word: 1 })
    }

    #[test]
    fn blank_lines_and_pages_are_paragraphs() {
        for text in ["one\n\n|two", "one\r\n \r\n|two", "one \x0c|two", "one.\n\n|Two"] {
            assert_eq!(at(text), Some(Break::Paragraph), "{text:?}");
        }
        assert_eq!(at("one\r\n|two"), Some(Break::Line));
    }

    #[test]
    fn sentences_end_at_stops_before_a_new_beginning() {
        for text in [
            "End. |Next",
            "End.\n|Next",
            "Really?! |Next",
            "he said.\") |Next",
            "in 1999. |Next",
            "終わり。|次",
            "「終わり。」|次",
        ] {
            assert_eq!(at(text), Some(Break::Sentence), "{text:?}");
        }
        for text in [
            "e.g. |next",
            "J. |Smith",
            "1. |Terms",
            "a\n  3.1. |Terms",
            "pi is 3.|14",
            "wait|...",
            "End|.",
            "by A. |Einstein",
        ] {
            assert_ne!(at(text), Some(Break::Sentence), "{text:?}");
        }
    }

    #[test]
    fn the_rest_is_words_and_joints() {
        assert_eq!(at("one |two"), Some(Break::Word));
        assert_eq!(at("one|-two"), Some(Break::Joint));
        assert_eq!(at("👩\u{200d}|👧"), None, "a grapheme is not cut");
    }

    #[test]
    fn a_better_break_wins_only_if_the_chunk_is_full_enough() {
        let best = |breaks: &[(Break, usize)]| {
            let mut candidates = Candidates::default();
            breaks.iter().for_each(|(kind, used)| candidates.add(*kind, *used));
            candidates.best()
        };
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[(Break::Paragraph, 50), (Break::Word, 100)]), Some((50, false)));
        assert_eq!(best(&[(Break::Paragraph, 49), (Break::Sentence, 80), (Break::Word, 100)]), Some((80, false)));
        assert_eq!(best(&[(Break::Sentence, 24), (Break::Line, 40), (Break::Word, 100)]), Some((100, false)));
        assert_eq!(best(&[(Break::Character, 9)]), Some((9, true)));
    }
}
