//! `stead run` as a person meets it, on temporary copies of the examples.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Place, Said};

#[test]
fn hello_runs_its_matrix_and_passes_outputs_on() {
    let place = Place::example("hello");
    let said = place.run(&["run", "--verbose"]).ended(0);
    let said = said.said("Hello, world").said("Hello, farm!!!").said("planned: world, farm");
    let said = said.said("run-1: success");
    assert!(!said.out.contains("Hello, world!!!"), "{said}");
    let ignore = std::fs::read_to_string(place.path().join(".steading/state/.gitignore"));
    assert_eq!(ignore.unwrap(), "*\n");
}

#[test]
fn a_summary_is_one_json_object_and_nothing_else_is_on_stdout() {
    let said = Place::example("hello").run(&["run", "--json"]).ended(0);
    let summary = said.json();
    assert_eq!(summary["run"], "run-1");
    assert_eq!(summary["result"], "success");
    assert!(summary["wall_ms"].is_u64());
    let jobs = serde_json::json!(
        {"total": 4, "succeeded": 4, "failed": 0, "cancelled": 0, "skipped": 0}
    );
    assert_eq!(summary["jobs"], jobs);
    assert_eq!(summary["cacheable"], serde_json::json!({"hit": 0, "executed": 0}));
}

#[test]
fn an_answer_that_nobody_reads_is_no_panic() {
    let place = Place::empty();
    place.write("p.yml", QUICK);
    for words in [&["expr", "1"][..], &["runs", "--json"], &["run", "p.yml", "--json"]] {
        place.run(&["run", "p.yml"]).ended(0);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = place.stead(words).stdout(writer).status().unwrap();
        assert_eq!(status.code(), Some(0), "{words:?}");
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = place.stead(words).stdout(full).output().unwrap();
        Said::of(output).ended(3).said("cannot write the answer");
    }
}

#[test]
fn a_job_knows_which_run_it_is() {
    let place = Place::empty();
    place.write(
        "p.yml",
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      \
         - run: echo \"run=$GITHUB_RUN_ID number=$GITHUB_RUN_NUMBER attempt=$GITHUB_RUN_ATTEMPT\"\n",
    );
    for run in ["1", "2"] {
        let want = format!("run={run} number={run} attempt=1");
        place.run(&["run", "p.yml", "--verbose"]).ended(0).said(&want);
    }
}

#[test]
fn a_failure_shows_the_last_lines_the_exit_code_and_the_command_for_the_log() {
    let place = Place::example("failing");
    let said = place.run(&["run"]).ended(1);
    let said = said
        .said("exit code 7")
        .said("case 4: want 4, got 5")
        .said("test: error: check.sh:9: case 4: want 4, got 5")
        .said("SIGSEGV")
        .said("failure (allowed)")
        .said("clean-up")
        .said("whole log: stead logs run-1 test --step 3");
    assert!(!said.out.contains("not printed"), "{said}");

    // The command that was shown works, after the run.
    let log = place.run(&["logs", "run-1", "test", "--step", "3"]).ended(0);
    assert!(log.out.starts_with("case 1: ok\n"), "{log}");
    assert!(log.out.ends_with("case 4: want 4, got 5\n"), "{log}");
    place.run(&["logs", "run-1"]).ended(0).said("=== test").said("--- step 3 Fails");
    place.run(&["runs"]).ended(0).said("run-1").said("failure");
    place.run(&["watch", "run-1"]).ended(1).said("run-1: failure");
    place.run(&["logs", "run-1", "deploy"]).ended(2).said("clean-up");
    place.run(&["logs", "run-9"]).ended(2).said("run-9");

    let summary = place.run(&["run", "--json"]).ended(1).json();
    assert_eq!(summary["result"], "failure");
    assert_eq!(summary["jobs"]["failed"], 2);
    assert_eq!(summary["jobs"]["skipped"], 1);
}

#[test]
fn the_second_run_of_the_c_program_executes_no_cacheable_step() {
    let place = Place::example("c-program");
    let first = place.run(&["run", "--json"]).ended(0).json();
    assert_eq!(first["cacheable"], serde_json::json!({"hit": 0, "executed": 9}));
    let second = place.run(&["run", "--json", "--artifacts", "out"]).ended(0);
    let summary = second.json();
    assert_eq!(summary["cacheable"], serde_json::json!({"hit": 9, "executed": 0}), "{second}");
    // The step whose `if` reads a cached step's outputs ran in both.
    assert_eq!(first["steps"]["executed"].as_u64().unwrap() - 9, summary["steps"]["executed"]);
    assert!(place.path().join("out/dist/ini.tar.gz").is_file());
    place.run(&["artifacts", "get", "run-2", "program", "--dir", "got"]).ended(0);
    let ini =
        std::process::Command::new(place.path().join("got/program/ini")).arg("--help").output();
    assert!(ini.unwrap().stdout.starts_with(b"ini 1.0"));
    place.run(&["artifacts", "get", "run-2", "none", "--dir", "got"]).ended(2).said("objects");
}

