//! What outlives a group: its backup, and a survivor of a lost majority. The runbooks
//! (`ops/runbooks`) to the letter, with real processes over mTLS.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;
use steading_proto::tls::{Identity, channel};
use steading_proto::v1;
use steading_proto::v1::join_client::JoinClient;
use steading_protocol_tests::cluster::Cluster;
use steading_protocol_tests::farm::{Farm, Process, holds_in_time, wait_for, wait_for_lines};
use steading_protocol_tests::jobs::run_states;
use tonic::Code;

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

const COORDINATORS: usize = 3;
const AGENTS: usize = 2;
/// Who submit at once.
const SUBMITTERS: usize = 2;
/// Runs that are acknowledged before the backup, and at least so many after it began.
const RUNS_BEFORE: usize = 6;
const RUNS_AFTER: usize = 3;
/// Cached steps of a run of the load.
const CACHED: u64 = 2;

/// Two cached steps, of a text that is in no other project.
const CACHED_STEPS: &str = r#"on: push
jobs:
  cached:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: tr a-z A-Z < in.txt > upper.txt
        x-steading: {cache: {inputs: [in.txt], outputs: [upper.txt]}}
      - run: wc -c < upper.txt > count.txt
        x-steading: {cache: {inputs: [upper.txt], outputs: [count.txt]}}
      - run: cat count.txt
"#;

/// Says once that it started, and goes on until `go` is there.
const LONG: &str = r#"on: push
jobs:
  long:
    runs-on: ubuntu-latest
    steps:
      - run: |
          echo "$$" >> "DIR/started"
          while [ ! -e "DIR/go" ]; do sleep 0.2; done
"#;

#[test]
fn a_backup_under_load_becomes_a_new_farm_that_has_every_run_and_knows_nobody_of_the_old_one() {
    let mut old = Cluster::start(STEAD, COORDINATORS, AGENTS, 3);
    let earlier = old.status()["cluster_id"].as_str().expect("a name").to_owned();
    let long = submit_long(&old);
    let load = Load::default();
    let (before, file) = std::thread::scope(|scope| {
        let _ends = load.end_with_this();
        for _ in 0..SUBMITTERS {
            scope.spawn(|| load.submit_to(&old));
        }
        wait_for("runs before the backup", || load.acknowledged().len() >= RUNS_BEFORE);
        let before = load.acknowledged().clone();
        let file = old.farm().dir().join("farm.backup");
        let began = Instant::now();
        said(&old, &["backup", path(&file), "--include-keys"], "backup of cluster");
        println!("a backup took {:?}", began.elapsed());
        let so_far = load.acknowledged().len();
        wait_for("runs after the backup", || load.acknowledged().len() >= so_far + RUNS_AFTER);
        (before, file)
    });
    let all = load.acknowledged().clone();
    wait_until_ended(&old, all.keys());
    let last = all.keys().map(|run| number(run)).max().expect("there are runs");

    // All of it is lost but the origin, one agent's machine, and the backup.
    (0..COORDINATORS).for_each(|coordinator| old.kill_9(coordinator));
    old.agents().drain(..).for_each(Process::kill_9);
    let farm = Farm::new(STEAD);
    let origin = old.farm().dir().join("origin");
    let keys = format!("{}.keys", file.display());
    let restored = farm.stead(&[
        "restore",
        path(&file),
        "--data-dir",
        "c0",
        "--object-store",
        path(&origin),
        "--keys",
        &keys,
    ]);
    let text = String::from_utf8_lossy(&restored.stdout).into_owned();
    assert!(restored.status.success(), "{text}{}", String::from_utf8_lossy(&restored.stderr));
    println!("{text}");
    let mut new = Cluster::found(farm, origin);
    new.log_in();
    // Logs that the old group kept are found by its name.
    let named = std::fs::read_dir(old.farm().dir().join("origin/logs")).expect("the logs' folder");
    let told = named.flatten().map(|entry| std::fs::read_to_string(entry.path().join("earlier")));
    assert_eq!(told.flatten().collect::<Vec<_>>(), [earlier]);
    let there = run_states(&new);
    for run in before.keys().chain([&long]) {
        assert!(there.contains_key(run), "{run} is not in the backup\n{there:?}");
    }

    // An agent of the old cluster is told what to do, and does it.
    let mut agent = old_agent(&old, &new, &[]);
    let log = || old.farm().log("a0");
    wait_for("the agent to say that it is a stranger", || log().contains("--join TOKEN"));
    assert!(log().contains("is no coordinator of this agent's farm"), "{}", log());
    assert!(agent.is_running(), "it goes on asking: it may be a wrong address for a while");
    agent.kill_9();
    let token = new.token(&["--role", "agent"]);
    let _agent = old_agent(&old, &new, &["--join", &token]);
    let _another = new.start_agent("b0", 3, &[]);

    // What ran when the backup was taken begins again, and everything ends well.
    wait_for_lines(&old.farm().dir().join("started"), 2);
    println!("{}", new.stead(&["explain", &long]));
    std::fs::write(old.farm().dir().join("go"), "").expect("let the long job end");
    wait_until_ended(&new, there.keys());

    // What the old farm found out need not be found out again: before or after the backup.
    for (run, project) in &all {
        assert_eq!(submit_and_wait(&new, project), (0, CACHED), "the sources of {run}");
    }
    for _ in 1..COORDINATORS {
        new.add_coordinator();
    }
    new.wait_until_whole();
    let fresh = project(&new, "fresh", "something that nobody saw before\n");
    assert_eq!(submit_and_wait(&new, &fresh), (CACHED, 0));
    let newest = run_states(&new).into_keys().map(|run| number(&run)).max();
    assert!(newest.is_some_and(|newest| newest > last + 1_000_000), "{newest:?} after {last}");
}

