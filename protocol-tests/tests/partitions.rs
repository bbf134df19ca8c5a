//! Stories of processes that lose each other: cut off by the network, stopped, or killed.
//!
//! Every job says again and again that it is alive, and when: no two attempts at one job
//! may ever have run at a time. `STEADING_JOBS` says how many there are.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use steading_protocol_tests::cluster::Cluster;
use steading_protocol_tests::farm::{Farm, Process, process_state, wait_for, wait_for_lines};
use steading_protocol_tests::netns::Network;

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

const COORDINATORS: usize = 3;
const AGENTS: usize = 4;

/// Jobs that are run through a group that is not whole.
const PROBES: usize = 3;

/// Elections that a machine without time for anybody may cause. Without end they would be
/// several a second.
const ELECTIONS_MAX: u64 = 3;

/// As many jobs as legs. Each goes on until `go` is there, or it alone is told to end.
const LONG_JOBS: &str = r#"on: push
jobs:
  long:
    runs-on: ubuntu-latest
    strategy:
      matrix: {leg: [LEGS]}
    steps:
      - run: |
          me="${{ matrix.leg }} ${{ runner.name }} $$"
          echo "$me" >> "DIR/started"
          until [ -e "DIR/go" ] || [ -e "DIR/end-${{ matrix.leg }}-${{ runner.name }}" ]; do
            echo "$me $EPOCHREALTIME" >> "DIR/alive"
            sleep 0.2
          done
"#;

/// Says when it started, in seconds since the epoch.
const PROBE: &str = r#"on: push
jobs:
  probe:
    runs-on: RUNS_ON
    steps:
      - run: echo "$EPOCHREALTIME" >> "DIR/probed"
"#;

#[test]
fn a_leader_that_is_cut_off_steps_down_and_its_agents_move() {
    let Some(story) = Story::begin() else { return };
    let leader = story.farm.leader();
    let name = format!("c{leader}");
    let moment = Moment::now();
    story.network().isolate(&name);
    story.probe("ubuntu-latest");
    println!("a run was accepted {:?} after the leader was cut off", moment.elapsed());
    println!("its job started {:?} after", moment.until(story.probed(1)));
    assert_ne!(story.farm.leader(), leader);
    story.wait_for_log(&name, "this replica leads no longer", 1);

    story.network().rejoin(&name);
    let moment = Moment::now();
    story.farm.wait_until_whole();
    println!("the group was whole {:?} after the network healed", moment.elapsed());
    story.probe("ubuntu-latest");
    story.probed(2);
    let starts = story.jobs;
    story.end(starts);
}

#[test]
fn a_leader_and_a_follower_that_lost_each_other_do_not_keep_electing() {
    let Some(story) = Story::begin() else { return };
    let leader = story.farm.leader();
    let follower = (leader + 1) % COORDINATORS;
    // It has heard of no coordinator but this one.
    let endpoint = story.farm.member(follower)["endpoint"].as_str().expect("a place").to_owned();
    let token = story.farm.token(&["--role", "agent"]);
    let lonely = ["agent", "--coordinator", &endpoint, "--data-dir", "lonely", "--name", "lonely"];
    let joins = ["--slots", "1", "--labels", "lonely", "--join", &token];
    let start = || story.farm.farm().spawn("lonely", &[&lonely[..], &joins].concat(), false);
    let before = start();
    story.probe("lonely");
    story.probed(1);
    before.kill_9();

    let term = story.term();
    story.network().cut(&format!("c{leader}"), &format!("c{follower}"));
    let moment = Moment::now();
    // The follower, which knows no leader, says who else there is.
    let _after = start();
    story.probe("lonely");
    println!("an agent found its way {:?} after the cut", moment.until(story.probed(2)));
    for probe in 3..3 + PROBES {
        let moment = Moment::now();
        story.probe("ubuntu-latest");
        println!("a job started {:?} after it was submitted", moment.until(story.probed(probe)));
    }
    let terms = story.term() - term;
    println!("{terms} elections in {:?}", moment.elapsed());
    assert!(terms <= ELECTIONS_MAX, "{terms} elections");
    story.network().heal(&format!("c{leader}"), &format!("c{follower}"));
    story.farm.wait_until_whole();
    assert!(story.term() - term <= ELECTIONS_MAX, "the one that was alone made others vote");
    let starts = story.jobs;
    story.end(starts);
}