#[test]
fn a_change_executes_what_depends_on_it_and_nothing_else() {
    let place = Place::example("c-program");
    place.run(&["run"]).ended(0);
    let executed = |place: &Place| {
        let said = place.run(&["run", "--json"]).ended(0);
        said.json()["cacheable"]["executed"].as_u64().unwrap()
    };
    // A comment changes one object's input, but not the object.
    place.replace("src/main.c", "int main", "/* begins here */\nint main");
    assert_eq!(executed(&place), 1);
    // The version is in commands.o, the program, its test and the package.
    place.replace("src/version.h", "1.0", "1.1");
    assert_eq!(executed(&place), 4);
    assert_eq!(executed(&place), 0);
    // Dates and inodes are no input.
    for name in ["src/ini.c", "src/text.h", "tests/cli.sh"] {
        let path = place.path().join(name);
        let (bytes, mode) = (std::fs::read(&path).unwrap(), path.metadata().unwrap().permissions());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, mode).unwrap();
    }
    assert_eq!(executed(&place), 0);
}

#[test]
fn a_job_that_no_agent_here_can_take_is_refused_at_once() {
    let place = Place::empty();
    place.write(
        "p.yml",
        "on: push\njobs:\n  a:\n    runs-on: windows-latest\n    steps:\n      - run: true\n",
    );
    place.run(&["run", "p.yml"]).ended(2).said("windows-latest").said("--labels");
    place.run(&["run", "p.yml", "--labels", "windows-latest"]).ended(0);
}

#[test]
fn an_interrupt_cancels_the_run_and_leaves_no_process_and_a_clean_state() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let place = Place::empty();
        place.write("p.yml", SLOW);
        let mut child = place
            .stead(&["run", "p.yml", "--verbose"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let pid = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("a | pid ")?.trim().parse().ok())
            .expect("the step prints its pid");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let said = Said::of(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(130), "{rest:?} {said}");
        assert!(kill(Pid::from_raw(pid), None).is_err(), "the step's process is gone");
        assert!(rest.iter().any(|line| line.contains("cancelled")), "{rest:?}");
        // The state can be used again, and knows how the run ended.
        place.run(&["runs", "--data-dir", ".steading/state"]).ended(0).said("cancelled");
    }
}

#[test]
fn two_runs_do_not_share_one_state() {
    let place = Place::empty();
    place.write("p.yml", SLOW);
    let mut child =
        place.stead(&["run", "p.yml", "--verbose"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.by_ref().map_while(Result::ok).find(|line| line.contains("a | pid ")).unwrap();
    place.run(&["run", "p.yml"]).ended(3).said(&format!("process {}", child.id()));
    // Asking is possible, and so is cancelling.
    place.run(&["runs"]).ended(0).said("running");
    place.run(&["logs", "run-1", "a"]).ended(0).said("pid ");
    place.run(&["cancel", "run-1"]).ended(0);
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest:?}");
}

#[test]
fn what_a_killed_run_left_does_not_run_again() {
    let place = Place::empty();
    place.write("p.yml", SLOW);
    let mut child =
        place.stead(&["run", "p.yml", "--verbose"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.by_ref().map_while(Result::ok).find(|line| line.contains("a | pid ")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    place.write("q.yml", QUICK);
    place.run(&["run", "q.yml"]).ended(0).said("run-2: success");
    let runs = place.run(&["runs"]).ended(0);
    assert!(
        runs.out.lines().any(|line| line.starts_with("run-1") && line.contains("cancelled")),
        "{runs}"
    );
}

#[test]
fn secrets_are_masked_and_variables_arrive() {
    let place = Place::empty();
    place.write(
        "p.yml",
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      \
         - run: echo \"$COLOUR ${{ secrets.TOKEN }} ${{ github.event_name }}\"\n",
    );
    let words =
        ["run", "p.yml", "--verbose", "--secret", "TOKEN=hunter2hunter2", "--env", "COLOUR=green"];
    let said = place.run(&words).ended(0).said("green *** push");
    assert!(!said.out.contains("hunter2"), "{said}");
    assert!(!said.err.contains("hunter2"), "{said}");
}

const QUICK: &str =
    "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo done\n";

/// A step that takes longer than any test waits, with a process below it.
const SLOW: &str = "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      \
    - run: |\n          echo \"pid $$\"\n          sleep 1000 &\n          wait\n";
