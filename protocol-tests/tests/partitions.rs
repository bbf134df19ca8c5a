//! Stories of processes that lose each other: cut off by the network, stopped, or killed.
//!
//! Every job says again and again that it is alive, and when: no two attempts at one job
//! may ever have run at a time. `STEADING_JOBS` says how many there are.

use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use steading_protocol_tests::cluster::{AGENTS, COORDINATORS, Cluster};
use steading_protocol_tests::farm::{Farm, Process, wait_for};
use steading_protocol_tests::jobs::{
    LongJob, LongJobs, next_short, running_jobs, short_started, submit_short,
};
use steading_protocol_tests::netns::Network;

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

/// Jobs that are run through a group that is not whole.
const PROBES: usize = 3;

/// Elections that a machine without time for anybody may cause in any while as long as this.
/// Without end they would be several a second.
const ELECTIONS_MAX: u64 = 3;
const ELECTIONS_WHILE: Duration = Duration::from_secs(10);

#[test]
fn a_leader_that_is_cut_off_steps_down_and_its_agents_move() {
    let Some(story) = Story::begin() else { return };
    let leader = story.farm.leader();
    let name = format!("c{leader}");
    let before = story.step_downs(&name);
    let moment = Moment::now();
    story.network().isolate(&name);
    let run = submit_short(&story.farm, "ubuntu-latest");
    println!("a run was accepted {:?} after the leader was cut off", moment.elapsed());
    println!("its job started {:?} after", moment.until(short_started(&story.farm, &run)));
    assert_ne!(story.farm.leader(), leader);
    story.wait_for_step_down(&name, before);

    story.network().rejoin(&name);
    let moment = Moment::now();
    story.farm.wait_until_whole();
    println!("the group was whole {:?} after the network healed", moment.elapsed());
    next_short(&story.farm, moment.time);
    story.finish();
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
    short_started(&story.farm, &submit_short(&story.farm, "lonely"));
    before.kill_9();

    let term = story.term();
    story.network().cut(&format!("c{leader}"), &format!("c{follower}"));
    let moment = Moment::now();
    // The follower, which knows no leader, says who else there is.
    let _after = start();
    let run = submit_short(&story.farm, "lonely");
    let found = moment.until(short_started(&story.farm, &run));
    println!("an agent found its way {found:?} after the cut");
    for _ in 0..PROBES {
        let waited = next_short(&story.farm, SystemTime::now());
        println!("a job started {waited:?} after it was submitted");
    }
    let check = |what| {
        let (terms, took) = (story.term() - term, moment.elapsed());
        let whiles = took.as_secs() / ELECTIONS_WHILE.as_secs() + 1;
        println!("{terms} elections in {took:?}, {what}");
        assert!(terms <= ELECTIONS_MAX * whiles, "{terms} elections in {took:?}, {what}");
    };
    check("cut off");
    story.network().heal(&format!("c{leader}"), &format!("c{follower}"));
    story.farm.wait_until_whole();
    check("and healed");
    story.finish();
}

#[test]
fn an_agent_that_is_cut_off_freezes_its_jobs_before_they_start_elsewhere() {
    let Some(story) = Story::begin() else { return };
    let (agent, lost) = story.jobs.fullest();
    let moment = Moment::now();
    story.network().isolate(&agent);
    story.jobs.end_one(&lost[0]);
    story.wait_until_elsewhere(&moment, &lost);
    story.network().rejoin(&agent);
    story.jobs.wait_until_stale(&story.farm, &lost[0]);
    story.finish_without(&lost);
}

#[test]
fn an_agent_that_stands_still_has_its_jobs_frozen_before_they_start_elsewhere() {
    let Some(mut story) = Story::begin() else { return };
    let (agent, lost) = story.jobs.fullest();
    let moment = Moment::now();
    story.agent(&agent).signal(Signal::SIGSTOP);
    story.jobs.end_one(&lost[0]);
    story.wait_until_elsewhere(&moment, &lost);
    story.agent(&agent).signal(Signal::SIGCONT);
    story.jobs.wait_until_stale(&story.farm, &lost[0]);
    story.finish_without(&lost);
}

/// As on a machine that was suspended. (A supervisor that alone is stopped protects nothing:
/// its job runs on, and what comes of it is refused.)
#[test]
fn jobs_of_a_machine_that_stood_still_do_not_go_on_when_it_is_back() {
    let Some(mut story) = Story::begin() else { return };
    let (agent, lost) = story.jobs.fullest();
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
    story.finish_without(&lost);
}

#[test]
fn the_jobs_of_a_killed_agent_are_gone_before_they_start_elsewhere() {
    let Some(mut story) = Story::begin() else { return };
    let (agent, lost) = story.jobs.fullest();
    let moment = Moment::now();
    story.agent(&agent).signal(Signal::SIGKILL);
    story.wait_until_elsewhere(&moment, &lost);
    story.finish_without(&lost);
}

