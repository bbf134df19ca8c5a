//! Stories of a farm of real processes: coordinators and agents die, runs do not.

use std::path::Path;

use steading_protocol_tests::farm::{Farm, Process, process_state, wait_for, wait_for_lines};

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

/// Says that it started, then prints numbers until the file `go` is there.
const LONG_JOB: &str = r#"on: push
jobs:
  long:
    runs-on: ubuntu-latest
    steps:
      - run: |
          echo $$ >> "$DIR/started"
          count=0
          while [ ! -e "$DIR/go" ]; do
            count=$((count + 1))
            echo "line $count"
            sleep 0.05
          done
          echo "last $count"
"#;

#[test]
fn a_run_survives_the_death_of_its_coordinator() {
    let farm = Farm::new(STEAD);
    let coordinator = farm.coordinator();
    let _agent = farm.agent("a1");
    let submit = farm.submit(&long_project(&farm));
    let started = wait_for_lines(&farm.dir().join("started"), 1);

    coordinator.kill_9();
    let _coordinator = farm.coordinator();
    std::fs::write(farm.dir().join("go"), "").expect("let the job end");

    check_ends_well(&farm, submit);
    assert_eq!(wait_for_lines(&farm.dir().join("started"), 1), started, "it started once");
    assert_log_has_no_gap(&farm);
}

#[test]
fn a_job_without_a_coordinator_freezes_and_thaws() {
    let farm = Farm::new(STEAD);
    let coordinator = farm.coordinator();
    let _agent = farm.agent("a1");
    let submit = farm.submit(&long_project(&farm));
    let pid: u32 = wait_for_lines(&farm.dir().join("started"), 1)[0].parse().expect("a pid");

    coordinator.kill_9();
    wait_for("the job to freeze", || process_state(pid) == Some('T'));
    let _coordinator = farm.coordinator();
    wait_for("the job to thaw", || process_state(pid).is_some_and(|state| state != 'T'));
    std::fs::write(farm.dir().join("go"), "").expect("let the job end");

    check_ends_well(&farm, submit);
    assert_eq!(wait_for_lines(&farm.dir().join("started"), 1).len(), 1, "it started once");
    assert_log_has_no_gap(&farm);
}

#[test]
fn a_job_whose_agent_dies_is_gone_before_it_starts_again() {
    let farm = Farm::new(STEAD);
    let _coordinator = farm.coordinator();
    let agent = farm.agent("a1");
    let submit = farm.submit(&long_project(&farm));
    let first: u32 = wait_for_lines(&farm.dir().join("started"), 1)[0].parse().expect("a pid");

    let killed = std::time::Instant::now();
    agent.kill_9();
    wait_for("the job's process to be gone", || process_state(first).is_none());
    println!("the job's process was gone {:?} after its agent", killed.elapsed());

    let _agent = farm.agent("a1");
    let second = wait_for_lines(&farm.dir().join("started"), 2);
    assert_eq!(process_state(first), None, "the first attempt was gone before the second began");
    std::fs::write(farm.dir().join("go"), "").expect("let the job end");
    check_ends_well(&farm, submit);
    assert_eq!(second.len(), 2);
}

#[test]
fn a_log_that_ends_without_a_coordinator_has_no_gap() {
    let farm = Farm::new(STEAD);
    let coordinator = farm.coordinator();
    let _agent = farm.agent("a1");
    let submit = farm.submit(&long_project(&farm));
    let pid: u32 = wait_for_lines(&farm.dir().join("started"), 1)[0].parse().expect("a pid");

    coordinator.kill_9();
    std::fs::write(farm.dir().join("go"), "").expect("let the job end");
    wait_for("the job to end", || process_state(pid).is_none());
    wait_for("the agent to notice", || farm.log("a1").contains("the coordinator is away"));
    let _coordinator = farm.coordinator();

    check_ends_well(&farm, submit);
    assert_log_has_no_gap(&farm);
}

#[test]
fn a_claim_outlives_the_coordinator() {
    let farm = Farm::new(STEAD);
    let coordinator = farm.coordinator();
    let _agent = farm.agent("a1");
    let pipeline = r#"on: push
jobs:
  one:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: |
          echo claimed
          sleep 3
          sort input > sorted
        x-steading: {cache: {inputs: [input], outputs: [sorted]}}
"#;
    let project = farm.project("build", pipeline, &[("input", "b\nc\na\n")]);
    // One executes, one waits for it, and the coordinator goes in between.
    let runs = [farm.submit(&project), farm.submit(&project)];
    wait_for("both to be at the cached step", || {
        farm.log("submit").matches("checkout@v4 … ok").count() == 2
    });
    coordinator.kill_9();
    let _coordinator = farm.coordinator();
    let mut executed = 0;
    for run in runs {
        let (code, summary) = run.finish();
        assert_eq!(code, Some(0), "{summary}\n{}\n{}", farm.log("submit"), farm.log("a1"));
        let summary: serde_json::Value = serde_json::from_str(&summary).expect("a summary");
        executed += summary["cacheable"]["executed"].as_u64().expect("a number");
    }
    assert_eq!(executed, 1, "{}", farm.log("a1"));
}

#[test]
fn two_submissions_at_once_execute_each_cached_step_once() {
    let farm = Farm::new(STEAD);
    let _coordinator = farm.coordinator();
    let _agents = [farm.agent("a1"), farm.agent("a2")];
    let pipeline = r#"on: push
jobs:
  one:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: |
          sort input > sorted
          sleep 1
        x-steading: {cache: {inputs: [input], outputs: [sorted]}}
      - run: wc -l < sorted > count
        x-steading: {cache: {inputs: [sorted], outputs: [count]}}
  two:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: sort -r input > reversed
        x-steading: {cache: {inputs: [input], outputs: [reversed]}}
"#;
    let project = farm.project("build", pipeline, &[("input", "b\nc\na\n")]);
    let runs = [farm.submit(&project), farm.submit(&project)];
    let mut executed = 0;
    let mut hit = 0;
    for run in runs {
        let (code, summary) = run.finish();
        assert_eq!(code, Some(0), "{summary}\n{}", farm.log("submit"));
        let summary: serde_json::Value = serde_json::from_str(&summary).expect("a summary");
        executed += summary["cacheable"]["executed"].as_u64().expect("a number");
        hit += summary["cacheable"]["hit"].as_u64().expect("a number");
    }
    assert_eq!((executed, hit), (3, 3), "three actions, each executed once in all");
}

fn long_project(farm: &Farm) -> std::path::PathBuf {
    let pipeline = LONG_JOB.replace("$DIR", &farm.dir().display().to_string());
    farm.project("long", &pipeline, &[])
}

/// Waits for the run to end, with success.
fn check_ends_well(farm: &Farm, submit: Process) {
    let (code, summary) = submit.finish();
    let logs = ["submit", "coordinator", "a1"].map(|name| farm.log(name)).join("\n");
    assert_eq!(code, Some(0), "{summary}\n{logs}");
}

/// The job counted its lines: the log must have each, in order, and the last.
fn assert_log_has_no_gap(farm: &Farm) {
    let out = farm.stead(&["logs", "--coordinator", &farm.endpoint(), "1"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let number =
        |line: &str, word: &str| -> Option<u64> { line.rsplit_once(word)?.1.trim().parse().ok() };
    let lines: Vec<u64> = text.lines().filter_map(|line| number(line, "line ")).collect();
    let last = text.lines().find_map(|line| number(line, "last ")).expect("the last line");
    assert!(last > 0);
    assert_eq!(lines, (1..=last).collect::<Vec<_>>(), "{text}");
    assert!(Path::new(farm.dir()).exists());
}
