use super::*;
use clap::CommandFactory;

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("e2llm").chain(line.iter().copied()))
}

fn ask(line: &[&str]) -> AskArgs {
    match parse(line).unwrap().command {
        Command::Ask(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn ask_takes_ids_and_a_question_in_any_order() {
    let expected = (vec!["a", "b"], "Why?");
    for line in [
        &["ask", "--id", "a", "b", "Why?"][..],
        &["ask", "--id", "a", "--id", "b", "Why?"],
        &["ask", "Why?", "--id", "a", "b"],
    ] {
        let (ids, question) = ask(line).ids_and_question().unwrap();
        let ids: Vec<&str> = ids.iter().map(DocId::as_str).collect();
        assert_eq!((ids, question.as_str()), expected, "{line:?}");
    }
}

#[test]
fn ask_without_a_question_says_where_to_write_it() {
    let error = ask(&["ask", "--id", "a"]).ids_and_question().unwrap_err().to_string();
    assert!(error.contains("no question"), "{error}");
    assert!(ask(&["ask", " ", "--id", "a"]).ids_and_question().is_err());
}

#[test]
fn ask_refuses_an_id_that_is_a_path() {
    let error = ask(&["ask", "Why?", "--id", "../etc"]).ids_and_question().unwrap_err().to_string();
    assert!(error.contains("../etc"), "{error}");
}

#[test]
fn summarize_needs_inputs_or_ids_but_not_both() {
    assert!(parse(&["summarize"]).is_err());
    assert!(parse(&["summarize", "docs", "--id", "a"]).is_err());
    assert!(parse(&["summarize", "docs"]).is_ok());
    assert!(parse(&["summarize", "--id", "a", "b"]).is_ok());
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    for flags in [["--temperature", "-1"], ["--top-p", "1.5"], ["--repetition-penalty", "0.5"], ["--max-tokens", "0"]] {
        let line = [&["summarize", "docs"][..], &flags[..]].concat();
        assert!(parse(&line).is_err(), "{flags:?}");
    }
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    for line in [["--json", "--store", "s", "docs", "list"], ["docs", "list", "--json", "--store", "s"]] {
        let cli = parse(&line).unwrap();
        assert!(cli.global.json);
        assert_eq!(cli.global.store.as_deref(), Some("s"));
    }
}
