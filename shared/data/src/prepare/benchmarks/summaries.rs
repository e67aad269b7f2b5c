//! Summaries: QMSum (arXiv 2104.05938) and GovReport (arXiv 2104.02112).

use serde::Deserialize;

use super::super::{Job, Report};
use super::{convert, records};
use crate::error::Result;
use crate::line::TaskLine;

#[derive(Deserialize)]
struct Meeting {
    #[serde(default)]
    general_query_list: Vec<Query>,
    #[serde(default)]
    specific_query_list: Vec<Query>,
    meeting_transcripts: Vec<Turn>,
}

#[derive(Deserialize)]
struct Query {
    query: String,
    answer: String,
}

#[derive(Deserialize)]
struct Turn {
    speaker: String,
    content: String,
}

/// Turns QMSum's JSON Lines into `summary` tasks: every general and specific query about a meeting.
pub fn qmsum(job: &mut Job<'_>) -> Result<Report> {
    let mut number = 0;
    convert(job, |path, add| {
        records(path, |meeting: Meeting| {
            let turns =
                meeting.meeting_transcripts.iter().map(|turn| format!("{}: {}\n\n", turn.speaker, turn.content));
            let context: String = turns.collect();
            let general = meeting.general_query_list.into_iter().map(|query| ("general", query));
            let specific = meeting.specific_query_list.into_iter().map(|query| ("specific", query));
            for (index, (kind, query)) in general.chain(specific).enumerate() {
                add(TaskLine {
                    id: format!("qmsum-{number}-{index}"),
                    task: "summary".to_owned(),
                    context: context.clone(),
                    prompt: query.query,
                    answer: Some(query.answer),
                    labels: [("query".to_owned(), kind.to_owned())].into(),
                    ..TaskLine::default()
                })?;
            }
            number += 1;
            Ok(())
        })
    })
}

/// The flat forms of GovReport: its hub copies, and SCROLLS.
#[derive(Deserialize)]
struct Paper {
    id: Option<serde_json::Value>,
    #[serde(alias = "document", alias = "input")]
    report: String,
    #[serde(alias = "output", alias = "highlight")]
    summary: String,
}

/// Turns GovReport's `{"report", "summary"}` lines into `summary` tasks.
pub fn govreport(job: &mut Job<'_>) -> Result<Report> {
    let instruction = job.summarize.to_owned();
    let mut number = 0;
    convert(job, |path, add| {
        records(path, |own: Paper| {
            number += 1;
            let id = own.id.map_or_else(|| number.to_string(), |id| id.as_str().map_or(id.to_string(), str::to_owned));
            add(TaskLine {
                id: format!("govreport-{id}"),
                task: "summary".to_owned(),
                context: own.report,
                prompt: instruction.clone(),
                answer: Some(own.summary),
                ..TaskLine::default()
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::prepared;
    use super::*;

    #[test]
    fn every_query_about_a_meeting_is_a_task() {
        let line = r#"{"topic_list":[],"general_query_list":[{"query":"Summarize the whole meeting.","answer":"All."}],
            "specific_query_list":[{"query":"What about A?","answer":"A.","relevant_text_span":[["0","1"]]}],
            "meeting_transcripts":[{"speaker":"PM","content":"Hello."},{"speaker":"UI","content":"Hi."}]}"#
            .replace('\n', " ");
        let tasks = prepared(qmsum, &[("t.jsonl", &line)], "t.jsonl").unwrap();
        assert_eq!(tasks.len(), 2);
        assert_eq!(
            (tasks[0].context.as_str(), tasks[1].prompt.as_str()),
            ("PM: Hello.\n\nUI: Hi.\n\n", "What about A?")
        );
        assert_eq!((tasks[1].labels["query"].as_str(), tasks[1].id.as_str()), ("specific", "qmsum-0-1"));
    }

    #[test]
    fn reports_are_read_under_the_names_of_their_copies() {
        let lines = "{\"report\":\"R1\",\"summary\":\"S1\"}\n{\"id\":\"GAO-7\",\"input\":\"R2\",\"output\":\"S2\"}\n";
        let tasks = prepared(govreport, &[("g.jsonl", lines)], "g.jsonl").unwrap();
        let ids: Vec<&str> = tasks.iter().map(|task| task.id.as_str()).collect();
        assert_eq!(ids, ["govreport-1", "govreport-GAO-7"]);
        assert_eq!(
            (tasks[1].context.as_str(), tasks[1].answer.as_deref(), tasks[0].prompt.as_str()),
            ("R2", Some("S2"), "Summarize.")
        );
    }
}
