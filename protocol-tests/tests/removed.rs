//! The story of an agent that somebody removes while it works.

use std::time::Instant;

use serde_json::Value;
use steading_protocol_tests::cluster::Cluster;
use steading_protocol_tests::farm::wait_for;
use steading_protocol_tests::jobs::LongJobs;

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

#[test]
fn a_removed_agent_gives_back_its_job_and_is_never_let_in_again() {
    let farm = Cluster::without_agents(STEAD, 1);
    let removed = farm.start_agent("a0", 1, &[]);
    let jobs = LongJobs::start(&farm, 1);
    let _other = farm.start_agent("a1", 1, &[]);

    let asked = Instant::now();
    let out = farm.output(&["agent", "remove", "a0"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let agents: Vec<String> = jobs.started(2).into_iter().map(|job| job.agent).collect();
    assert_eq!(agents, ["a0", "a1"]);
    println!("its job started elsewhere {:?} after it was removed", asked.elapsed());
    wait_for("it to hold nothing", || {
        let agents = farm.stead(&["agents", "--json"]);
        let mut agents = agents.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let row = agents.find(|agent| agent["name"] == "a0");
        row.is_some_and(|row| row["state"] == "removed" && row["slots_used"] == 0)
    });

    // Its certificate is good for a day, and its token has uses left.
    removed.kill_9();
    let refusals = [
        ("with its certificate", "told not to believe this member"),
        ("with the token", "it was denied to the cluster"),
    ];
    for (data, why) in refusals {
        let before = farm.farm().log("a0").len();
        let mut again = farm.start_agent("a0", 1, &[]);
        wait_for(&format!("it to be refused {data}"), || !again.is_running());
        let said = farm.farm().log("a0")[before..].to_owned();
        assert!(said.contains(why), "{data}: {said}");
        let _ = std::fs::remove_dir_all(farm.farm().dir().join("a0/identity"));
    }
    jobs.finish_after(&farm, agents.len());
}
