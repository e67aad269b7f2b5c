//! Servers that ask who calls: tokens, roles, collections, certificates, and what is measured of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Jobs, get_job};
use e2llm_api::ErrorCode;
use e2llm_runtime::auth::{Auth, NewToken, Role};
use e2llm_runtime::{
    ClientOptions, ClientTls, Endpoint, Listener, ServerBuilder, ServerOptions, ServerTls, Shutdown, TlsFiles, code_of,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// A server with these options, and its URL.
async fn serving(options: ServerOptions, scheme: &str) -> String {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("{scheme}://localhost:{}", listener.address().port());
    let server = ServerBuilder::new(options).coordinator(Jobs::default());
    tokio::spawn(server.serve(listener, Shutdown::new()));
    url
}

struct Secrets {
    directory: TempDir,
}

impl Secrets {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Options of a client with a token.
    fn client(&self, secret: &str) -> ClientOptions {
        ClientOptions::default().with_token_file(&self.write(&format!("{}.token", secret.len()), secret)).unwrap()
    }
}

fn tokens(secrets: &Secrets, all: &[&NewToken]) -> Auth {
    let entries: Vec<String> = all.iter().map(|token| serde_json::to_string(&token.entry).unwrap()).collect();
    Auth::from_file(&secrets.write("tokens.yaml", &format!("tokens: [{}]", entries.join(",")))).unwrap()
}

async fn code(url: &str, options: &ClientOptions) -> Result<(), ErrorCode> {
    get_job(&Endpoint::connect(url, options).unwrap(), "known").await.map_err(|status| code_of(&status))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_needs_a_known_token_of_its_role_and_health_needs_none() {
    let secrets = Secrets::new();
    let reader = NewToken::generate("reader", Role::Read, None, None).unwrap();
    let stranger = NewToken::generate("stranger", Role::Admin, None, None).unwrap();
    let options = ServerOptions { auth: tokens(&secrets, &[&reader]), ..ServerOptions::default() };
    let url = serving(options, "http").await;
    assert_eq!(code(&url, &ClientOptions::default()).await, Err(ErrorCode::Unauthenticated));
    assert_eq!(code(&url, &secrets.client(&stranger.secret)).await, Err(ErrorCode::Unauthenticated));
    let client = secrets.client(&reader.secret);
    assert_eq!(code(&url, &client).await, Ok(()));
    let mut coordinator = Endpoint::connect(&url, &client).unwrap().coordinator();
    let refused = coordinator.cancel_job(e2llm_api::v1::CancelJobRequest { job_id: "known".into() }).await.unwrap_err();
    assert_eq!(code_of(&refused), ErrorCode::PermissionDenied);
    assert!(refused.message().contains("\"reader\"") && refused.message().contains("needs write"), "{refused}");
    let mut health = HealthClient::new(Endpoint::connect(&url, &ClientOptions::default()).unwrap().channel());
    health.check(HealthCheckRequest { service: String::new() }).await.expect("health is for everybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_its_calls_per_minute_and_is_told_when_to_come_again() {
    let secrets = Secrets::new();
    let token = NewToken::generate("busy", Role::Read, None, Some(2)).unwrap();
    let options = ServerOptions { auth: tokens(&secrets, &[&token]), ..ServerOptions::default() };
    let url = serving(options, "http").await;
    let endpoint = Endpoint::connect(&url, &secrets.client(&token.secret)).unwrap();
    get_job(&endpoint, "known").await.unwrap();
    get_job(&endpoint, "known").await.unwrap();
    let refused = get_job(&endpoint, "known").await.unwrap_err();
    assert_eq!(code_of(&refused), ErrorCode::ResourceExhausted);
    let wait: u64 = refused.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!((1..=30_000).contains(&wait), "{wait}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_taken_out_of_the_file_is_not_taken_any_more() {
    let secrets = Secrets::new();
    let token = NewToken::generate("leaver", Role::Read, None, None).unwrap();
    let options = ServerOptions { auth: tokens(&secrets, &[&token]), ..ServerOptions::default() };
    let url = serving(options, "http").await;
    let client = secrets.client(&token.secret);
    assert_eq!(code(&url, &client).await, Ok(()));
    secrets.write("tokens.yaml", "tokens: []");
    for _ in 0..50 {
        if code(&url, &client).await == Err(ErrorCode::Unauthenticated) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the token is still taken after 5 s");
}

/// A certificate authority and what it signed, as PEM files.
struct Authority<'a> {
    secrets: &'a Secrets,
    name: &'static str,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    fn new(secrets: &'a Secrets, name: &'static str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { secrets, name, issuer }
    }

    fn certificate(&self) -> PathBuf {
        self.secrets.write(&format!("{}.pem", self.name), &self.issuer.pem())
    }

    /// Chain and key, valid until `end`.
    fn sign(&self, file: &str, end: Option<i32>) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        if let Some(year) = end {
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |kind: &str, text: &str| self.secrets.write(&format!("{}-{file}.{kind}", self.name), text);
        (write("pem", &certificate.pem()), write("key", &key.serialize_pem()))
    }
}

fn tls(identity: &(PathBuf, PathBuf), trusted: Option<&Path>) -> ServerOptions {
    let files = TlsFiles { identity: Some(identity.clone()), trusted: trusted.map(Path::to_owned) };
    ServerOptions { tls: Some(ServerTls::new(files).unwrap()), ..ServerOptions::default() }
}

fn shows(identity: Option<(PathBuf, PathBuf)>, trusted: PathBuf) -> ClientOptions {
    let tls = ClientTls::new(TlsFiles { identity, trusted: Some(trusted) }).unwrap();
    ClientOptions::default().with_tls(tls)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_taken_for_its_certificate_only() {
    let secrets = Secrets::new();
    let (ours, other) = (Authority::new(&secrets, "ours"), Authority::new(&secrets, "other"));
    let url = serving(tls(&ours.sign("server", None), None), "https").await;
    assert_eq!(code(&url, &shows(None, ours.certificate())).await, Ok(()));
    assert_eq!(code(&url, &shows(None, other.certificate())).await, Err(ErrorCode::Unavailable));
    let plain = url.replace("https", "http");
    assert_eq!(code(&plain, &ClientOptions::default()).await, Err(ErrorCode::Unavailable));
    let expired = serving(tls(&ours.sign("expired", Some(2001)), None), "https").await;
    assert_eq!(code(&expired, &shows(None, ours.certificate())).await, Err(ErrorCode::Unavailable));
    let by_dns = url.replace("https://", "dns+https:///");
    assert_eq!(code(&by_dns, &shows(None, ours.certificate())).await, Ok(()), "one of its addresses serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_mutual_tls_clients_need_a_certificate_too() {
    let secrets = Secrets::new();
    let (ours, other) = (Authority::new(&secrets, "ours"), Authority::new(&secrets, "other"));
    let trusted = ours.certificate();
    let url = serving(tls(&ours.sign("server", None), Some(&trusted)), "https").await;
    let with = |identity| shows(identity, ours.certificate());
    assert_eq!(code(&url, &with(Some(ours.sign("client", None)))).await, Ok(()));
    assert_eq!(code(&url, &with(None)).await, Err(ErrorCode::Unavailable));
    assert_eq!(code(&url, &with(Some(other.sign("client", None)))).await, Err(ErrorCode::Unavailable));
    assert_eq!(code(&url, &with(Some(ours.sign("expired", Some(2001))))).await, Err(ErrorCode::Unavailable));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let secrets = Secrets::new();
    let (old, new) = (Authority::new(&secrets, "old"), Authority::new(&secrets, "new"));
    let identity = old.sign("server", None);
    let url = serving(tls(&identity, None), "https").await;
    assert_eq!(code(&url, &shows(None, new.certificate())).await, Err(ErrorCode::Unavailable));
    let (chain, key) = new.sign("server", None);
    std::fs::copy(key, &identity.1).unwrap();
    std::fs::copy(chain, &identity.0).unwrap();
    for _ in 0..50 {
        if code(&url, &shows(None, new.certificate())).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the old certificate is still served after 5 s");
}
