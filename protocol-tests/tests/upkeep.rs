//! Stories of a farm that is looked after while it works: new versions, new members, full
//! disks. Runs do not notice. `STEADING_JOBS` says how many jobs run meanwhile.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use steading_protocol_tests::cluster::{AGENTS, COORDINATORS, Cluster};
use steading_protocol_tests::farm::{skipped, wait_for};
use steading_protocol_tests::jobs::{Load, LongJobs, running_jobs, short_project};
use steading_protocol_tests::small_disk::{self, SmallDisk, mount_small};

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

/// The next version, which knows one more feature level.
const NEXT: &str = env!("CARGO_BIN_EXE_stead-next-under-test");

/// Jobs that run all the time.
const JOBS: usize = 8;

/// A disk that a coordinator can live on, its log's segments and its ballast with it.
const DISK_BYTES: u64 = 512 << 20;
/// Free bytes of such a disk that are too few to lead, and enough to go on.
const NEARLY_FULL_BYTES: u64 = 30 << 20;

/// What a kind of the next level is answered before all know it.
const TOO_EARLY: &str = "feature level 2 cannot be used or set, the group is at 1";

#[test]
fn a_new_version_takes_the_place_of_the_old_one_under_jobs() {
    let (mut farm, jobs, load) = begin();

    upgrade(&mut farm, 0);
    // Led by the old version, and by the new one.
    for leader in [1, 0] {
        transfer(&farm, leader);
        assert_eq!(farm.probe(0), TOO_EARLY, "{leader} leads");
        load.wait_for(&farm, 1);
    }
    upgrade(&mut farm, 1);
    assert_eq!(farm.probe(0), TOO_EARLY);
    // Back, for the new one displeased: that works as long as one of the old ones is there.
    farm.terminate(0);
    farm.start_coordinator(0);
    farm.wait_until_whole();
    load.wait_for(&farm, 1);
    wait_for("it to say what it knows", || farm.member(0)["feature_level"] == 1);
    upgrade(&mut farm, 2);
    assert_eq!(farm.status()["feature_level"], 1, "{}", farm.status());
    assert_eq!(farm.probe(1), TOO_EARLY);

    upgrade(&mut farm, 0);
    wait_for("the feature level to be raised", || farm.status()["feature_level"] == 2);
    wait_for("what is new to be accepted", || farm.probe(farm.leader()) == "accepted");
    load.wait_for(&farm, 1);

    // From now on there is no way back: not on the data of a member, and not as a new one.
    let member = (0..COORDINATORS).find(|number| *number != farm.leader()).expect("three");
    farm.terminate(member);
    let said = farm.coordinator_fails(member, Path::new(STEAD));
    assert!(said.contains("the group is at feature level 2"), "{said}");
    farm.start_coordinator_as(member, Path::new(NEXT));
    farm.wait_until_whole();
    let late = farm.add_place();
    let said = farm.coordinator_fails(late, Path::new(STEAD));
    assert!(said.contains("the group is at feature level 2"), "{said}");
    assert!(said.contains("start a later version"), "{said}");

    let done = load.finish(&farm);
    assert!(done.refused.is_empty(), "{:?}", done.refused);
    jobs.finish(&farm);
}

#[test]
fn leadership_is_handed_over_under_load() {
    const TRANSFERS: usize = 10;
    let (farm, jobs, load) = begin();
    let mut asked = Vec::new();
    for _ in 0..TRANSFERS {
        farm.wait_until_whole();
        asked.push(SystemTime::now());
        wait_for("leadership to be handed over", || {
            farm.output(&["cluster", "transfer"]).status.success()
        });
        load.wait_for(&farm, 1);
    }
    let done = load.finish(&farm);
    assert!(done.refused.is_empty(), "{:?}", done.refused);
    let mut waits: Vec<Duration> = asked.iter().map(|at| next_start(&done.starts, *at)).collect();
    print_times("from `stead cluster transfer` to the next start of a job", &mut waits);
    jobs.finish(&farm);
}

#[test]
fn members_are_replaced_one_after_another_under_load() {
    let (mut farm, jobs, load) = begin();
    // The first one stays, for its socket is the admin's.
    transfer(&farm, 1);
    for (old, what) in [(2, "a follower"), (1, "the leader")] {
        let id = farm.member(old)["id"].to_string();
        farm.add_coordinator();
        let asked = Instant::now();
        // Refused as long as the new one is not ready to take its place.
        wait_for("the old one to be removed", || {
            farm.output(&["cluster", "remove", &id]).status.success()
        });
        println!("{what} was replaced {:?} after that was asked", asked.elapsed());
        farm.kill_9(old);
        farm.wait_until_whole();
        load.wait_for(&farm, 3);
    }
    // Nobody is left whom agents were told of when they were started.
    farm.log_in();
    // Nor a client under way that knows the old ones only: one ends, and another.
    load.wait_for(&farm, 2);
    farm.kill_9(0);
    load.wait_for(&farm, 3);
    farm.start_coordinator(0);
    farm.wait_until_whole();

    let done = load.finish(&farm);
    assert!(done.refused.is_empty(), "{:?}", done.refused);
    jobs.finish(&farm);
}

