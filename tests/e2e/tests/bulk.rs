//! Bulk commands that are interrupted, submitted, tried dry, and kept equal to a corpus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use e2llm_e2e::{HARBOUR, Service, TEXTS, Workplace, eventually_true};
use serde_json::Value;

const SUMMARIZE: [&str; 6] = ["summarize", "texts", "--max-tokens", "6", "--output", "out.jsonl"];

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["id"].as_str().unwrap()).collect()
}

fn jobs(place: &Workplace) -> Vec<Value> {
    place.json(&["jobs", "list"]).succeeded().rows()
}

/// The commits of a store's jobs by path: each names the worker that did it, so one that was done again has other bytes.
fn commits(place: &Workplace) -> BTreeMap<String, Vec<u8>> {
    let pattern = place.path("store/jobs/*/done/*/*").display().to_string();
    let listed = Command::new("sh").args(["-c", &format!("ls -1 {pattern} 2>/dev/null")]).output().unwrap();
    let paths = String::from_utf8(listed.stdout).unwrap();
    paths.lines().map(|path| (path.to_owned(), fs::read(path).unwrap())).collect()
}

/// The command with its first summaries done and its second task held before it hands in what it has; going on needs the file removed.
fn half_done(place: &Workplace) -> (Child, PathBuf) {
    let held = place.hold_at("decoder.summary_kept", 2);
    let command = place.start_with_fail_points(&SUMMARIZE);
    let has_summaries = || commits(place).keys().any(|path| path.contains("/done/decode/"));
    eventually_true("the first summaries", || held.exists() && has_summaries());
    (command, held)
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

fn is_cancelled(place: &Workplace) -> bool {
    let pattern = place.path("store/jobs/*/control/*").display().to_string();
    Command::new("sh").args(["-c", &format!("ls {pattern}")]).output().unwrap().status.success()
}

/// Checks that the command, repeated, ends the job that was begun and does nothing twice.
fn goes_on(place: &Workplace) {
    let before = commits(place);
    assert!(before.keys().any(|path| path.contains("/done/decode/")), "{before:?}");
    assert!(!place.path("out.jsonl").exists());
    place.json(&SUMMARIZE).succeeded();
    let lines = fs::read_to_string(place.path("out.jsonl")).unwrap();
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(ids(&rows), TEXTS.map(|(id, _)| id));
    assert!(rows.iter().all(|row| !row["summary"].as_str().unwrap().trim().is_empty()), "{rows:#?}");
    let after = commits(place);
    assert!(after.len() > before.len(), "the job had work left");
    assert!(before.iter().all(|(path, commit)| after.get(path) == Some(commit)), "a task was done again");
    let jobs = jobs(place);
    assert_eq!(jobs.len(), 1, "{jobs:#?}");
    assert_eq!((&jobs[0]["state"], &jobs[0]["rows_done"]), (&"succeeded".into(), &3.into()));
}

#[test]
fn summaries_that_were_interrupted_go_on_when_the_command_is_repeated() {
    let place = Workplace::new();
    let (mut command, held) = half_done(&place);
    signal(&command, "-INT");
    eventually_true("the cancellation", || is_cancelled(&place));
    fs::remove_file(held).unwrap();
    assert_eq!(command.wait().unwrap().code(), Some(130));
    assert_eq!(jobs(&place)[0]["state"], "cancelled");
    goes_on(&place);
}

#[test]
fn summaries_whose_process_was_killed_go_on_when_the_command_is_repeated() {
    let place = Workplace::new();
    let (mut command, _) = half_done(&place);
    signal(&command, "-KILL");
    command.wait().unwrap();
    goes_on(&place);
    // What has arrived is done with: the next run is a new job.
    place.json(&["summarize", "texts", "--max-tokens", "6"]).succeeded();
    assert_eq!(jobs(&place).len(), 2);
}

#[test]
fn what_a_server_finished_for_a_client_that_was_killed_is_printed_when_the_command_is_repeated() {
    let directory = tempfile::TempDir::new().unwrap();
    let store = directory.path().join("store").display().to_string();
    let server = Service::start(None, &["all", "--store", &store], &[]);
    let place = Workplace::on_server(&server.url());
    let mut command = place.start(&SUMMARIZE);
    let planned = || jobs(&place).iter().any(|job| job["rows"] == 3 && job["state"] != "planning");
    eventually_true("the plan", planned);
    signal(&command, "-KILL");
    command.wait().unwrap();
    eventually_true("the end of the job", || jobs(&place)[0]["state"] == "succeeded");
    place.json(&SUMMARIZE).succeeded();
    assert_eq!(fs::read_to_string(place.path("out.jsonl")).unwrap().lines().count(), 3);
    assert_eq!(jobs(&place).len(), 1, "nothing was done again");
}

#[test]
fn an_input_that_changed_since_is_a_new_job() {
    let place = Workplace::new();
    let held = place.hold_at("coordinator.page_written", 1);
    let mut command = place.start_with_fail_points(&["encode", "texts"]);
    eventually_true("the plan", || held.exists());
    signal(&command, "-KILL");
    command.wait().unwrap();
    place.write("texts/bakery.txt", "The bakery has closed.");
    let rows = place.json(&["encode", "texts"]).succeeded().rows();
    assert_eq!(rows[0]["text_bytes"], "The bakery has closed.".len());
    let states: Vec<Value> = jobs(&place).into_iter().map(|job| job["state"].clone()).collect();
    assert_eq!(states, ["cancelled", "succeeded"]);
}

#[test]
fn a_submitted_job_runs_when_its_results_are_wanted() {
    let place = Workplace::new();
    let wishes = ["--job", "night", "--priority", "-2", "--retention", "2h"];
    let submitted = place.json(&[&["jobs", "submit", "encode", "texts"], &wishes[..]].concat()).succeeded().rows();
    let status = |name: &str| submitted[0][name].clone();
    assert_eq!((status("job_id"), status("state")), ("night".into(), "running".into()));
    assert_eq!((status("rows"), status("rows_done"), status("priority")), (3.into(), 0.into(), (-2).into()));
    let night = [&["encode", "texts"], &wishes[..]].concat();
    place.write("more/texts/bakery.txt", "The bakery has closed.");
    fs::rename(place.path("texts"), place.path("kept")).unwrap();
    fs::rename(place.path("more/texts"), place.path("texts")).unwrap();
    place.json(&night).refused(&["night", "--job"]);
    fs::rename(place.path("texts"), place.path("more/texts")).unwrap();
    fs::rename(place.path("kept"), place.path("texts")).unwrap();
    let done = place.json(&night).succeeded();
    assert_eq!(ids(&done.rows()), TEXTS.map(|(id, _)| id));
    assert_eq!(place.json(&night).succeeded().stdout, done.stdout, "a finished job is printed again");
    let jobs = jobs(&place);
    let kept_ms = jobs[0]["expires_unix_ms"].as_u64().unwrap() - jobs[0]["ended_unix_ms"].as_u64().unwrap();
    assert_eq!((jobs.len(), kept_ms), (1, 2 * 3600 * 1000));
    let other = [&["encode", "texts"], &wishes[..2]].concat();
    place.json(&other).refused(&["night", "--job"]);
}

#[test]
fn a_dry_run_counts_what_the_run_then_does() {
    let place = Workplace::new();
    place.write("texts/latin.txt", b"caf\xe9 au lait");
    let dry = place.json(&["encode", "texts", "--dry-run"]);
    assert_eq!((dry.code, place.path("store").exists()), (3, false), "{dry:#?}");
    let plan = dry.rows().pop().unwrap();
    assert_eq!((&plan["new"], &plan["errors"]["NOT_UTF8"]), (&3.into(), &1.into()), "{plan}");
    assert!(plan["estimate"].is_null(), "{plan}");
    place.json(&["encode", "texts"]);
    let sum = |rows: &[Value], name: &str| rows.iter().map(|row| row[name].as_u64().unwrap()).sum::<u64>();
    let shown = place.json(&[&["docs", "show"], &TEXTS.map(|(id, _)| id)[..]].concat()).succeeded().rows();
    for (planned, done) in [("source_tokens", "source_tokens"), ("chunks", "chunks"), ("soft_tokens", "soft_tokens")] {
        assert_eq!(plan[planned], sum(&shown, done), "{planned}");
    }
    let bytes: u64 = shown.iter().map(|row| row["segments"][0]["bytes"].as_u64().unwrap()).sum();
    let header = bytes.checked_sub(plan["soft_prompt_bytes"].as_u64().unwrap()).unwrap();
    assert!(header < 3 * 1024, "{header} bytes of three headers");
    place.write("texts/bakery.txt", "The bakery has closed.");
    let plan = place.json(&["encode", "texts", "--dry-run"]).rows().pop().unwrap();
    assert_eq!((&plan["new"], &plan["changed"], &plan["unchanged"]), (&0.into(), &1.into(), &2.into()), "{plan}");
    assert!(plan["estimate"]["encode_s"].as_f64().unwrap() > 0.0, "{plan}");
    let summaries = place.json(&["summarize", "--dry-run", "--id", HARBOUR]).succeeded().rows().pop().unwrap();
    assert_eq!((&summaries["stored"], &summaries["estimate"]), (&1.into(), &Value::Null), "{summaries}");
}

fn changes(rows: &[Value]) -> Vec<(&str, &str)> {
    let changed = rows.iter().filter(|row| row["summary"].is_null());
    changed.map(|row| (row["change"].as_str().unwrap(), row["id"].as_str().unwrap())).collect()
}

fn stored(place: &Workplace) -> Vec<String> {
    ids(&place.json(&["docs", "list"]).succeeded().rows()).into_iter().map(str::to_owned).collect()
}

#[test]
fn a_sync_makes_the_collection_equal_to_the_corpus() {
    let place = Workplace::new();
    let first = place.json(&["sync", "texts"]).succeeded().rows();
    assert_eq!(changes(&first), TEXTS.map(|(id, _)| ("new", id)));
    place.write("texts/bakery.txt", "The bakery has closed.");
    place.write("texts/mill.txt", "The mill stands on the river Orre.");
    place.write(&format!("texts/{HARBOUR}"), b"caf\xe9 au lait");
    fs::remove_file(place.path("texts/orchard.txt")).unwrap();
    let expected = [("changed", "bakery.txt"), ("failed", HARBOUR), ("new", "mill.txt"), ("deleted", "orchard.txt")];
    let planned = place.json(&["sync", "texts", "--dry-run"]);
    assert_eq!((planned.code, changes(&planned.rows())), (3, expected.to_vec()));
    assert_eq!(stored(&place), TEXTS.map(|(id, _)| id), "nothing was changed");
    let unread = place.json(&["sync", "texts", "nowhere", "--prefix", "o"]);
    assert!(unread.code == 1 && unread.stderr.contains("nothing was deleted"), "{unread:#?}");
    assert_eq!(stored(&place), ["bakery.txt", HARBOUR, "mill.txt", "orchard.txt"]);
    let synced = place.json(&["sync", "texts"]);
    let summary = &synced.rows().pop().unwrap()["summary"];
    assert_eq!((&summary["deleted"], &summary["unchanged"], &summary["failed"]), (&1.into(), &2.into(), &1.into()));
    assert_eq!(stored(&place), ["bakery.txt", HARBOUR, "mill.txt"], "a row that failed keeps its document");
}

#[test]
fn an_empty_corpus_deletes_nothing_unless_that_is_meant() {
    let place = Workplace::encoded();
    fs::create_dir(place.path("nothing")).unwrap();
    place.json(&["sync", "nothing"]).refused(&["--allow-empty"]);
    place.json(&["sync", "nothing", "--dry-run"]).refused(&["--allow-empty"]);
    assert_eq!(stored(&place), TEXTS.map(|(id, _)| id));
    let deleted = place.json(&["sync", "nothing", "--allow-empty", "--prefix", "b"]).succeeded().rows();
    assert_eq!(changes(&deleted), [("deleted", "bakery.txt")]);
    assert_eq!(stored(&place), [HARBOUR, "orchard.txt"]);
}
