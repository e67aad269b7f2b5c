use std::collections::HashMap;

use proptest::prelude::*;

use super::needles::NOISE;
use super::*;
use crate::line::Line;
use crate::synth::tests::{HAYSTACKS, count};

fn task(haystack: &Haystack, task: RulerTask, tokens: usize, seed: u64) -> TaskLine {
    let synthesizer = Synthesizer { haystack, count: &count, question: |question| format!("Q: {question}") };
    let sources = RulerSources { texts: haystack, one_hop: None, two_hops: None };
    task.line(&sources, &synthesizer, tokens, seed).unwrap()
}

fn sentences(line: &TaskLine) -> Vec<&str> {
    line.evidence.iter().map(|range| &line.context[range.clone()]).collect()
}

/// Keys and values of all needles of a context, in its order.
fn needles(context: &str) -> Vec<(String, String)> {
    let pattern = "One of the special magic ";
    let parsed = context.split(pattern).skip(1).map(|rest| {
        let (key, rest) = rest.split_once(" for ").unwrap().1.split_once(" is: ").unwrap();
        (key.to_owned(), rest.split('.').next().unwrap().to_owned())
    });
    parsed.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_sample_is_what_its_configuration_says(at in 0..RulerTask::ALL.len(), seed: u64, tokens in 1024_usize..6000) {
        let [one, other] = &*HAYSTACKS;
        let kind = RulerTask::ALL[at];
        let line = task(one, kind, tokens, seed);
        prop_assert_eq!(&line, &task(other, kind, tokens, seed));
        let counted = count(&line.context).unwrap();
        prop_assert!(counted <= tokens && counted * 100 >= tokens * 95, "{} of {}", counted, tokens);
        prop_assert!(line.answers.iter().all(|answer| line.context.contains(answer.as_str())), "{:?}", line.answers);
        prop_assert!(line.answers.iter().all(|answer| !line.prompt.contains(answer.as_str())));
        prop_assert_eq!(line.max_tokens, Some(kind.max_tokens()));
        match kind {
            RulerTask::Vt => is_a_chain(&line)?,
            RulerTask::Cwe => has_common_words(&line)?,
            RulerTask::Fwe => has_frequent_words(&line)?,
            RulerTask::Qa1 => answers_are_in(&line, 1)?,
            RulerTask::Qa2 => answers_are_in(&line, 2)?,
            niah => holds_needles(&line, &niah.needles())?,
        }
    }
}

fn holds_needles(line: &TaskLine, wanted: &Needles) -> Result<(), TestCaseError> {
    let found = needles(&line.context);
    prop_assert_eq!(line.keys.len(), wanted.queries);
    prop_assert_eq!(line.answers.len(), wanted.queries * wanted.values);
    prop_assert_eq!(line.evidence.len(), line.answers.len());
    let of_keys = found.iter().filter(|(key, _)| line.keys.contains(key)).map(|(_, value)| value);
    let (mut of_keys, mut answers): (Vec<_>, Vec<_>) = (of_keys.collect(), line.answers.iter().collect());
    of_keys.sort();
    answers.sort();
    prop_assert_eq!(of_keys, answers, "every value of the keys is wanted, and no other");
    prop_assert!(line.keys.iter().all(|key| line.prompt.contains(key.as_str())), "{}", line.prompt);
    let uuids = [&line.keys[0], &line.answers[0]].map(|text| text.len() == 36 && text.matches('-').count() == 4);
    prop_assert_eq!(uuids, [wanted.key, wanted.value].map(|form| form == Form::Uuid));
    let noise = line.context.matches(NOISE).count();
    match wanted.hay {
        Hay::Noise => prop_assert!(noise > 10 && found.len() == 1),
        Hay::Texts => prop_assert_eq!((noise, found.len()), (0, wanted.keys * wanted.values)),
        Hay::Needles => {
            prop_assert!(found.len() > 20, "{}", found.len());
            prop_assert_eq!(line.context.lines().count(), found.len(), "nothing but needles");
        }
    }
    Ok(())
}

fn is_a_chain(line: &TaskLine) -> Result<(), TestCaseError> {
    let sentences = sentences(line);
    prop_assert_eq!((sentences.len(), line.answers.len()), (5, 5));
    prop_assert_eq!(sentences[0], format!("VAR {} = {}.", line.answers[0], line.keys[0]));
    for (at, pair) in line.answers.windows(2).enumerate() {
        prop_assert_eq!(sentences[at + 1], format!("VAR {} = VAR {}.", pair[1], pair[0]));
    }
    prop_assert!(line.context.matches("VAR ").count() == 9 && line.context.contains(NOISE));
    Ok(())
}

fn frequencies<'t>(words: impl Iterator<Item = &'t str>) -> HashMap<&'t str, usize> {
    let mut counts = HashMap::new();
    words.for_each(|word| *counts.entry(word).or_default() += 1);
    counts
}

