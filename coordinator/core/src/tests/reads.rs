use steading_model::RunId;

use crate::State;
use crate::testkit::Stage;

#[test]
fn a_watcher_is_told_of_what_changed_since_and_of_nothing_else() {
    let mut stage = Stage::default();
    stage.tell(
        "0s  agent A1 slots=9
         0s  admit R1 a b c
         0s  admit R2 a",
    );
    let run = RunId::from_counter(1);
    assert_eq!(changed(&stage.state, run, 0), ["job-1", "job-2", "job-3"]);
    let token = stage.state.version();
    assert_eq!(changed(&stage.state, run, token), [""; 0]);
    stage.tell(
        "1s  assign job-3 agent-1
         1s  assign job-1 agent-1 job-4 agent-1
         2s  complete L1 success",
    );
    assert_eq!(changed(&stage.state, run, token), ["job-1", "job-3"]);
    assert!(stage.state.run(run).unwrap().version > token);
    assert_eq!(changed(&stage.state, run, u64::MAX), [""; 0]);
    assert_eq!(changed(&stage.state, RunId::from_counter(9), 0), [""; 0]);
}

#[test]
fn runs_are_listed_newest_first_page_by_page() {
    let mut stage = Stage::default();
    stage.tell(
        "0s  admit R1
         0s  admit R2
         0s  admit R3",
    );
    let ids = |runs: Vec<RunId>| runs.iter().map(RunId::to_string).collect::<Vec<_>>().join(" ");
    let state = &stage.state;
    assert_eq!(ids(state.runs_newest_first().map(|run| run.id).collect()), "run-3 run-2 run-1");
    let after = RunId::from_counter(3);
    assert_eq!(ids(state.runs_older_than(after).map(|run| run.id).collect()), "run-2 run-1");
    assert_eq!(state.runs_older_than(RunId::from_counter(1)).count(), 0);
}

#[test]
fn artifacts_are_listed_for_their_run_and_the_last_upload_of_a_name_wins() {
    let mut stage = Stage::default();
    stage.tell(
        "0s  agent A1 slots=9
         0s  admit R1 a b
         0s  admit R2 a
         0s  assign job-1 agent-1 job-2 agent-1 job-3 agent-1
         1s  artifact L1 zip
         1s  artifact L1 bin
         1s  artifact L3 bin
         2s  artifact L2 zip",
    );
    let of = |run: u64| {
        let artifacts = stage.state.artifacts_of(RunId::from_counter(run));
        artifacts.map(|(name, row)| format!("{name} {}", row.job)).collect::<Vec<_>>()
    };
    assert_eq!(of(1), ["bin job-1", "zip job-2"]);
    assert_eq!(of(2), ["bin job-3"]);
    assert_eq!(of(3), [""; 0]);
}

#[test]
fn a_lease_is_found_only_under_its_own_epoch_and_attempt() {
    let mut stage = Stage::default();
    stage.tell(
        "0s  agent A1
         0s  admit R1 a
         0s  assign job-1 agent-1
         1s  expire L1
         1s  assign job-1 agent-1",
    );
    let state = &stage.state;
    let held = state.leased().next().unwrap().lease().unwrap();
    assert_eq!(state.lease(held.work), Some(held));
    assert!(state.leased_job(held).is_some());
    let mut older = held;
    older.work.attempt -= 1;
    assert_eq!(state.lease(older.work), None);
    assert_eq!(state.leased_job(older), None);
    let mut later = held;
    later.epoch = later.epoch.next();
    assert_eq!(state.leased_job(later), None);
}

fn changed(state: &State, run: RunId, since: u64) -> Vec<String> {
    let mut jobs: Vec<_> = state.jobs_of_changed_since(run, since).map(|job| job.id).collect();
    jobs.sort_unstable();
    jobs.iter().map(ToString::to_string).collect()
}
