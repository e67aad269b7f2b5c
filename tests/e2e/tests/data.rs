//! `e2llm data` from texts to tasks and answers, with the real tokenizer and decoder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use e2llm_e2e::Workplace;
use serde_json::{Value, json};

/// The licence and the README: prose with many words.
fn workplace() -> Workplace {
    let place = Workplace::new();
    place.write("docs/readme.md", include_str!("../../../README.md"));
    place.write("docs/licence.txt", include_str!("../../../LICENSE"));
    place
}

fn rows(place: &Workplace, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(place.path(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const SYNTHESIZE: [&str; 8] =
    ["data", "synthesize", "--tasks", "niah_multivalue,common_words", "--tokens", "600,900", "--count", "2"];

#[test]
fn prepared_texts_become_tasks_that_are_the_same_every_time() {
    let place = workplace();
    let report = place.json(&["data", "prepare", "text", "docs", "--output", "corpus"]).succeeded().rows().remove(0);
    assert_eq!((&report["read"], &report["texts"]["train"]), (&json!(2), &json!(2)), "{report}");
    let with = |output, more: &[&'static str]| {
        let files = ["--haystack", "corpus/train.jsonl", "--output", output];
        place.json(&[&SYNTHESIZE[..], &files, more].concat()).succeeded().rows().remove(0)
    };
    let report = with("one.jsonl", &["--seed", "5"]);
    assert_eq!(report["tasks"], json!({"common_words": 4, "niah_multivalue": 4}), "{report}");
    with("same.jsonl", &["--seed", "5"]);
    with("other.jsonl", &["--seed", "6"]);
    let read = |name| fs::read(place.path(name)).unwrap();
    assert!(read("one.jsonl") == read("same.jsonl") && read("one.jsonl") != read("other.jsonl"));
    let tasks = rows(&place, "one.jsonl");
    assert_eq!(tasks[1]["id"], "niah_multivalue-900-5");
    assert!((570..=600).contains(&tasks[0]["tokens"].as_u64().unwrap()), "{}", tasks[0]);
    assert!(tasks[0]["prompt"].as_str().unwrap().starts_with("Answer the question using the text above."));
    assert_eq!(rows(&place, "other.jsonl")[0], tasks[4], "seeds follow each other");
}

#[test]
fn texts_of_the_test_split_hide_needles_only_where_that_is_allowed() {
    let place = workplace();
    let line = |id: &str, text: &str| json!({"id": id, "text": text}).to_string();
    let lines =
        [line("rfc8999", include_str!("../../../LICENSE")), line("rfc9000", include_str!("../../../README.md"))];
    place.write("hay.jsonl", lines.join("\n"));
    let refused = [&SYNTHESIZE[..], &["--haystack", "hay.jsonl", "--output", "out.jsonl"]].concat();
    place.json(&refused).refused(&["hay.jsonl line 2", "rfc9000", "--allow-test"]);
    assert!(!place.path("out.jsonl").exists() && !place.path("out.jsonl.partial").exists());
    place.json(&[&refused[..], &["--allow-test"]].concat()).succeeded();
    assert!(rows(&place, "out.jsonl").iter().all(|task| task["split"] == "test"));
}

#[test]
fn the_decoder_answers_what_has_no_label_and_goes_on_where_it_stopped() {
    let place = workplace();
    let lines = [
        json!({"id": "long", "text": "A sentence of a few words. ".repeat(3000)}),
        json!({"id": "label", "text": "Some text.", "abstract": "Its label."}),
        json!({"id": "harbour", "context": "The harbour of Port Ellis was opened in 1874 by Mary Dunmore. It has three piers.",
            "prompt": "Answer the question using the text above.\n\nQuestion: In which year was the harbour opened?"}),
        json!({"id": "bakery", "text": "The bakery sells rye bread on Tuesdays. Its owner was born in Ghent."}),
    ];
    place.write("in.jsonl", lines.map(|line| line.to_string()).join("\n"));
    let teach = ["data", "teach", "--input", "in.jsonl", "--output", "out.jsonl", "--max-tokens", "40"];
    let report = place.json(&teach).succeeded().rows().remove(0);
    assert_eq!((&report["taught"], &report["labelled"], &report["too_long"]), (&json!(2), &json!(1), &json!(1)));
    let taught = rows(&place, "out.jsonl");
    assert!(taught[0]["answer"].as_str().unwrap().contains("1874"), "{}", taught[0]);
    assert_eq!(taught[1]["prompt"], "Summarize the text above in a few sentences.");

    let whole = fs::read_to_string(place.path("out.jsonl")).unwrap();
    let (first, rest) = whole.split_once('\n').unwrap();
    place.write("out.jsonl.partial", format!("{first}\n{}", &rest[..rest.len() / 2]));
    let report = place.json(&teach).succeeded().rows().remove(0);
    assert_eq!((&report["resumed"], &report["taught"]), (&json!(1), &json!(1)));
    assert_eq!(fs::read_to_string(place.path("out.jsonl")).unwrap(), whole);
    place.write("out.jsonl.partial", "{\"id\":\"other\",\"text\":\"t\"}\n");
    place.json(&teach).refused(&["out.jsonl.partial", "another input"]);
}
