//! What samples are made of.

use e2llm_train::run::sampler;
use e2llm_train::{Objective, Part, Sample, Sampler};

use crate::models::{corpus, models};

fn tiny_sampler() -> Sampler {
    sampler(&models(), 16, 0).unwrap()
}

fn draw(sampler: &Sampler, objective: Objective, number: u64) -> Sample {
    sampler.draw(&corpus(), &[(objective, 1.0)], (1, 2), 9, number).unwrap()
}

fn chunks(sample: &Sample) -> usize {
    sample.before.iter().filter(|part| matches!(part, Part::Chunk(_))).count()
}

/// Parts between the frame's two.
fn raw(sample: &Sample) -> usize {
    sample.before.len() - 2 - chunks(sample)
}

const ALL: [Objective; 4] = [Objective::Reconstruct, Objective::Continue, Objective::Summarize, Objective::Answer];

#[test]
fn a_sample_depends_on_its_number_alone() {
    let sampler = tiny_sampler();
    for objective in ALL {
        assert_eq!(draw(&sampler, objective, 3), draw(&sampler, objective, 3));
        let different = (0..8).any(|number| draw(&sampler, objective, number) != draw(&sampler, objective, 8));
        assert!(different, "{objective:?}");
    }
}

#[test]
fn raw_text_stands_behind_all_soft_tokens_as_often_as_wanted() {
    for (expand, number) in [0.0, 1.0].into_iter().flat_map(|e| (0..20).map(move |n| (e, n))) {
        let sampler = Sampler { expand, excerpts: (1, 3), window: (2, 4), ..tiny_sampler() };
        for objective in [Objective::Summarize, Objective::Answer] {
            let sample = draw(&sampler, objective, number);
            let excerpts = raw(&sample);
            let range = if expand == 0.0 { 0..=0 } else { 1..=3 };
            assert!(range.contains(&excerpts) && chunks(&sample) >= excerpts.max(2), "{objective:?}: {excerpts} raw");
            let soft = &sample.before[1..=chunks(&sample)];
            assert!(soft.iter().all(|part| matches!(part, Part::Chunk(_))), "{objective:?}: {:?}", sample.before);
        }
    }
}

#[test]
fn a_teacher_gets_every_chunk_as_text() {
    let sampler = Sampler { teacher: true, ..tiny_sampler() };
    for objective in ALL {
        let sample = draw(&sampler, objective, 1);
        let mut expected = Vec::new();
        for part in &sample.before {
            match part {
                Part::Tokens(ids) => expected.extend(ids),
                Part::Chunk(text) => expected.extend(sampler.tokenizer.encode_plain(text).unwrap()),
            }
        }
        assert_eq!(sample.full, expected, "{objective:?}");
        assert!(draw(&tiny_sampler(), objective, 1).full.is_empty());
    }
}

#[test]
fn the_window_of_a_task_holds_its_answer() {
    let sampler = Sampler { window: (2, 3), ..tiny_sampler() };
    for number in 0..20 {
        let sample = draw(&sampler, Objective::Answer, number);
        let text: String =
            sample.before.iter().map(|part| if let Part::Chunk(text) = part { text.as_str() } else { "" }).collect();
        let answers: Vec<String> = corpus().tasks.into_iter().map(|task| task.answer).collect();
        assert!(answers.iter().any(|answer| text.contains(answer.as_str())), "{text:?} holds none of {answers:?}");
        assert_eq!(*sample.target.last().unwrap(), sampler.end);
    }
}

#[test]
fn instructions_vary_and_are_those_of_serving_half_of_the_time() {
    let sampler = tiny_sampler();
    let instruction = |number| match draw(&sampler, Objective::Reconstruct, number).before.pop().unwrap() {
        Part::Tokens(ids) => ids,
        Part::Chunk(text) => panic!("{text} after the document"),
    };
    let all: Vec<Vec<u32>> = (0..60).map(instruction).collect();
    let mut usual = sampler.tokenizer.encode_plain("\n\nRepeat the text above.").unwrap();
    usual.extend(&sampler.frame.suffix);
    let count = all.iter().filter(|ids| **ids == usual).count();
    assert!((15..45).contains(&count), "{count} of 60");
    assert!(all.iter().collect::<std::collections::BTreeSet<_>>().len() > 2);
}

#[test]
fn a_corpus_without_what_an_objective_needs_says_what_that_is() {
    let mut corpus = corpus();
    corpus.tasks.clear();
    let error = tiny_sampler().draw(&corpus, &[(Objective::Answer, 1.0)], (1, 1), 0, 0).unwrap_err().to_string();
    assert!(error.contains("\"context\""), "{error}");
}
