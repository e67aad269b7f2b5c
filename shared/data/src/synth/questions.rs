//! Questions about one of several documents.

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
const FEWEST: usize = 80;
/// Tokens of a passage.
const PASSAGE: Range<usize> = 100..300;
/// Draws of a document that can be asked about.
const DRAWS: usize = 1_000;

const QUESTIONS: [&str; 3] = [
    "Which document has this abstract? Answer with its name. Abstract: {abstract}",
    "One of the documents above is summarised as follows. Which? {abstract}",
    "{abstract} Which of the documents above does this describe?",
];

/// What is asked, and the passage that answers it.
struct Asked {
    passage: String,
    question: String,
    /// `None`: the name of the document.
    answers: Option<Vec<String>>,
}

pub(super) fn draft(synthesizer: &Synthesizer<'_>, tokens: usize, rng: &mut ChaCha8Rng) -> Result<(Draft, usize)> {
    let length = (tokens / 4).clamp(PASSAGE.start, PASSAGE.end);
    let asked = asked(synthesizer, length, rng)?;
    let base = rng.clone();
    fitted(synthesizer, tokens, |aim| documents(synthesizer, &asked, length, aim, &mut base.clone()))
}

fn asked(synthesizer: &Synthesizer<'_>, length: usize, rng: &mut ChaCha8Rng) -> Result<Asked> {
    let Haystack { documents, questions, .. } = synthesizer.haystack;
    for _ in 0..DRAWS {
        let number = rng.random_range(0..documents.len() + questions.len());
        let found = match number.checked_sub(documents.len()) {
            Some(number) => ready(synthesizer, &questions[number], length)?,
            None => by_abstract(synthesizer, &documents[number], length, rng)?,
        };
        if let Some(asked) = found {
            return Ok(asked);
        }
    }
    let problem = "the haystack has no line with an abstract, nor a qa line with an answer, to ask about; give RFC lines \
                   of `e2llm data prepare rfc`, or leave qa out of --tasks";
    Err(DataError::Haystack(problem.to_owned()))
}

/// A question that the haystack brought along, if its answer is in a passage short enough.
fn ready(synthesizer: &Synthesizer<'_>, line: &crate::TaskLine, length: usize) -> Result<Option<Asked>> {
    let answers = if line.answers.is_empty() { line.answer.iter().cloned().collect() } else { line.answers.clone() };
    let passage = cut::passage(&line.context, length, synthesizer.count)?;
    let usable = answers.iter().any(|answer: &String| passage.contains(answer.as_str()));
    Ok(usable.then(|| Asked { passage, question: line.prompt.clone(), answers: Some(answers) }))
}

fn by_abstract(
    synthesizer: &Synthesizer<'_>,
    document: &crate::PlainLine,
    length: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Option<Asked>> {
    let Some(summary) = document.summary.as_deref().filter(|summary| summary.len() >= FEWEST) else { return Ok(None) };
    let passage = cut::passage(&document.text, length, synthesizer.count)?;
    let shown = cut::passage(summary, SHOWN, |text| Ok::<_, DataError>(text.len()))?;
    if passage.is_empty() || shown.len() < FEWEST {
        return Ok(None);
    }
    let question = any(&QUESTIONS, rng).replace("{abstract}", &shown);
    Ok(Some(Asked { passage, question, answers: None }))
}

/// Passages under made-up names, of about `aim` tokens; the one asked about is anywhere among them.
fn documents(
    synthesizer: &Synthesizer<'_>,
    asked: &Asked,
    length: usize,
    aim: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Draft> {
    let mut unique = Unique::new(synthesizer.haystack);
    let name = unique.key(rng);
    let gold = titled(&name, &asked.passage);
    let mut left = aim.saturating_sub((synthesizer.count)(&gold)?);
    let mut blocks = vec![(gold, true)];
    let texts = &synthesizer.haystack.documents;
    let order = shuffled((0..texts.len()).collect(), rng);
    for number in order {
        if left < aim / 50 {
            break;
        }
        let title = unique.key(rng);
        let room = left.saturating_sub((synthesizer.count)(&titled(&title, ""))?).min(length);
        let passage = cut::passage(&texts[number].text, room, synthesizer.count)?;
        if passage.is_empty() || asked.passage.contains(passage.as_str()) {
            continue;
        }
        let block = titled(&title, &passage);
        left = left.saturating_sub((synthesizer.count)(&block)?);
        blocks.push((block, false));
    }
    if left > aim / 20 {
        let found = aim - left;
        let problem = format!(
            "the haystack gave {found} of {aim} tokens; give one with more documents, or ask for fewer --tokens"
        );
        return Err(DataError::Haystack(problem));
    }
    Ok(laid_out(asked, &name, shuffled(blocks, rng)))
}

fn titled(name: &str, passage: &str) -> String {
    format!("Document {name}:\n\n{passage}\n\n")
}

fn laid_out(asked: &Asked, name: &str, blocks: Vec<(String, bool)>) -> Draft {
    let (mut context, mut evidence) = (String::new(), Vec::new());
    for (block, is_gold) in blocks {
        let start = context.len();
        context.push_str(&block);
        if is_gold {
            evidence.push(start..start + block.trim_end().len());
        }
    }
    context.truncate(context.trim_end().len());
    let answers = asked.answers.clone().unwrap_or_else(|| vec![name.to_owned()]);
    Draft { context, evidence, question: asked.question.clone(), keys: vec![name.to_owned()], answers }
}
