use steading_model::{Conclusion, StepCounts, Timestamp};

use crate::testkit::Stage;
use crate::{EPOCHS_GAP, Job, Outcome, Proposal, RUNS_GAP, Rejection};

const NOW: Timestamp = Timestamp::from_ms(2_000_000);

#[test]
fn a_new_group_goes_on_with_the_runs_and_believes_nobody_of_the_old_one() {
    let mut stage = Stage::default();
    stage.tell(
        "0s  agent A1 slots=2
         0s  admit R1 a b
         0s  admit R2 c
         0s  assign job-1 agent-1
         0s  assign job-3 agent-1
         0s  claim L1 X
         0s  cancel run-2 C1",
    );
    let update = Proposal::UpdateReplica {
        replica: 1,
        storage_id: "a".repeat(32),
        endpoint: "unix:/a".into(),
        level: 1,
    };
    stage.apply(NOW, update).unwrap();
    let before = stage.state.clone();
    let lease = before.leased().find_map(Job::lease).unwrap();
    let agent = before.agent_by_name("A1").unwrap();

    stage.apply(NOW, Proposal::FoundAnew { cluster_id: "b".repeat(32) }).unwrap();
    let state = &stage.state;
    assert_eq!((state.leased().count(), state.queue_len(), state.replicas().count()), (0, 2, 0));
    assert!(state.version() > before.version() + EPOCHS_GAP);
    assert_ne!(state.chain(), before.chain());
    // What was being cancelled is; what ran begins again, as if it never had.
    let run = |number: usize| state.runs_newest_first().nth(number).unwrap().clone();
    assert!(run(0).has_ended() && !run(1).has_ended());
    assert_eq!(state.job(lease.work.job).unwrap().infrastructure_retries, 0);
    // Whoever watched the old group's future is told anew.
    assert!(run(1).version > before.version() + EPOCHS_GAP);

    let outcome = Outcome {
        conclusion: Conclusion::Success,
        class: None,
        result: None,
        counts: StepCounts::default(),
        message: String::new(),
    };
    let late = Proposal::CompleteAttempt { lease, outcome };
    assert_eq!(stage.apply(NOW, late), Err(Rejection::LeaseStale));
    let known = stage.state.agent(agent.id).unwrap().incarnation;
    assert!(known.counter() > agent.incarnation.counter() + RUNS_GAP - 1);
    stage.tell("2000s  admit R3 d");
    let newest = stage.state.runs_newest_first().next().unwrap();
    assert!(newest.id.counter() > RUNS_GAP);
    assert!(stage.state.jobs_of(newest.id).all(|job| job.id.counter() > EPOCHS_GAP));
}