#[test]
fn an_agent_that_is_cut_off_freezes_its_jobs_before_they_start_elsewhere() {
    let Some(story) = Story::begin() else { return };
    let (agent, lost) = story.fullest();
    let moment = Moment::now();
    story.network().isolate(&agent);
    story.end_one(&lost[0]);
    story.wait_until_elsewhere(&moment, &lost);
    story.network().rejoin(&agent);
    story.wait_until_stale(&lost[0]);
    story.wait_until_gone(&lost);
    let starts = story.jobs + lost.len();
    story.end(starts);
}

#[test]
fn an_agent_that_stands_still_has_its_jobs_frozen_before_they_start_elsewhere() {
    let Some(mut story) = Story::begin() else { return };
    let (agent, lost) = story.fullest();
    let moment = Moment::now();
    story.agent(&agent).signal(Signal::SIGSTOP);
    story.end_one(&lost[0]);
    story.wait_until_elsewhere(&moment, &lost);
    story.agent(&agent).signal(Signal::SIGCONT);
    story.wait_until_stale(&lost[0]);
    story.wait_until_gone(&lost);
    let starts = story.jobs + lost.len();
    story.end(starts);
}

/// As on a machine that was suspended. (A supervisor that alone is stopped protects nothing:
/// its job runs on, and what comes of it is refused.)
#[test]
fn jobs_of_a_machine_that_stood_still_do_not_go_on_when_it_is_back() {
    let Some(mut story) = Story::begin() else { return };
    let (agent, lost) = story.fullest();
    let own = story.agent(&agent).pid();
    let supervisors = supervisors(own);
    assert!(supervisors.len() >= lost.len());
    let moment = Moment::now();
    let stopped = || std::iter::once(&own).chain(&supervisors);
    stopped().for_each(|pid| signal(*pid, Signal::SIGSTOP));
    lost.iter().for_each(|job| signal(job.pid, Signal::SIGSTOP));
    story.wait_until_elsewhere(&moment, &lost);
    // The supervisors alone may let the jobs go on, and must not.
    stopped().for_each(|pid| signal(*pid, Signal::SIGCONT));
    story.wait_until_gone(&lost);
    let starts = story.jobs + lost.len();
    story.end(starts);
}

#[test]
fn the_jobs_of_a_killed_agent_are_gone_before_they_start_elsewhere() {
    let Some(mut story) = Story::begin() else { return };
    let (agent, lost) = story.fullest();
    let moment = Moment::now();
    story.agent(&agent).signal(Signal::SIGKILL);
    story.wait_until_elsewhere(&moment, &lost);
    story.wait_until_gone(&lost);
    let starts = story.jobs + lost.len();
    story.end(starts);
}

/// The old leader and one agent are alone with each other, and the agent's renewals wait
/// for an answer while another leader gives its jobs away.
#[test]
fn a_leader_that_stood_still_prolongs_no_lease_when_it_goes_on() {
    let Some(story) = Story::begin() else { return };
    let leader = story.farm.leader();
    let name = format!("c{leader}");
    let (agent, lost) = story.fullest();
    let moment = Moment::now();
    story.farm.signal(leader, Signal::SIGSTOP);
    for other in (0..COORDINATORS).filter(|other| *other != leader) {
        let other = format!("c{other}");
        story.network().cut(&other, &name);
        story.network().cut(&other, &agent);
    }
    story.wait_until_elsewhere(&moment, &lost);
    let moment = Moment::now();
    story.farm.signal(leader, Signal::SIGCONT);
    // It has read what the agent said meanwhile, and could ask nobody.
    story.wait_for_log(&name, "this replica leads no longer", 1);
    println!("the old leader stepped down {:?} after it went on", moment.elapsed());
    let frozen = lost.iter().all(|job| stands_still(job.pid));
    assert!(frozen, "the old leader prolonged a lease\n{}", story.farm.logs());

    for other in (0..COORDINATORS).filter(|other| *other != leader) {
        let other = format!("c{other}");
        story.network().heal(&other, &name);
        story.network().heal(&other, &agent);
    }
    story.farm.wait_until_whole();
    story.wait_until_gone(&lost);
    let starts = story.jobs + lost.len();
    story.end(starts);
}

