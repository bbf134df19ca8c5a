//! `stead coordinator`, `stead agent` and `stead submit` as processes of their own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::Place;

#[test]
fn a_submitted_run_streams_its_logs_and_hands_its_artifacts_over() {
    let farm = Farm::start();
    let place = Place::example("c-program");
    let said = place
        .run(&["submit", "--wait", "--json", "--coordinator", &farm.endpoint, "--artifacts", "out"])
        .ended(0)
        .said("Test | list: ok".trim_start_matches("Test | "));
    assert_eq!(said.json()["cacheable"]["executed"], 9);
    assert!(place.path().join("out/dist/ini.tar.gz").is_file());
    let again = place.run(&["submit", "--wait", "--json", "--coordinator", &farm.endpoint]);
    assert_eq!(again.ended(0).json()["cacheable"]["executed"], 0);
    let at = ["--coordinator", &farm.endpoint];
    place.run(&[&["runs"], &at[..]].concat()).ended(0).said("run-2");
    place.run(&[&["logs", "run-1", "program"], &at[..]].concat()).ended(0).said("list: ok");
    place.run(&[&["watch", "1"], &at[..]].concat()).ended(0).said("run-1: success");
}

#[test]
fn a_submission_that_is_not_waited_for_prints_its_run() {
    let farm = Farm::start();
    let place = Place::example("failing");
    let said = place.run(&["submit", "--coordinator", &farm.endpoint]).ended(0);
    assert_eq!(said.out, "run-1\n");
    place.run(&["watch", "run-1", "--coordinator", &farm.endpoint]).ended(1);
    let said = place.run(&["submit", "--wait", "--coordinator", &farm.endpoint]).ended(1);
    said.said("test | case 4: want 4, got 5").said("exit code 7");
}

#[test]
fn the_coordinator_may_be_away_and_nothing_is_lost() {
    let mut farm = Farm::start();
    let place = Place::empty();
    place.write(
        "p.yml",
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: |\n          \
         echo before\n          until [ -e \"$MARK\" ]; do read -t 0.05 <> <(:) || true; done\n          \
         echo after\n        shell: bash\n",
    );
    let mark = place.path().join("mark");
    let mark_env = format!("MARK={}", mark.display());
    let mut child = place
        .stead(&["submit", "p.yml", "--wait", "--coordinator", &farm.endpoint, "--env", &mark_env])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.by_ref().map_while(Result::ok).find(|line| line == "a | before").unwrap();
    farm.kill_coordinator();
    farm.start_coordinator();
    std::fs::write(&mark, "").unwrap();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest:?}");
    assert_eq!(rest.iter().filter(|line| *line == "a | after").count(), 1, "{rest:?}");
    assert!(!rest.iter().any(|line| line == "a | before"), "the log repeats: {rest:?}");
    assert!(!rest.iter().any(|line| line.contains("attempt 2")), "{rest:?}");
}

/// A coordinator and an agent, in a folder of their own.
struct Farm {
    place: Place,
    endpoint: String,
    coordinator: Child,
    agent: Child,
}

impl Farm {
    fn start() -> Self {
        let place = Place::empty();
        let endpoint = format!("unix:{}/s", place.path().display());
        let coordinator = start_coordinator(&place, &endpoint);
        let agent = place
            .stead(&["agent", "--coordinator", &endpoint, "--data-dir", "agent", "--user", "self"])
            .spawn()
            .unwrap();
        Self { place, endpoint, coordinator, agent }
    }

    fn kill_coordinator(&mut self) {
        self.coordinator.kill().unwrap();
        self.coordinator.wait().unwrap();
    }

    fn start_coordinator(&mut self) {
        self.coordinator = start_coordinator(&self.place, &self.endpoint);
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        for child in [&mut self.agent, &mut self.coordinator] {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
            // Whatever the test found: the process must not outlive it.
            let _ = kill(pid, Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

fn start_coordinator(place: &Place, endpoint: &str) -> Child {
    let mut child = place
        .stead(&["coordinator", "--data-dir", "coordinator", "--listen", endpoint])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("listening on {endpoint}\n"));
    child
}
