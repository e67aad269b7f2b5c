//! How the coordinator grows with a job: `cargo run --release -p e2llm-coordinator --example scale -- 1000000 100`.
//!
//! Plans a job of so many documents in tasks of so many rows, on a store in a temporary directory, over gRPC; asks for
//! its status; starts a second coordinator on the same store; runs the job to its end with workers that only make up
//! results (a double for encoders: what is measured is the coordinator). Prints one JSON line.

use std::time::{Duration, Instant};

use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::job_event::Event;
use e2llm_api::v1::submit_job_request::Part;
use e2llm_api::v1::{
    GetJobRequest, JobKind, JobSpec, ListJobsRequest, Row, RowError, RowResult, Stage, SubmitJobRequest, Task,
    WatchJobRequest,
};
use e2llm_coordinator::{CoordinatorOptions, CoordinatorService};
use e2llm_runtime::Channel;
use e2llm_runtime::worker::{TaskHandler, WorkerLoop};
use e2llm_runtime::{CancellationToken, ServerBuilder, ServerOptions, Shutdown, in_process};
use e2llm_store::Store;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Client = CoordinatorClient<Channel>;

const JOB: &str = "scale";
/// Workers that take tasks at the same time.
const WORKERS: usize = 4;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let rows: u64 = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    let rows_per_task: usize = arguments.next().map_or(Ok(100), |text| text.parse())?;
    let directory = std::env::temp_dir().join(format!("e2llm-scale-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let measured = measure(&directory.display().to_string(), rows, rows_per_task).await;
    std::fs::remove_dir_all(&directory)?;
    let line = measured?;
    std::io::Write::write_all(&mut std::io::stdout(), format!("{line}\n").as_bytes())?;
    Ok(())
}

async fn measure(url: &str, rows: u64, rows_per_task: usize) -> Result<String, Failure> {
    let store = Store::open(url).await?;
    let options = CoordinatorOptions {
        encode_rows: rows_per_task,
        encode_bytes: u64::MAX,
        adopt_grace: Duration::ZERO,
        ..Default::default()
    };
    let before = resident_bytes();
    let (client, first) = start(&store, &options).await?;
    let started = Instant::now();
    let planned = client.clone().submit_job(requests(rows)).await?.into_inner();
    let plan = started.elapsed();
    let after_plan = resident_bytes();
    let status = time(|| status_of(&client)).await?;
    let list = time(|| list(&client)).await?;
    first.request();

    let started = Instant::now();
    let (client, second) = start(&store, &options).await?;
    let load = started.elapsed();
    let started = Instant::now();
    for number in 0..WORKERS {
        let worker = WorkerLoop::new(client.clone(), format!("w{number}"), Stage::Encode, 2, MadeUp);
        tokio::spawn(worker.run(second.clone()));
    }
    let lines = watch(client.clone()).await?;
    let run = started.elapsed();
    let peak = peak_bytes();
    second.request();
    if (planned.rows, lines) != (rows, rows) {
        return Err(format!("{} rows planned, {lines} came back, {rows} were sent", planned.rows).into());
    }
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / rows as f64;
    Ok(format!(
        "{{\"rows\":{rows},\"tasks\":{},\"plan_s\":{:.2},\"plan_us_per_row\":{:.1},\"status_ms\":{:.2},\"list_ms\":{:.2},\
         \"planned_bytes_per_row\":{:.0},\"restart_s\":{:.2},\"run_s\":{:.2},\"run_us_per_row\":{:.1},\"peak_mb\":{:.0}}}",
        rows.div_ceil(rows_per_task as u64),
        plan.as_secs_f64(),
        micros(plan),
        status.as_secs_f64() * 1e3,
        list.as_secs_f64() * 1e3,
        after_plan.saturating_sub(before) as f64 / rows as f64,
        load.as_secs_f64(),
        run.as_secs_f64(),
        micros(run),
        peak as f64 / 1e6,
    ))
}

async fn start(store: &Store, options: &CoordinatorOptions) -> Result<(Client, Shutdown), Failure> {
    let shutdown = Shutdown::new();
    let service = CoordinatorService::open(store.clone(), options.clone(), shutdown.clone()).await?;
    let (dialer, listener) = in_process();
    let server = ServerBuilder::new(ServerOptions { drain: Duration::ZERO, ..Default::default() });
    tokio::spawn(server.coordinator(service).serve_in_process(listener, shutdown.clone()));
    Ok((dialer.endpoint().coordinator(), shutdown))
}

/// Documents whose texts are in the store already, so that planning and not the disk is measured.
fn requests(rows: u64) -> impl tokio_stream::Stream<Item = SubmitJobRequest> + Send + 'static {
    let spec = JobSpec { kind: JobKind::Encode.into(), job_id: JOB.into(), ..Default::default() };
    let row = |number: u64| {
        let id = format!("corpus:document-{number:08}.txt");
        let text_hash = format!("{number:064x}");
        Part::Row(Row { id, text_hash, text_bytes: 60_000, ..Default::default() })
    };
    let parts = std::iter::once(Part::Spec(spec)).chain((0..rows).map(row));
    tokio_stream::iter(parts.map(|part| SubmitJobRequest { part: Some(part) }))
}

async fn status_of(client: &Client) -> Result<(), Failure> {
    client.clone().get_job(GetJobRequest { job_id: JOB.into() }).await?;
    Ok(())
}

async fn list(client: &Client) -> Result<(), Failure> {
    client.clone().list_jobs(ListJobsRequest::default()).await?;
    Ok(())
}

/// The mean of 20 calls.
async fn time<F: Future<Output = Result<(), Failure>>>(call: impl Fn() -> F) -> Result<Duration, Failure> {
    let started = Instant::now();
    for _ in 0..20 {
        call().await?;
    }
    Ok(started.elapsed() / 20)
}

/// Reads the results to the end of the job; they must come in order.
async fn watch(mut client: Client) -> Result<u64, Failure> {
    let request = WatchJobRequest { job_id: JOB.into(), results: true };
    let mut events = client.watch_job(request).await?.into_inner();
    let mut next = 0;
    while let Some(event) = events.message().await? {
        if let Some(Event::Row(row)) = event.event {
            if row.number != next {
                return Err(format!("row {} came where {next} was due", row.number).into());
            }
            next += 1;
        }
    }
    Ok(next)
}

/// Gives every row an empty result.
struct MadeUp;

#[e2llm_runtime::async_trait]
impl TaskHandler for MadeUp {
    async fn run(&self, task: Task, _: CancellationToken) -> Result<Vec<RowResult>, RowError> {
        let result = |row: Row| RowResult { number: row.number, id: row.id, ..Default::default() };
        Ok(task.rows.into_iter().map(result).collect())
    }
}

fn resident_bytes() -> u64 {
    status_field("VmRSS:")
}

fn peak_bytes() -> u64 {
    status_field("VmHWM:")
}

/// A field of `/proc/self/status`, in bytes; 0 where there is none.
fn status_field(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let kilobytes = line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}
