//! Questions about one of several documents.

use std::collections::VecDeque;
use std::ops::Range;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::draft::{Draft, any, fitted, shuffled};
use super::values::Unique;
use super::{Haystack, Synthesizer};
use crate::cut;
use crate::error::{DataError, Result};

/// Bytes of an abstract that are shown, to the end of a sentence.
const SHOWN: usize = 400;
/// Fewest bytes of an abstract that says anything.
pub(super) const FEWEST: usize = 80;
/// Tokens of a passage.
const PASSAGE: Range<usize> = 100..300;
/// Draws of a document that can be asked about.
const DRAWS: usize = 1_000;

const QUESTIONS: [&str; 3] = [
    "Which document has this abstract? Answer with its name. Abstract: {abstract}",
    "One of the documents above is summarised as follows. Which? {abstract}",
    "{abstract} Which of the documents above does this describe?",
];

const SHELVED: &str = "One of the documents above is summarised as follows: {abstract} On which shelf does it stand? Answer \
                       with the name of the shelf.";

/// Passages that an answer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hops {
    One,
    Two,
}

/// What is asked, and the passages that answer it.
struct Asked {
    passages: Vec<String>,
    question: String,
    answer: Answer,
}

enum Answer {
    /// Any of these.
    Given(Vec<String>),
    /// The made-up name of the passage.
    Name,
    /// The shelf that a list gives for this name.
    Shelf,
}

pub(super) fn draft(
    synthesizer: &Synthesizer<'_>,
    tokens: usize,
    hops: Hops,
    rng: &mut ChaCha8Rng,
) -> Result<(Draft, usize)> {
    let length = (tokens / 4).clamp(PASSAGE.start, PASSAGE.end);
    let asked = asked(synthesizer, length, hops, rng)?;
    let base = rng.clone();
    fitted(synthesizer, tokens, |aim| documents(synthesizer, &asked, length, aim, &mut base.clone()))
}

fn asked(synthesizer: &Synthesizer<'_>, length: usize, hops: Hops, rng: &mut ChaCha8Rng) -> Result<Asked> {
    let Haystack { documents, questions, .. } = synthesizer.haystack;
    for _ in 0..DRAWS {
        let number = rng.random_range(0..documents.len() + questions.len());
        let found = match number.checked_sub(documents.len()) {
            Some(number) => ready(synthesizer, &questions[number], length, hops)?,
            None => by_abstract(synthesizer, &documents[number], length, hops, rng)?,
        };
        if let Some(asked) = found {
            return Ok(asked);
        }
    }
    let problem = "the haystack has no line with an abstract, nor a qa line with an answer, to ask about; give RFC lines \
                   of `e2llm data prepare rfc`, or leave qa out of --tasks";
    Err(DataError::Haystack(problem.to_owned()))
}

/// A question that the haystack brought along, if its answer is in passages short enough. What two passages answer names
/// both as its evidence.
fn ready(synthesizer: &Synthesizer<'_>, line: &crate::TaskLine, length: usize, hops: Hops) -> Result<Option<Asked>> {
    let answers = if line.answers.is_empty() { line.answer.iter().cloned().collect() } else { line.answers.clone() };
    let of = |text: &str| cut::passage(text, length, synthesizer.count);
    let is_whole = |passage: &str, text: &str| passage.split_whitespace().eq(text.split_whitespace());
    let texts: Vec<&str> = match hops {
        Hops::One => vec![&line.context],
        Hops::Two => line.evidence.iter().filter_map(|range| line.context.get(range.clone())).collect(),
    };
    let passages: Vec<String> = texts.iter().map(|text| of(text)).collect::<Result<_>>()?;
    let contained = |answer: &String| passages.iter().any(|passage| passage.contains(answer.as_str()));
    // Of two passages neither may be cut: who can say which sentence leads on? Yes and no need not be written anywhere.
    let usable = match hops {
        Hops::One => answers.iter().any(contained),
        Hops::Two => {
            let whole =
                passages.len() > 1 && passages.iter().zip(&texts).all(|(passage, text)| is_whole(passage, text));
            whole && answers.iter().any(|answer| contained(answer) || answer == "yes" || answer == "no")
        }
    };
    let question = line.labels.get("question").unwrap_or(&line.prompt).clone();
    Ok(usable.then_some(Asked { passages, question, answer: Answer::Given(answers) }))
}

