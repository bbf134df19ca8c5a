//! What is offered late: to an agent that was away, and from an origin that is.

use std::fs;
use std::path::Path;

use steading_coordinator::{Config, ObjectStore};
use steading_proto::v1;
use steading_proto::v1::Conclusion::Success;
use steading_proto::v1::coordinator_message::Message as ToAgent;

use crate::support::{Agent, Farm, config, ended, soon};
use crate::{CHAIN, ONE};

#[tokio::test]
async fn a_job_that_was_cancelled_before_its_offer_arrived_is_cancelled_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", ONE).await;
    let lost = agent.offer().await;
    agent.close();
    let request = v1::CancelRunRequest {
        run_id: run,
        request_id: "c1".into(),
        reason: "no longer wanted".into(),
    };
    farm.pipelines().cancel_run(request).await.unwrap();

    // It knows nothing of the lease, so that the welcome's word on it is lost on it.
    let welcome = agent.connect(&farm, &[]).await;
    assert_eq!(welcome.cancelling, vec![lost.lease.unwrap()]);
    let offer = agent.offer().await;
    assert_eq!(offer.lease, lost.lease);
    match agent.next().await.unwrap() {
        ToAgent::Cancel(cancel) => assert_eq!(cancel.lease, lost.lease),
        other => panic!("want a cancel, got {other:?}"),
    }
    farm.stop().await;
}

#[tokio::test]
async fn an_origin_that_is_away_fails_no_job_and_keeps_no_renewal_waiting() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = origin.path().join("origin");
    let farm = Farm::start_with(at(dir.path(), &place)).await;
    let mut agent = Agent::join(&farm, "a").await;
    let runs = farm.submit("r1", ONE).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    agent.close();
    let waits = farm.submit("r2", CHAIN).await;
    farm.stop().await;

    // What the coordinator has of its own is lost.
    fs::remove_dir_all(dir.path().join("cas")).unwrap();
    let farm = Farm::start_with(at(dir.path(), &place)).await;
    // Not a folder: nothing in it can be read, and nothing is known to be missing.
    take_away(&place);
    agent.connect(&farm, &[lease]).await;
    soon("the job to be given away", async {
        while farm.run(waits).await.jobs[0].attempt < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..3 {
        assert_eq!(agent.renew(&[lease]).await.leases, vec![lease]);
    }
    bring_back(&place);
    let offer = agent.offer().await;
    let first = agent.accept(&offer).await;
    agent.complete(lease, String::new()).await.unwrap();
    let result = farm.put_result(&[("answer", "42")]);
    agent.complete(first, result).await.unwrap();
    agent.work(&farm, &[]).await;
    for run in [runs, waits] {
        farm.watch(run, 0).await;
        assert_eq!(ended(&farm.run(run).await).1, Success);
    }
    farm.stop().await;
}

const TWO: &str = "
on: push
jobs:
  first: {runs-on: ubuntu-latest, steps: [{run: 'true'}]}
  second: {runs-on: ubuntu-latest, needs: first, steps: [{run: 'true'}]}
";

#[tokio::test]
async fn a_plan_waits_for_an_origin_that_is_away() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = origin.path().join("origin");
    let farm = Farm::start_with(at(dir.path(), &place)).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", TWO).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    let store = farm.coordinator.store();
    store.wait_scanned();
    let known = store.len();
    take_away(&place);
    // Without a result: it has to be in the origin first.
    agent.complete(lease, String::new()).await.unwrap();
    let first = |run: &v1::Run| run.jobs[0].conclusion() == Success;
    soon("the end of the first job", async {
        while !first(&farm.run(run).await) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The planner has tried: the spec of what comes next is in the coordinator's own store.
    soon("the planner's try", async {
        while store.len() == known {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(farm.run(run).await.jobs.len(), 1, "what comes next needs a spec in the origin");
    bring_back(&place);
    agent.work(&farm, &[]).await;
    farm.watch(run, 0).await;
    let (jobs, conclusion) = ended(&farm.run(run).await);
    assert_eq!(conclusion, Success, "{jobs:?}");
    farm.stop().await;
}

/// Not a folder any more: nothing in it can be read, and nothing is known to be missing.
fn take_away(origin: &Path) {
    fs::rename(origin, origin.with_extension("away")).unwrap();
    fs::write(origin, "").unwrap();
}

fn bring_back(origin: &Path) {
    fs::remove_file(origin).unwrap();
    fs::rename(origin.with_extension("away"), origin).unwrap();
}

fn at(dir: &Path, origin: &Path) -> Config {
    let mut config = config(dir);
    config.object_store = Some(ObjectStore { directory: Some(origin.into()), ..<_>::default() });
    config
}