fn has_common_words(line: &TaskLine) -> Result<(), TestCaseError> {
    let mut counts = frequencies(line.context.split(' ').skip(1).step_by(2));
    let least = line.answers.iter().map(|answer| counts.remove(answer.as_str()).unwrap()).min().unwrap();
    prop_assert_eq!((line.answers.len(), least), (10, 10 * counts.into_values().max().unwrap()));
    Ok(())
}

fn has_frequent_words(line: &TaskLine) -> Result<(), TestCaseError> {
    let mut counts = frequencies(line.context.split(' '));
    let dots = counts.remove("...").unwrap();
    let asked: Vec<usize> = line.answers.iter().map(|answer| counts.remove(answer.as_str()).unwrap()).collect();
    prop_assert!(asked.len() == 3 && asked.is_sorted_by(|a, b| a >= b) && dots > asked[0]);
    prop_assert!(counts.into_values().all(|other| other < asked[2]));
    // The second of Zeta(2) has a quarter of the first.
    prop_assert!((asked[0] * 4).abs_diff(dots) < 8, "{dots} {asked:?}");
    Ok(())
}

fn answers_are_in(line: &TaskLine, blocks: usize) -> Result<(), TestCaseError> {
    prop_assert_eq!(line.evidence.len(), blocks);
    prop_assert!(sentences(line).iter().any(|block| block.contains(line.answers[0].as_str())));
    Ok(())
}

#[test]
fn needles_are_spread_from_the_beginning_to_the_end() {
    let depth = |seed| {
        let line = task(&HAYSTACKS[0], RulerTask::NiahSingle2, 1500, seed);
        line.evidence[0].start as f64 / line.context.len() as f64
    };
    let depths: Vec<f64> = (0..60).map(depth).collect();
    for third in 0..3 {
        let within = |depth: &&f64| (**depth * 3.0) as usize == third;
        assert!(depths.iter().filter(within).count() > 8, "{depths:?}");
    }
}

#[test]
fn a_shelf_is_found_by_the_name_of_the_document_that_is_described() {
    let line = task(&HAYSTACKS[0], RulerTask::Qa2, 2000, 5);
    let blocks = sentences(&line);
    let name = &line.keys[0];
    assert!(blocks.iter().any(|block| block.starts_with(&format!("Document {name}:\n\n"))), "{blocks:?}");
    assert!(blocks.contains(&format!("Document {name} stands on shelf {}.", line.answers[0]).as_str()), "{blocks:?}");
    assert!(line.context.matches(" stands on shelf ").count() > 3, "shelves of others");
    assert!(!line.prompt.contains(name.as_str()) && !line.prompt.contains(&line.answers[0]));
}

#[test]
fn questions_of_two_passages_are_asked_with_both_of_them_apart() {
    let question = |n: usize| {
        let (first, second) = (
            format!("Tower {n}\nIt was built by Mary Number{n}."),
            format!("Mary Number{n}\nShe was born in Place{n}."),
        );
        let others = "Elsewhere\nNothing of note happened there in all these years.";
        let context = format!("{first}\n\n{others}\n\n{second}");
        let evidence = vec![0..first.len(), context.len() - second.len()..context.len()];
        TaskLine {
            id: n.to_string(),
            task: "qa".into(),
            context,
            evidence,
            prompt: format!("Where was the builder of tower {n} born?"),
            answer: Some(format!("Place{n}")),
            ..TaskLine::default()
        }
    };
    let plain = &HAYSTACKS[0];
    let own = Haystack::of_questions((0..400).map(|n| Line::Task(question(n))), plain).unwrap();
    let synthesizer = Synthesizer { haystack: plain, count: &count, question: |question| format!("Q: {question}") };
    let sources = RulerSources { texts: plain, one_hop: None, two_hops: Some(&own) };
    let line = RulerTask::Qa2.line(&sources, &synthesizer, 1500, 3).unwrap();
    assert!(line.prompt.starts_with("Q: Where was the builder"), "{}", line.prompt);
    assert_eq!(line.evidence.len(), 2);
    assert!(line.evidence[0].end < line.evidence[1].start && line.context.matches("Document ").count() > 20);
    assert!(sentences(&line).iter().any(|block| block.contains(&line.answers[0])));
}

#[test]
fn texts_of_which_no_sentence_fits_are_refused() {
    // One line without an end, longer than a block may be, is no unit of anything.
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    let text: String = (0..300).map(|n| format!("{}{}{}ing ", letter(n), letter(n / 26), letter(n * 7))).collect();
    let line = Line::Plain(crate::PlainLine { id: "a".into(), text, summary: None, split: None });
    let haystack = Haystack::new([line]).unwrap();
    let synthesizer = Synthesizer { haystack: &haystack, count: &count, question: str::to_owned };
    let sources = RulerSources { texts: &haystack, one_hop: None, two_hops: None };
    let error = RulerTask::NiahSingle2.line(&sources, &synthesizer, 1024, 0).unwrap_err().to_string();
    assert!(error.contains("ordinary prose"), "{error}");
}
