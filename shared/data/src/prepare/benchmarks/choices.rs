//! Multiple choice: LongBench v2 (arXiv 2412.15204) and QuALITY (arXiv 2112.08608).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::{Job, Report};
use super::{convert, records};
use crate::error::Result;
use crate::line::TaskLine;

#[derive(Deserialize)]
struct LongBench {
    #[serde(rename = "_id")]
    id: String,
    domain: String,
    difficulty: String,
    length: String,
    question: String,
    #[serde(rename = "choice_A")]
    a: String,
    #[serde(rename = "choice_B")]
    b: String,
    #[serde(rename = "choice_C")]
    c: String,
    #[serde(rename = "choice_D")]
    d: String,
    answer: String,
    context: String,
}

/// Turns LongBench v2's `data.json` into `choice` tasks, labelled with domain, difficulty and length.
pub fn longbench_v2(job: &mut Job<'_>) -> Result<Report> {
    let question = job.question;
    convert(job, |path, add| {
        records(path, |own: LongBench| {
            let labels = [("domain", own.domain), ("difficulty", own.difficulty), ("length", own.length)];
            add(choice(
                question,
                Choice {
                    id: own.id,
                    context: own.context,
                    question: own.question,
                    choices: vec![own.a, own.b, own.c, own.d],
                    answer: own.answer,
                    labels: labels.map(|(name, label)| (name.to_owned(), label)).into(),
                },
            ))
        })
    })
}

#[derive(Deserialize)]
struct Article {
    article_id: String,
    set_unique_id: String,
    article: String,
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    question: String,
    options: Vec<String>,
    /// From 1; the hidden test set has none.
    gold_label: Option<usize>,
    difficult: u8,
}

/// Turns QuALITY's JSON Lines (htmlstripped) into `choice` tasks, labelled with their difficulty. Questions without a gold
/// label are left out.
pub fn quality(job: &mut Job<'_>) -> Result<Report> {
    let question = job.question;
    convert(job, |path, add| {
        records(path, |article: Article| {
            for (number, own) in article.questions.into_iter().enumerate() {
                let Some(gold) = own.gold_label.filter(|gold| (1..=own.options.len()).contains(gold)) else { continue };
                let difficulty = if own.difficult == 1 { "hard" } else { "easy" };
                add(choice(
                    question,
                    Choice {
                        id: format!("{}-{}-{number}", article.article_id, article.set_unique_id),
                        context: article.article.clone(),
                        question: own.question,
                        choices: own.options,
                        answer: letter(gold - 1),
                        labels: [("difficulty".to_owned(), difficulty.to_owned())].into(),
                    },
                ))?;
            }
            Ok(())
        })
    })
}

struct Choice {
    id: String,
    context: String,
    question: String,
    choices: Vec<String>,
    answer: String,
    labels: BTreeMap<String, String>,
}

/// The letter of a choice, from A on.
fn letter(index: usize) -> String {
    char::from(b'A' + (index % 26) as u8).to_string()
}

fn choice(question: fn(&str) -> String, choice: Choice) -> TaskLine {
    let Choice { id, context, question: asked, choices, answer, labels } = choice;
    let lettered = choices.iter().enumerate().map(|(index, text)| format!("\n{}. {}", letter(index), text.trim()));
    let asked =
        format!("{}{}\nAnswer with the letter of the right choice.", asked.trim(), lettered.collect::<String>());
    TaskLine {
        id,
        task: "choice".to_owned(),
        context,
        prompt: question(&asked),
        answers: vec![answer.clone()],
        answer: Some(answer),
        choices,
        labels,
        ..TaskLine::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::prepared;
    use super::*;

    #[test]
    fn longbench_v2_is_one_array_of_tasks() {
        let data = r#"[{"_id":"66f","domain":"Single-Document QA","sub_domain":"Legal","difficulty":"easy","length":"short",
            "question":"Who?","choice_A":"one","choice_B":"two","choice_C":"three","choice_D":"four","answer":"C","context":"A text."}]"#;
        let tasks = prepared(longbench_v2, &[("data.json", data)], "data.json").unwrap();
        assert_eq!(
            tasks[0].prompt,
            "Q: Who?\nA. one\nB. two\nC. three\nD. four\nAnswer with the letter of the right choice."
        );
        assert_eq!((tasks[0].answer.as_deref(), tasks[0].labels["length"].as_str()), (Some("C"), "short"));
        assert_eq!(tasks[0].choices[3], "four");
    }

    #[test]
    fn quality_asks_several_questions_of_one_article() {
        let line = r#"{"article_id":"52845","set_unique_id":"52845_X","title":"T","article":"Long.","questions":[
            {"question":"Why?","question_unique_id":"a","options":["x","y","z","w"],"gold_label":2,"difficult":1},
            {"question":"When?","options":["x","y","z","w"],"difficult":0}]}"#
            .replace('\n', " ");
        let tasks = prepared(quality, &[("q.jsonl", &line)], "q.jsonl").unwrap();
        assert_eq!(tasks.len(), 1, "the second has no label");
        assert_eq!((tasks[0].id.as_str(), tasks[0].answer.as_deref()), ("52845-52845_X-0", Some("B")));
        assert_eq!(tasks[0].labels["difficulty"], "hard");
    }
}
