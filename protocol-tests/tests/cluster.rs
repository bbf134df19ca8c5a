//! Stories of several coordinators: they die, stop and are replaced, runs do not.
//!
//! `STEADING_KILLS` (leaders that die) and `STEADING_JOBS` (that run meanwhile) make them as
//! large as wanted.

use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use steading_protocol_tests::cluster::{AGENTS, COORDINATORS, Cluster};
use steading_protocol_tests::farm::wait_for;
use steading_protocol_tests::jobs::{
    Load, LongJob, LongJobs, next_short, number, running_jobs, short_started, submit_short,
    wait_for_success,
};

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

#[test]
fn leaders_die_one_after_another_and_nothing_is_lost() {
    let kills = number("STEADING_KILLS", 5);
    let (mut farm, jobs) = begin(40);
    let mut runs = Vec::new();
    let mut waits = Vec::new();
    for _ in 0..kills {
        farm.wait_until_whole();
        let leader = farm.leader();
        let killed = SystemTime::now();
        farm.kill_9(leader);
        let run = submit_short(&farm, "ubuntu-latest");
        waits.push(short_started(&farm, &run).duration_since(killed).unwrap_or_default());
        runs.push(run);
        farm.start_coordinator(leader);
    }
    print_percentiles("from the kill to the start of a job submitted then", &mut waits);
    jobs.finish(&farm);
    wait_for_success(&farm, &runs);
}

#[test]
fn a_leader_that_stands_still_is_replaced_and_steps_back() {
    let (farm, jobs) = begin(4);
    let leader = farm.leader();
    farm.signal(leader, Signal::SIGSTOP);
    let (stopped, at) = (Instant::now(), SystemTime::now());
    let run = submit_short(&farm, "ubuntu-latest");
    println!("a run was accepted {:?} after the leader was stopped", stopped.elapsed());
    let started = short_started(&farm, &run).duration_since(at).unwrap_or_default();
    println!("its job started {started:?} after the leader was stopped");
    assert_ne!(farm.leader(), leader);
    std::thread::park_timeout(Duration::from_secs(5).saturating_sub(stopped.elapsed()));
    farm.signal(leader, Signal::SIGCONT);
    farm.wait_until_whole();
    // What it knew of leases is not believed any more.
    let waited = next_short(&farm, SystemTime::now());
    println!("a job started {waited:?} after it was submitted when the old leader was back");
    jobs.finish(&farm);
}

#[test]
fn a_leader_whose_disk_hangs_is_replaced_and_ends() {
    let (mut farm, jobs) = begin(4);
    let leader = farm.leader();
    let hung = farm.hang(leader);
    let at = SystemTime::now();
    let run = submit_short(&farm, "ubuntu-latest");
    let started = short_started(&farm, &run).duration_since(at).unwrap_or_default();
    println!("a job was submitted and started {started:?} after the leader's disk hung");
    assert_ne!(farm.leader(), leader);
    // Whoever is connected to it must not wait for ever.
    wait_for("it to end", || hung.is_over() && !farm.is_running(leader));
    let said = farm.farm().log(&format!("c{leader}"));
    assert!(said.contains("its disk hangs"), "{said}");
    farm.start_coordinator(leader);
    farm.wait_until_whole();
    jobs.finish(&farm);
}

#[test]
fn without_any_coordinator_jobs_freeze_and_go_on_afterwards() {
    let (mut farm, jobs) = begin(8);
    let processes = jobs.started(jobs.count());
    let stopped = Instant::now();
    (0..COORDINATORS).for_each(|coordinator| farm.kill_9(coordinator));
    wait_for("every job to freeze", || processes.iter().all(LongJob::is_frozen));
    println!("{} jobs froze {:?} after the coordinators died", jobs.count(), stopped.elapsed());
    let away = Duration::from_secs(number("STEADING_AWAY_SECONDS", 20) as u64);
    std::thread::park_timeout(away.saturating_sub(stopped.elapsed()));
    (0..COORDINATORS).for_each(|coordinator| farm.start_coordinator(coordinator));
    let back = Instant::now();
    wait_for("every job to thaw", || {
        processes.iter().all(|job| !job.is_gone() && !job.is_frozen())
    });
    println!("and went on {:?} after they were back", back.elapsed());
    jobs.finish(&farm);
}

#[test]
fn coordinators_restart_one_after_another_and_nobody_notices() {
    let (mut farm, jobs) = begin(4);
    let load = Load::start(&farm);
    for coordinator in 0..COORDINATORS {
        farm.terminate(coordinator);
        farm.start_coordinator(coordinator);
        farm.wait_until_whole();
    }
    let done = load.finish(&farm);
    assert!(done.refused.is_empty(), "{:?}", done.refused);
    jobs.finish(&farm);
}

#[test]
fn a_coordinator_whose_disk_was_wiped_comes_back_as_another() {
    let (mut farm, jobs) = begin(4);
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
    jobs.finish(&farm);
}

/// A farm whose agents run so many jobs, and have room for one more each.
fn begin(jobs: usize) -> (Cluster, LongJobs) {
    let jobs = running_jobs(jobs);
    let farm = Cluster::start(STEAD, COORDINATORS, AGENTS, jobs.div_ceil(AGENTS) + 1);
    let jobs = LongJobs::start(&farm, jobs);
    (farm, jobs)
}

fn print_percentiles(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!("{what}, {} times: p50 {:?}, p99 {:?}", times.len(), at(50), at(99));
}
