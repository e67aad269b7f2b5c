//! `e2llm eval`: systems that answer the same tasks, with the real models.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use e2llm_e2e::Workplace;
use serde_json::{Value, json};

/// Two needles, each in a text of its own.
fn workplace() -> Workplace {
    let place = Workplace::new();
    let hay =
        "The harbour was built of grey stone, and its light was lit at dusk. Boats came in with the tide. ".repeat(5);
    let task = |id: &str, value: &str| {
        json!({
            "id": id,
            "task": "niah_single",
            "context": format!("{hay}\u{c}{}The special magic number is {value}. {hay}", "\n".repeat(2000)),
            "prompt": "Answer the question using the text above.\n\nQuestion: What is the special magic number?",
            "answers": [value],
            "tokens": 400,
        })
        .to_string()
    };
    place.write("tasks.jsonl", [task("a", "4471"), task("b", "9026")].join("\n"));
    place
}

fn outcomes(place: &Workplace) -> Vec<Value> {
    let text = fs::read_to_string(place.path("out.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn systems_read_what_they_say_and_a_repeated_command_repeats_nothing() {
    let place = workplace();
    let command = [
        "eval",
        "tasks.jsonl",
        "--max-tokens",
        "14",
        "--expand",
        "1",
        "--expand-positions",
        "128",
        "--output",
        "out.jsonl",
    ];
    let row = place.json(&command).succeeded().rows().remove(0);
    assert_eq!((&row["task"], &row["length"]), (&json!("niah_single"), &json!(512)));
    // A text of 400 tokens fits every window: who reads the needle as text finds it, who reads nothing cannot know it.
    let score = |system: &str| row["scores"][system]["value"].as_f64().unwrap();
    assert_eq!((score("full"), score("rag"), score("none")), (1.0, 1.0, 0.0), "{row}");
    let of = outcomes(&place);
    assert_eq!(of.len(), 14, "two tasks, seven systems");
    let positions = |system: &str, kind: &str| {
        of.iter().find(|outcome| outcome["system"] == system).unwrap()[kind].as_u64().unwrap()
    };
    let soft = positions("soft", "soft_positions");
    assert!(soft > 50 && positions("expand", "soft_positions") == soft, "text stands behind all soft tokens");
    assert!(positions("expand", "positions") > positions("soft", "positions"));
    assert_eq!(positions("other", "soft_positions"), positions("expand", "soft_positions"));
    for system in ["rag", "opening", "full", "none"] {
        assert_eq!(positions(system, "soft_positions"), 0, "{system}");
    }
    assert!(positions("rag", "positions") <= positions("soft", "positions") + 128);
    assert!(positions("full", "positions") > positions("opening", "positions"));
    assert!(positions("none", "positions") < 60);
    let other = of.iter().filter(|outcome| outcome["system"] == "other").count();
    assert_eq!((other, row["soft_credit"]["count"].as_u64()), (2, Some(2)));
    let asked = || {
        let jobs = place.json(&["jobs", "list"]).succeeded().rows();
        jobs.iter().filter(|job| job["job_id"].as_str().unwrap().starts_with("eval-ask-")).count()
    };
    assert_eq!(asked(), 1);
    let again = place.json(&command).succeeded().rows().remove(0);
    assert_eq!((again, outcomes(&place)), (row, of), "the same answers, to the microsecond");
    assert_eq!(asked(), 1);
}

#[test]
fn one_question_can_be_asked_of_text_or_of_nothing() {
    let place = workplace();
    let task: Value =
        serde_json::from_str(fs::read_to_string(place.path("tasks.jsonl")).unwrap().lines().next().unwrap()).unwrap();
    place.write("text/a.txt", task["context"].as_str().unwrap());
    place.json(&["encode", "text"]).succeeded();
    let ask = |reading: &str| {
        let command =
            ["ask", "--id", "a.txt", "--reading", reading, "--max-tokens", "16", "What is the special magic number?"];
        place.json(&command).succeeded().rows().remove(0)
    };
    assert!(ask("full")["answer"].as_str().unwrap().contains("4471"));
    let nothing = ask("none");
    assert!(!nothing["answer"].as_str().unwrap().contains("4471"));
    assert_eq!((&nothing["usage"]["soft_positions"], &nothing["usage"]["chunks_expanded"]), (&json!(0), &json!(0)));
    let read = |reading: &str| {
        let usage = ask(reading)["usage"].clone();
        assert_eq!(usage["soft_positions"], 0, "{reading}");
        usage["chunks_expanded"].as_u64().unwrap()
    };
    let (retrieved, filled) = (read("retrieved"), read("filled"));
    assert!(0 < retrieved && retrieved < filled, "{retrieved} chunks stand out, {filled} fit");
}

/// Sentences of words that differ.
fn hay(documents: usize) -> String {
    let syllables = ["ba", "ke", "lo", "mi", "nu", "ra", "so", "te"];
    let word = |n: usize| [n, n / 8, n / 64].map(|at| syllables[at % 8]).concat();
    let line = |document: usize| {
        let sentences: Vec<String> = (0..60)
            .map(|n| (0..8).map(|at| word(document * 97 + n * 31 + at * 7)).collect::<Vec<_>>().join(" ") + ".")
            .collect();
        json!({"id": format!("d{document}"), "text": sentences.join(" ")}).to_string()
    };
    (0..documents).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn ruler_is_made_asked_and_reported() {
    let place = Workplace::new();
    place.write("hay.jsonl", hay(4));
    let command = [
        "eval",
        "ruler",
        "--haystack",
        "hay.jsonl",
        "--tasks",
        "niah_single_1,vt",
        "--lengths",
        "512,1k",
        "--samples",
        "2",
        "--systems",
        "full,none",
        "--max-tokens",
        "24",
        "--output",
        "out.jsonl",
        "--report",
        "report.html",
    ];
    let rows = place.json(&command).succeeded().rows();
    let titles: Vec<String> =
        rows.iter().map(|row| format!("{} {}", row["task"].as_str().unwrap(), row["length"])).collect();
    let tasks = ["ruler niah, mean of all", "ruler niah_single_1", "ruler vt"];
    let expected: Vec<String> =
        tasks.iter().flat_map(|task| [512, 1024].map(|length| format!("{task} {length}"))).collect();
    assert_eq!(titles, expected);
    let score = |row: &Value, system: &str| row["scores"][system]["value"].as_f64().unwrap();
    assert!(rows.iter().all(|row| score(row, "none") == 0.0), "nobody knows it without the text: {rows:?}");
    assert!(score(&rows[0], "full") > 0.0, "{}", rows[0]);
    let of = outcomes(&place);
    assert_eq!(of.len(), 16, "two tasks, two lengths, two samples, two systems");
    let prompts: std::collections::BTreeSet<&str> = of.iter().map(|o| o["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts.len(), 16, "no two were asked the same");
    assert!(of.iter().all(|outcome| outcome["suite"] == "ruler" && outcome["depth"].as_f64().unwrap() < 1.0));
    let page = fs::read_to_string(place.path("report.html")).unwrap();
    assert!(page.contains("ruler niah_single_1") && page.contains("<svg") && page.contains("8 documents of"));
}

#[test]
fn choices_are_scored_and_written() {
    let place = Workplace::new();
    // The text names the letter itself: a decoder that reads it finds that letter the likeliest and writes it.
    let article = |id: &str, letter: &str, gold: u32| {
        json!({"article_id": id, "set_unique_id": id, "article": format!("The answer is {letter}. ").repeat(40), "questions": [
            {"question": "What is the answer?", "options": ["red", "green", "blue", "grey"], "gold_label": gold, "difficult": 0}]})
        .to_string()
    };
    place.write("quality.dev", [article("Aden", "B", 2), article("Brno", "D", 4)].join("\n"));
    let command = [
        "eval",
        "quality",
        "--input",
        "quality.dev",
        "--systems",
        "full",
        "--max-tokens",
        "4",
        "--output",
        "out.jsonl",
    ];
    let rows = place.json(&command).succeeded().rows();
    let labels: Vec<&Value> = rows.iter().map(|row| &row["label"]).collect();
    assert_eq!(labels, [&Value::Null, &json!("difficulty=easy")]);
    for outcome in outcomes(&place) {
        assert_eq!(outcome["metrics"], json!({"accuracy": 1.0, "accuracy_written": 1.0}), "{outcome}");
        let choices = outcome["choices"].as_array().unwrap().iter().map(|choice| choice.as_f64().unwrap().exp());
        let (count, sum) = (choices.len(), choices.sum::<f64>());
        assert!(count == 4 && sum > 0.5 && sum < 1.0, "likelihoods of letters: {outcome}");
    }
    place.json(&["eval", "quality"]).refused(&["--input", "htmlstripped"]);
}
