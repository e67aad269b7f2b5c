//! Samples of tasks: soft tokens of a window of the context, with the chunks that matter most as raw text now and then.

use std::collections::HashSet;

use e2llm_model::prompt;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Objective, Sample, Sampler, wording};
use crate::corpus::Task;
use crate::error::Result;

/// Bytes looked back for a place to start a window.
const LOOK_BACK: usize = 512;
/// Bytes per word piece, roughly: how far before the answer a window may begin.
const BYTES_PER_PIECE: usize = 4;
/// Letters a word needs to tell one chunk from another.
const WORD: usize = 4;

impl Sampler {
    pub(super) fn answer(&self, task: &Task, rng: &mut ChaCha8Rng) -> Result<Option<Sample>> {
        let wanted = rng.random_range(self.window.0..=self.window.1);
        let chunks = self.window(task, wanted, rng)?;
        if chunks.is_empty() {
            return Ok(None);
        }
        // Nearest first, each less likely than the one before: what serving expands are the few nearest.
        let raw: Vec<usize> =
            by_relevance(&chunks, task).into_iter().take_while(|_| rng.random::<f64>() < self.expand).collect();
        let parts = self.expanded(&chunks, &raw)?;
        // A question varies in its wording; any other instruction is what it says.
        match task.prompt.strip_prefix(&prompt::question("")) {
            Some(question) => {
                let wordings = prompt::question_wordings(question);
                self.compose(Objective::Answer, wording(&wordings, rng), parts, &task.answer)
            }
            None => self.compose(Objective::Answer, &task.prompt, parts, &task.answer),
        }
    }

    /// Chunks of the context: around the answer where it stands there word for word, else from the beginning.
    fn window<'t>(&self, task: &'t Task, wanted: usize, rng: &mut ChaCha8Rng) -> Result<Vec<&'t str>> {
        let context = &task.context;
        let found = context.find(task.answer.trim()).unwrap_or(0);
        let lead = rng.random_range(0..wanted) * self.chunker.max_tokens() * BYTES_PER_PIECE;
        let start = place_before(context, found.saturating_sub(lead));
        let chunks = self.chunks(&context[start..], wanted)?;
        let covered = start + chunks.iter().map(|chunk| chunk.len()).sum::<usize>();
        if covered >= found + task.answer.trim().len() {
            return Ok(chunks);
        }
        self.chunks(&context[found..], wanted)
    }
}

/// A line's or else a word's start shortly before byte `at`.
fn place_before(text: &str, at: usize) -> usize {
    let end = text.floor_char_boundary(at);
    let from = text.floor_char_boundary(end.saturating_sub(LOOK_BACK));
    if from == 0 && end < LOOK_BACK {
        return 0;
    }
    let near = &text[from..end];
    near.rfind('\n').or_else(|| near.rfind(' ')).map_or(end, |index| from + index + 1)
}

/// Chunks by falling likeness to question and answer: whether the answer stands there, then words in common.
fn by_relevance(chunks: &[&str], task: &Task) -> Vec<usize> {
    let asked = words(&format!("{} {}", task.prompt, task.answer));
    let score = |chunk: &&str| (chunk.contains(task.answer.trim()), words(chunk).intersection(&asked).count());
    let scores: Vec<(bool, usize)> = chunks.iter().map(score).collect();
    let mut order: Vec<usize> = (0..chunks.len()).collect();
    order.sort_by(|a, b| scores[*b].cmp(&scores[*a]).then(a.cmp(b)));
    order
}

fn words(text: &str) -> HashSet<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() >= WORD);
    words.map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunk_that_holds_the_answer_is_nearest_then_the_one_that_shares_words() {
        let task = Task {
            id: String::new(),
            context: String::new(),
            prompt: "Which port does the protocol use?".to_owned(),
            answer: "853".to_owned(),
        };
        let chunks = ["nothing here", "the protocol has a port", "it is 853", "a port"];
        assert_eq!(by_relevance(&chunks, &task), [2, 1, 3, 0]);
    }

    #[test]
    fn a_window_starts_at_a_line_or_a_word() {
        let text = format!("{}\n{}", "a".repeat(600), "word ".repeat(200));
        assert_eq!(place_before(&text, 700), 601);
        assert_eq!(place_before(&text, 100), 0);
        assert_eq!(&text[place_before(&text, 1400)..][..4], "word");
        assert_eq!(place_before("ééé", 3), 0);
    }
}
