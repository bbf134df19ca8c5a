//! The coordinator as its clients and agents see it.

#![allow(clippy::unwrap_used, reason = "a story that fails should fail loudly")]

#[path = "../agent/mod.rs"]
mod agent;
mod backup;
mod claims;
mod disk;
mod logs;
#[path = "../memory/mod.rs"]
mod memory;
mod offers;
mod origin;
mod scheduling;
mod support;

use std::collections::BTreeMap;

use steading_model::DigestFunction;
use steading_proto::v1;
use steading_proto::v1::Conclusion::{Cancelled, Success};
use steading_proto::v1::agent_message::Message as FromAgent;
use steading_proto::v1::claim_action_response::Decision;
use steading_proto::v1::coordinator_message::Message as ToAgent;
use steading_proto::v1::resolve_claim_request::Resolution;
use support::{Agent, Farm, ended, soon, spec};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

const ONE: &str = "
on: push
jobs:
  only:
    runs-on: ubuntu-latest
    steps: [{run: 'true'}]
";

const CHAIN: &str = "
on: push
jobs:
  first:
    runs-on: ubuntu-latest
    outputs: {answer: '${{ steps.s.outputs.answer }}'}
    steps: [{id: s, run: 'true'}]
  second:
    needs: first
    if: needs.first.outputs.answer == '42'
    runs-on: ubuntu-latest
    steps: [{run: 'true'}]
  third:
    needs: first
    if: needs.first.outputs.answer == '43'
    runs-on: ubuntu-latest
    steps: [{run: 'true'}]
";

#[tokio::test]
async fn a_run_goes_from_its_submission_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", CHAIN).await;

    let first = agent.work(&farm, &[("answer", "42")]).await;
    assert_eq!(first.contexts["github"]["event_name"], "push");
    let second = agent.work(&farm, &[]).await;
    assert_eq!(second.key, "second");
    assert_eq!(second.contexts["needs"]["first"]["outputs"]["answer"], "42");

    let events = farm.watch(run, 0).await;
    assert_eq!(events.last().unwrap().run.as_ref().unwrap().conclusion(), Success);
    let run = farm.run(run).await;
    let (jobs, conclusion) = ended(&run);
    let want = [("first", Success), ("second", Success), ("third", v1::Conclusion::Skipped)];
    assert_eq!(jobs, want.map(|(name, how)| (name.to_owned(), how)).into());
    assert_eq!(conclusion, Success);
    assert_eq!((run.event_name.as_str(), run.principal.as_str()), ("push", "local"));
    assert_eq!(run.jobs[0].agent, "a");
    farm.stop().await;
}

#[tokio::test]
async fn a_watch_goes_on_from_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::register(&farm, "a").await;
    let run = farm.submit("r1", CHAIN).await;
    let request = v1::WatchRunRequest { run_id: run, token: 0 };
    let mut events = farm.pipelines().watch_run(request).await.unwrap().into_inner();
    let first = soon("the first event", events.message()).await.unwrap().unwrap();
    assert_eq!(first.jobs.len(), 1);
    assert_eq!(first.jobs[0].labels, ["ubuntu-latest"]);
    drop(events);

    agent.connect(&farm, &[]).await;
    agent.work(&farm, &[("answer", "0")]).await;
    let events = farm.watch(run, first.token).await;
    let last = events.last().unwrap();
    assert_eq!(last.run.as_ref().unwrap().conclusion(), Success);
    // Every job changed since, and the newest told of each is its end.
    let mut newest = BTreeMap::new();
    for job in events.iter().flat_map(|event| &event.jobs) {
        newest.insert(job.name.clone(), job.status());
    }
    assert_eq!(newest.len(), 3);
    assert!(newest.values().all(|status| *status == v1::job::Status::Done));

    // From the end: one event with the conclusion, no jobs.
    let events = farm.watch(run, last.token).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].jobs, []);
    assert_eq!(events[0].run.as_ref().unwrap().conclusion(), Success);
    farm.stop().await;
}

