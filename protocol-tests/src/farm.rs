//! A farm of real processes on a Unix socket, for tests that kill them.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Network;

/// Longest wait for any condition. Far beyond what is expected, for the machine may be busy.
const WAIT_MAX: Duration = Duration::from_secs(90);
/// Between two looks at a condition that has no event to wait for.
const LOOK_PERIOD: Duration = Duration::from_millis(10);

/// What processes in a network log: also who leads, and whom agents speak to.
const LOG_IN_NETWORK: &str = "warn,steading_coordinator::effects=info,steading_agent::cluster=info,steading_agent::session=info";

/// Where the processes' data and sockets are.
#[derive(Debug)]
pub struct Farm {
    stead: PathBuf,
    dir: tempfile::TempDir,
    /// Where each process has a place of its own.
    network: Option<Network>,
}

/// A child that is killed with -9 when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Farm {
    /// A farm whose program is `stead`, with nothing running yet.
    pub fn new(stead: &str) -> Self {
        // A Unix socket's path is short, so not below the target folder.
        let dir = tempfile::tempdir().expect("make a folder");
        // Jobs run under a user of their own where the agent is root, and write here.
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open).expect("open the folder to jobs");
        Self { stead: stead.into(), dir, network: None }
    }

    /// The same, with every process at a place of its name, and all that asks at `client`.
    pub fn in_network(stead: &str, network: Network) -> Self {
        Self { network: Some(network), ..Self::new(stead) }
    }

    /// The network that the processes are in.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The folder for what a test writes itself.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// An empty file that every job can write to, whomever it runs as.
    pub fn shared_file(&self, name: &str) {
        let path = self.dir().join(name);
        File::options().create(true).append(true).open(&path).expect("make a file");
        let open = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(&path, open).expect("open the file to jobs");
    }

    /// The program under test.
    pub fn program(&self) -> &Path {
        &self.stead
    }

    /// The coordinator's endpoint.
    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.dir().join("s").display())
    }

    /// Starts the coordinator, again on the same data if it ran before.
    pub fn coordinator(&self) -> Process {
        let listen = self.endpoint();
        let process = self.start(
            "coordinator",
            &["coordinator", "--data-dir", "coordinator", "--listen", &listen],
        );
        let socket = self.dir().join("s");
        wait_for("the coordinator's socket", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        process
    }

    /// Starts an agent of this name, again on the same data if it ran before.
    pub fn agent(&self, name: &str) -> Process {
        let endpoint = self.endpoint();
        self.start(
            name,
            &[
                "agent",
                "--coordinator",
                &endpoint,
                "--data-dir",
                name,
                "--name",
                name,
                "--slots",
                "2",
            ],
        )
    }

    /// A project folder with this pipeline and these files.
    pub fn project(&self, name: &str, pipeline: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.dir().join(name);
        let pipelines = dir.join(".steading/pipelines");
        std::fs::create_dir_all(&pipelines).expect("make the project");
        std::fs::write(pipelines.join("main.yml"), pipeline).expect("write the pipeline");
        for (path, text) in files {
            std::fs::write(dir.join(path), text).expect("write a file");
        }
        dir
    }

    /// `stead submit --wait --json` in the background.
    pub fn submit(&self, project: &Path) -> Process {
        let endpoint = self.endpoint();
        let project = project.display().to_string();
        self.spawn(
            "submit",
            &["submit", "--coordinator", &endpoint, "--wait", "--json", &project],
            true,
        )
    }

    /// Runs `stead` with these arguments to its end.
    pub fn stead(&self, args: &[&str]) -> Output {
        self.command("client", &self.stead, args).output().expect("stead runs")
    }

    /// What the process of this name printed, all its starts together.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir().join(format!("{name}.log"))).unwrap_or_default()
    }

    fn start(&self, name: &str, args: &[&str]) -> Process {
        self.spawn(name, args, false)
    }

    /// Starts `stead` with these arguments; what it prints is kept for
    /// [`Process::finish`] if `capture`, and else goes to the log of its name.
    pub fn spawn(&self, name: &str, args: &[&str], capture: bool) -> Process {
        self.spawn_as(&self.stead, name, args, capture)
    }

    /// The same with another program.
    pub fn spawn_as(&self, program: &Path, name: &str, args: &[&str], capture: bool) -> Process {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir().join(format!("{name}.log")))
            .expect("open a log");
        let out =
            if capture { Stdio::piped() } else { log.try_clone().expect("share a log").into() };
        let child = self
            .command(name, program, args)
            .stdout(out)
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program.display()));
        Process { child, name: name.into() }
    }

    /// What would start this program with these arguments, as the process of this name.
    pub fn command(&self, name: &str, program: &Path, args: &[&str]) -> Command {
        let mut command = match &self.network {
            None => Command::new(program),
            Some(network) => network.command(name, program),
        };
        if self.network.is_some() && std::env::var_os("STEADING_LOG").is_none() {
            command.env("STEADING_LOG", LOG_IN_NETWORK);
        }
        command
            .args(args)
            .current_dir(self.dir())
            .env_remove("STEADING_COORDINATOR")
            .env_remove("STEADING_CONTEXT")
            .env("GIT_CEILING_DIRECTORIES", self.dir())
            .stdin(Stdio::null());
        command
    }
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Asks it to stop, and waits until it has.
    pub fn terminate(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().expect("reap");
        assert!(status.success(), "{} did not stop well: {status}", self.name);
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("look at a child").is_none()
    }

    /// Kills it with -9 and waits until it is gone.
    pub fn kill_9(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("reap");
    }

    /// Waits for its end: exit code and what it printed.
    pub fn finish(mut self) -> (Option<i32>, String) {
        use std::io::Read as _;
        let mut text = String::new();
        let name = self.name.clone();
        if let Some(mut out) = self.child.stdout.take() {
            out.read_to_string(&mut text).expect("read the output");
        }
        let status = self.child.wait().unwrap_or_else(|error| panic!("wait for {name}: {error}"));
        (status.code(), text)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that something was not tested for want of `what`, a word of `STEADING_REQUIRE`, and
/// fails where that says that this machine has it.
pub fn skipped(what: &str, why: &str) {
    let required = std::env::var("STEADING_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == what), "{what} is required: {why}");
    println!("skipped: {why}");
}

/// Waits until `condition` holds, and fails the test where it never does.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    assert!(holds_in_time(&mut condition), "waited {WAIT_MAX:?} for {what}");
}

/// Waits until `condition` holds; whether it does, in the time that any may take.
pub fn holds_in_time(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + WAIT_MAX;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::park_timeout(LOOK_PERIOD);
    }
    true
}

/// Waits until the file holds this many lines, and returns them.
pub fn wait_for_lines(path: &Path, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    wait_for(&format!("{count} lines in {}", path.display()), || {
        lines = std::fs::read_to_string(path)
            .unwrap_or_default()
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n').map(str::to_owned))
            .collect();
        lines.len() >= count
    });
    lines
}

/// The state letter of a process in `/proc`, none where it is gone.
pub fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so look behind its end.
    stat.rsplit_once(") ")?.1.chars().next()
}