/// The old leader and one agent are alone with each other, and the agent's renewals wait
/// for an answer while another leader gives its jobs away.
#[test]
fn a_leader_that_stood_still_prolongs_no_lease_when_it_goes_on() {
    let Some(story) = Story::begin() else { return };
    let leader = story.farm.leader();
    let name = format!("c{leader}");
    let (agent, lost) = story.jobs.fullest();
    let moment = Moment::now();
    story.farm.signal(leader, Signal::SIGSTOP);
    for other in (0..COORDINATORS).filter(|other| *other != leader) {
        let other = format!("c{other}");
        story.network().cut(&other, &name);
        story.network().cut(&other, &agent);
    }
    story.wait_until_elsewhere(&moment, &lost);
    let (moment, before) = (Moment::now(), story.step_downs(&name));
    story.farm.signal(leader, Signal::SIGCONT);
    // It has read what the agent said meanwhile, and could ask nobody.
    story.wait_for_step_down(&name, before);
    println!("the old leader stepped down {:?} after it went on", moment.elapsed());
    let frozen = lost.iter().all(stands_still);
    assert!(frozen, "the old leader prolonged a lease\n{}", story.farm.logs());

    for other in (0..COORDINATORS).filter(|other| *other != leader) {
        let other = format!("c{other}");
        story.network().heal(&other, &name);
        story.network().heal(&other, &agent);
    }
    story.farm.wait_until_whole();
    story.finish_without(&lost);
}

/// What a test has at hand while its long jobs run.
struct Story {
    farm: Cluster,
    jobs: LongJobs,
}

impl Story {
    /// A farm whose agents are full of long jobs, with room for those of one of them; none
    /// where this machine has no namespaces.
    fn begin() -> Option<Self> {
        let network = Network::start()?;
        let jobs = running_jobs(2 * AGENTS);
        let farm = Farm::in_network(STEAD, network);
        let farm = Cluster::start_in(farm, COORDINATORS, AGENTS, jobs.div_ceil(AGENTS - 1) + 1);
        let jobs = LongJobs::start(&farm, jobs);
        Some(Self { farm, jobs })
    }

    fn network(&self) -> &Network {
        self.farm.farm().network().expect("the story began in one")
    }

    /// How many times a coordinator has stopped leading so far.
    fn step_downs(&self, name: &str) -> usize {
        self.farm.farm().log(name).matches("this replica leads no longer").count()
    }

    fn wait_for_step_down(&self, name: &str, before: usize) {
        wait_for(&format!("{name} to step down"), || self.step_downs(name) > before);
    }

    fn term(&self) -> u64 {
        let mut term = None;
        wait_for("a term", || {
            term = self.farm.status()["term"].as_u64();
            term.is_some()
        });
        term.expect("waited for it")
    }

    fn agent(&mut self, name: &str) -> &Process {
        let number: usize = name.strip_prefix('a').and_then(|n| n.parse().ok()).expect("a number");
        &self.farm.agents()[number]
    }

    /// Waits until these jobs have started elsewhere, when their processes must not run.
    fn wait_until_elsewhere(&self, lost_at: &Moment, lost: &[LongJob]) {
        let wanted = self.jobs.count() + lost.len();
        let mut still = None;
        wait_for("the jobs to start elsewhere", || {
            if still.is_none() && lost.iter().all(stands_still) {
                still = Some(lost_at.elapsed());
            }
            self.jobs.starts() >= wanted
        });
        let count = lost.len();
        println!("all {count} jobs were frozen or gone {still:?} after their agent was lost");
        println!("and had started elsewhere {:?} after", lost_at.elapsed());
        assert!(lost.iter().all(stands_still), "{}", self.farm.logs());
        let again = &self.jobs.started(wanted)[self.jobs.count()..];
        for job in again {
            let before = lost.iter().find(|lost| lost.leg == job.leg);
            assert!(before.is_some_and(|before| before.agent != job.agent), "{again:?}");
        }
    }

    /// Lets everything end; every job has started once.
    fn finish(self) {
        self.jobs.finish(&self.farm);
    }

    /// The same where these were lost and started again: nothing is left of them.
    fn finish_without(self, lost: &[LongJob]) {
        wait_for("the lost processes to be gone", || lost.iter().all(LongJob::is_gone));
        let starts = self.jobs.count() + lost.len();
        self.jobs.finish_after(&self.farm, starts);
    }
}

/// Stopped, or ended.
fn stands_still(job: &LongJob) -> bool {
    job.is_gone() || job.is_frozen()
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

    fn until(&self, later: SystemTime) -> Duration {
        later.duration_since(self.time).unwrap_or_default()
    }
}
