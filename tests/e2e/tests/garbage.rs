//! What is deleted is gone, what is needed stays, and a job loses nothing to garbage collection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use e2llm_e2e::{HARBOUR, Outcome, Service, TEXTS, Workplace, answer, eventually_true};
use serde_json::Value;

/// Files below a directory of the store.
fn files(place: &Workplace, directory: &str) -> Vec<PathBuf> {
    fn below(directory: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() { below(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    below(&place.path("store").join(directory), &mut found);
    found
}

fn stored(place: &Workplace) -> (usize, usize) {
    (files(place, "blobs").len(), files(place, "texts").len())
}

fn row(outcome: Outcome) -> Value {
    let mut rows = outcome.succeeded().rows();
    assert_eq!(rows.len(), 1, "{rows:#?}");
    rows.remove(0)
}

fn is_sound(place: &Workplace) {
    let found = place.json(&["doctor"]).succeeded();
    assert!(found.stdout.is_empty(), "{found:#?}");
}

fn swept(report: &Value) -> (Option<u64>, Option<u64>) {
    (report["soft_prompts"]["swept"]["objects"].as_u64(), report["texts"]["swept"]["objects"].as_u64())
}

#[test]
fn a_deleted_document_is_gone_from_the_disk_but_for_what_another_one_needs() {
    let place = Workplace::new();
    place.write("texts/twin.md", TEXTS[1].1);
    place.json(&["encode", "texts"]).succeeded();
    assert_eq!(stored(&place), (3, 3), "two documents of one text share its objects");
    let before = answer(place.ask(HARBOUR, &["--expand", "0"]));

    let deleted = row(place.json(&["docs", "delete", "twin.md"]));
    assert_eq!(
        (&deleted["id"], &deleted["deleted"], &deleted["bytes_gone"]),
        (&"twin.md".into(), &true.into(), &0.into())
    );
    let kept = deleted["kept"].as_array().unwrap();
    assert_eq!(kept.len(), 2, "{deleted}");
    assert!(kept.iter().all(|kept| kept["user"]["id"] == HARBOUR), "{deleted}");
    assert_eq!(stored(&place), (3, 3));

    let deleted = row(place.json(&["docs", "delete", "bakery.txt"]));
    assert_eq!((&deleted["objects_gone"], &deleted["kept"]), (&2.into(), &Value::Array(vec![])), "{deleted}");
    assert_eq!(stored(&place), (2, 2));
    let job = deleted["outputs_in_jobs"][0]["job_id"].as_str().unwrap().to_owned();
    assert!(deleted["outputs_in_jobs"][0]["expires_unix_ms"].as_u64().unwrap() > 0, "{deleted}");
    is_sound(&place);

    let dry = row(place.json(&["gc", "--dry-run", "--grace", "0s"]));
    assert_eq!(swept(&dry), (Some(0), Some(0)), "nothing was left over: {dry}");
    assert_eq!(dry["soft_prompts"]["in_use"]["objects"], 2, "{dry}");
    row(place.json(&["gc", "--grace", "0s"]));
    assert_eq!(answer(place.ask(HARBOUR, &["--expand", "0"])), before);

    assert_eq!(row(place.json(&["jobs", "delete", &job]))["deleted"], true);
    assert!(files(&place, &format!("jobs/{job}")).is_empty());
    place.json(&["jobs", "delete", &job]).refused(&[&job, "jobs list"]);
    let unknown = place.json(&["docs", "delete", "bakery.txt"]);
    assert_eq!((unknown.code, unknown.codes()), (3, vec![("bakery.txt".into(), "NOT_FOUND".into())]));
}

#[test]
fn what_a_changed_document_leaves_behind_is_collected_after_the_grace_period() {
    let place = Workplace::encoded();
    place.write("texts/bakery.txt", "The bakery has closed.");
    place.json(&["encode", "texts"]).succeeded();
    assert_eq!(stored(&place), (4, 4));
    let young = row(place.json(&["gc"]));
    assert_eq!((swept(&young), &young["texts"]["young"]["objects"]), ((Some(0), Some(0)), &1.into()), "{young}");
    let dry = row(place.json(&["gc", "--dry-run", "--grace", "0s"]));
    assert_eq!((swept(&dry), stored(&place)), ((Some(1), Some(1)), (4, 4)), "{dry}");
    let report = row(place.json(&["gc", "--grace", "0s"]));
    assert_eq!((swept(&report), stored(&place)), ((Some(1), Some(1)), (3, 3)), "{report}");
    is_sound(&place);
    let again = place.json(&["encode", "texts"]).succeeded().rows();
    assert!(again.iter().all(|row| row["unchanged"] == true), "{again:#?}");
}

#[test]
fn many_documents_are_deleted_with_the_jobs_that_made_them_only_when_confirmed() {
    let place = Workplace::encoded();
    place.json(&["docs", "delete", "--prefix", ""]).refused(&["3 documents", "--yes"]);
    assert_eq!(stored(&place), (3, 3));
    let deleted = place.json(&["docs", "delete", "--prefix", "", "--yes", "--outputs"]).succeeded().rows();
    assert_eq!(deleted.len(), TEXTS.len());
    assert!(deleted.iter().all(|row| row["outputs_in_jobs"].as_array().unwrap().is_empty()), "{deleted:#?}");
    assert_eq!((stored(&place), files(&place, "jobs").len()), ((0, 0), 0));
    is_sound(&place);
}

#[test]
fn garbage_collection_during_a_job_costs_it_no_document() {
    let place = Workplace::new();
    let (store, held) = (place.path("store"), place.hold_at("encoder.before_commit", 1));
    let service = Service::start(None, &["all", "--store", &store.display().to_string()], &[place.fail_points()]);
    let url = service.url();
    let on_server = |args: &[&str]| place.json(&[&["--server", &url], args].concat());

    let mut job = place.start(&["--server", &url, "encode", "texts"]);
    eventually_true("a soft prompt that is stored and not committed", || held.exists());
    assert_eq!(files(&place, "blobs").len(), 1);
    let report = row(on_server(&["gc", "--grace", "0s"]));
    assert_eq!(swept(&report), (Some(1), Some(0)), "the soft prompt goes, the job's texts stay: {report}");
    assert!(files(&place, "blobs").is_empty());
    let running = row(on_server(&["jobs", "list"]))["job_id"].as_str().unwrap().to_owned();
    on_server(&["jobs", "delete", &running]).refused(&[&running, "jobs cancel"]);
    std::fs::remove_file(&held).unwrap();

    assert!(job.wait().unwrap().success(), "the job lost a document");
    assert_eq!(on_server(&["docs", "list"]).succeeded().rows().len(), TEXTS.len());
    assert!(!answer(on_server(&["ask", "Who opened the harbour?", "--max-tokens", "6", "--id", HARBOUR])).is_empty());
    let report = row(on_server(&["gc", "--grace", "0s"]));
    assert_eq!(swept(&report), (Some(0), Some(0)), "{report}");
    service.kill();
    is_sound(&place);
}

#[test]
fn people_are_told_in_words() {
    let place = Workplace::encoded();
    let store = place.path("store").display().to_string();
    let run = |args: &[&str]| {
        let output = Command::new(e2llm_e2e::binary()).args(["--store", &store]).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (stdout, stderr) = run(&["docs", "delete", "orchard.txt"]);
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(
        lines[0].starts_with("deleted orchard.txt: its record, and ") && lines[0].ends_with("in 2 objects"),
        "{stdout}"
    );
    assert!(lines[1].contains("outputs kept by job") && lines[1].contains("`e2llm jobs delete "), "{stdout}");
    assert!(stderr.contains("log still names deleted documents"), "{stderr}");
    let (stdout, _) = run(&["gc"]);
    assert!(stdout.starts_with("soft prompts: 2 in use ("), "{stdout}");
}
