//! Cuts texts at sentence and paragraph ends.

use std::ops::Range;

/// Bytes of the longest block of lines that are no prose, such as a table.
const LONGEST_BLOCK: usize = 600;
/// More bytes than tokens have on average in any text worth reading.
const LONGEST_TOKEN: usize = 64;
/// Share of letters, spaces and everyday punctuation from which a paragraph is prose.
const PROSE: f64 = 0.93;
/// Words with a full stop that ends no sentence.
const ABBREVIATIONS: [&str; 14] =
    ["e.g.", "i.e.", "etc.", "vs.", "cf.", "fig.", "sec.", "no.", "mr.", "mrs.", "dr.", "st.", "al.", "ed."];

/// What a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A sentence of prose: where its lines break means nothing.
    Sentence,
    /// Lines that stay as they are.
    Block,
}

/// The smallest piece of a text that is never cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Bytes of the text.
    pub(crate) range: Range<usize>,
    pub(crate) kind: Kind,
    pub(crate) ends_paragraph: bool,
}

impl Unit {
    /// Its text: a sentence in one line, a block without white space at line ends.
    pub(crate) fn show(&self, text: &str) -> String {
        let own = &text[self.range.clone()];
        match self.kind {
            Kind::Sentence => own.split_whitespace().collect::<Vec<_>>().join(" "),
            Kind::Block => own.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"),
        }
    }

    /// What stands between it and the next.
    pub(crate) fn separator(&self) -> &'static str {
        match (self.ends_paragraph, self.kind) {
            (true, _) => "\n\n",
            (false, Kind::Sentence) => " ",
            (false, Kind::Block) => "\n",
        }
    }
}

/// The units of a text, in order; lines too long for a block are left out.
pub(crate) fn units(text: &str) -> Vec<Unit> {
    let mut units = Vec::new();
    for paragraph in paragraphs(text) {
        let first = units.len();
        if is_prose(&text[paragraph.clone()]) {
            sentences(text, paragraph, &mut units);
        } else {
            blocks(text, paragraph, &mut units);
        }
        if let Some(last) = units[first..].last_mut() {
            last.ends_paragraph = true;
        }
    }
    units
}

/// The beginning of a text, cut after the last unit with which it has at most `tokens`; empty if the first has more.
pub(crate) fn passage<E>(text: &str, tokens: usize, count: impl FnMut(&str) -> Result<usize, E>) -> Result<String, E> {
    Ok(passage_and_end(text, tokens, count)?.0)
}

/// As [`passage`], with the byte of the text at which the next passage begins.
pub(crate) fn passage_and_end<E>(
    text: &str,
    tokens: usize,
    mut count: impl FnMut(&str) -> Result<usize, E>,
) -> Result<(String, usize), E> {
    let (mut out, mut end, mut left) = (String::new(), 0, tokens);
    // No need to cut all of a book for its first page.
    let head = &text[..text.floor_char_boundary(tokens.saturating_mul(LONGEST_TOKEN).min(text.len()))];
    let units = units(head);
    let whole = if head.len() == text.len() { units.len() } else { units.len().saturating_sub(1) };
    for unit in &units[..whole] {
        let shown = unit.show(text) + unit.separator();
        let cost = count(&shown)?;
        if cost > left {
            break;
        }
        left -= cost;
        end = unit.range.end;
        out.push_str(&shown);
    }
    out.truncate(out.trim_end().len());
    Ok((out, end))
}

/// The sentences of a text up to the last one that is whole.
pub(crate) fn whole_sentences(text: &str) -> &str {
    let text = text.trim();
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let mut ends = ends.filter(|end| text[*end..].chars().next().is_none_or(char::is_whitespace));
    let last = ends.rfind(|end| ends_sentence(&text[..*end]));
    last.map_or("", |end| &text[..end])
}

/// Runs of lines that are not blank.
fn paragraphs(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut start, mut at) = (Vec::new(), None, 0);
    for line in text.split_inclusive('\n') {
        match (line.trim().is_empty(), start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                found.push(from..at);
                start = None;
            }
            _ => {}
        }
        at += line.len();
    }
    found.extend(start.map(|from| from..text.len()));
    found
}

fn is_prose(paragraph: &str) -> bool {
    let everyday = |c: &char| c.is_alphanumeric() || c.is_whitespace() || ",.;:'\"()-?!/’“”".contains(*c);
    let (all, plain) = (paragraph.chars().count(), paragraph.chars().filter(everyday).count());
    let has_columns = paragraph.lines().any(|line| line.trim().contains("    "));
    let ends = paragraph.trim_end().ends_with(['.', '!', '?', ':', '"', ')', '”']);
    ends && !has_columns && plain as f64 >= PROSE * all as f64 && paragraph.contains(' ')
}

fn sentences(text: &str, paragraph: Range<usize>, units: &mut Vec<Unit>) {
    let mut start = paragraph.start;
    let mut rest = text[paragraph.clone()].char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        let next_is_space = rest.peek().is_some_and(|(_, next)| next.is_whitespace());
        if !next_is_space || !ends_sentence(&text[start..paragraph.start + at + c.len_utf8()]) {
            continue;
        }
        let end = paragraph.start + at + c.len_utf8();
        let next = text[end..paragraph.end].trim_start();
        if next.starts_with(|c: char| c.is_uppercase() || c.is_numeric() || "\"'(“[".contains(c)) {
            units.push(Unit { range: trimmed(text, start..end), kind: Kind::Sentence, ends_paragraph: false });
            start = end;
        }
    }
    let last = trimmed(text, start..paragraph.end);
    if !last.is_empty() {
        units.push(Unit { range: last, kind: Kind::Sentence, ends_paragraph: false });
    }
}

