//! Several coordinators and agents, each a real process with a certificate of its own,
//! for tests that kill, stop and replace them.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::farm::{Farm, Process, wait_for};

/// Coordinators of the farm that most stories are about.
pub const COORDINATORS: usize = 3;
/// And its agents.
pub const AGENTS: usize = 4;

/// How many coordinators, and agents, may join in one test, wiped ones again.
const JOINS_MAX: &str = "64";

/// The thread of a coordinator that writes its log.
const REPLICA_THREAD: &str = "replica";

/// What an address is printed after.
const LISTENS: &str = "listening on https://";

/// The file that names the coordinators to an admin, with a certificate beside it.
const CONTEXT: &str = "admin.json";

/// The socket in the data directory of a coordinator of the next version, on which tests
/// have it propose what only that version knows.
pub const PROBES: &str = "probes.sock";

/// A farm of several coordinators.
#[derive(Debug)]
pub struct Cluster {
    farm: Farm,
    /// Where all coordinators have their blobs.
    origin: PathBuf,
    /// Of every coordinator that was ever started.
    places: Vec<Place>,
    coordinators: Vec<Option<Process>>,
    agents: Vec<Process>,
    agent_token: String,
    coordinator_token: String,
    /// Makes the folder of a coordinator, before its first start.
    make_folder: fn(&Path),
}

/// Where a coordinator is found: also after it was wiped, or killed.
#[derive(Debug)]
struct Place {
    /// `https://HOST:PORT`.
    endpoint: String,
}

/// A thread that stands still for as long as the test's own thread lives.
#[derive(Debug)]
pub struct HungThread {
    id: Pid,
}

impl HungThread {
    /// The thread of this name.
    fn of(process: u32, name: &str) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("threads").flatten();
        let mut tasks = tasks.filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok());
        let is_named = |id: &i32| {
            let comm = std::fs::read_to_string(format!("/proc/{process}/task/{id}/comm"));
            comm.is_ok_and(|comm| comm.trim() == name)
        };
        let id = Pid::from_raw(tasks.find(is_named).expect("a thread of this name"));
        ptrace::seize(id, ptrace::Options::empty()).expect("take hold of a thread");
        ptrace::interrupt(id).expect("stop a thread");
        Self { id }
    }

    /// Whether it ended with its process, which is not over before that was asked.
    pub fn is_over(&self) -> bool {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        matches!(
            waitpid(self.id, Some(flags)),
            Err(_) | Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
        )
    }
}

impl Cluster {
    /// Starts `coordinators`, which are one group when this returns, and `agents` with
    /// `slots` jobs each.
    pub fn start(stead: &str, coordinators: usize, agents: usize, slots: usize) -> Self {
        Self::start_in(Farm::new(stead), coordinators, agents, slots)
    }

    /// The same in a folder, and perhaps a network, that are there already.
    pub fn start_in(farm: Farm, coordinators: usize, agents: usize, slots: usize) -> Self {
        let mut cluster = Self::without_agents_in(farm, coordinators, |_| ());
        cluster.add_agents(agents, slots);
        cluster
    }

    /// Starts agents with `slots` jobs each.
    pub fn add_agents(&mut self, agents: usize, slots: usize) {
        for number in 0..agents {
            let agent = self.start_agent(&format!("a{number}"), slots, &[]);
            self.agents.push(agent);
        }
    }

    /// Starts `coordinators`, which are one group when this returns.
    pub fn without_agents(stead: &str, coordinators: usize) -> Self {
        Self::in_folders(stead, coordinators, |_| ())
    }

    /// The same, with folders for the coordinators that the test makes.
    pub fn in_folders(stead: &str, coordinators: usize, make_folder: fn(&Path)) -> Self {
        Self::without_agents_in(Farm::new(stead), coordinators, make_folder)
    }

    fn without_agents_in(farm: Farm, coordinators: usize, make_folder: fn(&Path)) -> Self {
        let origin = farm.dir().join("origin");
        let mut cluster = Self::first_of(farm, origin, make_folder);
        for _ in 1..coordinators {
            cluster.add_coordinator();
        }
        cluster.log_in();
        cluster.wait_until_whole();
        cluster
    }

    /// Starts one coordinator, with nobody who may join it yet but by its tokens. It goes on
    /// from what is in the folder `c0`.
    pub fn found(farm: Farm, origin: PathBuf) -> Self {
        Self::first_of(farm, origin, |_| ())
    }

    fn first_of(farm: Farm, origin: PathBuf, make_folder: fn(&Path)) -> Self {
        let mut cluster = Self {
            farm,
            origin,
            places: Vec::new(),
            coordinators: Vec::new(),
            agents: Vec::new(),
            agent_token: String::new(),
            coordinator_token: String::new(),
            make_folder,
        };
        cluster.add_coordinator();
        cluster.make_tokens();
        cluster
    }