#[tokio::test]
async fn a_repeated_submission_is_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut request = farm.request("r1", ONE);
    request.secrets = [("TOKEN".to_owned(), "hunter2".to_owned())].into();
    let mut client = farm.pipelines();
    let first = client.submit(request.clone()).await.unwrap().into_inner().run_id;
    let again = client.submit(request.clone()).await.unwrap().into_inner().run_id;
    assert_eq!(first, again);

    request.secrets = [("TOKEN".to_owned(), "hunter3".to_owned())].into();
    let refused = client.submit(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    let runs = client.list_runs(v1::ListRunsRequest::default()).await.unwrap().into_inner();
    assert_eq!(runs.runs.len(), 1);
    farm.stop().await;
}

#[tokio::test]
async fn runs_are_listed_newest_first_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    for id in ["r1", "r2", "r3"] {
        farm.submit(id, ONE).await;
    }
    let mut request = v1::ListRunsRequest { page_size: 2, ..Default::default() };
    let mut pages = Vec::new();
    loop {
        let page = farm.pipelines().list_runs(request.clone()).await.unwrap().into_inner();
        pages.push(page.runs.iter().map(|run| run.run_id).collect::<Vec<_>>());
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(pages, [vec![3, 2], vec![1]]);
    farm.stop().await;
}

#[tokio::test]
async fn a_wrong_submission_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut client = farm.pipelines();
    let bad = farm.request("r1", "on: push\njobs:\n  a:\n    runs-on: x\n    step: []\n");
    let refused = client.submit(bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("ci.yml:5:5"), "{refused}");

    let mut absent = farm.request("r2", ONE);
    absent.source_digest = format!("{}/7", "a".repeat(64));
    let refused = client.submit(absent).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    farm.stop().await;
}

#[tokio::test]
async fn secrets_reach_the_job_and_are_nowhere_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let mut request = farm.request("r1", ONE);
    request.secrets = [("TOKEN".to_owned(), "correct horse battery".to_owned())].into();
    farm.pipelines().submit(request).await.unwrap();
    let offer = agent.offer().await;
    assert_eq!(offer.secrets["TOKEN"], "correct horse battery");
    farm.stop().await;

    // Also after a restart, when nothing is in memory.
    let farm = Farm::start(dir.path()).await;
    agent.connect(&farm, &[]).await;
    assert_eq!(agent.offer().await.secrets["TOKEN"], "correct horse battery");
    farm.stop().await;
    assert_eq!(files_with(dir.path(), b"correct horse battery"), Vec::<String>::new());
}

#[tokio::test]
async fn a_stale_lease_reports_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut old = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", ONE).await;
    let offer = old.offer().await;
    let stale = old.accept(&offer).await;

    // The agent died and starts again: its lease is lost at once, and offered anew.
    let mut new = Agent::join(&farm, "a").await;
    assert_eq!((new.id, new.incarnation > old.incarnation), (old.id, true));
    let offer = new.offer().await;
    let lease = new.accept(&offer).await;
    assert_eq!((lease.job_id, lease.attempt), (stale.job_id, 2));

    let result = farm.put_result(&[]);
    let refused = new.complete(stale, result.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(new.renew(&[stale, lease]).await.refused, [stale]);
    let acks = append(&mut new, &[(stale, 0, "x"), (lease, 0, "y")]).await;
    assert_eq!(acks, [(true, 0), (false, 1)]);

    new.complete(lease, result.clone()).await.unwrap();
    // The answer was lost: the same report is answered the same.
    new.complete(lease, result).await.unwrap();
    let other = farm.put_result(&[("another", "report")]);
    assert_eq!(new.complete(lease, other).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(farm.run(run).await.conclusion(), Success);
    farm.stop().await;
}

#[tokio::test]
async fn an_agent_that_was_replaced_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut old = Agent::join(&farm, "a").await;
    let mut new = Agent::join(&farm, "a").await;
    let refused = old.try_connect(&farm, &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");

    // The same number under another name: of a coordinator whose data was lost.
    old.incarnation = new.incarnation;
    old.name = "b".to_owned();
    let refused = old.try_connect(&farm, &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");

    // Neither took the place of the present one.
    farm.submit("r1", ONE).await;
    new.offer().await;
    farm.stop().await;
}

#[tokio::test]
async fn a_result_that_is_not_there_is_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    farm.submit("r1", ONE).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    let absent = agent.complete(lease, format!("{}/7", "a".repeat(64))).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound, "{absent}");
    agent.complete(lease, farm.put_result(&[])).await.unwrap();
    farm.stop().await;
}

