//! Submit to step start on an idle farm: a real coordinator and a real agent as
//! processes of their own, a client in this one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde_json::json;
use steading_proto::v1;
use steading_proto::v1::pipelines_client::PipelinesClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::disk::Disk;
use crate::report;

const SAMPLES: usize = 40;
/// How long the farm may take to come up.
const START_MAX: Duration = Duration::from_secs(20);

/// The digest of the empty `Directory`, which every store has: BLAKE3 of no bytes.
const EMPTY_ROOT: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262/0";

/// Prints how long a submission takes until its first step's shell runs.
pub(crate) fn submit_to_start(stead: &Path, scratch: &Path, disk: &Disk) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(stead, scratch, disk))
}

async fn measure(stead: &Path, scratch: &Path, disk: &Disk) -> anyhow::Result<()> {
    // A Unix socket's path is 108 bytes at most, so it does not go into the scratch folder.
    let socket_dir = tempfile::tempdir()?;
    let endpoint = format!("unix:{}", socket_dir.path().join("s").display());
    let _coordinator =
        process(stead, &["coordinator", "--listen", &endpoint], scratch, "coordinator")?;
    let channel = connect(socket_dir.path().join("s")).await?;
    let _agent =
        process(stead, &["agent", "--user", "self", "--coordinator", &endpoint], scratch, "agent")?;
    let mut client = PipelinesClient::new(channel);
    let started_file = scratch.join("started");
    let mut samples = Vec::new();
    // The first runs warm what a first run starts: supervisors, connections.
    for index in 0..SAMPLES + 5 {
        let sample = one(&mut client, &started_file, index).await?;
        if index >= 5 {
            samples.push(sample);
        }
    }
    let budget = Duration::from_millis(10) + 3 * disk.overwrite_p50;
    report::print(
        "submit_to_step_start",
        &json!({
            "p50_ms": report::ms(report::percentile(&mut samples, 0.5)),
            "p90_ms": report::ms(report::percentile(&mut samples, 0.9)),
            "budget_p50_ms": report::ms(budget),
            "samples": SAMPLES,
        }),
    );
    Ok(())
}

async fn one(
    client: &mut PipelinesClient<Channel>,
    started_file: &Path,
    index: usize,
) -> anyhow::Result<Duration> {
    let pipeline = "on: push\njobs:\n  j:\n    runs-on: ubuntu-latest\n    steps:\n      - run: date +%s%N > \"$STARTED\"\n";
    let submitted = SystemTime::now();
    let run_id = client
        .submit(v1::SubmitRequest {
            request_id: format!("bench-{index}"),
            file: ".github/workflows/bench.yml".into(),
            pipeline: pipeline.into(),
            source_digest: EMPTY_ROOT.into(),
            event_name: "push".into(),
            env: HashMap::from([("STARTED".to_owned(), started_file.display().to_string())]),
            ..Default::default()
        })
        .await?
        .into_inner()
        .run_id;
    let mut watch = client.watch_run(v1::WatchRunRequest { run_id, token: 0 }).await?.into_inner();
    let mut conclusion = v1::Conclusion::Unspecified;
    while let Some(event) = watch.message().await? {
        conclusion = event.run.map(|run| run.conclusion()).unwrap_or_default();
    }
    anyhow::ensure!(conclusion == v1::Conclusion::Success, "run {run_id} ended as {conclusion:?}");
    let nanos: u64 = std::fs::read_to_string(started_file)?.trim().parse()?;
    let started = UNIX_EPOCH + Duration::from_nanos(nanos);
    started.duration_since(submitted).context("the step started before it was submitted")
}

/// Connects once the coordinator listens.
async fn connect(socket: PathBuf) -> anyhow::Result<Channel> {
    let deadline = tokio::time::Instant::now() + START_MAX;
    loop {
        let path = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        match Endpoint::from_static("http://steading").connect_with_connector(connector).await {
            Ok(channel) => return Ok(channel),
            Err(error) if tokio::time::Instant::now() > deadline => {
                return Err(error).context("connect to the coordinator");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A process that is killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn process(stead: &Path, args: &[&str], scratch: &Path, name: &str) -> anyhow::Result<Process> {
    let data = scratch.join(name);
    std::fs::create_dir_all(&data)?;
    let log = std::fs::File::create(scratch.join(format!("{name}.log")))?;
    let child = Command::new(stead)
        .args(args)
        .arg("--data-dir")
        .arg(&data)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start `{} {}`", stead.display(), args.join(" ")))?;
    Ok(Process(child))
}
