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
    let score = |system: &str| row["scores"][system]["mean"].as_f64().unwrap();
    assert_eq!((score("full"), score("rag"), score("none")), (1.0, 1.0, 0.0), "{row}");
    let of = outcomes(&place);
    assert_eq!(of.len(), 14, "two tasks, seven systems");
    let positions = |system: &str, kind: &str| {
        of.iter().find(|outcome| outcome["system"] == system).unwrap()[kind].as_u64().unwrap()
    };
    let soft = positions("soft", "soft_positions");
    assert!(soft > 50 && positions("expand", "soft_positions") < soft, "a chunk is text");
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
}
