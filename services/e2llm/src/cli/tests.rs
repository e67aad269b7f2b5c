use super::*;
use clap::CommandFactory;
use e2llm_api::v1::JobSpec;

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("e2llm").chain(line.iter().copied()))
}

fn ask(line: &[&str]) -> AskWork {
    match parse(line).unwrap().command {
        Command::Ask(args) => args.work,
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

#[test]
fn bulk_commands_and_submissions_take_the_same_work_and_options() {
    let options =
        ["--job", "night", "--priority", "-2", "--parallelism", "3", "--max-attempts", "7", "--retention", "12h"];
    let works = [
        &["encode", "docs"][..],
        &["summarize", "docs", "--max-tokens", "6"],
        &["ask", "Why?", "--each", "docs"],
        &["ask", "--input", "questions.jsonl"],
    ];
    for work in works {
        let alone = match parse(&[work, &options[..]].concat()).unwrap().command {
            Command::Encode(args) => args.work.job,
            Command::Summarize(args) => args.work.job,
            Command::Ask(args) => args.work.job,
            other => panic!("{other:?}"),
        };
        let submitted = match parse(&[&["jobs", "submit"], work, &options[..]].concat()).unwrap().command {
            Command::Jobs(JobsCommand::Submit(args)) => match args.submission {
                Submission::Encode(work) => work.job,
                Submission::Summarize(work) => work.job,
                Submission::Ask(work) => work.job,
                Submission::Train(work) => panic!("{work:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(alone, submitted, "{work:?}");
        assert_eq!(alone.job.as_deref(), Some("night"));
        let spec = alone.options.apply_to(Default::default()).unwrap();
        let wishes = (spec.priority, spec.parallelism, spec.max_attempts, spec.retention_s);
        assert_eq!(wishes, (-2, 3, 7, 12 * 3600));
    }
}

#[test]
fn a_job_may_be_left_to_one_bundle_of_a_server() {
    let options = JobOptions { for_bundle: Some("ab".to_owned()), ..JobOptions::default() };
    let of = |fingerprint: &str| options.apply_to(JobSpec { fingerprint: fingerprint.into(), ..JobSpec::default() });
    assert_eq!(of("").unwrap().fingerprint, "ab");
    assert_eq!(of("abc").unwrap().fingerprint, "abc");
    let refused = of("cd").unwrap_err().to_string();
    assert!(refused.contains("--for-bundle ab") && refused.contains("is cd"), "{refused}");
}

#[test]
fn job_options_that_cannot_be_met_are_refused() {
    for flags in [
        ["--job", "a/b"],
        ["--job", ""],
        ["--parallelism", "0"],
        ["--max-attempts", "101"],
        ["--retention", "10ms"],
        ["--retention", "soon"],
        ["--priority", "high"],
    ] {
        assert!(parse(&["encode", "docs", flags[0], flags[1]]).is_err(), "{flags:?}");
    }
    assert!(parse(&["jobs", "submit", "encode", "docs", "--output", "x"]).is_err(), "results are fetched later");
}

#[test]
fn sync_takes_a_corpus_and_no_name_of_a_job() {
    let line = ["sync", "docs", "more.jsonl", "--prefix", "rfc", "--allow-empty", "--dry-run", "--priority", "-1"];
    let Command::Sync(args) = parse(&line).unwrap().command else { panic!("not a sync") };
    assert_eq!((args.inputs.len(), args.prefix.as_str(), args.allow_empty, args.dry_run), (2, "rfc", true, true));
    assert_eq!(args.options.priority, Some(-1));
    assert!(parse(&["sync"]).is_err());
    assert!(parse(&["sync", "docs", "--job", "night"]).is_err());
}

#[test]
fn data_commands_take_lists_and_refuse_unknown_sources_and_tasks() {
    let base = ["data", "synthesize", "--haystack", "h", "--count", "2", "--output", "o"];
    let with = |more: &[&str]| parse(&[&base[..], more].concat());
    assert!(with(&["--tasks", "niah_single,qa", "--tokens", "512,4096"]).is_ok());
    let error = with(&["--tasks", "needles", "--tokens", "512"]).unwrap_err().to_string();
    assert!(error.contains("niah_single"), "{error}");
    assert!(with(&["--tasks", "qa"]).is_err());
    assert!(parse(&["data", "prepare", "rfc", "in", "--output", "out"]).is_ok());
    assert!(parse(&["data", "prepare", "wiki", "in", "--output", "out"]).is_err());
    assert!(parse(&["data", "prepare", "rfc", "--output", "out"]).is_err());
    assert!(parse(&["data", "teach", "--input", "i", "--output", "o", "--max-tokens", "0"]).is_err());
}
