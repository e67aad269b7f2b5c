//! RFCs, from the directories into which Debian's doc-rfc-* packages were unpacked (`dpkg-deb -x`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::layout::{self, Runs};
use super::{Files, Job, Report, files, shown};
use crate::error::{DataError, Result};
use crate::io;
use crate::line::{PlainLine, Split, TaskLine};

/// Turns RFCs into text lines `rfcN` with their abstracts, and summary tasks `rfcN-summary`.
///
/// Test is RFC ≥ 9000, validation 8500–8999. Left out of train and validation is what a test RFC obsoletes or updates, and
/// out of train every paragraph that shares 13 consecutive words with a test RFC.
pub fn rfc(job: &mut Job<'_>) -> Result<Report> {
    let mut found = find(job.inputs)?;
    let mut files = Files::create(job.output)?;
    let test = TestSplit::read(&found)?;
    let of = found.len() as u64;
    for split in Split::ALL {
        for (number, path) in found.extract_if(.., |number, _| Split::of_rfc(*number) == split) {
            document(&mut files, &test, split, number, &path, job.summarize)?;
            files.report.read += 1;
            (job.progress)(files.report.read, Some(of));
        }
    }
    files.commit()
}

/// Every RFC's file; of several with one number, the last.
fn find(inputs: &[PathBuf]) -> Result<BTreeMap<u32, PathBuf>> {
    let found = files::below(inputs, |name| number(name).is_some())?;
    let numbered = found.into_iter().filter_map(|found| Some((number(&found.name)?, found.path)));
    let found: BTreeMap<u32, PathBuf> = numbered.collect();
    if found.is_empty() {
        let remedy = "give the directories into which `dpkg-deb -x` unpacked the doc-rfc-* packages";
        return Err(DataError::Nothing { expected: "rfcNNNN.txt or rfcNNNN.txt.gz", inputs: shown(inputs), remedy });
    }
    Ok(found)
}

/// The number in `…/rfc9116.txt.gz`.
fn number(name: &str) -> Option<u32> {
    let stem = name.strip_suffix(".gz").unwrap_or(name).strip_suffix(".txt")?;
    let digits = &stem[stem.trim_end_matches(|c: char| c.is_ascii_digit()).len()..];
    stem.strip_suffix(digits)?.ends_with("rfc").then(|| digits.parse().ok())?
}

fn read(path: &Path) -> Result<String> {
    Ok(layout::clean(&layout::decode(io::read(path)?)))
}

/// What train must not share with test.
struct TestSplit {
    related: BTreeSet<u32>,
    runs: Runs,
}

impl TestSplit {
    fn read(found: &BTreeMap<u32, PathBuf>) -> Result<Self> {
        let mut test = Self { related: BTreeSet::new(), runs: Runs::default() };
        for (_, path) in found.iter().filter(|(number, _)| Split::of_rfc(**number) == Split::Test) {
            let text = read(path)?;
            test.related.extend(layout::related(&text));
            test.runs.add(&text);
        }
        Ok(test)
    }
}

