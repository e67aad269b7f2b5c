//! Questions: TriviaQA (arXiv 1705.03551) and NarrativeQA (arXiv 1712.07040).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::{Job, Report};
use super::{convert, records};
use crate::error::{DataError, Result};
use crate::io;
use crate::line::TaskLine;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Trivia {
    data: Vec<TriviaQuestion>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TriviaQuestion {
    question: String,
    question_id: String,
    answer: TriviaAnswer,
    #[serde(default)]
    entity_pages: Vec<Page>,
    #[serde(default)]
    search_results: Vec<Page>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TriviaAnswer {
    value: String,
    #[serde(default)]
    aliases: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    filename: String,
}

/// A line of LongBench, which has TriviaQA with a passage for each question.
#[derive(Deserialize)]
struct Passage {
    #[serde(rename = "_id")]
    id: String,
    input: String,
    context: String,
    answers: Vec<String>,
}

/// Turns TriviaQA into `qa` tasks. From the unpacked directory: the questions of `qa/*.json`, each with all its evidence pages
/// (`evidence/wikipedia`, `evidence/web`) as one text. From a file: LongBench's JSON Lines.
pub fn triviaqa(job: &mut Job<'_>) -> Result<Report> {
    let question = job.question;
    convert(job, |path, add| {
        if !path.is_dir() {
            return records(path, |own: Passage| add(qa(own.id, own.context, question(&own.input), own.answers)));
        }
        for file in json_files(&path.join("qa"))? {
            records(&file, |own: Trivia| own.data.into_iter().try_for_each(|own| add(trivia(path, own, question)?)))?;
        }
        Ok(())
    })
}

fn trivia(directory: &Path, own: TriviaQuestion, question: fn(&str) -> String) -> Result<TaskLine> {
    let wikipedia = own.entity_pages.iter().map(|page| ("wikipedia", page));
    let web = own.search_results.iter().map(|page| ("web", page));
    let mut context = String::new();
    for (kind, page) in wikipedia.chain(web) {
        let path = directory.join("evidence").join(kind).join(&page.filename);
        // Not every page of the collection could be fetched by its authors.
        if path.exists() {
            context += &String::from_utf8_lossy(&io::read(&path)?);
            context += "\n\n";
        }
    }
    let TriviaAnswer { value, mut aliases } = own.answer;
    if !aliases.contains(&value) {
        aliases.insert(0, value);
    }
    Ok(qa(own.question_id, context, question(&own.question), aliases))
}

/// Turns the NarrativeQA repository into `qa` tasks of the test set: the questions of `qaps.csv` with the stories that its
/// script has fetched into `tmp/<document id>.content`. Questions whose story is missing are left out.
pub fn narrativeqa(job: &mut Job<'_>) -> Result<Report> {
    let question = job.question;
    convert(job, |directory, add| {
        let path = directory.join("qaps.csv");
        let problem = |error: csv::Error| {
            let line = error.position().map_or(0, csv::Position::line);
            DataError::Line { path: path.clone(), line, problem: format!("{error}; give the repository's directory") }
        };
        let mut table = csv::Reader::from_reader(io::open(&path)?);
        let mut stories: HashMap<String, String> = HashMap::new();
        for (number, row) in table.deserialize::<Pair>().enumerate() {
            let Pair { document_id, set, question: asked, answer1, answer2 } = row.map_err(problem)?;
            if set != "test" {
                continue;
            }
            let story = directory.join("tmp").join(format!("{document_id}.content"));
            if !stories.contains_key(&document_id) {
                let text = if story.exists() { io::read(&story)? } else { Vec::new() };
                // Questions of one story follow one another.
                stories.clear();
                stories.insert(document_id.clone(), String::from_utf8_lossy(&text).into_owned());
            }
            let answers = [answer1, answer2].map(|answer| answer.trim().to_owned()).to_vec();
            add(qa(format!("{document_id}-{number}"), stories[&document_id].clone(), question(&asked), answers))?;
        }
        Ok(())
    })
}

#[derive(Deserialize)]
struct Pair {
    document_id: String,
    set: String,
    question: String,
    answer1: String,
    answer2: String,
}

pub(super) fn qa(id: String, context: String, prompt: String, answers: Vec<String>) -> TaskLine {
    TaskLine {
        id,
        task: "qa".to_owned(),
        context,
        prompt,
        answer: answers.first().cloned(),
        answers,
        ..TaskLine::default()
    }
}

fn json_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).map_err(DataError::io(directory))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "json"));
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::super::tests::prepared;
    use super::*;

    #[test]
    fn trivia_questions_get_their_pages() {
        let qa = r#"{"Data":[{"Question":"Where?","QuestionId":"tc_1","Answer":{"Value":"Rome","Aliases":["Roma"]},
            "EntityPages":[{"Filename":"Rome.txt","Title":"Rome"}],"SearchResults":[{"Filename":"0/x.txt"},{"Filename":"gone.txt"}]}]}"#.replace('\n', " ");
        let files = [
            ("t/qa/dev.json", qa.as_str()),
            ("t/evidence/wikipedia/Rome.txt", "A city."),
            ("t/evidence/web/0/x.txt", "A page."),
        ];
        let tasks = prepared(triviaqa, &files, "t").unwrap();
        assert_eq!((tasks.len(), tasks[0].context.as_str()), (1, "A city.\n\nA page.\n\n"));
        assert_eq!((tasks[0].answers.join(" "), tasks[0].prompt.as_str()), ("Rome Roma".to_owned(), "Q: Where?"));
        let line = r#"{"_id":"1","input":"Who?","context":"Text.","answers":["Ann"],"dataset":"triviaqa"}"#;
        assert_eq!(prepared(triviaqa, &[("l.jsonl", line)], "l.jsonl").unwrap()[0].answers, ["Ann"]);
    }

    #[test]
    fn stories_are_joined_to_the_questions_of_the_test_set() {
        let table = "document_id,set,question,answer1,answer2,question_tokenized,answer1_tokenized,answer2_tokenized\n\
            d1,train,\"No?\",a,b,x,y,z\nd2,test,\"Who, then?\",Ann ,It is Ann.,x,y,z\nd3,test,Lost?,a,b,x,y,z\n";
        let files = [("n/qaps.csv", table), ("n/tmp/d2.content", "A story.")];
        let tasks = prepared(narrativeqa, &files, "n").unwrap();
        assert_eq!(tasks.len(), 1, "one is training's, one has no story");
        assert_eq!((tasks[0].prompt.as_str(), tasks[0].context.as_str()), ("Q: Who, then?", "A story."));
        assert_eq!(tasks[0].answers, ["Ann", "It is Ann."]);
    }
}
