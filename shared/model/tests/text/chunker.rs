use std::iter;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2llm_model::chunk::{BYTES_PER_TOKEN, Chunk, Chunker};
use e2llm_model::tokenizer::TextTokenizer;
use proptest::prelude::*;

use crate::{HARD, MINILM, SMOLLM};

fn chunks(tokenizer: &Arc<TextTokenizer>, max_tokens: usize, text: &str) -> Vec<Chunk> {
    let chunker = Chunker::new(Arc::clone(tokenizer), max_tokens).unwrap();
    chunker.chunks(text).map(Result::unwrap).collect()
}

fn texts(max_tokens: usize, text: &str) -> Vec<&str> {
    chunks(&MINILM, max_tokens, text).iter().map(|chunk| chunk.text(text)).collect()
}

/// What holds for every text: chunks cover it in order, within the budget, and say truly how many tokens they have.
fn assert_valid(max_tokens: usize, text: &str) -> Vec<Chunk> {
    let all = chunks(&MINILM, max_tokens, text);
    if all.is_empty() {
        assert_eq!(MINILM.count(text).unwrap(), 0, "{text:?} was taken for blank");
        return all;
    }
    let starts: Vec<usize> = iter::once(0).chain(all.iter().map(|chunk| chunk.end)).collect();
    assert_eq!(starts[1..].last(), Some(&text.len()));
    for (chunk, start) in all.iter().zip(starts) {
        assert_eq!(chunk.start, start, "gap or overlap");
        let range = text.get(chunk.start..chunk.end).expect("a chunk goes through a character");
        let tokens = chunk.tokens as usize;
        assert!((1..=max_tokens).contains(&tokens), "{tokens} tokens in {range:?}");
        assert_eq!(MINILM.encode_framed(range).unwrap().len(), tokens + 2, "range {range:?}");
        assert_eq!(MINILM.count(chunk.text(text)).unwrap(), tokens, "text {range:?}");
    }
    all
}

#[test]
fn a_short_text_is_one_chunk() {
    let text = "  One sentence.\nAnother one.\n\nAnother paragraph.  ";
    let expected = Chunk { start: 0, end: text.len(), tokens: 9 };
    assert_eq!(chunks(&MINILM, 128, text), [expected]);
}

#[test]
fn blank_texts_have_no_chunks() {
    for text in ["", " \n\t\r\n ", "\0\0\0", "\u{200b}\u{feff}", &"\n".repeat(1_000_000)] {
        assert_eq!(chunks(&MINILM, 16, text), []);
    }
}

#[test]
fn chunks_end_at_paragraphs_first() {
    let text = "One two three four five.\n\nSix seven. Eight nine ten eleven twelve.";
    assert_eq!(texts(9, text), ["One two three four five.", "Six seven. Eight nine ten eleven twelve."]);
}

#[test]
fn chunks_end_at_sentences_even_in_hand_wrapped_text() {
    let text = "The first sentence is\nwrapped here. The second\nsentence is wrapped\ntoo. Third.";
    assert_eq!(
        texts(10, text),
        ["The first sentence is\nwrapped here.", "The second\nsentence is wrapped\ntoo. Third."]
    );
}

#[test]
fn without_sentences_chunks_end_at_lines() {
    let text = "red apples\ngreen pears\nblue plums\nblack grapes";
    assert_eq!(texts(8, text), ["red apples\ngreen pears\nblue plums", "black grapes"]);
    let text = "red apples and\ngreen pears and\nblue plums and\nblack grapes";
    assert_eq!(texts(8, text), ["red apples and\ngreen pears and", "blue plums and\nblack grapes"]);
}

#[test]
fn a_sentence_over_the_budget_ends_at_words() {
    let text = "one two three four five six seven eight nine ten eleven";
    assert_eq!(texts(8, text), ["one two three four five six seven eight", "nine ten eleven"]);
}

#[test]
fn initials_numbers_and_abbreviations_end_no_sentence() {
    for text in ["one two three. J. Smith said so to me today", "one two three.\n3.1. Terms that we use here now"] {
        assert_eq!(texts(9, text)[0], "one two three.", "{text}");
    }
}

#[test]
fn a_word_over_the_budget_is_cut_between_characters() {
    let text = "x1y2z3w4v5u6t7s8r9q0".repeat(4);
    let all = assert_valid(8, &text);
    assert!(all.len() > 3, "{all:?}");
}

#[test]
fn graphemes_stay_whole_where_they_fit() {
    let text = "👨‍👩‍👧‍👦".repeat(5_000);
    for chunk in assert_valid(32, &text) {
        assert_eq!((chunk.end - chunk.start) % "👨‍👩‍👧‍👦".len(), 0);
    }
    let text = "\r\n".repeat(500) + &"word\r\n".repeat(500);
    for chunk in assert_valid(8, &text) {
        assert!(text[..chunk.end].ends_with('\n'), "a line break was split");
    }
}