/// What a test has at hand while its long jobs run.
struct Story {
    farm: Cluster,
    run: String,
    watch: Process,
    jobs: usize,
}

impl Story {
    /// A farm whose agents are full of long jobs, with a watch on them; none where this
    /// machine has no namespaces.
    fn begin() -> Option<Self> {
        let network = Network::start()?;
        let jobs = number("STEADING_JOBS", 2 * AGENTS);
        let farm = Farm::in_network(STEAD, network);
        let farm = Cluster::start_in(farm, COORDINATORS, AGENTS, jobs.div_ceil(AGENTS - 1) + 1);
        for file in ["started", "alive", "probed"] {
            farm.farm().shared_file(file);
        }
        let legs: Vec<String> = (1..=jobs).map(|leg| leg.to_string()).collect();
        let pipeline = in_folder(LONG_JOBS, &farm).replace("LEGS", &legs.join(", "));
        let run = farm.submit(&farm.farm().project("long", &pipeline, &[]));
        let watch = farm.watch(&run);
        let story = Self { farm, run, watch, jobs };
        story.started(jobs);
        Some(story)
    }

    fn network(&self) -> &Network {
        self.farm.farm().network().expect("the story began in one")
    }

    fn dir(&self) -> &Path {
        self.farm.farm().dir()
    }

    /// Submits a job that says when it starts.
    fn probe(&self, runs_on: &str) {
        let pipeline = in_folder(PROBE, &self.farm).replace("RUNS_ON", runs_on);
        self.farm.submit(&self.farm.farm().project("probe", &pipeline, &[]));
    }

    /// When the last of so many probes started, in seconds since the epoch.
    fn probed(&self, count: usize) -> f64 {
        seconds(&wait_for_lines(&self.dir().join("probed"), count)[count - 1])
    }

    /// So many starts of jobs.
    fn started(&self, count: usize) -> Vec<Started> {
        let lines = wait_for_lines(&self.dir().join("started"), count);
        lines.iter().map(|line| Started::read(line)).collect()
    }

    /// Waits until a process has said this so many times.
    fn wait_for_log(&self, name: &str, text: &str, count: usize) {
        let log = || self.farm.farm().log(name);
        wait_for(&format!("`{text}` of {name}"), || log().matches(text).count() >= count);
    }

    fn term(&self) -> u64 {
        let mut term = None;
        wait_for("a term", || {
            term = self.farm.status()["term"].as_u64();
            term.is_some()
        });
        term.expect("waited for it")
    }

    /// The agent that has most jobs, and these.
    fn fullest(&self) -> (String, Vec<Started>) {
        let mut agents: BTreeMap<String, Vec<Started>> = BTreeMap::new();
        for job in self.started(self.jobs) {
            agents.entry(job.agent.clone()).or_default().push(job);
        }
        let fullest = agents.into_iter().max_by_key(|(_, jobs)| jobs.len());
        let (agent, jobs) = fullest.expect("there are jobs");
        assert!(jobs.len() > 1, "{agent}: {jobs:?}");
        (agent, jobs)
    }

    fn agent(&mut self, name: &str) -> &Process {
        let number: usize = name.strip_prefix('a').and_then(|n| n.parse().ok()).expect("a number");
        &self.farm.agents()[number]
    }

    /// Lets one job end at this agent.
    fn end_one(&self, job: &Started) {
        let end = self.dir().join(format!("end-{}-{}", job.leg, job.agent));
        std::fs::write(end, "").expect("let a job end");
        wait_for("a job to end", || is_gone(job.pid));
    }

    /// Waits until these jobs have started elsewhere, when their processes must not run.
    fn wait_until_elsewhere(&self, lost_at: &Moment, lost: &[Started]) {
        let wanted = self.jobs + lost.len();
        let mut still = None;
        wait_for("the jobs to start elsewhere", || {
            if still.is_none() && lost.iter().all(|job| stands_still(job.pid)) {
                still = Some(lost_at.elapsed());
            }
            let text = std::fs::read_to_string(self.dir().join("started"));
            text.is_ok_and(|text| text.matches('\n').count() >= wanted)
        });
        let count = lost.len();
        println!("all {count} jobs were frozen or gone {still:?} after their agent was lost");
        println!("and had started elsewhere {:?} after", lost_at.elapsed());
        assert!(lost.iter().all(|job| stands_still(job.pid)), "{}", self.farm.logs());
        let again = &self.started(wanted)[self.jobs..];
        for job in again {
            let before = lost.iter().find(|lost| lost.leg == job.leg);
            assert!(before.is_some_and(|before| before.agent != job.agent), "{again:?}");
        }
    }