#[test]
fn a_survivor_of_a_lost_majority_goes_on_as_the_runbook_says() {
    let mut farm = Cluster::start(STEAD, COORDINATORS, 1, 3);
    let long = submit_long(&farm);
    let done = project(&farm, "done", "once\n");
    assert_eq!(submit_and_wait(&farm, &done), (CACHED, 0));
    // One of the lost ones leads.
    let to = farm.member(1)["id"].to_string();
    wait_for("the new leader", || {
        farm.output(&["cluster", "transfer", &to]);
        farm.leader() == 1
    });
    let acknowledged: Vec<String> = (0..5)
        .map(|number| farm.submit(&project(&farm, &format!("p{number}"), &format!("{number}\n"))))
        .collect();
    wait_for("the survivor to have it all", || farm.member(0)["lag"] == 0);
    let agent = Identity::load(&farm.farm().dir().join("a0/identity")).expect("a certificate");
    let agent = Arc::new(agent);
    wait_for("it to know the CAs of all", || cas_known_to(&farm, 0, &agent) == Ok(COORDINATORS));
    for lost in [1, 2] {
        farm.kill_9(lost);
        farm.wipe(lost);
    }
    // It cannot know whether these are all, and nobody is to believe too few.
    assert_eq!(cas_known_to(&farm, 0, &agent), Err(Code::Unavailable));

    // 1. Stop every coordinator that is left.
    farm.terminate(0);
    // 2. Look at what it holds.
    let shown = farm.farm().stead(&["recover", "--data-dir", "c0", "--show"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    println!("{shown}");
    assert!(shown.contains("term ") && shown.contains("open runs"), "{shown}");
    // 3. Copy its data directory somewhere safe.
    let copied = std::process::Command::new("cp")
        .args(["-a", "c0", "c0.safe"])
        .current_dir(farm.farm().dir())
        .status();
    assert!(copied.expect("cp runs").success());
    // 4. Go on from there; not by accident.
    let refused = farm.farm().stead(&["recover", "--data-dir", "c0"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--i-accept-data-loss"));
    let recovered = farm.farm().stead(&["recover", "--data-dir", "c0", "--i-accept-data-loss"]);
    let text = String::from_utf8_lossy(&recovered.stdout).into_owned();
    assert!(recovered.status.success(), "{text}{}", String::from_utf8_lossy(&recovered.stderr));
    assert!(text.contains("replica.bad.1"), "{text}");
    println!("{text}");
    // 5. Start it as before.
    farm.start_coordinator(0);
    farm.make_tokens();
    farm.log_in();
    let there = run_states(&farm);
    for run in acknowledged.iter().chain([&long]) {
        assert!(there.contains_key(run), "{run} was lost\n{there:?}");
    }
    // 6. The others join as new ones, and agents with a new token.
    farm.agents().drain(..).for_each(Process::kill_9);
    let _agent = farm.start_agent("a0", 3, &[]);
    for lost in [1, 2] {
        farm.start_coordinator(lost);
    }
    farm.wait_until_whole();
    let started = farm.farm().dir().join("started");
    let again = || std::fs::read_to_string(&started).is_ok_and(|text| text.lines().count() >= 2);
    assert!(
        holds_in_time(again),
        "it does not start again\n{}\n{}",
        farm.stead(&["explain", &long]),
        farm.farm().log("a0"),
    );
    std::fs::write(farm.farm().dir().join("go"), "").expect("let the long job end");
    wait_until_ended(&farm, there.keys());
    assert_eq!(submit_and_wait(&farm, &done), (0, CACHED));
}

/// Runs that are submitted all the time.
#[derive(Default)]
struct Load {
    /// Run and project, once the farm has said that it has the run.
    acknowledged: Mutex<BTreeMap<String, PathBuf>>,
    next: AtomicUsize,
    ended: AtomicBool,
}

/// Ends the load, also where the test fails.
struct Ends<'a>(&'a Load);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl Load {
    fn end_with_this(&self) -> Ends<'_> {
        Ends(self)
    }

    fn acknowledged(&self) -> MutexGuard<'_, BTreeMap<String, PathBuf>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit_to(&self, farm: &Cluster) {
        while !self.ended.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let project = project(farm, &format!("load-{number}"), &format!("text {number}\n"));
            let run = farm.submit(&project);
            self.acknowledged().insert(run, project);
        }
    }
}