#[test]
fn a_long_blank_run_widens_a_range_but_no_text() {
    for blank in [" ", "\n", "\0", "\r\n", "\t\u{200b}"] {
        let text = format!("before{}after", blank.repeat(300_000));
        let all = assert_valid(64, &text);
        assert_eq!(all.iter().map(|chunk| chunk.text(&text)).collect::<Vec<_>>(), ["before", "after"], "{blank:?}");
    }
}

#[test]
fn the_text_of_a_chunk_is_bounded() {
    let texts = [
        "a".repeat(200_000),
        "a\u{301}".repeat(50_000),
        "\u{301}".repeat(100_000) + "x",
        "k \0 \0".repeat(50_000),
        "é".repeat(99_999),
    ];
    for text in &texts {
        for chunk in assert_valid(16, text).iter().skip(1) {
            assert!(chunk.text(text).len() <= 16 * BYTES_PER_TOKEN, "{} bytes", chunk.text(text).len());
        }
    }
}

#[test]
fn the_hard_strings_are_valid_at_every_small_budget() {
    let together = HARD.concat().repeat(3);
    for max_tokens in 8..40 {
        assert_valid(max_tokens, &together);
    }
}

#[test]
fn byte_level_tokenizers_work_too() {
    let text = HARD.join(" ").repeat(20);
    let all = chunks(&SMOLLM, 32, &text);
    assert_eq!(all.iter().map(|chunk| &text[chunk.start..chunk.end]).collect::<String>(), text);
    assert!(all.iter().all(|chunk| (1..=32).contains(&chunk.tokens)));
}

#[test]
fn a_budget_that_a_single_character_could_break_is_refused() {
    let error = Chunker::new(Arc::clone(&MINILM), 7).unwrap_err().to_string();
    assert!(error.contains('7') && error.contains("8 or more"), "{error}");
}

#[test]
fn time_is_linear_in_the_text() {
    // Sizes in KiB such that the larger takes a second or so.
    type Make = fn(usize) -> String;
    let hard_inputs: [(&str, usize, Make); 7] = [
        ("one line", 4096, |bytes| "the quick brown fox, ".repeat(bytes / 21)),
        ("lines", 4096, |bytes| "word\n".repeat(bytes / 5)),
        ("blank lines", 4096, |bytes| "\n".repeat(bytes) + "end"),
        ("one word", 64, |bytes| "abcdefgh".repeat(bytes / 8)),
        ("marks", 512, |bytes| "a".to_owned() + &"\u{301}".repeat(bytes / 2)),
        ("emoji", 4096, |bytes| "👩‍👩‍👦 ".repeat(bytes / 19)),
        ("flags", 256, |bytes| "🇩🇪".repeat(bytes / 8)),
    ];
    let chunker = Chunker::new(Arc::clone(&MINILM), 64).unwrap();
    for (name, kib, make) in hard_inputs {
        let timed = |text: &str| {
            let began = Instant::now();
            assert!(chunker.chunks(text).all(|chunk| chunk.is_ok()));
            began.elapsed()
        };
        let (small, large) = (make(kib << 10), make(kib << 13));
        // Eight times the text; quadratic would be sixty-four times. A busy machine may spoil one measurement, not three.
        let linear = (0..3).any(|_| timed(&large) < 24 * timed(&small) + Duration::from_millis(200));
        assert!(linear, "{name}: more than 24 times as long for 8 times the text");
    }
}

#[test]
fn the_blocks_that_a_text_is_read_in_leave_no_mark() {
    let text = "One two three, four five six. ".repeat(10_000);
    for chunk in assert_valid(64, &text) {
        assert!(chunk.text(&text).ends_with("six."), "{:?}", chunk.text(&text));
    }
}

#[test]
fn the_first_chunk_does_not_wait_for_the_rest() {
    let text = "the quick brown fox, ".repeat(5_000_000);
    let chunker = Chunker::new(Arc::clone(&MINILM), 64).unwrap();
    let began = Instant::now();
    chunker.chunks(&text).next().unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_text_is_covered_within_the_budget(
        parts in prop::collection::vec(prop_oneof![
            4 => "[a-z]{1,12}[ .,\n]{0,2}",
            1 => prop::sample::select(HARD.to_vec()).prop_map(str::to_owned),
            1 => "\\PC{0,20}",
            1 => any::<String>(),
            1 => "[\\s\0\u{301}\u{200d}]{0,30}",
            1 => "[0-9a-f]{90,120}",
        ], 0..60),
        max_tokens in 8usize..70,
    ) {
        assert_valid(max_tokens, &parts.concat());
    }
}
