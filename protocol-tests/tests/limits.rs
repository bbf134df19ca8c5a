//! Stories of jobs that want more of the machine than they may have.

use serde_json::Value;
use steading_agent::limits::Groups;
use steading_protocol_tests::farm::{Farm, Process, skipped};

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

/// Processes of one job.
const PROCESSES: &str = "64";

/// The last job runs in the same slot after the others, and does not notice that it loses a
/// process.
const HUNGRY: &str = r#"on: push
jobs:
  eats:
    runs-on: ubuntu-latest
    x-steading: {resources: {memory: 64MiB}}
    steps:
      - run: head -c 500M /dev/zero | tail > /dev/null
  cached:
    runs-on: ubuntu-latest
    x-steading: {resources: {memory: 64MiB}}
    steps:
      - uses: actions/checkout@v4
      - run: head -c 500M /dev/zero | tail > size
        x-steading: {cache: {inputs: [input], outputs: [size]}}
  next:
    runs-on: ubuntu-latest
    if: always()
    needs: [eats, cached]
    x-steading: {resources: {memory: 64MiB}}
    steps:
      - run: head -c 500M /dev/zero | tail | wc -c
"#;

/// Each process starts two, as many as it can; what is left at the end goes on.
const BOMB: &str = r#"on: push
jobs:
  bomb:
    runs-on: ubuntu-latest
    timeout-minutes: 0.1
    steps:
      - run: |
          bomb() { bomb & bomb & wait; }
          bomb
  next:
    runs-on: ubuntu-latest
    if: always()
    needs: bomb
    steps:
      - run: echo still here
"#;

#[test]
fn a_job_that_eats_all_its_memory_is_told_so() {
    // The code under test decides, so what it must be able to do is said from outside: `.ci/run`
    // looks for control groups by other means, and names them in STEADING_REQUIRE.
    if let Err(why) = Groups::take(1, &[STEAD.to_owned()]).map(|groups| groups.remove()) {
        return skipped("cgroup", &why);
    }
    let farm = Farm::new(STEAD);
    let _coordinator = farm.coordinator();
    let mut agent = agent(&farm);
    let (code, summary) = farm.submit(&farm.project("hungry", HUNGRY, &[("input", "")])).finish();
    assert_eq!(code, Some(1), "{summary}\n{}", farm.log("submit"));
    for job in ["eats", "cached"] {
        let told = state(&farm, job);
        assert!(told.starts_with("failure (oom), attempt 1 at a1"), "{job}: {told}");
        assert!(told.contains("the job may use 64 MiB"), "{job}: {told}");
    }
    assert!(state(&farm, "next").starts_with("success, attempt 1 at a1"), "{}", farm.log("a1"));
    let log = farm.stead(&["logs", "1", "next", "--coordinator", &farm.endpoint()]);
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    assert!(log.contains("a process was killed, and the step went on"), "{log}");
    assert!(agent.is_running());
}

#[test]
fn a_job_that_starts_processes_without_end_harms_nobody_else() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("root", "only root can bound a job's processes and no others");
    }
    let farm = Farm::new(STEAD);
    let _coordinator = farm.coordinator();
    let mut agent = agent(&farm);
    let (code, summary) = farm.submit(&farm.project("bomb", BOMB, &[])).finish();
    assert_eq!(code, Some(1), "{summary}\n{}", farm.log("submit"));
    let bomb = state(&farm, "bomb");
    println!("the bomb: {bomb}");
    assert!(bomb.starts_with("failure ("), "{bomb}");
    assert!(state(&farm, "next").starts_with("success, attempt 1 at a1"), "{}", farm.log("a1"));
    assert!(agent.is_running());
    // It never had to begin anew.
    let agents = farm.stead(&["agents", "--json", "--coordinator", &farm.endpoint()]);
    let agents: Value = serde_json::from_slice(&agents.stdout).expect("one agent");
    assert_eq!(agents["incarnation"], 1, "{agents}");
    agent.terminate();
}

fn agent(farm: &Farm) -> Process {
    let endpoint = farm.endpoint();
    let own = ["agent", "--coordinator", &endpoint, "--data-dir", "a1", "--name", "a1"];
    let limits = ["--slots", "1", "--processes-per-job", PROCESSES];
    farm.spawn("a1", &[&own[..], &limits].concat(), false)
}

/// What became of a job of the first run.
fn state(farm: &Farm, job: &str) -> String {
    let endpoint = farm.endpoint();
    let told = farm.stead(&["explain", "1", job, "--json", "--coordinator", &endpoint]);
    let told: Value = serde_json::from_slice(&told.stdout).expect("one job");
    told["state"].as_str().expect("a sentence").to_owned()
}
