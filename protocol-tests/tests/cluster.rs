//! Stories of several coordinators: they die, stop and are replaced, runs do not.
//!
//! `STEADING_KILLS` (leaders that die) and `STEADING_JOBS` (that run meanwhile) make the
//! first one as large as wanted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use steading_protocol_tests::cluster::Cluster;
use steading_protocol_tests::farm::{process_state, wait_for, wait_for_lines};

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

const COORDINATORS: usize = 3;
const AGENTS: usize = 4;

/// As many jobs as legs; each says once that it started, and goes on until `go` is there.
const LONG_JOBS: &str = r#"on: push
jobs:
  long:
    runs-on: ubuntu-latest
    strategy:
      matrix: {leg: [LEGS]}
    steps:
      - run: |
          echo "${{ matrix.leg }} $$" >> "DIR/started"
          while [ ! -e "DIR/go" ]; do sleep 0.5; done
          echo "the end of ${{ matrix.leg }}"
"#;

/// Says when it started, nanoseconds since the epoch.
const PROBE: &str = r#"on: push
jobs:
  probe:
    runs-on: ubuntu-latest
    steps:
      - run: date +%s%N >> "DIR/probed"
"#;

#[test]
fn leaders_die_one_after_another_and_nothing_is_lost() {
    let kills = number("STEADING_KILLS", 5);
    let jobs = number("STEADING_JOBS", 40);
    let mut farm = Cluster::start(STEAD, COORDINATORS, AGENTS, jobs.div_ceil(AGENTS) + 1);
    let run = farm.submit(&long_project(&farm, jobs));
    let watch = farm.watch(&run);
    wait_for_lines(&farm.farm().dir().join("started"), jobs);

    let probe = project(&farm, "probe", PROBE);
    let mut runs = vec![run];
    let mut waits = Vec::new();
    for kill in 1..=kills {
        farm.wait_until_whole();
        let leader = farm.leader();
        let killed = SystemTime::now();
        farm.kill_9(leader);
        runs.push(farm.submit(&probe));
        let probed = wait_for_lines(&farm.farm().dir().join("probed"), kill);
        let started: u64 = probed[kill - 1].parse().expect("nanoseconds");
        let killed = killed.duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
        waits.push(Duration::from_nanos(started).saturating_sub(killed));
        farm.start_coordinator(leader);
    }
    print_percentiles("from the kill to the start of a job submitted then", &mut waits);

    assert_each_started_once(&farm, jobs);
    finish(&farm, watch);
    let ended = conclusions(&farm);
    for run in &runs {
        assert_eq!(ended.get(run).map(String::as_str), Some("success"), "{run}\n{}", farm.logs());
    }
    assert_each_started_once(&farm, jobs);
}

#[test]
fn a_leader_that_stands_still_is_replaced_and_steps_back() {
    let farm = Cluster::start(STEAD, COORDINATORS, AGENTS, 3);
    let run = farm.submit(&long_project(&farm, 4));
    let watch = farm.watch(&run);
    wait_for_lines(&farm.farm().dir().join("started"), 4);

    let leader = farm.leader();
    farm.signal(leader, Signal::SIGSTOP);
    let stopped = Instant::now();
    let probe = project(&farm, "probe", PROBE);
    farm.submit(&probe);
    println!("a run was accepted {:?} after the leader was stopped", stopped.elapsed());
    wait_for_lines(&farm.farm().dir().join("probed"), 1);
    println!("a job started {:?} after the leader was stopped", stopped.elapsed());
    assert_ne!(farm.leader(), leader);
    std::thread::park_timeout(Duration::from_secs(5).saturating_sub(stopped.elapsed()));
    farm.signal(leader, Signal::SIGCONT);
    farm.wait_until_whole();
    // What it knew of leases is not believed any more.
    farm.submit(&probe);
    wait_for_lines(&farm.farm().dir().join("probed"), 2);

    finish(&farm, watch);
    assert_each_started_once(&farm, 4);
}

