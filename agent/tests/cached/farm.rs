//! One agent's cached steps, without an agent.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steading_agent::cached::platform::Platform;
use steading_agent::cached::{CachedError, Claims, Context, Ran, Request, run};
use steading_agent::process::OutputSink;
use steading_agent::supervisor::Supervisor;
use steading_agent::{Agents, Cluster};
use steading_cas::client::Actions;
use steading_cas::{ActionCache, Blobs, Store, StoreOptions};
use steading_pipeline::job::CacheSpec;
use steading_proto::v1;
use steading_proto::v1::agents_server::AgentsServer;
use steading_proto::v1::claim_action_response::Decision;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::coordinator::{Coordinator, Script};

#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) script: String,
    pub(crate) shell: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) secrets: BTreeMap<String, String>,
    pub(crate) spec: CacheSpec,
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) executable: Vec<&'static str>,
    pub(crate) working_directory: String,
    /// The job has a user of its own.
    pub(crate) owner: Option<(u32, u32)>,
}

impl Step {
    /// Reads `*.txt`, makes `out.txt`.
    pub(crate) fn new(script: &str) -> Self {
        Self {
            script: script.to_owned(),
            shell: ["bash", "-e", "{0}"].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            spec: CacheSpec {
                inputs: vec!["**/*.txt".into(), "!out.txt".into()],
                outputs: vec!["**/out.txt".into()],
                ..CacheSpec::default()
            },
            files: BTreeMap::from([("a.txt".to_owned(), "a".to_owned())]),
            executable: Vec::new(),
            working_directory: String::new(),
            owner: None,
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn env(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn secret(&mut self, name: &str, value: &str) {
        self.secrets.insert(name.to_owned(), value.to_owned());
    }

    pub(crate) fn file(&mut self, path: &str, content: &str) {
        self.files.insert(path.to_owned(), content.to_owned());
    }
}

#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) ran: Ran,
    pub(crate) log: String,
    pub(crate) workspace: PathBuf,
}

pub(crate) struct Farm {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) blobs: Blobs,
    pub(crate) actions: Actions,
    pub(crate) supervisor: Supervisor,
    pub(crate) platform: Arc<Platform>,
    pub(crate) program: Vec<String>,
    pub(crate) cancel: CancellationToken,
    /// The step is cancelled when its log says this.
    pub(crate) cancel_on: Option<&'static str>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) claims: Option<Claims>,
    pub(crate) _peers: JoinSet<()>,
    pub(crate) runs: u32,
}

impl Farm {
    /// None, and a word about it, where the machine has no namespaces.
    pub(crate) async fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let program = vec![env!("CARGO_BIN_EXE_steading-agent").to_owned()];
        if let steading_agent::sandbox::Support::Missing(why) =
            steading_agent::sandbox::support(&program, dir.path())
        {
            let required = std::env::var("STEADING_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "namespaces"), "no namespaces: {why}");
            println!("skipped: {why}");
            return None;
        }
        let options = StoreOptions { bytes_max: 1 << 30, durable: false };
        let store = Store::open(&dir.path().join("cas"), options).unwrap();
        let mut farm = Self {
            blobs: Blobs::Local(store.clone()),
            actions: Actions::Local(ActionCache::open(&store).unwrap()),
            supervisor: Supervisor::start(&program, &[], &Default::default()).unwrap(),
            platform: Arc::new(Platform::new(PathBuf::new(), BTreeMap::new())),
            program,
            cancel: CancellationToken::new(),
            cancel_on: None,
            timeout: None,
            claims: None,
            _peers: JoinSet::new(),
            runs: 0,
            dir,
        };
        farm.platform("/usr/bin:/bin");
        Some(farm)
    }

    pub(crate) fn platform(&mut self, path: &str) {
        // Shared, because what it remembers of the machine is the same for all tests.
        let memos = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fingerprints");
        self.platform = Arc::new(Platform::new(memos, path_env(path)));
    }

    /// From now on claims are decided like this, one after the other.
    pub(crate) fn coordinator(&mut self, decisions: Vec<Decision>) -> Coordinator {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (say, said) = mpsc::channel(8);
        let script = Script { decisions: Mutex::new(decisions.into()), say };
        let incoming = tokio_stream::iter([Ok::<_, std::io::Error>(far)]);
        let server = tonic::transport::Server::builder().add_service(AgentsServer::new(script));
        self._peers.spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        let near = Mutex::new(Some(near));
        let channel = tonic::transport::Endpoint::from_static("http://script")
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let near = near.lock().unwrap().take().map(hyper_util::rt::TokioIo::new);
                async move { near.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)) }
            }));
        let lease = v1::Lease { job_id: 1, attempt: 1, epoch: 1 };
        self.claims = Some(Claims { agents: Agents::new(Cluster::single(channel)), lease });
        Coordinator { said, detail: String::new() }
    }

    pub(crate) async fn run(&mut self, step: &Step) -> Done {
        self.try_run(step).await.unwrap()
    }

    /// Every run has a workspace of its own.
    pub(crate) async fn try_run(&mut self, step: &Step) -> Result<Done, CachedError> {
        self.runs += 1;
        let workspace = self.dir.path().join(format!("w{}", self.runs));
        fs::create_dir(&workspace).unwrap();
        for (path, content) in &step.files {
            let file = workspace.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, content).unwrap();
            let mode = if step.executable.contains(&path.as_str()) { 0o755 } else { 0o644 };
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let scratch = self.dir.path().join("scratch");
        let context = Context {
            blobs: &self.blobs,
            actions: &self.actions,
            claims: self.claims.clone(),
            supervisor: &mut self.supervisor,
            platform: &self.platform,
            program: &self.program,
            scratch: &scratch,
            agent: "test",
        };
        let request = Request {
            spec: &step.spec,
            script: &step.script,
            shell: &step.shell,
            env: &step.env,
            path_prefix: &[],
            working_directory: &step.working_directory,
            workspace: &workspace,
            owner: step.owner,
            secrets: &step.secrets,
            scope: "test",
            timeout: self.timeout,
        };
        let mut log =
            Log { bytes: Vec::new(), cancel_on: self.cancel_on, cancel: self.cancel.clone() };
        let ran = run(context, request, &mut log, &self.cancel).await?;
        assert!(!scratch.exists(), "nothing is left behind");
        Ok(Done { ran, log: String::from_utf8(log.bytes).unwrap(), workspace })
    }

    pub(crate) fn lose_blob(&self, content: &[u8]) {
        let name = blake3::hash(content).to_hex().to_string();
        let mut open = vec![self.dir.path().join("cas")];
        let mut lost = 0;
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.path().is_dir() {
                    open.push(entry.path());
                } else if entry.file_name().to_string_lossy().starts_with(&name) {
                    fs::remove_file(entry.path()).unwrap();
                    lost += 1;
                }
            }
        }
        assert!(lost > 0);
    }
}

struct Log {
    bytes: Vec<u8>,
    cancel_on: Option<&'static str>,
    cancel: CancellationToken,
}

impl OutputSink for Log {
    fn write(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let said = |word: &str| String::from_utf8_lossy(&self.bytes).contains(word);
        if self.cancel_on.is_some_and(said) {
            self.cancel.cancel();
        }
    }
}

pub(crate) fn path_env(path: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("PATH".to_owned(), path.to_owned())])
}

/// Every file of a folder with mode and content.
pub(crate) fn tree(dir: &Path) -> BTreeMap<String, (u32, String)> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            found.insert(name, (mode, fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Temporary folders are private; what tests put there as tools must be reachable.
pub(crate) fn open(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
