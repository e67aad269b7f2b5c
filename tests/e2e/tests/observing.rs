//! What a running service tells of itself: metrics, probes, settings, logs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use e2llm_e2e::{HARBOUR, Service, TEXTS, Workplace, eventually_true};

/// A port that is free now.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status and body of an HTTP GET.
fn get(port: u16, path: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return (0, String::new()) };
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The value of a metric, with its labels as they are printed.
fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn a_service_tells_what_it_did_and_how_it_is() {
    let place = Workplace::bare();
    let (store, admin) = (place.path("store").display().to_string(), port());
    let listen = format!("127.0.0.1:{admin}");
    let service = Service::start(None, &["all", "--store", &store, "--admin-listen", &listen], &[]);
    eventually_true("a forward pass", || get(admin, "/forwardz").0 == 200 && get(admin, "/readyz").0 == 200);
    assert_eq!(get(admin, "/livez").0, 200);
    assert_eq!(get(admin, "/elsewhere").0, 404);
    let before = get(admin, "/metrics").1;
    for counter in ["e2llm_leases_expired_total{stage=\"encode\"}", "e2llm_documents_encoded_total"] {
        assert_eq!(value(&before, counter), Some(0.0), "{counter} is there before anything happened: {before}");
    }
    let users = Workplace::on_server(&service.url());
    users.json(&["encode", "texts"]).succeeded();
    users.ask(HARBOUR, &[]).succeeded();
    // A call is counted when its answer has been sent off: the client may have it a moment before.
    let asked = "e2llm_requests_total{service=\"Decoder\",method=\"Ask\",code=\"OK\"}";
    eventually_true("the question's count", || value(&get(admin, "/metrics").1, asked).is_some());
    let after = get(admin, "/metrics").1;
    let count = |name: &str| value(&after, name).unwrap_or_else(|| panic!("no {name}: {after}"));
    assert_eq!(count("e2llm_documents_encoded_total"), TEXTS.len() as f64);
    assert_eq!(count(asked), 1.0);
    assert_eq!(count("e2llm_first_token_seconds_count{class=\"interactive\"}"), 1.0);
    assert!(count("e2llm_tokens_total{kind=\"generated\",class=\"interactive\"}") >= 1.0);
    assert_eq!(count("e2llm_rows_total{stage=\"encode\"}"), TEXTS.len() as f64);
    for secret in [HARBOUR, "bakery", "Who opened"] {
        assert!(!after.contains(secret), "metrics name {secret}");
    }
}

#[test]
fn settings_are_read_from_a_file_and_printed_back() {
    let place = Workplace::bare();
    place.write("e2llm.yaml", "store: store\nlease: 31s\nlisten: 127.0.0.1:0\n");
    let printed = place.json(&["serve", "coordinator", "--config", "e2llm.yaml", "--print-config"]).succeeded().stdout;
    assert!(printed.contains("\nlease: 31s\n") && printed.contains("\nstore: store\n"), "{printed}");
    place.write("wrong.yaml", "liste: 127.0.0.1:0\n");
    let wrong = place.json(&["serve", "coordinator", "--config", "wrong.yaml"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("no setting \"liste\""), "{wrong:?}");
    let config = place.path("e2llm.yaml").display().to_string();
    let store = place.path("store").display().to_string();
    let service = Service::start(None, &["coordinator", "--config", &config, "--store", &store], &[]);
    assert!(!service.address().is_empty());
}
