//! `stead dev`: a whole farm of processes over mTLS.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Lines};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use rcgen::{CertificateParams, KeyPair, SanType};
use steading_proto::tls::{Identity, is_over};
use support::{Place, Said};

/// How long a farm may take to start or to stop, before the test gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at something that is to come.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Where a farm is kept that is told nothing else.
const FARM: &str = ".steading/dev";

#[test]
fn a_farm_for_trying_out_survives_kills_and_goes_on_in_its_folder() {
    let place = Place::empty();
    // Jobs run as users of their own where the test is run by root.
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o711)).unwrap();
    place.write(
        "ci.yml",
        "on: push\njobs:\n  a:\n    runs-on: self-hosted\n    steps:\n      - run: echo it ran\n",
    );
    let mut farm = Dev::start(&place, 4);
    farm.submit(1);
    farm.asked(&["cluster", "status"]).said("3 voters").said("https://127.0.0.1:");
    farm.has_agents(&["agent-1", "agent-4"]);
    let address = farm.address("coordinator-1");
    place.run(&["runs", "--coordinator", &address]).ended(2).said("wants to know who asks");

    // Whoever is killed comes back, and nobody notices.
    for (run, name) in [(2, "coordinator-1"), (3, "coordinator-2"), (4, "agent-1")] {
        kill(farm.pid(name), Signal::SIGKILL).unwrap();
        farm.submit(run);
        farm.hear(&format!("{name} runs again"));
    }
    farm.stop();

    // It was switched off for days: nobody's certificate is good any more.
    for name in ["identity", "agent-1/identity", "agent-2/identity", "coordinator-1/identity"] {
        let_end(&place.path().join(FARM).join(name));
    }
    let mut farm = Dev::start(&place, 5);
    assert_eq!(farm.address("coordinator-1"), address);
    farm.submit(5);
    farm.asked(&["runs"]).said("run-1");
    farm.has_agents(&["agent-5"]);
    farm.stop();
    place.run(&["dev", "--coordinators", "1"]).ended(2).said("--coordinators 3");
}

#[test]
fn a_farm_that_is_told_to_stop_while_its_agents_start_stops() {
    let place = Place::empty();
    // Jobs run as users of their own where the test is run by root.
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let words = ["dev", "--coordinators", "1", "--slots", "1", "--agents", "6"];
    let mut process = place.stead(&words).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    // As many as there are to be heard: the thread never waits.
    let (heard, hears) = mpsc::sync_channel(2);
    std::thread::spawn(move || {
        let first = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("agent-1 "));
        // Nobody waits any more: the test has failed.
        let _ = heard.send(first);
        let _ = heard.send(lines.map_while(Result::ok).count() > 0);
    });
    let started = hears.recv_timeout(PATIENCE);
    kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), Signal::SIGINT).unwrap();
    let ended = hears.recv_timeout(PATIENCE);
    if ended.is_err() {
        // Whatever the test found: its parts end with it.
        let _ = process.kill();
    }
    let status = process.wait().unwrap();
    assert_eq!(started, Ok(true), "its agents do not start");
    assert!(ended.is_ok(), "it goes on");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_farm_of_root_is_not_kept_where_its_jobs_cannot_get_to() {
    if !Uid::effective().is_root() {
        // Only root runs jobs as users of their own.
        return;
    }
    let place = Place::empty();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let said = place.run(&["dev"]).ended(2);
    said.said(&format!("chmod o+x {}", place.path().canonicalize().unwrap().display()));
    assert!(!place.path().join(".steading").exists(), "nothing was made of it");
    let words = "agent --coordinator unix:/nowhere --data-dir agent --name a";
    let said = place.run(&words.split(' ').collect::<Vec<_>>()).ended(3);
    said.said("--user self").said("chmod o+x");
}

/// A farm that runs.
struct Dev<'a> {
    place: &'a Place,
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it said of each part when it started.
    parts: BTreeMap<String, String>,
    /// The words that it says to submit with.
    submit: Vec<String>,
}

impl<'a> Dev<'a> {
    fn start(place: &'a Place, agents: u32) -> Self {
        let words = ["dev", "--coordinators", "3", "--slots", "1", "--agents"];
        let agents = agents.to_string();
        let words = [&words[..], &[&agents]].concat();
        let mut process = place.stead(&words).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut parts = BTreeMap::new();
        let submit = loop {
            let line = lines.next().expect("the farm does not start").unwrap();
            if let Some(words) = line.strip_prefix("stead ") {
                break words.split(' ').map(str::to_owned).collect();
            }
            if let Some((name, rest)) = line.split_once(' ') {
                parts.insert(name.to_owned(), rest.to_owned());
            }
        };
        Self { place, process, lines, parts, submit }
    }

    /// Submits with the words that were printed.
    fn submit(&self, run: u32) {
        let words: Vec<&str> = self.submit.iter().map(String::as_str).collect();
        let said = self.place.run(&[&words[..], &["ci.yml"]].concat()).ended(0);
        said.said("a | it ran").said(&format!("run-{run}"));
    }

    fn asked(&self, words: &[&str]) -> Said {
        let context = format!("{FARM}/context.json");
        self.place.run(&[words, &["--context", &context]].concat()).ended(0)
    }

    /// They start after the line is printed that says how to submit.
    fn has_agents(&self, names: &[&str]) {
        let begun = Instant::now();
        loop {
            let said = self.asked(&["agents"]);
            if names.iter().all(|name| said.out.contains(name)) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "no {names:?} in\n{}", said.out);
            std::thread::park_timeout(LOOK_PERIOD);
        }
    }

    fn address(&self, name: &str) -> String {
        let (_, rest) = self.parts[name].split_once("listens on ").unwrap();
        rest.split_once(',').unwrap().0.to_owned()
    }

    fn pid(&self, name: &str) -> Pid {
        let (_, pid) = self.parts[name].rsplit_once(' ').unwrap();
        Pid::from_raw(pid.parse().unwrap())
    }

    fn hear(&mut self, text: &str) {
        let heard = self.lines.by_ref().map_while(Result::ok).find(|line| line.contains(text));
        assert!(heard.is_some(), "it ended without saying `{text}`");
    }

    fn stop(&mut self) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Dev<'_> {
    fn drop(&mut self) {
        // Whatever the test found: its parts end with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes the certificate in this folder one that is over.
fn let_end(dir: &Path) {
    let id = Identity::load(dir).unwrap().current().certified.id.to_string();
    let key = KeyPair::from_pem(&std::fs::read_to_string(dir.join("key.pem")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
    let day = Duration::from_secs(86_400);
    params.not_before = (SystemTime::now() - 3 * day).into();
    params.not_after = (SystemTime::now() - 2 * day).into();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    assert!(is_over(&Identity::load(dir).unwrap()));
}