#[test]
fn a_leader_whose_disk_runs_full_hands_over_and_comes_back() {
    let Some((mut farm, disks, jobs, load)) = begin_on_small_disks() else { return };

    let low = farm.leader();
    disks[low].fill(NEARLY_FULL_BYTES);
    let filled = Instant::now();
    wait_for("another to lead", || farm.leader() != low);
    println!("another led {:?} after the leader's disk was nearly full", filled.elapsed());
    load.wait_for(&farm, 1);
    assert!(farm.is_running(low));
    disks[low].clear();

    // Without a warning, and without what its log holds in advance.
    let full = farm.leader();
    farm.signal(full, Signal::SIGSTOP);
    disks[full].thin_out(Path::new("replica/wal"));
    disks[full].fill(0);
    farm.signal(full, Signal::SIGCONT);
    let (filled, at) = (Instant::now(), SystemTime::now());
    wait_for("the one whose disk is full to stop", || !farm.is_running(full));
    println!("it stopped {:?} after its disk was full", filled.elapsed());
    load.wait_for(&farm, 1);
    farm.kill_9(full);
    let said = farm.farm().log(&format!("c{full}"));
    // By the write that failed, or just before one would.
    let why = ["No space left on device", "before a write fails"];
    assert!(why.iter().any(|why| said.contains(why)), "{said}");

    // What it kept for this is enough to start with, and then there is room again.
    farm.start_coordinator(full);
    load.wait_for(&farm, 1);
    disks[full].clear();
    farm.wait_until_whole();
    transfer(&farm, full);
    load.wait_for(&farm, 1);

    let done = load.finish(&farm);
    assert!(done.refused.is_empty(), "{:?}", done.refused);
    println!("a job started {:?} after the disk was full", next_start(&done.starts, at));
    println!("the longest time between two starts was {:?}", longest_gap(&done.starts));
    jobs.finish(&farm);
}

#[test]
fn a_farm_on_full_disks_takes_nothing_and_finishes_what_it_has() {
    let Some((mut farm, disks, jobs, load)) = begin_on_small_disks() else { return };
    disks.iter().for_each(|disk| disk.fill(NEARLY_FULL_BYTES));
    let done = load.finish(&farm);
    let project = short_project(&farm, "ubuntu-latest").display().to_string();
    let submit = ["submit", &project];
    let refused = farm.output(&submit);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("disk is nearly full"), "{said}");
    for said in &done.refused {
        assert!(said.contains("disk is nearly full"), "{said}");
    }
    // Nobody would like to lead, and somebody does.
    let leader = farm.leader();
    farm.kill_9(leader);
    let killed = Instant::now();
    wait_for("another to lead", || farm.leader() != leader);
    println!("another led {:?} after the leader's death, its disk full, too", killed.elapsed());
    farm.start_coordinator(leader);
    jobs.finish(&farm);

    disks.iter().for_each(SmallDisk::clear);
    let load = Load::start(&farm);
    load.wait_for(&farm, 1);
    let done = load.finish(&farm);
    assert!(done.refused.is_empty(), "{:?}", done.refused);
}

/// A farm with jobs that run, room for one more on each agent, and a client that submits
/// short ones.
fn begin() -> (Cluster, LongJobs, Load) {
    let mut farm = Cluster::without_agents(STEAD, COORDINATORS);
    let (jobs, load) = set_to_work(&mut farm);
    (farm, jobs, load)
}

/// The same, each coordinator on a small disk; none where there cannot be any.
fn begin_on_small_disks() -> Option<(Cluster, Vec<SmallDisk>, LongJobs, Load)> {
    if let Err(why) = small_disk::own_mounts() {
        skipped("root", &why);
        return None;
    }
    let mut farm = Cluster::in_folders(STEAD, COORDINATORS, |dir| mount_small(dir, DISK_BYTES));
    let disks = disks(&farm);
    let (jobs, load) = set_to_work(&mut farm);
    Some((farm, disks, jobs, load))
}

fn set_to_work(farm: &mut Cluster) -> (LongJobs, Load) {
    let jobs = running_jobs(JOBS);
    farm.add_agents(AGENTS, jobs.div_ceil(AGENTS) + 1);
    let jobs = LongJobs::start(farm, jobs);
    let load = Load::start(farm);
    (jobs, load)
}

fn disks(farm: &Cluster) -> Vec<SmallDisk> {
    (0..COORDINATORS).map(|number| SmallDisk::at(&farm.folder(number))).collect()
}

/// Has this coordinator lead as soon as it can.
fn transfer(farm: &Cluster, number: usize) {
    let id = farm.member(number)["id"].to_string();
    wait_for("the lead to be taken", || {
        // Refused as long as it is not heard of, or leads already.
        farm.output(&["cluster", "transfer", &id]);
        farm.leader() == number
    });
}

/// Stops a coordinator and starts it as the next version.
fn upgrade(farm: &mut Cluster, number: usize) {
    farm.terminate(number);
    farm.start_coordinator_as(number, Path::new(NEXT));
    farm.wait_until_whole();
}

fn next_start(starts: &[SystemTime], at: SystemTime) -> Duration {
    let next = starts.iter().find(|start| **start > at).expect("a job started afterwards");
    next.duration_since(at).unwrap_or_default()
}

fn longest_gap(starts: &[SystemTime]) -> Duration {
    let gaps = starts.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap_or_default());
    gaps.max().unwrap_or_default()
}

fn print_times(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let middle = times[times.len() / 2];
    let (least, most) = (times[0], times[times.len() - 1]);
    println!("{what}, {} times: {least:?} to {most:?}, p50 {middle:?}", times.len());
}
