//! Stories of machines that are taken away: what ran there is handed back, and runs
//! elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::Value;
use steading_protocol_tests::cluster::Cluster;
use steading_protocol_tests::farm::{Process, skipped, wait_for, wait_for_lines};
use steading_protocol_tests::metadata::Metadata;

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

/// Jobs that the spot agent runs, and as many that it holds besides.
const SLOTS: usize = 8;
const JOBS: usize = 2 * SLOTS;

/// What the agent says of a notice.
const NOTICED: &str = "the machine is about to go";

/// The user gives each job one retry, and each fails once by its own fault: after a
/// preemption that would be too often, if that had used the user's.
const PIPELINE: &str = r#"on: push
x-steading: {spot: prefer, retry: 1}
jobs:
  leg:
    runs-on: ubuntu-latest
    strategy:
      fail-fast: false
      matrix: {leg: [LEGS]}
    steps:
      - uses: actions/checkout@v4
      - run: echo ${{ matrix.leg }} > part
        x-steading: {cache: {inputs: [input], outputs: [part]}}
      - run: |
          echo "${{ matrix.leg }} $RUNNER_NAME $(date +%s%N)" >> "DIR/started"
          while [ ! -e "DIR/go" ]; do sleep 0.2; done
          if mkdir "DIR/failed-${{ matrix.leg }}" 2> /dev/null; then exit 1; fi
"#;

#[test]
fn a_notice_hands_back_what_was_not_started_at_once_and_the_rest_in_time() {
    let mut farm = Cluster::without_agents(STEAD, 1);
    let metadata = Metadata::start();
    let story = Story::begin(&mut farm, &metadata);

    let noticed = now_ns();
    metadata.preempt();
    story.ends_well(&farm, noticed);
}

#[test]
fn a_hand_back_survives_the_leader_that_took_it() {
    let mut farm = Cluster::without_agents(STEAD, 3);
    let metadata = Metadata::start();
    let story = Story::begin(&mut farm, &metadata);
    farm.wait_until_whole();
    let leader = farm.leader();

    let noticed = now_ns();
    metadata.preempt();
    // The hand-back is on its way, or was taken just now: then it may be repeated.
    wait_for("the agent to notice", || farm.farm().log("s0").contains(NOTICED));
    farm.kill_9(leader);
    story.ends_well(&farm, noticed);
}

#[test]
fn a_hand_back_to_a_leader_that_stands_still_goes_to_the_next_one() {
    let mut farm = Cluster::without_agents(STEAD, 3);
    let metadata = Metadata::start();
    let story = Story::begin(&mut farm, &metadata);
    farm.wait_until_whole();
    let leader = farm.leader();

    farm.signal(leader, Signal::SIGSTOP);
    let noticed = now_ns();
    metadata.preempt();
    wait_for_lines(&farm.farm().dir().join("started"), SLOTS + 1);
    // What it was sent before is read by it now, and comes too late.
    farm.signal(leader, Signal::SIGCONT);
    story.ends_well(&farm, noticed);
}

/// Eight jobs that run on a spot machine, and eight that wait there for theirs; two other
/// pools are idle.
struct Story {
    run: String,
    watch: Process,
    spot: Process,
    _others: [Process; 2],
}

impl Story {
    fn begin(farm: &mut Cluster, metadata: &Metadata) -> Self {
        let slots = SLOTS.to_string();
        let host = metadata.host();
        let gce = ["--gce", "--gce-metadata-host", &host];
        let ahead = ["--pool", "taken", "--leases-ahead", &slots];
        let spot = farm.start_agent("s0", SLOTS, &[&gce[..], &ahead].concat());
        let run = farm.submit(&project(farm));
        let watch = farm.watch(&run);
        wait_for_lines(&farm.farm().dir().join("started"), SLOTS);
        wait_for("the agent to hold all jobs", || used(farm, "s0") == Some(JOBS as u64));
        wait_for("the agent to ask for its end", || metadata.is_asked());
        let other = farm.start_agent("s1", JOBS, &["--pool", "other", "--spot"]);
        let stays = farm.start_agent("d0", JOBS, &["--pool", "stays"]);
        wait_for("the other pools", || used(farm, "s1") == Some(0) && used(farm, "d0") == Some(0));
        Self { run, watch, spot, _others: [other, stays] }
    }

