//! What abbreviations stand for: questions that a text answers word for word, without anybody having asked them.

use super::benchmarks::asked;
use super::{Files, Job, Report, shown};
use crate::error::{DataError, Result};
use crate::io::Lines;
use crate::line::{Line, PlainLine, Split, TaskLine};

/// Questions about one document, at most.
const PER_DOCUMENT: usize = 4;
/// Bytes of a paragraph that a question is about.
const PARAGRAPH: std::ops::Range<usize> = 120..900;
/// Characters of an abbreviation.
const LETTERS: std::ops::RangeInclusive<usize> = 2..=8;

/// Turns data files of texts into `qa` tasks of one paragraph each: what an abbreviation stands for that the paragraph introduces, as in
/// "Explicit Congestion Notification (ECN)". Long forms are found as Schwartz and Hearst (2003) find them. Lines of the test split
/// become test tasks, all others train.
pub fn abbreviations(job: &mut Job<'_>) -> Result<Report> {
    let mut files = Files::create(job.output)?;
    for input in job.inputs {
        for line in Lines::open(input)? {
            let Line::Plain(document) = line? else { continue };
            let split = document.split.unwrap_or(Split::Train);
            for task in questions(&document, job.question) {
                if files.is_new(&task.context) {
                    files.task(split, task)?;
                }
            }
            files.report.read += 1;
            (job.progress)(files.report.read, None);
        }
    }
    if files.report.tasks.is_empty() {
        let remedy = "give JSON Lines of {\"id\", \"text\"} whose texts introduce abbreviations";
        return Err(DataError::Nothing { expected: "abbreviations", inputs: shown(job.inputs), remedy });
    }
    files.commit()
}

fn questions(document: &PlainLine, wording: fn(&str) -> String) -> Vec<TaskLine> {
    let (mut tasks, mut known) = (Vec::new(), Vec::new());
    for paragraph in document.text.split("\n\n").map(str::trim) {
        let Some((short, long, end)) = introduced(paragraph).filter(|_| PARAGRAPH.contains(&paragraph.len())) else {
            continue;
        };
        if known.contains(&short) {
            continue;
        }
        known.push(short);
        let id = format!("{}:{short}", document.id);
        let question = format!("What does {short} stand for?");
        let line = asked(id, paragraph.to_owned(), wording, &question, vec![long.to_owned()]);
        let introduction = end - long.len()..end + short.len() + 3;
        tasks.push(TaskLine { evidence: std::iter::once(introduction).collect(), ..line });
        if tasks.len() == PER_DOCUMENT {
            break;
        }
    }
    tasks
}

/// The first abbreviation that a paragraph introduces: short form, long form, and where the long form ends.
fn introduced(paragraph: &str) -> Option<(&str, &str, usize)> {
    let mut from = 0;
    while let Some(open) = paragraph[from..].find(" (").map(|at| from + at) {
        let inside = &paragraph[open + 2..];
        let short = &inside[..inside.find(')')?];
        let before = &paragraph[..open];
        if let Some(long) = is_abbreviation(short).then(|| long_form(short, before)).flatten()
            && paragraph.matches(long).count() == 1
        {
            return Some((short, long, open));
        }
        from = open + 2;
    }
    None
}

fn is_abbreviation(text: &str) -> bool {
    let letters = text.bytes().filter(u8::is_ascii_uppercase).count();
    LETTERS.contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && text.starts_with(|first: char| first.is_ascii_uppercase())
        && letters >= 2
}

/// The shortest end of `before` that holds the letters of `short` in their order, the first one at the start of a word.
fn long_form<'t>(short: &str, before: &'t str) -> Option<&'t str> {
    let most = (short.len() + 5).min(2 * short.len());
    let sentence = before.rfind(['.', ';', ':', '\n', '(', ')', '"']).map_or(0, |at| at + 1);
    let words = before[sentence..].rmatch_indices(' ').map(|(at, _)| sentence + at + 1);
    let start = words.take(most).last().unwrap_or(sentence);
    let bytes = before.as_bytes();
    let mut at = before.len();
    for (number, letter) in short.bytes().enumerate().rev() {
        loop {
            at = at.checked_sub(1).filter(|at| *at >= start)?;
            let starts_word = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
            if bytes[at].eq_ignore_ascii_case(&letter) && (number > 0 || starts_word) {
                break;
            }
        }
    }
    let long = before.get(at..)?;
    let is_long = long.len() > short.len() + 3 && long.split_whitespace().count() >= 2;
    (is_long && !long.split_whitespace().any(|word| word == short)).then_some(long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_form_begins_a_word_and_has_the_letters_in_order() {
        let found = |short, before| long_form(short, before);
        assert_eq!(
            found("ECN", "routers use Explicit Congestion Notification"),
            Some("Explicit Congestion Notification")
        );
        assert_eq!(found("TLS", "see [RFC8446].  Transport Layer Security"), Some("Transport Layer Security"));
        assert_eq!(found("HTTP", "The Hypertext Transfer Protocol"), Some("Hypertext Transfer Protocol"));
        assert_eq!(found("XYZ", "nothing like that"), None);
        assert_eq!(found("AB", "a bee"), None, "hardly longer");
        assert_eq!(found("DNS", "in the é Domain Name System"), Some("Domain Name System"));
    }

    #[test]
    fn a_question_is_about_a_paragraph_that_introduces_an_abbreviation_once() {
        let filler =
            "It says so in more words than are needed, so that there is something around it to read. ".repeat(2);
        let text = format!(
            "Short (SH).\n\n{filler}Border Gateway Protocol (BGP) is used (see below).\n\n{filler}Again the Border Gateway Protocol (BGP).\n"
        );
        let document = PlainLine { id: "rfc1".into(), text, summary: None, split: None };
        let tasks = questions(&document, |question| format!("Q: {question}"));
        assert_eq!(tasks.len(), 1, "{tasks:#?}");
        let task = &tasks[0];
        assert_eq!((task.id.as_str(), task.prompt.as_str()), ("rfc1:BGP", "Q: What does BGP stand for?"));
        assert_eq!(task.answers, ["Border Gateway Protocol"]);
        assert_eq!(&task.context[task.evidence[0].clone()], "Border Gateway Protocol (BGP)");
    }

    #[test]
    fn numbers_and_plain_words_are_no_abbreviations() {
        for (text, expected) in
            [("ECN", true), ("IPv6", true), ("MUST", true), ("1998", false), ("see", false), ("A", false)]
        {
            assert_eq!(is_abbreviation(text), expected, "{text}");
        }
    }
}
