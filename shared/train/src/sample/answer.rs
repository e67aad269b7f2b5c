//! Samples of tasks: soft tokens of some chunks of the context, and as a rule raw text of those that matter most behind them.

use std::ops::Range;

use e2llm_model::chunk::trim_blank;
use e2llm_model::lexical;
use e2llm_model::prompt;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Objective, Sample, Sampler, wording};
use crate::corpus::Task;
use crate::error::Result;

/// How often a chunk that holds evidence is among the raw text, where there is any: serving finds nearly all of them, too.
const FOUND: f64 = 0.95;

/// A chunk of a task's context with the blanks around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Excerpt<'t> {
    text: &'t str,
    is_evidence: bool,
}

impl Sampler {
    pub(super) fn answer(&self, task: &Task, rng: &mut ChaCha8Rng) -> Result<Option<Sample>> {
        let wanted = rng.random_range(self.window.0..=self.window.1);
        let chunks = some(self.marked(task)?, wanted, rng);
        if chunks.is_empty() {
            return Ok(None);
        }
        let texts: Vec<&str> = chunks.iter().map(|chunk| chunk.text).collect();
        let question = task.prompt.strip_prefix(&prompt::question(""));
        let parts = self.with_excerpts(&texts, self.nearest(&chunks, question.unwrap_or(&task.prompt), rng))?;
        // A question varies in its wording; any other instruction is what it says.
        match question {
            Some(question) => {
                let wordings = prompt::question_wordings(question);
                self.compose(Objective::Answer, wording(&wordings, rng), parts, &task.answer)
            }
            None => self.compose(Objective::Answer, &task.prompt, parts, &task.answer),
        }
    }

    /// All chunks of the context.
    fn marked<'t>(&self, task: &'t Task) -> Result<Vec<Excerpt<'t>>> {
        let chunks = self.cut(&task.context, usize::MAX)?;
        let answer = task.answer.trim();
        let evidence: Vec<Range<usize>> = match task.evidence.as_slice() {
            [] => task.context.find(answer).map(|at| at..at + answer.len()).into_iter().collect(),
            known => known.to_vec(),
        };
        let mut start = 0;
        let mark = |text: &'t str| {
            let own = start..start + text.len();
            start = own.end;
            Excerpt { text, is_evidence: evidence.iter().any(|range| range.start < own.end && own.start < range.end) }
        };
        let marked = chunks.into_iter().map(mark);
        Ok(marked.filter(|chunk| !trim_blank(chunk.text).is_empty()).collect())
    }

    /// The chunks that become raw text: nearly all that hold evidence, then those with most of the question's words, as in serving.
    fn nearest(&self, chunks: &[Excerpt<'_>], question: &str, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let count = self.excerpts(rng);
        if count == 0 {
            return Vec::new();
        }
        let texts: Vec<Option<&str>> = chunks.iter().map(|chunk| Some(chunk.text)).collect();
        let scores = lexical::scores(question, &texts);
        let found: Vec<bool> = chunks.iter().map(|chunk| chunk.is_evidence && rng.random::<f64>() < FOUND).collect();
        let mut order: Vec<usize> = (0..chunks.len()).collect();
        order.sort_by(|a, b| found[*b].cmp(&found[*a]).then(scores[*b].total_cmp(&scores[*a])).then(a.cmp(b)));
        let found = found.iter().filter(|found| **found).count();
        order.truncate(count.max(found).min(self.excerpts.1));
        order
    }
}

/// At most `wanted` of the chunks in their order: those with evidence, and any others.
fn some<'t>(chunks: Vec<Excerpt<'t>>, wanted: usize, rng: &mut ChaCha8Rng) -> Vec<Excerpt<'t>> {
    let mut order: Vec<usize> = (0..chunks.len()).collect();
    order.shuffle(rng);
    order.sort_by_key(|index| !chunks[*index].is_evidence);
    order.truncate(wanted);
    order.sort_unstable();
    order.into_iter().map(|index| chunks[index]).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_window_keeps_the_evidence_and_the_order() {
        let texts = ["a", "b", "c", "d", "e", "f"];
        let chunk = |text: &'static str| Excerpt { text, is_evidence: ["b", "e"].contains(&text) };
        let chunks: Vec<Excerpt<'_>> = texts.map(chunk).to_vec();
        for seed in 0..20 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let kept: Vec<&str> = some(chunks.clone(), 4, &mut rng).iter().map(|chunk| chunk.text).collect();
            assert!(kept.len() == 4 && kept.is_sorted() && kept.contains(&"b") && kept.contains(&"e"), "{kept:?}");
            assert_eq!(some(chunks.clone(), 9, &mut rng), chunks);
        }
    }
}
