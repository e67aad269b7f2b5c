//! Answers of a teacher, the decoder that reads the full text, where labels are missing (sequence-level distillation: Kim &
//! Rush, arXiv 1606.07947; for compressed contexts PISCO).

use std::path::Path;

use serde::Serialize;

use crate::cut;
use crate::error::{DataError, Result};
use crate::io::{LineWriter, Lines};
use crate::line::{Line, TaskLine};

/// Reads a text and answers.
pub trait Teacher {
    /// Number of tokens of a text.
    fn count(&self, text: &str) -> Result<usize>;

    /// The answer to a prompt about a context; `None` if context, prompt and answer are too long for the teacher.
    fn answer(&mut self, context: &str, prompt: &str) -> Result<Option<Taught>>;
}

/// What a teacher wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taught {
    /// The answer.
    pub text: String,
    /// Whether the teacher ended it, and not the limit of tokens.
    pub is_finished: bool,
    /// Tokens read.
    pub read: usize,
    /// Tokens written.
    pub written: usize,
}

/// What to ask.
pub struct Teaching<'a> {
    /// The instruction for texts without an abstract.
    pub summarize: &'a str,
    /// If given, the teacher reads no more than the first so many tokens of a context, cut at the end of a sentence, and that
    /// passage is the context of the line written.
    pub passage_tokens: Option<usize>,
    /// Is told what was done so far.
    pub progress: &'a mut dyn FnMut(&TeachReport),
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TeachReport {
    /// Lines read.
    pub read: u64,
    /// Answers that an earlier run had written.
    pub resumed: u64,
    /// Answers written now.
    pub taught: u64,
    /// Lines left out because they have a label.
    pub labelled: u64,
    /// Lines left out because they are too long for the teacher, or their first sentence is for the passage.
    pub too_long: u64,
    /// Lines left out because the answer was empty, or not one sentence of it was finished.
    pub unfinished: u64,
    /// Tokens read by the teacher.
    pub tokens_read: u64,
    /// Tokens that it wrote.
    pub tokens_written: u64,
}

/// Writes a task line with an answer for every line of `input` that has none: texts without an abstract are to be
/// summarised, tasks without an answer are to be done.
///
/// Repeating the call with the same arguments goes on after the last complete line of `OUTPUT.partial`.
///
/// # Errors
/// [`DataError::OtherRun`] if the partial file does not follow from this input; those of reading, writing and the teacher.
pub fn teach(input: &Path, output: &Path, teacher: &mut dyn Teacher, work: Teaching<'_>) -> Result<TeachReport> {
    let mut writer = LineWriter::resume(output)?;
    let mut before = Before::open(&writer)?;
    let mut report = TeachReport::default();
    for line in Lines::open(input)? {
        let line = line?;
        report.read += 1;
        if before.has(line.id())? {
            report.resumed += 1;
        } else if let Some(task) = unlabelled(line, work.summarize) {
            // Until all that was written is found again, what is not among it was left out.
            if before.is_over() {
                answer(task, teacher, work.passage_tokens, &mut writer, &mut report)?;
            }
        } else {
            report.labelled += 1;
        }
        (work.progress)(&report);
    }
    if !before.is_over() {
        return Err(DataError::OtherRun { path: writer.partial().to_owned() });
    }
    writer.commit()?;
    Ok(report)
}

/// Lines that an earlier run wrote, in order.
struct Before {
    lines: Lines,
    next: Option<String>,
}

impl Before {
    fn open(writer: &LineWriter) -> Result<Self> {
        let mut lines = Lines::open(writer.partial())?;
        let next = next_id(&mut lines)?;
        Ok(Self { lines, next })
    }

    /// Whether the line `id` comes next; if so, it is taken.
    fn has(&mut self, id: &str) -> Result<bool> {
        let is_next = self.next.as_deref() == Some(id);
        if is_next {
            self.next = next_id(&mut self.lines)?;
        }
        Ok(is_next)
    }

    fn is_over(&self) -> bool {
        self.next.is_none()
    }
}

fn next_id(lines: &mut Lines) -> Result<Option<String>> {
    Ok(lines.next().transpose()?.map(|line| line.id().to_owned()))
}

fn unlabelled(line: Line, summarize: &str) -> Option<TaskLine> {
    match line {
        Line::Task(task) => task.answer.is_none().then_some(task),
        Line::Plain(plain) if plain.summary.is_some() => None,
        Line::Plain(plain) => Some(TaskLine {
            id: plain.id,
            task: "summary".to_owned(),
            context: plain.text,
            prompt: summarize.to_owned(),
            split: plain.split,
            ..TaskLine::default()
        }),
    }
}

