//! Several coordinators and agents, each a real process, for tests that kill, stop and
//! replace them.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::farm::{Farm, Process, wait_for};

/// A farm of several coordinators.
#[derive(Debug)]
pub struct Cluster {
    farm: Farm,
    coordinators: Vec<Option<Process>>,
    /// Folder of each coordinator: another one after it was wiped.
    folders: Vec<String>,
    agents: Vec<Process>,
}

impl Cluster {
    /// Starts `coordinators`, which are one group when this returns, and `agents` with
    /// `slots` jobs each.
    pub fn start(stead: &str, coordinators: usize, agents: usize, slots: usize) -> Self {
        let farm = Farm::new(stead);
        let folders = (0..coordinators).map(|number| format!("c{number}")).collect();
        let mut cluster = Self { farm, coordinators: Vec::new(), folders, agents: Vec::new() };
        for number in 0..coordinators {
            cluster.coordinators.push(None);
            cluster.start_coordinator(number);
        }
        cluster.wait_until_whole();
        for number in 0..agents {
            let agent = cluster.start_agent(&format!("a{number}"), slots);
            cluster.agents.push(agent);
        }
        cluster
    }

    /// The folder for what a test writes itself, and the logs.
    pub fn farm(&self) -> &Farm {
        &self.farm
    }

    /// All coordinators, as `--coordinator` has them.
    pub fn endpoints(&self) -> String {
        let all = (0..self.folders.len()).map(|number| self.endpoint(number));
        all.collect::<Vec<_>>().join(",")
    }

    /// Starts a coordinator, again on the same data if it ran before.
    pub fn start_coordinator(&mut self, number: usize) {
        let endpoint = self.endpoint(number);
        let origin = self.farm.dir().join("origin").display().to_string();
        let folder = self.folders[number].clone();
        let mut args = vec!["coordinator", "--data-dir", &folder, "--listen", &endpoint];
        args.extend(["--object-store", &origin]);
        let others: Vec<String> = (0..self.coordinators.len())
            .filter(|other| *other != number)
            .map(|other| self.endpoint(other))
            .collect();
        let join = others.join(",");
        if !others.is_empty() {
            args.extend(["--join", &join]);
        }
        let process = self.farm.spawn(&format!("c{number}"), &args, false);
        self.coordinators[number] = Some(process);
        let socket = self.socket(number);
        wait_for(&format!("coordinator {number} to listen"), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    /// Kills a coordinator with -9.
    pub fn kill_9(&mut self, number: usize) {
        self.coordinators[number].take().expect("it runs").kill_9();
    }

    /// Asks a coordinator to stop, and waits until it has.
    pub fn terminate(&mut self, number: usize) {
        self.coordinators[number].take().expect("it runs").terminate();
    }

    /// Sends a coordinator a signal.
    pub fn signal(&self, number: usize, signal: Signal) {
        self.coordinators[number].as_ref().expect("it runs").signal(signal);
    }

    /// The next start of this coordinator, which is not running, finds an empty disk.
    pub fn wipe(&mut self, number: usize) {
        assert!(self.coordinators[number].is_none(), "it runs");
        let folder = self.farm.dir().join(&self.folders[number]);
        std::fs::remove_dir_all(folder).expect("wipe the folder");
    }

    /// The number of the coordinator that leads.
    pub fn leader(&self) -> usize {
        let mut leader = None;
        wait_for("a leader", || {
            let status = self.status();
            let member = status["members"].as_array().into_iter().flatten();
            let found = member.clone().find(|member| member["leader"] == true);
            leader = found.and_then(|member| self.number(member["endpoint"].as_str()?));
            leader.is_some()
        });
        leader.expect("waited for it")
    }

    /// Waits until every coordinator votes, and is up to date.
    pub fn wait_until_whole(&self) {
        let count = self.coordinators.len();
        let mut last = Value::Null;
        wait_for(&format!("{count} voters"), || {
            last = self.status();
            let members = last["members"].as_array().into_iter().flatten();
            let voters = members.filter(|member| {
                let votes = member["role"] == "voter" || member["role"] == "leader";
                let known = member["leader"] == true || member["active"] == true;
                votes && known && member["lag"].as_u64().is_some_and(|lag| lag < 100)
            });
            voters.count() == count
        });
    }

    /// What the group says of a coordinator that has not left.
    pub fn member(&self, number: usize) -> Value {
        let status = self.status();
        let members = status["members"].as_array().into_iter().flatten();
        let mut members = members.filter(|member| member["removed"] != true);
        let endpoint = self.endpoint(number);
        let found = members.find(|member| member["endpoint"] == endpoint.as_str());
        found.cloned().unwrap_or(Value::Null)
    }

    /// `stead cluster status --json`; null while nobody answers.
    pub fn status(&self) -> Value {
        let out = self.stead(&["cluster", "status", "--json"]);
        serde_json::from_str(&out).unwrap_or(Value::Null)
    }

    /// Runs `stead` with these arguments against the farm; what it prints.
    pub fn stead(&self, args: &[&str]) -> String {
        let endpoints = self.endpoints();
        let args = [args, &["--coordinator", &endpoints]].concat();
        let out = self.farm.stead(&args);
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Submits a project; the run's name, once the farm has acknowledged it.
    pub fn submit(&self, project: &Path) -> String {
        let project = project.display().to_string();
        let run = self.stead(&["submit", &project]).trim().to_owned();
        assert!(run.starts_with("run-"), "`{run}`\n{}", self.logs());
        run
    }

    /// `stead watch --json` in the background.
    pub fn watch(&self, run: &str) -> Process {
        let endpoints = self.endpoints();
        let args = ["watch", run, "--json", "--coordinator", &endpoints];
        let watch = self.farm.spawn("watch", &args, true);
        wait_for("the watch to know its run", || self.farm.log("watch").contains(run));
        watch
    }

    /// What the coordinators and agents said, the ends of it.
    pub fn logs(&self) -> String {
        let names = (0..self.folders.len()).map(|number| format!("c{number}"));
        let names = names.chain((0..self.agents.len()).map(|number| format!("a{number}")));
        let ends = names.chain(["watch".to_owned()]).map(|name| {
            let log = self.farm.log(&name);
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            let end: Vec<&str> = lines.into_iter().rev().collect();
            format!("--- {name}\n{}\n", end.join("\n"))
        });
        ends.collect()
    }

    fn start_agent(&self, name: &str, slots: usize) -> Process {
        let (endpoints, slots) = (self.endpoints(), slots.to_string());
        let args = ["agent", "--coordinator", &endpoints, "--data-dir", name, "--name", name];
        self.farm.spawn(name, &[&args[..], &["--slots", &slots]].concat(), false)
    }

    fn endpoint(&self, number: usize) -> String {
        format!("unix:{}", self.socket(number).display())
    }

    fn socket(&self, number: usize) -> PathBuf {
        self.farm.dir().join(format!("s{number}"))
    }

    fn number(&self, endpoint: &str) -> Option<usize> {
        (0..self.folders.len()).find(|number| self.endpoint(*number) == endpoint)
    }
}