    fn wait_until_gone(&self, lost: &[Started]) {
        wait_for("the lost processes to be gone", || lost.iter().all(|job| is_gone(job.pid)));
    }

    /// Waits until it is recorded that the job's first result came too late.
    fn wait_until_stale(&self, job: &Started) {
        let name = format!("long ({})", job.leg);
        wait_for(&format!("a stale result of {name}"), || {
            let text = self.farm.stead(&["explain", &self.run, "--json"]);
            let jobs = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut jobs = jobs.filter(|explained| explained["name"] == name.as_str());
            jobs.any(|explained| explained["stale_results"] == 1)
        });
    }

    /// Lets everything end, and looks at what became of it: jobs have started so many
    /// times in all.
    fn end(mut self, starts: usize) {
        assert!(self.watch.is_running(), "the watch ended before its run\n{}", self.farm.logs());
        std::fs::write(self.dir().join("go"), "").expect("let the jobs end");
        let Self { farm, watch, jobs, .. } = self;
        let (code, summary) = watch.finish();
        assert_eq!(code, Some(0), "{summary}\n{}", farm.logs());
        let legs = never_two_at_once(&farm);
        assert_eq!(legs.len(), jobs);
        assert_eq!(legs.values().map(Vec::len).sum::<usize>(), starts, "{legs:?}");
    }
}

/// A process of a long job.
#[derive(Clone, Debug)]
struct Started {
    leg: String,
    agent: String,
    pid: u32,
}

impl Started {
    fn read(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let pid = words[2].parse().expect("a process id");
        Self { leg: words[0].to_owned(), agent: words[1].to_owned(), pid }
    }
}

/// By leg, the times at which each of its processes was first and last seen alive: none
/// while another one was.
fn never_two_at_once(farm: &Cluster) -> BTreeMap<String, Vec<(f64, f64)>> {
    let text = std::fs::read_to_string(farm.farm().dir().join("alive")).expect("signs of life");
    let mut lives: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
    for line in text.lines() {
        let (process, at) = line.rsplit_once(' ').expect("a process and a time");
        let (leg, process) = process.split_once(' ').expect("a leg and a process");
        let (at, key) = (seconds(at), (leg.to_owned(), process.to_owned()));
        lives.entry(key).and_modify(|life| life.1 = at).or_insert((at, at));
    }
    let mut legs: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for ((leg, _), life) in lives {
        legs.entry(leg).or_default().push(life);
    }
    for (leg, lives) in &mut legs {
        lives.sort_by(|one, other| one.0.total_cmp(&other.0));
        let one_by_one = lives.windows(2).all(|pair| pair[0].1 < pair[1].0);
        assert!(one_by_one, "leg {leg} ran twice at a time: {lives:?}\n{}", farm.logs());
    }
    legs
}

/// Stopped, or ended.
fn stands_still(pid: u32) -> bool {
    is_gone(pid) || process_state(pid) == Some('T')
}

/// Ended, whether it was reaped or not.
fn is_gone(pid: u32) -> bool {
    matches!(process_state(pid), None | Some('Z' | 'X'))
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
    kill(pid, signal).unwrap_or_else(|error| panic!("{pid}: {error}"));
}

/// The supervisors that an agent started.
fn supervisors(agent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let own = pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        parent == Some(agent.to_string().as_str())
    });
    own.collect()
}

/// A moment from which others are counted.
struct Moment {
    instant: Instant,
    time: SystemTime,
}

impl Moment {
    fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    fn elapsed(&self) -> Duration {
        self.instant.elapsed()
    }

    /// Until a time that a job told.
    fn until(&self, told: f64) -> Duration {
        let since = self.time.duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
        Duration::from_secs_f64(told).saturating_sub(since)
    }
}

fn in_folder(pipeline: &str, farm: &Cluster) -> String {
    pipeline.replace("DIR", &farm.farm().dir().display().to_string())
}

fn seconds(text: &str) -> f64 {
    text.parse().expect("seconds since the epoch")
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