fn answer(
    mut task: TaskLine,
    teacher: &mut dyn Teacher,
    passage_tokens: Option<usize>,
    writer: &mut LineWriter,
    report: &mut TeachReport,
) -> Result<()> {
    if let Some(tokens) = passage_tokens {
        task.context = cut::passage(&task.context, tokens, |text| teacher.count(text))?;
        // Ranges of the whole context may be beyond the passage's end.
        task.evidence.clear();
        task.tokens = None;
    }
    let taught = if task.context.is_empty() { None } else { teacher.answer(&task.context, &task.prompt)? };
    let Some(taught) = taught else {
        report.too_long += 1;
        return Ok(());
    };
    report.tokens_read += taught.read as u64;
    report.tokens_written += taught.written as u64;
    let text = if taught.is_finished { taught.text.trim() } else { cut::whole_sentences(&taught.text) };
    if text.is_empty() {
        report.unfinished += 1;
        return Ok(());
    }
    report.taught += 1;
    task.answer = Some(text.to_owned());
    writer.write(&task)?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// Repeats the context's last word; reads at most ten words, and dies after so many answers.
    struct Parrot {
        left: usize,
    }

    impl Teacher for Parrot {
        fn count(&self, text: &str) -> Result<usize> {
            Ok(text.split_whitespace().count())
        }

        fn answer(&mut self, context: &str, prompt: &str) -> Result<Option<Taught>> {
            let read = self.count(context)?;
            if read > 10 {
                return Ok(None);
            }
            self.left = self.left.checked_sub(1).ok_or_else(|| DataError::model("it died"))?;
            let last = context.split_whitespace().last().unwrap_or_default();
            let text = format!("{prompt} {last} Next sen");
            Ok(Some(Taught { text, is_finished: last != "cut.", read, written: 3 }))
        }
    }

    const INPUT: &str = r#"{"id":"a","text":"One two."}
{"id":"b","text":"One two.","abstract":"A label."}
{"id":"c","text":"1 2 3 4 5 6 7 8 9 10 11. And this."}
{"id":"d","context":"Here it is cut.","prompt":"Why?","keys":["k"]}
{"id":"e","context":"x","prompt":"Why?","answer":"A label."}
{"id":"f","text":"Three four."}
"#;

    fn run(dir: &Path, left: usize, passage_tokens: Option<usize>) -> Result<TeachReport> {
        let work = Teaching { summarize: "Sum.", passage_tokens, progress: &mut |_| {} };
        teach(&dir.join("in.jsonl"), &dir.join("out.jsonl"), &mut Parrot { left }, work)
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("in.jsonl"), INPUT).unwrap();
        let out = dir.path().join("out.jsonl");
        (dir, out)
    }

    #[test]
    fn lines_without_labels_are_answered_and_others_counted() {
        let (dir, out) = place();
        let report = run(dir.path(), 9, None).unwrap();
        let expected = TeachReport { read: 6, taught: 3, labelled: 2, too_long: 1, ..report };
        assert_eq!((report, report.tokens_read, report.tokens_written), (expected, 8, 9));
        let lines: Vec<Line> = Lines::open(&out).unwrap().map(Result::unwrap).collect();
        let answers: Vec<(&str, &str)> = lines
            .iter()
            .map(|line| match line {
                Line::Task(task) => (task.id.as_str(), task.answer.as_deref().unwrap()),
                Line::Plain(plain) => panic!("{plain:?}"),
            })
            .collect();
        let expected = [("a", "Sum. two. Next sen"), ("d", "Why? cut."), ("f", "Sum. four. Next sen")];
        assert_eq!(answers, expected, "an answer that was broken off ends with its last whole sentence");
    }

    #[test]
    fn a_repeated_run_goes_on_and_ends_with_the_bytes_of_an_unbroken_one() {
        let (whole, whole_out) = place();
        run(whole.path(), 9, None).unwrap();
        let (dir, out) = place();
        assert!(run(dir.path(), 2, None).unwrap_err().to_string().contains("died"));
        assert!(!out.exists());
        let partial = dir.path().join("out.jsonl.partial");
        let left = fs::read_to_string(&partial).unwrap();
        fs::write(&partial, format!("{left}{{\"id\":\"f\",\"con")).unwrap();
        let report = run(dir.path(), 1, None).unwrap();
        assert_eq!((report.resumed, report.taught), (2, 1));
        assert_eq!(fs::read(&out).unwrap(), fs::read(&whole_out).unwrap());
    }

    #[test]
    fn a_partial_file_of_another_input_is_refused() {
        let (dir, _) = place();
        fs::write(dir.path().join("out.jsonl.partial"), "{\"id\":\"z\",\"text\":\"t\"}\n").unwrap();
        let error = run(dir.path(), 9, None).unwrap_err().to_string();
        assert!(error.contains("out.jsonl.partial") && error.contains("delete it"), "{error}");
    }

    #[test]
    fn a_passage_is_the_beginning_up_to_the_end_of_a_sentence() {
        let (dir, out) = place();
        fs::write(dir.path().join("in.jsonl"), "{\"id\":\"a\",\"text\":\"One two. Three four. Five six.\"}\n").unwrap();
        run(dir.path(), 9, Some(5)).unwrap();
        let Line::Task(task) = Lines::open(&out).unwrap().next().unwrap().unwrap() else { panic!() };
        assert_eq!(
            (task.context.as_str(), task.answer.as_deref()),
            ("One two. Three four.", Some("Sum. four. Next sen"))
        );
    }
}
