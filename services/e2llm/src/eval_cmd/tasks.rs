use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Result, bail};
use e2llm_data::{Line, Lines, TaskLine};

/// A task to be answered.
#[derive(Debug)]
pub(super) struct Sampled {
    /// The benchmark it is of; empty for a file of tasks.
    pub(super) suite: &'static str,
    pub(super) line: TaskLine,
    /// What it is reported under: the length asked for, else the power of two that its tokens, where they were counted, do not
    /// exceed.
    pub(super) length: Option<usize>,
    /// Of its context.
    pub(super) doc_id: String,
    /// Another task's document, as like in length as there is.
    pub(super) other: String,
}

/// Kind of task and length, by suite.
type Group = (&'static str, (String, Option<usize>));

/// Tasks with their documents.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    pub(super) sampled: Vec<Sampled>,
    /// Texts by document id.
    pub(super) documents: BTreeMap<String, String>,
    samples: Option<usize>,
    seed: u64,
    /// Those of files that are sampled so far, by the hash that they are drawn by, each with the number of tasks before it.
    drawn: HashMap<Group, BTreeMap<Hash, (usize, TaskLine)>>,
    ids: HashSet<(&'static str, String)>,
}

type Hash = [u8; 32];

/// Fewer bytes of an answer are in every text.
const SHORTEST_ANSWER: usize = 3;

impl Tasks {
    /// At most `samples` of each kind and length will be taken; which ones of files, `seed` decides.
    pub(super) fn new(samples: Option<usize>, seed: u64) -> Self {
        Self { samples, seed, ..Self::default() }
    }

    /// Reads a file of tasks.
    pub(super) fn read(&mut self, suite: &'static str, path: &Path) -> Result<()> {
        let mut lines = Lines::open(path)?;
        while let Some(line) = lines.next() {
            let number = lines.number();
            let Line::Task(line) = line? else {
                bail!("{} line {number} is a text; give tasks, such as `e2llm data synthesize` makes", path.display());
            };
            if line.answer.is_none() && line.answers.is_empty() {
                bail!("{} line {number}: task {:?} has no answer to judge by", path.display(), line.id);
            }
            if !self.ids.insert((suite, line.id.clone())) {
                bail!(
                    "{} line {number}: task id {:?} stands twice in the files; ids must differ",
                    path.display(),
                    line.id
                );
            }
            self.draw(suite, line);
        }
        Ok(())
    }

    /// Keeps a task if its hash is among the smallest of its kind and length: a random sample whatever the files' order.
    fn draw(&mut self, suite: &'static str, line: TaskLine) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(line.id.as_bytes());
        let drawn = self.drawn.entry((suite, line.group())).or_default();
        drawn.insert(*hasher.finalize().as_bytes(), (self.ids.len(), line));
        if self.samples.is_some_and(|samples| drawn.len() > samples) {
            drawn.pop_last();
        }
    }

    /// Takes what was sampled of files, and says whose soft tokens stand in for each document's.
    pub(super) fn finish(&mut self) -> Result<()> {
        let groups = std::mem::take(&mut self.drawn).into_iter();
        let of_group = |((suite, (_, length)), drawn): (Group, BTreeMap<Hash, (usize, TaskLine)>)| {
            drawn.into_values().map(move |(number, line)| (number, suite, length, line))
        };
        let mut drawn: Vec<_> = groups.flat_map(of_group).collect();
        drawn.sort_unstable_by_key(|(number, ..)| *number);
        drawn.into_iter().for_each(|(_, suite, length, line)| self.add(suite, line, length));
        self.choose_others()
    }

    /// Takes a task.
    pub(super) fn add(&mut self, suite: &'static str, mut line: TaskLine, length: Option<usize>) {
        let context = std::mem::take(&mut line.context);
        let doc_id = blake3::hash(context.as_bytes()).to_hex()[..32].to_owned();
        self.documents.insert(doc_id.clone(), context);
        self.sampled.push(Sampled { suite, line, length, doc_id, other: String::new() });
    }

    /// For each task the document of another that is nearest in length and has none of its answers: of the same suite, kind and
    /// length, if there is one.
    fn choose_others(&mut self) -> Result<()> {
        if self.documents.len() < 2 {
            bail!(
                "an evaluation needs tasks on at least two documents, so that one can stand in for the other; give more tasks, \
                 or a larger --samples"
            );
        }
        let others: Vec<String> = self.sampled.iter().map(|task| self.other(task)).collect();
        self.sampled.iter_mut().zip(others).for_each(|(task, other)| task.other = other);
        Ok(())
    }

    fn other(&self, task: &Sampled) -> String {
        let bytes = self.documents[&task.doc_id].len();
        let kind = (task.suite, &task.line.task, task.length);
        let mut candidates: Vec<(bool, usize, &String)> = Vec::new();
        for candidate in self.sampled.iter().filter(|candidate| candidate.doc_id != task.doc_id) {
            let distance = self.documents[&candidate.doc_id].len().abs_diff(bytes);
            let is_of_another_kind = (candidate.suite, &candidate.line.task, candidate.length) != kind;
            candidates.push((is_of_another_kind, distance, &candidate.doc_id));
        }
        candidates.sort_unstable();
        let tells = |id: &String| {
            let is_in =
                |answer: &String| answer.len() >= SHORTEST_ANSWER && self.documents[id].contains(answer.as_str());
            !task.line.asks_for_text() && task.line.answers.iter().any(is_in)
        };
        let silent = candidates.iter().find(|(_, _, id)| !tells(id)).or(candidates.first());
        silent.map(|(_, _, id)| (*id).clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn read(lines: &[&str], samples: Option<usize>) -> Result<Tasks> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tasks.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        sampled(&path, samples, 0)
    }

    fn sampled(path: &Path, samples: Option<usize>, seed: u64) -> Result<Tasks> {
        let mut tasks = Tasks::new(samples, seed);
        tasks.read("", path)?;
        tasks.finish()?;
        Ok(tasks)
    }

    fn ids(tasks: Tasks) -> BTreeSet<String> {
        tasks.sampled.into_iter().map(|task| task.line.id).collect()
    }

    const A: &str = r#"{"id":"a","task":"qa","context":"one two","prompt":"p","answers":["two"],"tokens":900}"#;
    const B: &str = r#"{"id":"b","task":"qa","context":"one two","prompt":"q","answer":"one","tokens":1000}"#;
    const C: &str = r#"{"id":"c","task":"summary","context":"longer than that","prompt":"s","answer":"short"}"#;

    #[test]
    fn a_document_is_kept_once_and_another_stands_in_for_it() {
        let tasks = read(&[A, B, C], None).unwrap();
        assert_eq!((tasks.sampled.len(), tasks.documents.len()), (3, 2));
        assert_eq!(tasks.sampled[0].doc_id, tasks.sampled[1].doc_id);
        assert_eq!(tasks.sampled[0].other, tasks.sampled[2].doc_id);
        assert_eq!(tasks.sampled[2].other, tasks.sampled[0].doc_id);
    }

    #[test]
    fn what_stands_in_is_of_the_same_kind_and_does_not_tell_the_answer() {
        let like_a = r#"{"id":"d","task":"qa","context":"one two three","prompt":"p","answers":["two"],"tokens":900}"#;
        let silent = r#"{"id":"e","task":"qa","context":"something quite different","prompt":"p","answers":["thing"],"tokens":900}"#;
        let near = r#"{"id":"f","task":"qa_1","context":"one 2","prompt":"p","answers":["2"],"tokens":900}"#;
        let tasks = read(&[A, like_a, silent, near], None).unwrap();
        assert_eq!(tasks.sampled[0].other, tasks.sampled[2].doc_id);
        assert_eq!(tasks.sampled[2].other, tasks.sampled[1].doc_id, "the nearest of its kind");
    }

    #[test]
    fn so_many_of_each_kind_and_length_are_drawn_by_the_seed_and_not_by_their_order() {
        assert!(ids(read(&[A, B, C], Some(1)).unwrap()).contains("c"), "the only one of its kind");
        let line = |i: usize| {
            format!(r#"{{"id":"{i}","task":"qa","context":"text {i}","prompt":"p","answer":"a","tokens":900}}"#)
        };
        let mut lines: Vec<String> = (0..100).map(line).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tasks.jsonl");
        let mut drawn = |seed| {
            lines.reverse();
            std::fs::write(&path, lines.join("\n")).unwrap();
            ids(sampled(&path, Some(10), seed).unwrap())
        };
        let (first, again, other) = (drawn(1), drawn(1), drawn(2));
        assert_eq!((first.len(), &first), (10, &again));
        assert_ne!(first, other);
        assert_ne!(first, (0..10).map(|i| i.to_string()).collect());
    }

    #[test]
    fn tasks_that_cannot_be_judged_are_named() {
        let error = |lines: &[&str]| read(lines, None).unwrap_err().to_string();
        let unanswered = r#"{"id":"d","context":"x","prompt":"p"}"#;
        assert!(error(&[A, unanswered]).contains("line 2: task \"d\""));
        assert!(error(&[r#"{"id":"t","text":"x"}"#]).contains("line 1 is a text"));
        assert!(error(&[A, A, C]).contains("twice"));
        assert!(error(&[A, B]).contains("two documents"));
    }
}