fn document(
    files: &mut Files,
    test: &TestSplit,
    split: Split,
    number: u32,
    path: &Path,
    summarize: &str,
) -> Result<()> {
    if split != Split::Test && test.related.contains(&number) {
        files.report.drop("obsoleted or updated by a test RFC");
        return Ok(());
    }
    let text = read(path)?;
    if !files.is_new(&text) {
        return Ok(());
    }
    let (mut body, mut summary) = layout::cut_abstract(&text);
    if split == Split::Train {
        let whole = body.len();
        body = test.runs.taken_out_of(&body);
        summary = summary.and_then(|summary| layout::without(&test.runs, &summary));
        *files.report.shared_bytes.get_or_insert_default() += whole.saturating_sub(body.len()) as u64;
    }
    if body.trim().is_empty() {
        files.report.drop("nothing left");
        return Ok(());
    }
    let id = format!("rfc{number}");
    if let Some(answer) = &summary {
        let (task, prompt, answer) = ("summary".to_owned(), summarize.to_owned(), Some(answer.clone()));
        let (id, context) = (format!("{id}-summary"), body.clone());
        files.task(split, TaskLine { id, task, context, prompt, answer, ..Default::default() })?;
    }
    files.text(split, PlainLine { id, text: body, summary, split: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Lines;
    use crate::line::Line;
    use std::fs;

    /// A made-up RFC with a body of its own.
    fn made_up(number: u32, head: &str, body: &str) -> String {
        format!(
            "Request for Comments: {number}                                    May 2042\n{head}\n\n          Title {number}\n\n\
             Abstract\n\n   Abstract of {number}.\n\n1.  Introduction\n\n   {body}\n\nAuthor          Standards         [Page 1]\n"
        )
    }

    fn run(texts: &[(&str, String)]) -> (tempfile::TempDir, Result<Report>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        for (name, text) in texts {
            fs::write(dir.path().join("in").join(name), text).unwrap();
        }
        let (inputs, output) = ([dir.path().join("in")], dir.path().join("out"));
        let progress = &mut |_, _| {};
        let report = rfc(&mut Job {
            inputs: &inputs,
            output: &output,
            seed: 0,
            summarize: "Summarize.",
            question: str::to_owned,
            progress,
        });
        (dir, report)
    }

    fn lines(dir: &tempfile::TempDir, name: &str) -> Vec<Line> {
        Lines::open(&dir.path().join("out").join(name)).unwrap().map(Result::unwrap).collect()
    }

    fn words(first: u32) -> String {
        (first..first + 40).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn documents_are_split_by_number_and_cleared_of_the_test_split() {
        let shared = format!("{}\n\n   {}", words(0), words(500));
        let (dir, report) = run(&[
            ("rfc9001.txt", made_up(9001, "Obsoletes: 10", &words(0))),
            ("rfc8600.txt", made_up(8600, "", &words(100))),
            ("rfc10.txt", made_up(10, "", &words(200))),
            ("rfc11.txt", made_up(11, "", &shared)),
            ("rfc12.txt", made_up(11, "", &shared)),
            ("notes.txt", "not an RFC".to_owned()),
        ]);
        let report = report.unwrap();
        assert_eq!(report.texts, [(Split::Train, 1), (Split::Validate, 1), (Split::Test, 1)].into());
        assert_eq!(report.dropped, [("duplicate", 1), ("obsoleted or updated by a test RFC", 1)].into());
        assert_eq!(report.read, 5);
        let train = lines(&dir, "train.jsonl");
        let Line::Plain(plain) = &train[0] else { panic!("{train:?}") };
        assert_eq!((plain.id.as_str(), plain.summary.as_deref()), ("rfc11", Some("Abstract of 11.")));
        assert!(plain.text.contains("w510") && !plain.text.contains("w10 "), "{}", plain.text);
        assert!(lines(&dir, "test.jsonl")[0].is_test());
    }

    #[test]
    fn an_abstract_becomes_a_summary_task_and_is_not_in_its_context() {
        let (dir, report) = run(&[("rfc20.txt", made_up(20, "", &words(0)))]);
        assert_eq!(report.unwrap().tasks, [(Split::Train, 1)].into());
        let Line::Task(task) = lines(&dir, "train-tasks.jsonl").remove(0) else { panic!() };
        assert_eq!((task.id.as_str(), task.prompt.as_str()), ("rfc20-summary", "Summarize."));
        assert_eq!(task.answer.as_deref(), Some("Abstract of 20."));
        assert!(task.context.contains("w39") && !task.context.contains("Abstract"));
    }

    #[test]
    fn inputs_without_rfcs_say_what_to_give() {
        let (_dir, report) = run(&[("notes.txt", "text".to_owned())]);
        let error = report.unwrap_err().to_string();
        assert!(error.contains("rfcNNNN.txt") && error.contains("dpkg-deb -x"), "{error}");
    }

    #[test]
    fn a_number_is_read_from_the_end_of_the_name() {
        assert_eq!(number("doc/RFC/links/rfc9116.txt.gz"), Some(9116));
        assert_eq!(number("rfc20.txt"), Some(20));
        for other in ["rfc.txt", "rfc-index.txt", "std1.txt", "rfc20.html", "rfc99999999999.txt"] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
