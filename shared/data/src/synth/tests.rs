use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::line::{Line, PlainLine};
use crate::score::string_match;

/// Made-up prose with paragraphs, a table, and enough different words.
pub(crate) fn haystack_text(seed: u64) -> String {
    let syllables = ["ba", "ke", "lo", "mi", "nu", "ra", "so", "te", "vi", "po", "da", "fe"];
    let word = |n: u64| {
        let n = hash::mix(n) % 1200;
        let pick = |at: u64| syllables[(at % 12) as usize];
        format!("{}{}{}", pick(n), pick(n / 12), pick(n / 144))
    };
    let mut text = String::new();
    for sentence in 0..400 {
        let length = 6 + hash::mix(seed + sentence) % 12;
        let words: Vec<String> = (0..length).map(|n| word(seed * 100_000 + sentence * 40 + n)).collect();
        let mut line = words.join(" ");
        line[..1].make_ascii_uppercase();
        let end = match sentence % 9 {
            8 => ".\n\n   | a table | with   | columns |\n   | 1       | 2      | 3       |\n\n",
            4 => ".\n\n",
            _ => ".\n   ",
        };
        text.push_str(&line);
        text.push_str(end);
    }
    text
}

/// Made twice, so that what a test compares cannot be one and the same thing.
pub(crate) static HAYSTACKS: LazyLock<[Haystack; 2]> = LazyLock::new(|| [made(), made()]);

pub(crate) fn made() -> Haystack {
    let lines = (0..48).map(|n| {
        let words = haystack_text(n + 50)[..200].replace('\n', " ");
        let summary = Some(format!("This document tells of {n} things that nobody had counted before. {words}"));
        Line::Plain(PlainLine { id: format!("doc{n}"), text: haystack_text(n), summary, split: None })
    });
    Haystack::new(lines).unwrap()
}

/// Four bytes a token, about as a real tokenizer, but never less than a word.
pub(crate) fn count(text: &str) -> Result<usize> {
    Ok(text.split_whitespace().map(|word| word.len().div_ceil(4)).sum())
}

fn synthesizer(haystack: &Haystack) -> Synthesizer<'_> {
    Synthesizer { haystack, count: &count, question: |question| format!("Q: {question}") }
}