#[tokio::test]
async fn a_log_is_followed_while_it_grows_and_has_no_gap_after_a_break() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", ONE).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    let request = v1::ReadLogRequest {
        run_id: run,
        job_id: lease.job_id,
        follow: true,
        ..Default::default()
    };
    let mut follower = farm.pipelines().read_log(request.clone()).await.unwrap().into_inner();

    assert_eq!(append(&mut agent, &[(lease, 0, "hello ")]).await, [(false, 6)]);
    let chunk = soon("the first bytes", follower.message()).await.unwrap().unwrap();
    assert_eq!((chunk.offset, &chunk.data[..]), (0, &b"hello "[..]));
    // Another stream: too far, then repeated from where it is told, and on.
    let acks = append(&mut agent, &[(lease, 9, "x"), (lease, 3, "lo wor"), (lease, 9, "ld")]).await;
    assert_eq!(acks, [(false, 6), (false, 9), (false, 11)]);
    agent.complete(lease, farm.put_result(&[])).await.unwrap();

    let mut text = chunk.data.to_vec();
    while let Some(chunk) = soon("the rest", follower.message()).await.unwrap() {
        assert_eq!(chunk.offset, text.len() as u64);
        text.extend_from_slice(&chunk.data);
    }
    assert_eq!(text, b"hello world");

    let mut after = farm.pipelines().read_log(request).await.unwrap().into_inner();
    let chunk = soon("the whole", after.message()).await.unwrap().unwrap();
    assert_eq!(&chunk.data[..], b"hello world");
    assert_eq!(soon("its end", after.message()).await.unwrap(), None);
    farm.stop().await;
}

#[tokio::test]
async fn a_restarted_coordinator_goes_on_with_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", CHAIN).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    assert_eq!(append(&mut agent, &[(lease, 0, "before ")]).await, [(false, 7)]);
    farm.stop().await;

    let farm = Farm::start(dir.path()).await;
    let welcome = agent.connect(&farm, &[lease]).await;
    assert_eq!((welcome.leases, welcome.cancelling), (vec![lease], vec![]));
    // It is running, so that it is not offered again: the next thing heard is the answer.
    assert_eq!(agent.renew(&[lease]).await.leases, [lease]);
    assert_eq!(append(&mut agent, &[(lease, 7, "after")]).await, [(false, 12)]);
    agent.complete(lease, farm.put_result(&[("answer", "42")])).await.unwrap();
    assert_eq!(agent.work(&farm, &[]).await.key, "second");

    let run = farm.watch(run, 0).await.pop().unwrap().run.unwrap();
    assert_eq!(run.conclusion(), Success);
    let jobs = farm.run(run.run_id).await.jobs;
    assert!(jobs.iter().all(|job| job.attempt <= 1), "nothing was started twice");
    farm.stop().await;
}

#[tokio::test]
async fn a_lease_whose_offer_was_lost_is_offered_again() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    farm.submit("r1", ONE).await;
    let lost = agent.offer().await;
    // The connection broke before the agent took it.
    let welcome = agent.connect(&farm, &[]).await;
    assert_eq!(welcome.leases, [lost.lease.unwrap()]);
    let again = agent.offer().await;
    assert_eq!(again, lost);
    agent.accept(&again).await;
    farm.stop().await;
}

#[tokio::test]
async fn a_declined_offer_goes_to_another_agent() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut a = Agent::join(&farm, "a").await;
    farm.submit("r1", ONE).await;
    let offer = a.offer().await;
    let mut b = Agent::join(&farm, "b").await;
    let decline = v1::Decline { lease: offer.lease, reason: "no disk".into() };
    a.say(FromAgent::Decline(decline)).await;
    let taken = b.offer().await;
    assert_eq!(taken.lease.unwrap().job_id, offer.lease.unwrap().job_id);
    assert_ne!(taken.lease, offer.lease);
    farm.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_tells_its_agent_and_ends_with_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", CHAIN).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    let cancel = v1::CancelRunRequest { run_id: run, ..Default::default() };
    farm.pipelines().cancel_run(cancel.clone()).await.unwrap();
    farm.pipelines().cancel_run(cancel).await.unwrap();
    let told = agent.next().await.unwrap();
    assert_eq!(told, ToAgent::Cancel(v1::Cancel { lease: Some(lease) }));
    assert!(farm.run(run).await.cancelling);

    let report = v1::CompleteAttemptRequest {
        lease: Some(lease),
        conclusion: Cancelled.into(),
        failure_class: v1::FailureClass::Cancelled.into(),
        ..Default::default()
    };
    agent.client.complete_attempt(report).await.unwrap();
    let last = farm.watch(run, 0).await.pop().unwrap();
    assert_eq!(last.run.unwrap().conclusion(), Cancelled);
    farm.stop().await;
}