    /// Waits until everything runs elsewhere, lets it end, and looks at each job's way.
    fn ends_well(mut self, farm: &Cluster, noticed: u64) {
        let lines = wait_for_lines(&farm.farm().dir().join("started"), SLOTS + JOBS);
        let since = |at: u64| at.saturating_sub(noticed) / 1_000_000;
        let mut ways: BTreeMap<usize, Vec<(String, u64)>> = BTreeMap::new();
        for line in &lines {
            let words: Vec<&str> = line.split(' ').collect();
            let leg = words[0].parse().expect("a leg");
            let at = words[2].parse().expect("nanoseconds");
            ways.entry(leg).or_default().push((words[1].to_owned(), at));
        }
        assert_eq!(ways.len(), JOBS, "{lines:?}");
        wait_for("the agent to end", || !self.spot.is_running());
        std::fs::write(farm.farm().dir().join("go"), "").expect("let the jobs end");
        let (code, summary) = self.watch.finish();
        assert_eq!(code, Some(0), "{summary}\n{}\n{}", farm.logs(), farm.farm().log("s0"));

        // Who is connected first to a new leader gets the work: to prefer is not to wait.
        let stays = !farm.endpoints().contains(',');
        let is_better_off = |places: &[&str]| match places {
            ["d0"] => true,
            ["s1"] => !stays,
            _ => false,
        };
        let explained = explain(farm, &self.run);
        let (mut unstarted, mut running) = (Times::default(), Times::default());
        for (leg, way) in &ways {
            let attempts = &explained[&format!("leg ({leg})")];
            let classes: Vec<_> = attempts.iter().map(|it| it["failure_class"].as_str()).collect();
            let places: Vec<&str> = way.iter().map(|(agent, _)| agent.as_str()).collect();
            let back = attempts[0]["ended_ms"].as_u64().expect("a time") * 1_000_000;
            if way[0].0 == "s0" {
                // It lost a machine, and goes where that cannot happen again.
                assert!(is_better_off(&places[1..]), "leg {leg}: {places:?}");
                assert_eq!(classes, [Some("preempted"), Some("user")], "leg {leg}");
                running.back.push(since(back));
                running.elsewhere.push(since(way[1].1));
            } else {
                // Its machine was taken away as well, though it lost nothing but time.
                assert!(is_better_off(&places), "leg {leg}: {places:?}");
                assert_eq!(classes, [None, Some("user")], "leg {leg}");
                unstarted.back.push(since(back));
                unstarted.elsewhere.push(since(way[0].1));
            }
        }
        assert_eq!((unstarted.back.len(), running.back.len()), (SLOTS, SLOTS));
        unstarted.print("not started (budget until back: 500 ms)");
        running.print("running");
        print_lost_work(&summary);
    }
}

/// Milliseconds from the notice.
#[derive(Default)]
struct Times {
    back: Vec<u64>,
    elsewhere: Vec<u64>,
}

impl Times {
    fn print(mut self, which: &str) {
        self.back.sort_unstable();
        self.elsewhere.sort_unstable();
        println!(
            "{which}: back after {:?} ms, started elsewhere after {:?} ms",
            self.back, self.elsewhere
        );
    }
}

/// Every job's first step was executed once in all: later attempts had it from the cache.
fn print_lost_work(summary: &str) {
    let summary: Value = serde_json::from_str(summary).expect("a summary");
    let cacheable = &summary["cacheable"];
    println!("of the last attempts' cached steps: {cacheable}");
    let scratch = tempfile::tempdir().expect("make a folder");
    let program = [STEAD.to_owned()];
    if !steading_agent::sandbox::support(&program, scratch.path()).is_enforced() {
        // What is made without a sandbox stays where it was made.
        return skipped("namespaces", "whether completed steps were lost, without a sandbox");
    }
    assert_eq!(cacheable["hit"], JOBS, "the last attempt executed what an earlier one had");
    assert_eq!(cacheable["executed"], 0);
}

fn project(farm: &Cluster) -> PathBuf {
    let dir: &Path = farm.farm().dir();
    farm.farm().shared_file("started");
    let legs: Vec<String> = (1..=JOBS).map(|leg| leg.to_string()).collect();
    let pipeline = PIPELINE.replace("LEGS", &legs.join(", "));
    let pipeline = pipeline.replace("DIR", &dir.display().to_string());
    farm.farm().project("spot", &pipeline, &[("input", "the same for all\n")])
}

/// How many leases the agent holds; none while it is not connected.
fn used(farm: &Cluster, name: &str) -> Option<u64> {
    let text = farm.stead(&["agents", "--json"]);
    let agents = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut named = agents.filter(|agent| agent["name"] == name && agent["connected"] == true);
    named.next()?["slots_used"].as_u64()
}

/// The earlier attempts of each job, by the job's name.
fn explain(farm: &Cluster, run: &str) -> BTreeMap<String, Vec<Value>> {
    let text = farm.stead(&["explain", run, "--json"]);
    let jobs = text.lines().map(|line| {
        let job: Value = serde_json::from_str(line).expect("a job");
        let attempts = job["attempts"].as_array().expect("a list").clone();
        (job["name"].as_str().expect("a name").to_owned(), attempts)
    });
    jobs.collect()
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos() as u64
}