    /// Makes the tokens with which agents and coordinators join from now on.
    pub fn make_tokens(&mut self) {
        let uses = ["--uses", JOINS_MAX, "--ttl", "1d"];
        self.agent_token = self.token(&[&["--role", "agent"], &uses[..]].concat());
        self.coordinator_token = self.token(&[&["--role", "coordinator"], &uses[..]].concat());
    }

    /// The folder for what a test writes itself, and the logs.
    pub fn farm(&self) -> &Farm {
        &self.farm
    }

    /// All coordinators, as `--coordinator` has them.
    pub fn endpoints(&self) -> String {
        let all = self.places.iter().map(|place| place.endpoint.as_str());
        all.collect::<Vec<_>>().join(",")
    }

    /// Where a coordinator listens, once it was started.
    pub fn endpoint(&self, number: usize) -> String {
        self.places[number].endpoint.clone()
    }

    /// Starts one coordinator more, which joins the others; its number.
    pub fn add_coordinator(&mut self) -> usize {
        let number = self.add_place();
        self.start_coordinator(number);
        number
    }

    /// A place for one coordinator more; its number.
    pub fn add_place(&mut self) -> usize {
        let number = self.places.len();
        // The address is this one's alone: nobody takes its port while it is away.
        let network = self.farm.network();
        let address =
            network.map_or_else(own_address, |network| network.address(&format!("c{number}")));
        self.places.push(Place { endpoint: format!("https://{address}:0") });
        self.coordinators.push(None);
        (self.make_folder)(&self.folder(number));
        number
    }

    /// Starts a coordinator, again on the same data and address if it ran before.
    pub fn start_coordinator(&mut self, number: usize) {
        let program = self.farm.program().to_owned();
        self.start_coordinator_as(number, &program);
    }

    /// The same with another program, of another version.
    pub fn start_coordinator_as(&mut self, number: usize, program: &Path) {
        let name = format!("c{number}");
        let before = self.farm.log(&name).matches(LISTENS).count();
        let process = self.spawn_coordinator(number, program);
        self.coordinators[number] = Some(process);
        wait_for(&format!("coordinator {number} to listen"), || {
            self.farm.log(&name).matches(LISTENS).count() > before
        });
        let log = self.farm.log(&name);
        let said = log.lines().rev().find_map(|line| line.strip_prefix(LISTENS));
        self.places[number].endpoint = format!("https://{}", said.expect("it said where"));
    }

    /// Starts a coordinator that is to end by itself; what it says of that.
    pub fn coordinator_fails(&mut self, number: usize, program: &Path) -> String {
        let name = format!("c{number}");
        let before = self.farm.log(&name).len();
        let mut process = self.spawn_coordinator(number, program);
        wait_for(&format!("coordinator {number} to give up"), || !process.is_running());
        let (code, _) = process.finish();
        assert_ne!(code, Some(0), "coordinator {number} ended well");
        self.farm.log(&name).split_off(before)
    }

    fn spawn_coordinator(&self, number: usize, program: &Path) -> Process {
        let name = format!("c{number}");
        let origin = self.origin.display().to_string();
        let listen = self.places[number].endpoint.clone();
        let mut args = vec!["coordinator", "--data-dir", &name, "--listen", &listen];
        args.extend(["--object-store", &origin]);
        let others = self.places.iter().enumerate().filter(|(other, _)| *other != number);
        let others: Vec<&str> = others.map(|(_, place)| place.endpoint.as_str()).collect();
        let join = others.join(",");
        if !others.is_empty() {
            args.extend(["--join", &join, "--token", &self.coordinator_token]);
        }
        self.farm.spawn_as(program, &name, &args, false)
    }