fn any_task() -> impl Strategy<Value = TaskKind> {
    prop::sample::select(TaskKind::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_same_seed_gives_the_same_bytes(task in any_task(), seed: u64, tokens in 512_usize..5000) {
        let [one, other] = &*HAYSTACKS;
        let line = synthesizer(one).line(task, tokens, seed).unwrap();
        let json = |line: &TaskLine| serde_json::to_string(line).unwrap();
        prop_assert_eq!(json(&line), json(&synthesizer(other).line(task, tokens, seed).unwrap()));
        prop_assert_ne!(&line.context, &synthesizer(other).line(task, tokens, seed ^ 1).unwrap().context);
    }

    #[test]
    fn the_length_is_within_five_percent_and_never_more(task in any_task(), seed: u64, tokens in 512_usize..9000) {
        let line = synthesizer(&HAYSTACKS[0]).line(task, tokens, seed).unwrap();
        let counted = count(&line.context).unwrap();
        prop_assert_eq!(line.tokens, Some(counted));
        prop_assert!(counted <= tokens && counted * 100 >= tokens * 95, "{} of {}", counted, tokens);
    }

    #[test]
    fn answers_are_in_the_evidence_and_needles_are_whole_sentences(task in any_task(), seed: u64, tokens in 512_usize..5000) {
        let line = synthesizer(&HAYSTACKS[0]).line(task, tokens, seed).unwrap();
        prop_assert_eq!(string_match(line.answer.as_ref().unwrap(), &line.answers), 1.0);
        prop_assert!(line.prompt.starts_with("Q: ") && !line.prompt.contains(['{', '}']), "{}", line.prompt);
        let has_none = matches!(task, TaskKind::CommonWords | TaskKind::Unanswerable);
        prop_assert_eq!(line.evidence.is_empty(), has_none);
        for answer in &line.answers {
            let holds = |range: &std::ops::Range<usize>| line.context[range.clone()].contains(answer.as_str());
            prop_assert!(has_none || line.evidence.iter().any(holds), "{answer} {line:?}");
        }
        for range in &line.evidence {
            let (before, needle, after) =
                (&line.context[..range.start], &line.context[range.clone()], &line.context[range.end..]);
            prop_assert!(task == TaskKind::Qa || needle.ends_with(['.', '-']) || needle.chars().last().is_some_and(char::is_alphanumeric));
            prop_assert!(before.is_empty() || before.ends_with([' ', '\n']), "{before}");
            prop_assert!(after.is_empty() || after.starts_with([' ', '\n']), "{after}");
            prop_assert!(!needle.contains(['{', '}', '|']) || task == TaskKind::Qa, "{needle}");
        }
    }
}

fn line(task: TaskKind, seed: u64) -> TaskLine {
    synthesizer(&HAYSTACKS[0]).line(task, 1500, seed).unwrap()
}

#[test]
fn a_value_of_a_needle_is_in_the_context_once() {
    for seed in 0..20 {
        for task in [TaskKind::NiahSingle, TaskKind::NiahMultikey, TaskKind::NiahMultivalue, TaskKind::NiahMultiquery] {
            let line = line(task, seed);
            let wanted = if matches!(task, TaskKind::NiahSingle | TaskKind::NiahMultikey) { 1 } else { 4 };
            assert_eq!(line.answers.len(), wanted);
            assert!(line.answers.iter().all(|answer| line.context.matches(answer.as_str()).count() == 1), "{line:?}");
            assert!(line.keys.iter().all(|key| line.prompt.contains(key.as_str())), "{line:?}");
        }
    }
}

#[test]
fn what_the_text_does_not_say_is_asked_about_a_key_that_it_does_not_have() {
    for seed in 0..20 {
        let line = line(TaskKind::Unanswerable, seed);
        assert_eq!(line.answers, ["The text does not say."]);
        assert!(line.keys.len() == 1 && line.prompt.contains(&line.keys[0]), "{line:?}");
        assert!(!line.context.contains(&line.keys[0]), "{line:?}");
    }
}

#[test]
fn several_keys_are_answered_in_the_order_asked_and_several_values_in_that_of_the_text() {
    let several = line(TaskKind::NiahMultiquery, 3);
    let asked: Vec<usize> = several.keys.iter().map(|key| several.prompt.find(key.as_str()).unwrap()).collect();
    assert!(asked.is_sorted());
    for (key, answer) in several.keys.iter().zip(&several.answers) {
        let mut sentences = several.evidence.iter().map(|range| &several.context[range.clone()]);
        assert!(sentences.any(|sentence| sentence.contains(key.as_str()) && sentence.contains(answer.as_str())));
    }
    let values = line(TaskKind::NiahMultivalue, 3);
    assert_eq!(values.keys.len(), 1);
    let found: Vec<usize> = values.answers.iter().map(|answer| values.context.find(answer.as_str()).unwrap()).collect();
    assert!(found.is_sorted());
}

#[test]
fn a_chain_begins_with_its_value_and_each_variable_follows_from_the_one_before() {
    for seed in 0..20 {
        let line = line(TaskKind::VariableTracking, seed);
        let sentences: Vec<&str> = line.evidence.iter().map(|range| &line.context[range.clone()]).collect();
        assert_eq!(sentences.len(), line.answers.len());
        assert!(sentences[0].contains(&line.keys[0]) && sentences[0].contains(&line.answers[0]), "{sentences:?}");
        for (at, pair) in line.answers.windows(2).enumerate() {
            assert!(sentences[at + 1].contains(&pair[0]) && sentences[at + 1].contains(&pair[1]), "{sentences:?}");
        }
    }
}

#[test]
fn common_words_come_ten_times_as_often_as_others() {
    let line = line(TaskKind::CommonWords, 5);
    let mut counts = std::collections::HashMap::<&str, usize>::new();
    line.context.split(' ').skip(1).step_by(2).for_each(|word| *counts.entry(word).or_default() += 1);
    let most = line.answers.iter().map(|answer| counts.remove(answer.as_str()).unwrap()).min().unwrap();
    let others = counts.into_values().max().unwrap();
    assert_eq!((line.answers.len(), most), (10, 10 * others));
}

#[test]
fn a_question_is_about_the_document_whose_body_follows_the_name() {
    for seed in 0..20 {
        let line = line(TaskKind::Qa, seed);
        let passage = &line.context[line.evidence[0].clone()];
        assert!(passage.starts_with(&format!("Document {}:\n\n", line.answers[0])), "{passage}");
        assert!(line.context.matches("Document ").count() >= 3, "without others there is nothing to choose");
    }
}

#[test]
fn questions_that_a_haystack_brings_along_are_asked_among_distractors() {
    let text = |id: &str, seed| PlainLine { id: id.into(), text: haystack_text(seed), summary: None, split: None };
    let question = TaskLine {
        id: "q".into(),
        task: "qa".into(),
        context: "Long ago it was built. The harbour was opened in 1874 by Mary Dunmore.".into(),
        prompt: "Who opened the harbour?".into(),
        answer: Some("Mary Dunmore".into()),
        ..TaskLine::default()
    };
    let lines = [Line::Plain(text("a", 1)), Line::Plain(text("b", 2)), Line::Plain(text("c", 3)), Line::Task(question)];
    let haystack = Haystack::new(lines.into_iter().chain((4..40).map(|n| Line::Plain(text("d", n))))).unwrap();
    let line = synthesizer(&haystack).line(TaskKind::Qa, 2000, 1).unwrap();
    assert_eq!((line.answer.as_deref(), line.prompt.as_str()), (Some("Mary Dunmore"), "Q: Who opened the harbour?"));
    assert!(line.context[line.evidence[0].clone()].contains("opened in 1874"));
}

#[test]
fn what_cannot_be_made_says_why() {
    let haystack =
        Haystack::new([Line::Plain(PlainLine { id: "a".into(), text: haystack_text(0), summary: None, split: None })])
            .unwrap();
    let error = |task, tokens| synthesizer(&haystack).line(task, tokens, 0).unwrap_err().to_string();
    assert!(error(TaskKind::NiahSingle, 100).contains("512 or more"));
    assert!(error(TaskKind::NiahSingle, 1 << 20).contains("fewer --tokens"));
    assert!(error(TaskKind::Qa, 1024).contains("abstract"));
    assert!("needles".parse::<TaskKind>().unwrap_err().to_string().contains("niah_single"));
}
