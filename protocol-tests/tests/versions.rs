//! Stories of agents and coordinators of other versions than each other's.

use std::path::Path;
use std::sync::atomic::Ordering;

use steading_cas::{Blobs, RemoteBlobs};
use steading_pipeline::job::JobResult;
use steading_proto::v1;
use steading_proto::v1::agents_client::AgentsClient;
use steading_protocol_tests::farm::{Farm, wait_for};
use steading_protocol_tests::other_version::{FirstAgent, Later};
use tonic::transport::Channel;

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

const ONE_JOB: &str = r#"on: push
jobs:
  one:
    runs-on: ubuntu-latest
    steps:
      - run: echo done
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_the_first_version_works_on() {
    let farm = Farm::new(STEAD);
    let coordinator = farm.coordinator();
    let channel = channel(&farm.endpoint());
    let mut agent = FirstAgent::connect(channel.clone(), "old", Vec::new()).await;
    for last in [false, true] {
        let run = submit(&farm);
        let lease = agent.take_offer().await;
        assert!(agent.renew(lease).await);
        // It comes back with what it runs, and goes on.
        agent.open(vec![lease]).await;
        assert!(agent.renew(lease).await);
        if last {
            // What it gives back is offered again.
            let release = v1::ReleaseLeaseRequest {
                lease: Some(lease),
                failure_class: v1::FailureClass::Preempted.into(),
                started: false,
            };
            AgentsClient::new(channel.clone()).release_lease(release).await.expect("released");
            let again = agent.take_offer().await;
            assert_eq!((again.job_id, again.epoch > lease.epoch), (lease.job_id, true));
            assert!(!agent.renew(lease).await, "the former lease is over");
            complete(&channel, again).await;
        } else {
            complete(&channel, lease).await;
        }
        wait_for("the run to end", || state(&farm, &run) == "success");
    }
    // Another start of it: what the first one ran is not left to it.
    let run = submit(&farm);
    let lost = agent.take_offer().await;
    let mut agent = FirstAgent::connect(channel.clone(), "old", Vec::new()).await;
    let lease = agent.take_offer().await;
    assert_eq!((lease.job_id, lease.epoch > lost.epoch), (lost.job_id, true));
    complete(&channel, lease).await;
    wait_for("the run to end", || state(&farm, &run) == "success");
    coordinator.terminate();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_passes_over_what_a_later_coordinator_says() {
    let farm = Farm::new(STEAD);
    let front = farm.dir().join("later");
    let endpoint = format!("unix:{}", front.display());
    let listen = farm.endpoint();
    let args = ["coordinator", "--data-dir", "c", "--listen", &listen, "--advertise", &endpoint];
    let coordinator = farm.spawn("coordinator", &args, false);
    wait_for("the coordinator", || farm.log("coordinator").contains("listening on"));
    let later = Later::new(channel(&listen));
    let (sessions, offers) = (later.sessions.clone(), later.offers.clone());
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move { later.serve(&front).await });
    wait_for("the later one", || Path::new(&endpoint[5..]).exists());
    let agent = ["agent", "--coordinator", &endpoint, "--data-dir", "a", "--name", "a"];
    let agent = farm.spawn("a", &agent, false);

    for number in 1..=3 {
        let run = submit(&farm);
        wait_for("the run to end", || state(&farm, &run) == "success");
        assert_eq!(offers.load(Ordering::Relaxed), number, "{}", farm.log("a"));
    }
    assert_eq!(sessions.load(Ordering::Relaxed), 1, "{}", farm.log("a"));
    agent.terminate();
    coordinator.terminate();
}

async fn complete(channel: &Channel, lease: v1::Lease) {
    let blobs = Blobs::Remote(RemoteBlobs::new(channel.clone(), String::new()));
    let result = serde_json::to_vec(&JobResult::default()).expect("a result");
    let result = blobs.put(result.into()).await.expect("stored");
    let request = v1::CompleteAttemptRequest {
        lease: Some(lease),
        conclusion: v1::Conclusion::Success.into(),
        result_digest: result.to_string(),
        steps_executed: 1,
        ..v1::CompleteAttemptRequest::default()
    };
    AgentsClient::new(channel.clone()).complete_attempt(request).await.expect("completed");
}

fn submit(farm: &Farm) -> String {
    let project = farm.project("one", ONE_JOB, &[]).display().to_string();
    let out = farm.stead(&["submit", "--coordinator", &farm.endpoint(), &project]);
    let run = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    assert!(run.starts_with("run-"), "{}", String::from_utf8_lossy(&out.stderr));
    run
}

fn state(farm: &Farm, run: &str) -> String {
    let out = farm.stead(&["runs", "--json", "--coordinator", &farm.endpoint()]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut runs = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let found = runs.find(|one: &serde_json::Value| one["run"] == run);
    found.and_then(|one| one["state"].as_str().map(str::to_owned)).unwrap_or_default()
}

fn channel(endpoint: &str) -> Channel {
    steading_agent::connect(endpoint, false).expect("an endpoint")
}