    /// Where a coordinator has its data.
    pub fn folder(&self, number: usize) -> PathBuf {
        self.farm.dir().join(format!("c{number}"))
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

    /// Has the thread of a coordinator that writes its log stand still, as in a write that
    /// never ends. The other threads go on.
    pub fn hang(&self, number: usize) -> HungThread {
        let process = self.coordinators[number].as_ref().expect("it runs");
        HungThread::of(process.pid(), REPLICA_THREAD)
    }

    /// Whether a coordinator runs.
    pub fn is_running(&mut self, number: usize) -> bool {
        self.coordinators[number].as_mut().is_some_and(Process::is_running)
    }

    /// The next start of this coordinator, which is not running, finds an empty disk.
    pub fn wipe(&mut self, number: usize) {
        assert!(self.coordinators[number].is_none(), "it runs");
        let folder = self.folder(number);
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

    /// Waits until every coordinator that runs votes, and is up to date.
    pub fn wait_until_whole(&self) {
        let count = self.coordinators.iter().flatten().count();
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
        let endpoint = self.places[number].endpoint.as_str();
        let found = members.find(|member| member["endpoint"] == endpoint);
        found.cloned().unwrap_or(Value::Null)
    }

    /// `stead cluster status --json`; null while nobody answers.
    pub fn status(&self) -> Value {
        let out = self.stead(&["cluster", "status", "--json"]);
        serde_json::from_str(&out).unwrap_or(Value::Null)
    }

    /// Runs `stead` with these arguments as an admin of the farm; what it prints.
    pub fn stead(&self, args: &[&str]) -> String {
        String::from_utf8_lossy(&self.output(args).stdout).into_owned()
    }

    /// The same, with how it ended.
    pub fn output(&self, args: &[&str]) -> Output {
        self.farm.stead(&[args, &["--context", CONTEXT]].concat())
    }

    /// What would do the same, for a thread beside the test's.
    pub fn command(&self, args: &[&str]) -> Command {
        self.farm.command("client", self.farm.program(), &[args, &["--context", CONTEXT]].concat())
    }

    /// The same in the background; what it prints is kept if `capture`.
    pub fn spawn(&self, name: &str, args: &[&str], capture: bool) -> Process {
        self.farm.spawn(name, &[args, &["--context", CONTEXT]].concat(), capture)
    }

    /// Submits a project; the run's name, once the farm has acknowledged it.
    pub fn submit(&self, project: &Path) -> String {
        let project = project.display().to_string();
        let out = self.output(&["submit", &project]);
        let run = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(run.starts_with("run-"), "`{run}` {said}\n{}", self.logs());
        run
    }

    /// `stead watch --json` in the background.
    pub fn watch(&self, run: &str) -> Process {
        let watch = self.spawn("watch", &["watch", run, "--json"], true);
        wait_for("the watch to know its run", || self.farm.log("watch").contains(run));
        watch
    }

    /// Starts an agent, again on the same data if it ran before, with these arguments
    /// beside the ones that every agent has.
    pub fn start_agent(&self, name: &str, slots: usize, more: &[&str]) -> Process {
        let (endpoints, slots) = (self.endpoints(), slots.to_string());
        let args = ["agent", "--coordinator", &endpoints, "--data-dir", name, "--name", name];
        let own = ["--slots", &slots, "--join", &self.agent_token];
        self.farm.spawn(name, &[&args[..], &own, more].concat(), false)
    }

    /// The agents that the farm was started with.
    pub fn agents(&mut self) -> &mut Vec<Process> {
        &mut self.agents
    }

    /// A join token that somebody on the first coordinator's machine makes.
    pub fn token(&self, words: &[&str]) -> String {
        let socket = format!("unix:{}", self.farm.dir().join("c0/admin.sock").display());
        let create = [&["token", "create", "--coordinator", &socket][..], words].concat();
        let out = self.farm.stead(&create);
        let token = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        assert!(!token.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
        token
    }

    /// Writes the admin's context for the coordinators that there are.
    pub fn log_in(&self) {
        let token = self.token(&["--role", "admin", "--name", "root"]);
        let endpoints = self.endpoints();
        let args = ["login", "--token", &token, "--coordinator", &endpoints, "--context", CONTEXT];
        let out = self.farm.stead(&args);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    /// What a coordinator of the next version is answered when it proposes what this one
    /// does not know.
    pub fn probe(&self, number: usize) -> String {
        let path = self.folder(number).join(PROBES);
        let caller = UnixStream::connect(&path);
        let mut caller = caller.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut text = String::new();
        caller.read_to_string(&mut text).expect("an answer");
        text
    }

    /// What the coordinators and agents said, the ends of it.
    pub fn logs(&self) -> String {
        let names = (0..self.places.len()).map(|number| format!("c{number}"));
        let names = names.chain((0..self.agents.len()).map(|number| format!("a{number}")));
        let ends = names.chain(["watch".to_owned()]).map(|name| {
            let log = self.farm.log(&name);
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            let end: Vec<&str> = lines.into_iter().rev().collect();
            format!("--- {name}\n{}\n", end.join("\n"))
        });
        ends.collect()
    }

    fn number(&self, endpoint: &str) -> Option<usize> {
        self.places.iter().position(|place| place.endpoint == endpoint)
    }
}

/// A loopback address that nobody else has: processes that connect somewhere do so from
/// 127.0.0.1, and do not take a port of it.
fn own_address() -> std::net::Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % 64;
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    // 16 of the process id's 22 bits, and six that count: two tests at once may share one,
    // which costs them nothing as long as their ports differ.
    let mixed = u32::from_be_bytes([0, high, middle, low]).wrapping_mul(64).wrapping_add(number);
    let [_, a, b, c] = mixed.to_be_bytes();
    std::net::Ipv4Addr::new(127, 64 | (a & 63), b, c.clamp(1, 254))
}
