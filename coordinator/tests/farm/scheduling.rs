//! What waits and why, and runs that go on after their end.

use steading_proto::v1;
use steading_proto::v1::Conclusion::{Cancelled, Failure, Success};
use steading_proto::v1::coordinator_message::Message as ToAgent;
use tonic::Code;

use crate::support::{Agent, Farm, config, ended, soon};

const IMPOSSIBLE: &str = "
on: push
jobs:
  here: {runs-on: ubuntu-latest, steps: [{run: 'true'}]}
  nowhere: {runs-on: [ubuntu-latest, gpu], steps: [{run: 'true'}]}
  later: {runs-on: ubuntu-latest, needs: nowhere, steps: [{run: 'true'}]}
";

#[tokio::test]
async fn a_job_that_no_agent_can_run_is_told_to_who_watches_and_who_asks() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", IMPOSSIBLE).await;
    agent.work(&farm, &[]).await;
    let request = v1::WatchRunRequest { run_id: run, token: 0 };
    let mut events = farm.pipelines().watch_run(request).await.unwrap().into_inner();
    let waiting = soon("a sentence", async {
        loop {
            let event = events.message().await.unwrap().expect("the run goes on");
            if let Some(job) = event.jobs.iter().find(|job| !job.waiting.is_empty()) {
                return job.clone();
            }
        }
    });
    let waiting = waiting.await;
    assert_eq!(waiting.key, "nowhere");
    assert_eq!(waiting.waiting, "no agent has label `gpu`; known labels: ubuntu-latest");
    let told = explain(&farm, run, "").await;
    let told: Vec<(&str, &str)> = told.iter().map(|job| (&*job.key, &*job.state)).collect();
    assert_eq!(
        told,
        [
            ("here", "success, attempt 1 at a"),
            ("nowhere", "it waits: no agent has label `gpu`; known labels: ubuntu-latest"),
            ("later", "it is planned when what it needs has ended: nowhere"),
        ]
    );
    let nobody = v1::ExplainJobRequest { run_id: run, job: "nobody".into() };
    let refused = farm.pipelines().explain_job(nobody).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    farm.stop().await;
}

const GROUP: &str = "
on: push
concurrency: {group: 'g-${{ github.ref }}', cancel-in-progress: true}
jobs:
  only: {runs-on: ubuntu-latest, steps: [{run: 'true'}]}
";

#[tokio::test]
async fn a_newer_run_of_a_group_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let first = farm.submit("r1", GROUP).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    let second = farm.submit("r2", GROUP).await;
    let told = explain(&farm, second, "only").await;
    assert_eq!(
        told[0].state,
        format!(
            "it waits: the run's concurrency group `g-refs/heads/main` is held by run-{first} (ci.yml)"
        )
    );
    assert!(matches!(agent.next().await.unwrap(), ToAgent::Cancel(_)));
    agent.end(lease, Cancelled, v1::FailureClass::Cancelled).await.unwrap();
    agent.work(&farm, &[]).await;
    assert_eq!(ended(&farm.run(first).await).1, Cancelled);
    farm.watch(second, 0).await;
    assert_eq!(ended(&farm.run(second).await).1, Success);
    farm.stop().await;
}

const NEEDS: &str = "
on: push
jobs:
  good: {runs-on: ubuntu-latest, steps: [{run: 'true'}]}
  bad: {runs-on: ubuntu-latest, needs: good, steps: [{run: 'true'}]}
  after: {runs-on: ubuntu-latest, needs: bad, steps: [{run: 'true'}]}
";

#[tokio::test]
async fn a_retried_run_goes_on_from_what_failed_and_plans_what_depends_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let farm = Farm::start(dir.path()).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", NEEDS).await;
    let retry = v1::RetryRunRequest { run_id: run, request_id: "q1".into() };
    let early = farm.pipelines().retry_run(retry.clone()).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    agent.work(&farm, &[]).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;
    agent.end(lease, Failure, v1::FailureClass::User).await.unwrap();
    let events = farm.watch(run, 0).await;
    let token = events.last().unwrap().token;
    farm.pipelines().retry_run(retry.clone()).await.unwrap();
    farm.pipelines().retry_run(retry).await.unwrap();
    assert_eq!(agent.work(&farm, &[]).await.key, "bad");
    let after = agent.work(&farm, &[]).await;
    assert_eq!(after.contexts["needs"]["bad"]["result"], "success");
    // A client that saw the first end goes on from there.
    let events = farm.watch(run, token).await;
    assert_eq!(events.last().unwrap().run.as_ref().unwrap().conclusion(), Success);
    let run = farm.run(run).await;
    let attempts: Vec<_> = run.jobs.iter().map(|job| (&*job.key, job.attempt)).collect();
    assert_eq!(attempts, [("good", 1), ("bad", 2), ("after", 1)]);
    let told = explain(&farm, run.run_id, "bad").await;
    assert_eq!(told[0].attempts[0].failure_class(), v1::FailureClass::User);
    farm.stop().await;
}

async fn explain(farm: &Farm, run_id: u64, job: &str) -> Vec<v1::JobExplanation> {
    let request = v1::ExplainJobRequest { run_id, job: job.to_owned() };
    farm.pipelines().explain_job(request).await.unwrap().into_inner().jobs
}

#[tokio::test]
async fn an_agent_that_went_without_a_word_is_retired_and_may_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.agent_away_ms = 1_000;
    let farm = Farm::start_with(config).await;
    let mut agent = Agent::join(&farm, "a").await;
    let mut stays = Agent::join(&farm, "b").await;
    agent.close();
    let mut fleet = v1::fleet_client::FleetClient::new(farm.channel());
    soon("its end", async {
        let ask = || v1::ListAgentsRequest { name: "a".into(), ..Default::default() };
        let gone = v1::agent_info::State::Gone;
        while fleet.list_agents(ask()).await.unwrap().into_inner().agents[0].state() != gone {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = agent.try_connect(&farm, &[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "it has to register first");
    drop(agent);
    farm.submit("r1", GROUP).await;
    stays.work(&farm, &[]).await;
    Agent::register(&farm, "a").await;
    farm.stop().await;
}