#[tokio::test]
async fn a_large_run_is_admitted_in_chunks_and_planned_whole() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let numbers: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let numbers = numbers.join(",");
    let job = |key| {
        format!(
            "  {key}:\n    runs-on: ubuntu-latest\n    strategy: {{matrix: {{n: [{numbers}]}}}}\n    \
             steps: [{{run: 'true'}}]\n"
        )
    };
    let pipeline = format!("on: push\njobs:\n{}{}{}", job("a"), job("b"), job("c"));
    let run = farm.submit("r1", &pipeline).await;
    assert_eq!(farm.run(run).await.jobs.len(), 600);
    let mut agent = Agent::join(&farm, "a").await;
    agent.offer().await;
    farm.stop().await;
}

#[tokio::test]
async fn a_pipeline_that_asks_for_the_runs_number_is_told_it() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let pipeline = ONE.replace("only:", "only:\n    name: 'of ${{ github.run_id }}'");
    let run = farm.submit("r1", &pipeline).await;
    assert_eq!(spec(&agent.offer().await).name, format!("of {run}"));
    farm.stop().await;
}

#[tokio::test]
async fn progress_is_told_to_those_who_watch() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", ONE).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    let request = v1::WatchRunRequest { run_id: run, token: 0 };
    let mut events = farm.pipelines().watch_run(request).await.unwrap().into_inner();
    soon("the first event", events.message()).await.unwrap().unwrap();
    let step = v1::StepProgress { index: 0, name: "build".into(), ..Default::default() };
    let progress = v1::Progress { lease: Some(lease), steps: vec![step.clone()] };
    agent.say(FromAgent::Progress(progress)).await;
    let event = soon("the progress", events.message()).await.unwrap().unwrap();
    assert_eq!(event.jobs[0].steps, [step]);
    farm.stop().await;
}

#[tokio::test]
async fn artifacts_are_listed_for_clients_and_for_the_runs_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", ONE).await;
    let offer = agent.offer().await;
    let lease = Some(agent.accept(&offer).await);
    let root = farm.coordinator.store().put(DigestFunction::Blake3, b"").unwrap();
    let artifact =
        v1::Artifact { name: "binary".into(), root_digest: root.to_string(), files: 1, bytes: 7 };
    let record = v1::RecordArtifactRequest { lease, artifact: Some(artifact.clone()) };
    agent.client.record_artifact(record).await.unwrap();
    let of_run = v1::ListRunArtifactsRequest { lease };
    let of_run = agent.client.list_run_artifacts(of_run).await.unwrap().into_inner();
    let listed = v1::ListArtifactsRequest { run_id: run };
    let listed = farm.pipelines().list_artifacts(listed).await.unwrap().into_inner();
    assert_eq!((&of_run.artifacts, &listed.artifacts), (&vec![artifact.clone()], &vec![artifact]));
    farm.stop().await;
}

/// Appends to stream 0 over a connection of its own: (refused, durable) of each.
async fn append(agent: &mut Agent, appends: &[(v1::Lease, u64, &str)]) -> Vec<(bool, u64)> {
    let (sender, receiver) = mpsc::channel(16);
    for (lease, offset, data) in appends {
        let append = v1::LogAppend {
            lease: Some(*lease),
            stream: 0,
            offset: *offset,
            data: data.as_bytes().to_vec().into(),
            last: false,
        };
        sender.send(append).await.unwrap();
    }
    let mut acks =
        agent.client.append_log(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.len() < appends.len() {
        let ack = soon("an acknowledgement", acks.message()).await.unwrap().unwrap();
        seen.push((ack.refused, ack.durable));
    }
    seen
}

/// The files under `dir` that hold these bytes.
fn files_with(dir: &std::path::Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else {
            let content = std::fs::read(&path).unwrap();
            if content.windows(bytes.len()).any(|window| window == bytes) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}