/// How many CAs an agent is told of by a coordinator.
fn cas_known_to(farm: &Cluster, number: usize, agent: &Arc<Identity>) -> Result<usize, Code> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let channel = channel(&farm.endpoint(number), Arc::clone(agent)).expect("an endpoint");
        let bundle = JoinClient::new(channel).get_bundle(v1::GetBundleRequest {}).await;
        bundle.map(|bundle| bundle.get_ref().anchors.len()).map_err(|status| status.code())
    })
}

/// A job that runs when this returns.
fn submit_long(farm: &Cluster) -> String {
    let dir = farm.farm().dir();
    farm.farm().shared_file("started");
    let pipeline = LONG.replace("DIR", path(dir));
    let run = farm.submit(&farm.farm().project("long", &pipeline, &[]));
    wait_for_lines(&dir.join("started"), 1);
    run
}

fn project(farm: &Cluster, name: &str, text: &str) -> PathBuf {
    farm.farm().project(name, CACHED_STEPS, &[("in.txt", text)])
}

/// The first agent of the old farm, as it is, asks the new one.
fn old_agent(old: &Cluster, new: &Cluster, more: &[&str]) -> Process {
    let endpoints = new.endpoints();
    let args = ["agent", "--coordinator", &endpoints, "--data-dir", "a0", "--name", "a0"];
    old.farm().spawn("a0", &[&args[..], &["--slots", "3"], more].concat(), false)
}

/// Cached steps that were executed, and those that were not.
fn submit_and_wait(farm: &Cluster, project: &Path) -> (u64, u64) {
    let out = farm.output(&["submit", "--wait", "--json", path(project)]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    let summary: Value = serde_json::from_str(&text).expect("one JSON object");
    let count = |name: &str| summary["cacheable"][name].as_u64().expect("a number");
    (count("executed"), count("hit"))
}

fn wait_until_ended<'a>(farm: &Cluster, runs: impl Iterator<Item = &'a String> + Clone) {
    wait_for("the runs to end", || {
        let ended = run_states(farm);
        runs.clone().all(|run| {
            let state = ended.get(run).map_or("unknown", String::as_str);
            assert!(matches!(state, "running" | "success"), "{run}: {state}\n{}", farm.logs());
            state == "success"
        })
    });
}

/// Runs `stead`, which must go well and say this.
fn said(farm: &Cluster, args: &[&str], want: &str) {
    let out = farm.output(args);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains(want), "{text}{error}");
}

fn number(run: &str) -> u64 {
    run.strip_prefix("run-").and_then(|number| number.parse().ok()).expect("a run's name")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
