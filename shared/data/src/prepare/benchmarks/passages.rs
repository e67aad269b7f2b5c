//! Questions about passages, RULER's `qa_1` and `qa_2`: SQuAD (arXiv 1606.05250, 1806.03822) and HotpotQA (arXiv 1809.09600).

use std::ops::Range;

use serde::Deserialize;

use super::super::{Job, Report};
use super::questions::qa;
use super::{convert, records};
use crate::error::Result;
use crate::line::TaskLine;

#[derive(Deserialize)]
struct Squad {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<SquadQuestion>,
}

#[derive(Deserialize)]
struct SquadQuestion {
    id: String,
    question: String,
    answers: Vec<SquadAnswer>,
}

#[derive(Deserialize)]
struct SquadAnswer {
    text: String,
}

/// Turns SQuAD's JSON (1.1 or 2.0) into `qa` tasks of one paragraph each. Questions without an answer are left out.
pub fn squad(job: &mut Job<'_>) -> Result<Report> {
    let question = job.question;
    convert(job, |path, add| {
        records(path, |squad: Squad| {
            for paragraph in squad.data.into_iter().flat_map(|article| article.paragraphs) {
                for own in paragraph.qas {
                    let mut answers: Vec<String> = own.answers.into_iter().map(|answer| answer.text).collect();
                    answers.dedup();
                    if !answers.is_empty() {
                        add(asked(own.id, paragraph.context.clone(), question, &own.question, answers))?;
                    }
                }
            }
            Ok(())
        })
    })
}

#[derive(Deserialize)]
struct Hotpot {
    #[serde(rename = "_id")]
    id: String,
    question: String,
    answer: String,
    /// Titles, and numbers of sentences, which are not used.
    supporting_facts: Vec<(String, i64)>,
    /// Titles with their sentences.
    context: Vec<(String, Vec<String>)>,
}

/// Turns HotpotQA's JSON (distractor setting) into `qa` tasks of ten paragraphs each; the evidence is those that its
/// authors call supporting.
pub fn hotpotqa(job: &mut Job<'_>) -> Result<Report> {
    let question = job.question;
    convert(job, |path, add| {
        records(path, |own: Hotpot| {
            let (context, evidence) = laid_out(&own);
            let line = asked(own.id, context, question, &own.question, vec![own.answer]);
            add(TaskLine { evidence, ..line })
        })
    })
}

fn laid_out(own: &Hotpot) -> (String, Vec<Range<usize>>) {
    let (mut context, mut evidence) = (String::new(), Vec::new());
    for (title, sentences) in &own.context {
        let start = context.len();
        context += &format!("{title}\n{}", sentences.concat().trim());
        if own.supporting_facts.iter().any(|(supporting, _)| supporting == title) {
            evidence.push(start..context.len());
        }
        context += "\n\n";
    }
    context.truncate(context.trim_end().len());
    (context, evidence)
}

/// A task that tells the question apart from the instruction around it: RULER asks it of more passages.
pub(in crate::prepare) fn asked(
    id: String,
    context: String,
    wrap: fn(&str) -> String,
    question: &str,
    answers: Vec<String>,
) -> TaskLine {
    let question = question.trim();
    let labels = [("question".to_owned(), question.to_owned())].into();
    TaskLine { labels, ..qa(id, context, wrap(question), answers) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::prepared;
    use super::*;

    #[test]
    fn squad_has_several_questions_of_a_paragraph() {
        let data = r#"{"version":"v2.0","data":[{"title":"T","paragraphs":[{"context":"Ann saw Bob in 1999.","qas":[
            {"id":"1","question":"Who saw Bob? ","is_impossible":false,"answers":[{"text":"Ann","answer_start":0},{"text":"Ann","answer_start":0}]},
            {"id":"2","question":"Why?","is_impossible":true,"answers":[],"plausible_answers":[{"text":"Bob","answer_start":8}]}]}]}]}"#
            .replace('\n', " ");
        let tasks = prepared(squad, &[("dev.json", &data)], "dev.json").unwrap();
        assert_eq!(tasks.len(), 1, "the second has no answer");
        assert_eq!(
            (tasks[0].prompt.as_str(), tasks[0].answers.as_slice()),
            ("Q: Who saw Bob?", &["Ann".to_owned()][..])
        );
        assert_eq!(tasks[0].labels["question"], "Who saw Bob?");
    }

    #[test]
    fn hotpotqa_marks_the_paragraphs_that_support_the_answer() {
        let data = r#"[{"_id":"5a","answer":"1874","question":"When was the builder of A born?","type":"bridge","level":"hard",
            "supporting_facts":[["A",0],["M",1]],"context":[["A",["A was built by M."," It stands."]],["X",["No."]],["M",["M lived."," M was born in 1874."]]]}]"#;
        let tasks = prepared(hotpotqa, &[("dev.json", data)], "dev.json").unwrap();
        let evidence: Vec<&str> = tasks[0].evidence.iter().map(|range| &tasks[0].context[range.clone()]).collect();
        assert_eq!(evidence, ["A\nA was built by M. It stands.", "M\nM lived. M was born in 1874."]);
        assert_eq!(tasks[0].answer.as_deref(), Some("1874"));
    }
}