#[test]
fn without_any_coordinator_jobs_freeze_and_go_on_afterwards() {
    let jobs = number("STEADING_JOBS", 8);
    let mut farm = Cluster::start(STEAD, COORDINATORS, AGENTS, jobs.div_ceil(AGENTS));
    let run = farm.submit(&long_project(&farm, jobs));
    let watch = farm.watch(&run);
    let started = wait_for_lines(&farm.farm().dir().join("started"), jobs);
    let pids: Vec<u32> = started.iter().map(|line| pid_of(line)).collect();

    let stopped = Instant::now();
    (0..COORDINATORS).for_each(|coordinator| farm.kill_9(coordinator));
    wait_for("every job to freeze", || pids.iter().all(|pid| process_state(*pid) == Some('T')));
    println!("{jobs} jobs were frozen {:?} after the coordinators died", stopped.elapsed());
    let away = Duration::from_secs(number("STEADING_AWAY_SECONDS", 20) as u64);
    std::thread::park_timeout(away.saturating_sub(stopped.elapsed()));
    (0..COORDINATORS).for_each(|coordinator| farm.start_coordinator(coordinator));
    let back = Instant::now();
    wait_for("every job to thaw", || {
        pids.iter().all(|pid| process_state(*pid).is_some_and(|state| state != 'T'))
    });
    println!("and went on {:?} after they were back", back.elapsed());

    finish(&farm, watch);
    assert_each_started_once(&farm, jobs);
}

#[test]
fn coordinators_restart_one_after_another_and_nobody_notices() {
    let mut farm = Cluster::start(STEAD, COORDINATORS, AGENTS, 2);
    let run = farm.submit(&long_project(&farm, 4));
    let watch = farm.watch(&run);
    wait_for_lines(&farm.farm().dir().join("started"), 4);
    for coordinator in 0..COORDINATORS {
        farm.terminate(coordinator);
        farm.start_coordinator(coordinator);
        farm.wait_until_whole();
    }
    finish(&farm, watch);
    assert_each_started_once(&farm, 4);
}

#[test]
fn a_coordinator_whose_disk_was_wiped_comes_back_as_another() {
    let mut farm = Cluster::start(STEAD, COORDINATORS, 1, 2);
    let run = farm.submit(&long_project(&farm, 2));
    let watch = farm.watch(&run);
    wait_for_lines(&farm.farm().dir().join("started"), 2);
    let leader = farm.leader();
    let lost = (0..COORDINATORS).find(|number| *number != leader).expect("there are three");
    let before = farm.member(lost)["id"].as_u64().expect("an id");

    farm.kill_9(lost);
    farm.wipe(lost);
    farm.start_coordinator(lost);
    // Refused as long as the other is not ready to take its place.
    let remove = ["cluster", "remove", &before.to_string()];
    wait_for("the lost one to be removed", || farm.output(&remove).status.success());
    farm.wait_until_whole();
    assert_ne!(farm.member(lost)["id"].as_u64(), Some(before), "{}", farm.status());

    finish(&farm, watch);
    assert_each_started_once(&farm, 2);
}

/// Lets the long jobs end, and the watch with them.
fn finish(farm: &Cluster, mut watch: steading_protocol_tests::farm::Process) {
    assert!(watch.is_running(), "the watch ended before its run\n{}", farm.logs());
    std::fs::write(farm.farm().dir().join("go"), "").expect("let the jobs end");
    let (code, summary) = watch.finish();
    assert_eq!(code, Some(0), "{summary}\n{}", farm.logs());
}

fn assert_each_started_once(farm: &Cluster, jobs: usize) {
    let mut started: BTreeMap<String, usize> = BTreeMap::new();
    for line in wait_for_lines(&farm.farm().dir().join("started"), jobs) {
        let leg = line.split(' ').next().unwrap_or_default().to_owned();
        *started.entry(leg).or_default() += 1;
    }
    assert_eq!(started.len(), jobs);
    let twice: Vec<_> = started.iter().filter(|(_, starts)| **starts > 1).collect();
    assert!(twice.is_empty(), "started more than once: {twice:?}\n{}", farm.logs());
}

/// How each run ended, by its name.
fn conclusions(farm: &Cluster) -> BTreeMap<String, String> {
    let text = farm.stead(&["runs", "--json", "-n", "1000"]);
    let runs = text.lines().filter_map(|line| {
        let run: serde_json::Value = serde_json::from_str(line).ok()?;
        Some((run["run"].as_str()?.to_owned(), run["state"].as_str()?.to_owned()))
    });
    runs.collect()
}

fn print_percentiles(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!("{what}, {} times: p50 {:?}, p99 {:?}", times.len(), at(50), at(99));
}

fn long_project(farm: &Cluster, jobs: usize) -> PathBuf {
    let legs: Vec<String> = (1..=jobs).map(|leg| leg.to_string()).collect();
    project(farm, "long", &LONG_JOBS.replace("LEGS", &legs.join(", ")))
}

fn project(farm: &Cluster, name: &str, pipeline: &str) -> PathBuf {
    let dir: &Path = farm.farm().dir();
    farm.farm().shared_file("started");
    farm.farm().shared_file("probed");
    farm.farm().project(name, &pipeline.replace("DIR", &dir.display().to_string()), &[])
}

fn pid_of(line: &str) -> u32 {
    line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a process id")
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