/// Whether a sentence can end where `head` does.
fn ends_sentence(head: &str) -> bool {
    let bare = head.trim_end_matches(['"', '\'', ')', '”', '’', ']']);
    if bare.ends_with(['!', '?']) {
        return true;
    }
    if !bare.ends_with('.') {
        return false;
    }
    let word = bare.rsplit(char::is_whitespace).next().unwrap_or(bare).trim_start_matches(['(', '"', '“']);
    // An initial, or the number of a list item.
    let is_short = word.chars().count() == 2 || word.strip_suffix('.').is_some_and(|n| n.parse::<f64>().is_ok());
    !is_short && !ABBREVIATIONS.iter().any(|known| word.eq_ignore_ascii_case(known))
}

fn blocks(text: &str, paragraph: Range<usize>, units: &mut Vec<Unit>) {
    let (mut start, mut at) = (paragraph.start, paragraph.start);
    let mut close = |range: Range<usize>| {
        let end = range.start + text[range.clone()].trim_end().len();
        if range.start < end {
            units.push(Unit { range: range.start..end, kind: Kind::Block, ends_paragraph: false });
        }
    };
    for line in text[paragraph.clone()].split_inclusive('\n') {
        let end = at + line.len();
        if line.len() > LONGEST_BLOCK {
            close(start..at);
            start = end;
        } else if end - start > LONGEST_BLOCK {
            close(start..at);
            start = at;
        }
        at = end;
    }
    close(start..at);
}

fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let own = &text[range.clone()];
    let start = range.start + (own.len() - own.trim_start().len());
    start..start.max(range.start + own.trim_end().len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> Vec<String> {
        units(text).iter().map(|unit| unit.show(text)).collect()
    }

    #[test]
    fn prose_is_cut_into_sentences_whatever_its_lines() {
        let text =
            "   A pigeon waits,\n   e.g. on a roof. It leaves (see\n   Fig. 2). \"Why?\" Nobody knows, says J. Doe.\n";
        let expected =
            ["A pigeon waits, e.g. on a roof.", "It leaves (see Fig. 2).", "\"Why?\"", "Nobody knows, says J. Doe."];
        assert_eq!(shown(text), expected);
    }

    #[test]
    fn a_table_keeps_its_lines() {
        let text = "   +------+------+\n   | one  | two  |\n   +------+------+\n\nProse follows here.\n";
        assert_eq!(shown(text), ["   +------+------+\n   | one  | two  |\n   +------+------+", "Prose follows here."]);
        let found = units(text);
        assert!(found[0].ends_paragraph && found[0].kind == Kind::Block && found[1].kind == Kind::Sentence);
    }

    #[test]
    fn long_blocks_are_cut_at_lines_and_endless_lines_are_left_out() {
        let rows = "| a row of a table that is long |\n".repeat(40);
        assert!(units(&rows).len() > 1 && shown(&rows).iter().all(|block| block.len() <= LONGEST_BLOCK));
        assert_eq!(shown(&rows).join("\n") + "\n", rows);
        assert!(units(&"=".repeat(LONGEST_BLOCK + 1)).is_empty());
    }

    #[test]
    fn a_passage_ends_with_a_unit_within_the_count() {
        let words = |text: &str| Ok::<_, ()>(text.split_whitespace().count());
        let text = "One two three. Four five.\n\nSix seven eight nine.\n";
        assert_eq!(passage(text, 5, words).unwrap(), "One two three. Four five.");
        assert_eq!(passage(text, 8, words).unwrap(), "One two three. Four five.");
        assert_eq!(passage(text, 9, words).unwrap(), text.trim_end());
        assert_eq!(passage(text, 2, words).unwrap(), "");
        let (first, end) = passage_and_end(text, 5, words).unwrap();
        assert_eq!(first, "One two three. Four five.");
        assert_eq!(passage(&text[end..], 100, words).unwrap(), text[end..].trim());
    }

    #[test]
    fn a_text_that_was_broken_off_ends_with_its_last_whole_sentence() {
        assert_eq!(whole_sentences("One, e.g. this. Two \"quoted.\" And th"), "One, e.g. this. Two \"quoted.\"");
        assert_eq!(whole_sentences("Whole."), "Whole.");
        assert_eq!(whole_sentences("never a sen"), "");
    }

    proptest! {
        #[test]
        fn units_are_in_order_and_hold_every_word_of_short_lines(text in "[a-zA-Z0-9 .,!?|\n\t\u{e9}\u{2028}\"]{0,400}") {
            let found = units(&text);
            prop_assert!(found.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
            let words: Vec<&str> = found.iter().flat_map(|unit| text[unit.range.clone()].split_whitespace()).collect();
            prop_assert_eq!(words, text.split_whitespace().collect::<Vec<_>>());
        }
    }
}