fn by_abstract(
    synthesizer: &Synthesizer<'_>,
    document: &crate::PlainLine,
    length: usize,
    hops: Hops,
    rng: &mut ChaCha8Rng,
) -> Result<Option<Asked>> {
    let Some(summary) = document.summary.as_deref().filter(|summary| summary.len() >= FEWEST) else { return Ok(None) };
    let passage = cut::passage(&document.text, length, synthesizer.count)?;
    let shown = cut::passage(summary, SHOWN, |text| Ok::<_, DataError>(text.len()))?;
    if passage.is_empty() || shown.len() < FEWEST {
        return Ok(None);
    }
    let (wording, answer) = match hops {
        Hops::One => (any(&QUESTIONS, rng), Answer::Name),
        Hops::Two => (SHELVED, Answer::Shelf),
    };
    Ok(Some(Asked { passages: vec![passage], question: wording.replace("{abstract}", &shown), answer }))
}

/// Passages under made-up names, of about `aim` tokens; those asked about are anywhere among them. Where shelves are asked
/// for, every name has one.
fn documents(
    synthesizer: &Synthesizer<'_>,
    asked: &Asked,
    length: usize,
    aim: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Draft> {
    let mut unique = Unique::new(synthesizer.haystack);
    let shelved = matches!(asked.answer, Answer::Shelf);
    let (mut blocks, mut left) = (Vec::new(), aim);
    let mut names = Vec::new();
    for passage in &asked.passages {
        let name = unique.key(rng);
        let shelf = shelved.then(|| unique.key(rng));
        for block in entries(&name, passage, shelf.as_deref()) {
            left = left.saturating_sub((synthesizer.count)(&block)?);
            blocks.push((block, true));
        }
        names.push((name, shelf));
    }
    let mut texts = Passages::new(synthesizer.haystack, rng);
    while left >= aim / 50 {
        let (title, shelf) = (unique.key(rng), shelved.then(|| unique.key(rng)));
        let frame: String = entries(&title, "", shelf.as_deref()).concat();
        let room = left.saturating_sub((synthesizer.count)(&frame)?).min(length);
        let Some(passage) = texts.next(asked, room, synthesizer)? else { break };
        for block in entries(&title, &passage, shelf.as_deref()) {
            left = left.saturating_sub((synthesizer.count)(&block)?);
            blocks.push((block, false));
        }
    }
    if left > aim / 20 {
        let found = aim - left;
        let problem =
            format!("the haystack gave {found} of {aim} tokens; give one with more text, or ask for fewer --tokens");
        return Err(DataError::Haystack(problem));
    }
    Ok(laid_out(asked, &names, shuffled(blocks, rng)))
}

/// Passages that nobody asks about: the first of each text in random order, then the second of each, and so on.
struct Passages<'h> {
    /// What is left of each text.
    rests: VecDeque<&'h str>,
}

impl<'h> Passages<'h> {
    fn new(haystack: &'h Haystack, rng: &mut ChaCha8Rng) -> Self {
        let texts = haystack.documents.iter().map(|document| document.text.as_str()).collect();
        Self { rests: shuffled(texts, rng).into() }
    }

    /// One of at most `room` tokens; `None` once all texts are used up. A text that an asked passage is of gives none: what
    /// follows there may be described by the question as well.
    fn next(&mut self, asked: &Asked, room: usize, synthesizer: &Synthesizer<'_>) -> Result<Option<String>> {
        while let Some(text) = self.rests.pop_front() {
            let (passage, end) = cut::passage_and_end(text, room, synthesizer.count)?;
            if passage.is_empty() || asked.passages.iter().any(|asked| asked.contains(passage.as_str())) {
                continue;
            }
            self.rests.push_back(&text[end..]);
            return Ok(Some(passage));
        }
        Ok(None)
    }
}

/// A passage under its name, and where it stands.
fn entries(name: &str, passage: &str, shelf: Option<&str>) -> Vec<String> {
    let shelf = shelf.map(|shelf| format!("Document {name} stands on shelf {shelf}.\n\n"));
    std::iter::once(format!("Document {name}:\n\n{passage}\n\n")).chain(shelf).collect()
}

fn laid_out(asked: &Asked, names: &[(String, Option<String>)], blocks: Vec<(String, bool)>) -> Draft {
    let (mut context, mut evidence) = (String::new(), Vec::new());
    for (block, is_gold) in blocks {
        let start = context.len();
        context.push_str(&block);
        if is_gold {
            evidence.push(start..start + block.trim_end().len());
        }
    }
    context.truncate(context.trim_end().len());
    let answers = match &asked.answer {
        Answer::Given(answers) => answers.clone(),
        Answer::Name => names.iter().map(|(name, _)| name.clone()).collect(),
        Answer::Shelf => names.iter().filter_map(|(_, shelf)| shelf.clone()).collect(),
    };
    let keys = names.iter().map(|(name, _)| name.clone()).collect();
    Draft { context, evidence, question: asked.question.clone(), keys, answers }
}
