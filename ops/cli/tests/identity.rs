//! Tokens, certificates and contexts, with processes of their own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::Place;

#[test]
fn a_farm_over_mtls_is_joined_by_tokens_and_left_by_denial() {
    let farm = Farm::start();
    let place = &farm.place;
    place.run(&["runs", "--coordinator", &farm.endpoint]).ended(2).said("wants to know who asks");

    // Somebody on the machine makes the first admin.
    let token = farm.token(&["--role", "admin", "--name", "root"]);
    let login = ["login", "--token", &token, "--coordinator", &farm.endpoint];
    place.run(&[&login[..], &["--context", "admin.json"]].concat()).ended(0).said("/admin/root");
    place.run(&[&login[..], &["--context", "other.json"]].concat()).ended(2).said("as often as");
    place.run(&["token", "list", "--context", "admin.json"]).ended(0).said("root");

    // An agent joins once, and starts again without the token.
    let token = farm.token(&["--role", "agent"]);
    let words = ["agent", "--coordinator", &farm.endpoint, "--data-dir", "agent", "--user", "self"];
    let named = [&words[..], &["--name", "a"]].concat();
    place.run(&named).ended(3).said("stead token create --role agent");
    let first = Running(place.stead(&[&named[..], &["--join", &token]].concat()).spawn().unwrap());
    place.write(
        "work/ci.yml",
        "on: push\njobs:\n  a:\n    runs-on: self-hosted\n    steps:\n      - run: echo it ran\n",
    );
    let submit = ["submit", "work/ci.yml", "--source", "work", "--wait", "--context"];
    place.run(&[&submit[..], &["admin.json"]].concat()).ended(0).said("a | it ran");
    drop(first);
    let _second = Running(place.stead(&named).spawn().unwrap());
    place.run(&[&submit[..], &["admin.json"]].concat()).ended(0).said("a | it ran");

    // A client may submit, and no more than that.
    let token = farm.token(&["--role", "client"]);
    let login = ["login", "--token", &token, "--coordinator", &farm.endpoint];
    let login = [&login[..], &["--context", "ada.json"]].concat();
    place.run(&login).ended(2).said("--name");
    let said = place.run(&[&login[..], &["--name", "ada"]].concat()).ended(0);
    let ada = said.out.trim().to_owned();
    place.run(&[&submit[..], &["ada.json"]].concat()).ended(0);
    place.run(&["token", "list", "--context", "ada.json"]).ended(3).said("may not call");

    place.run(&["deny", &ada, "--context", "admin.json"]).ended(0);
    place.run(&["runs", "--context", "ada.json"]).ended(3).said("not to believe this member");
    place.run(&["allow", &ada, "--context", "admin.json"]).ended(0);
    place.run(&["runs", "--context", "ada.json"]).ended(0).said("run-1");
}

#[test]
fn coordinators_join_by_token_and_any_of_them_lets_others_in() {
    let mut farm = Farm::start();
    let token = farm.token(&["--role", "coordinator", "--uses", "2"]);
    let first = farm.endpoint.clone();
    let joined = ["second", "third"].map(|name| {
        let join = ["--join", &first, "--token", &token];
        let (endpoint, _) = farm.listen(name, &join);
        endpoint
    });
    let voters = || farm.place.run(&["cluster", "status", "--coordinator", &farm.socket]).out;
    let deadline = Instant::now() + PATIENCE;
    while !voters().contains(": 3 voters") {
        assert!(Instant::now() < deadline, "{}", voters());
    }
    // Neither of these leads: they pass on, or say who does.
    let token = farm.token(&["--role", "admin", "--name", "root"]);
    let others = joined.join(",");
    let login = ["login", "--token", &token, "--coordinator", &others, "--context", "c.json"];
    farm.place.run(&login).ended(0).said("/admin/root");
    farm.place.run(&["token", "list", "--context", "c.json"]).ended(0).said("root");
    farm.place.run(&["cluster", "status", "--context", "c.json"]).ended(0).said("3 voters");
}

#[test]
fn a_coordinator_that_waits_for_others_stops_when_it_is_told_to() {
    let place = Place::empty();
    let words = ["coordinator", "--data-dir", "d", "--listen", "unix:s", "--object-store", "blobs"];
    let mut process = place
        .stead(&[&words[..], &["--join", "unix:/nobody/listens"]].concat())
        .env("STEADING_LOG", "steading_coordinator=debug")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
    let process = Running(process);
    assert!(lines.any(|line| line.contains("not admitted yet")), "it does not wait");
    let pid = Pid::from_raw(i32::try_from(process.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    // At once, without another word about the others.
    assert!(!lines.any(|line| line.contains("no coordinator of the group answers")), "it waits on");
    assert_eq!(process.status(), Some(130));
    assert!(!place.path().join("s").exists(), "its socket is left");
}

/// How long the group may take to grow, before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with the test.
struct Running(Child);

impl Running {
    /// The exit code of one that ends by itself.
    fn status(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whatever the test found: the process must not outlive it.
        if let Ok(None) = self.0.try_wait() {
            let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
            let _ = kill(pid, Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

/// A coordinator that listens for members, in a folder of its own.
struct Farm {
    coordinators: Vec<Running>,
    place: Place,
    endpoint: String,
    socket: String,
}

impl Farm {
    fn start() -> Self {
        let (place, none) = (Place::empty(), String::new());
        let mut farm =
            Self { coordinators: Vec::new(), place, endpoint: none.clone(), socket: none };
        (farm.endpoint, farm.socket) = farm.listen("first", &[]);
        farm
    }

    /// Starts a coordinator. Where it listens for members, and for admins.
    fn listen(&mut self, name: &str, words: &[&str]) -> (String, String) {
        let listen = ["coordinator", "--data-dir", name, "--listen", "https://127.0.0.1:0"];
        let shared = ["--object-store", "blobs"];
        let mut child = self
            .place
            .stead(&[&listen[..], &shared, words].concat())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut listens = || {
            let line = lines.next().unwrap().unwrap();
            line.strip_prefix("listening on ").unwrap().to_owned()
        };
        let (endpoint, socket) = (listens(), listens());
        assert!(endpoint.starts_with("https://127.0.0.1:") && socket.ends_with("/admin.sock"));
        self.coordinators.push(Running(child));
        (endpoint, socket)
    }

    /// A token that somebody on the machine makes.
    fn token(&self, words: &[&str]) -> String {
        let create = [&["token", "create", "--coordinator", &self.socket][..], words].concat();
        self.place.run(&create).ended(0).out.trim().to_owned()
    }
}
