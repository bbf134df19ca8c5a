//! Executes a cached step: inputs laid out, sandbox, command, what it left.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use steading_cas::tree::{self, Materialize, MaterializeMode, Mtime};
use steading_cas::{Store, remove_tree};
use steading_model::limits;
use tokio_util::sync::CancellationToken;

use super::key::{COMMAND_FILES, Key, STEADING_DIR, arguments, inside, replace_path};
use super::layer::{self, Made};
use super::result::off_thread;
use super::{CachedError, Context, Request, SideEffects, io_error};
use crate::process::{Command, Exit, OutputSink};
use crate::sandbox::{Bind, HOME, OUTER_ID, SUB_COMMAND, Spec, Support, WORKSPACE, Workspace};

/// Largest command file, bytes; what is beyond it is not read. GitHub's bound of all
/// outputs of a job.
const COMMAND_FILE_BYTES_MAX: u64 = 50 << 20;

/// Files of the host's `/etc` that a step with network needs. They say how to reach
/// the network, not what is there, and are no part of the key.
const NETWORK_FILES: [&str; 6] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/ssl",
    "/etc/ca-certificates",
    "/etc/pki",
    "/etc/gai.conf",
];

/// Variables of the agent's environment that a step with network gets, likewise.
const NETWORK_ENV: [&str; 18] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "CARGO_HTTP_PROXY",
];

/// What an execution left.
#[derive(Debug)]
pub(super) struct Executed {
    pub exit: Exit,
    pub log: PathBuf,
    pub made: Made,
    /// With the workspace at its constant place.
    pub effects: SideEffects,
}

/// Runs the command; its output goes to `log` as it comes.
pub(super) async fn execute(
    context: &mut Context<'_>,
    request: &Request<'_>,
    key: &Key,
    support: &Support,
    log: &mut dyn OutputSink,
    cancel: &CancellationToken,
) -> Result<Executed, CachedError> {
    let store = context.blobs.local().cloned().ok_or(steading_cas::BlobsError::NoStore)?;
    let owner = if support.is_enforced() { outer_user() } else { request.owner };
    let desk = Desk { dir: context.scratch.to_owned(), owner };
    let (at, inputs, script) = (desk.clone(), key.inputs, request.script.to_owned());
    let (name, from) = (key.script_name.clone(), store.clone());
    off_thread(move || at.lay_out(&from, &inputs, &name, &script)).await?;

    let command = match support {
        Support::Enforced | Support::WithoutOverlay => {
            let overlay = *support == Support::Enforced;
            desk.sandboxed(context.program, request, key, overlay, context.platform.env())?
        }
        Support::Missing(_) => desk.bare(request, key, context.platform.env()),
    };
    let mut tee = Tee::new(&desk.path("log"), log)?;
    let exit = context.supervisor.run(command, &mut tee, cancel).await;
    tee.file.flush().map_err(io_error("write", desk.path("log")))?;
    let exit = exit?;
    if let Ok(why) = fs::read_to_string(desk.path("error")) {
        return Err(CachedError::Sandbox(why));
    }
    let (support, folder, patterns) =
        (support.clone(), key.input_folder.clone(), key.outputs.clone());
    let at = desk.clone();
    let (made, effects) = off_thread(move || -> Result<_, CachedError> {
        let made = match support {
            Support::Enforced => layer::of_upper(&store, &at.path("upper"), &folder, &patterns)?,
            Support::WithoutOverlay | Support::Missing(_) => {
                layer::of_folder(&store, &at.path("lower"), &folder, &patterns)?
            }
        };
        Ok((made, at.effects()?))
    })
    .await?;
    Ok(Executed { exit, log: desk.path("log"), made, effects })
}

/// The folder in which one execution is laid out.
#[derive(Debug, Clone)]
struct Desk {
    dir: PathBuf,
    /// Who the command is outside; none: the agent's own user.
    owner: Option<(u32, u32)>,
}

impl Desk {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn lay_out(
        &self,
        store: &Store,
        inputs: &steading_model::Digest,
        script_name: &str,
        script: &str,
    ) -> Result<(), CachedError> {
        remove_tree(&self.dir).map_err(io_error("clear", &self.dir))?;
        for (name, mode) in [
            // Passed through by a command that has no sandbox; what is private in it is 0600.
            ("", 0o711),
            ("root", 0o755),
            ("lower", 0o755),
            ("upper", 0o755),
            ("work", 0o755),
            ("home", 0o755),
            ("home/.cargo", 0o755),
            ("home/.rustup", 0o755),
            ("tmp", 0o1777),
            ("steading", 0o755),
            ("steading/commands", 0o755),
            ("commands", 0o755),
        ] {
            let path = self.path(name);
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(io_error("open up", &path))?;
        }
        for (_, name) in COMMAND_FILES {
            let path = self.path("commands").join(name);
            fs::write(&path, b"").map_err(io_error("create", &path))?;
            self.give(&path)?;
        }
        // Given away when all is in them: an earlier step's process may run as their owner,
        // and put a link where a file is about to be written.
        for name in ["home/.cargo", "home/.rustup", "home", "commands", "tmp", "upper"] {
            self.give(&self.path(name))?;
        }
        let path = self.path("steading").join(script_name);
        fs::write(&path, script).map_err(io_error("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(io_error("open up", &path))?;
        // Copies and not links into the store, because a step may append to its inputs.
        let options =
            Materialize { mode: MaterializeMode::Writable, mtime: Mtime::Fixed, owner: self.owner };
        tree::materialize(store, inputs, &self.path("lower"), &options)?;
        self.give(&self.path("lower"))
    }

    /// To the user that the command will be outside.
    fn give(&self, path: &Path) -> Result<(), CachedError> {
        match self.owner {
            Some((uid, gid)) => {
                chown(path, Some(uid), Some(gid)).map_err(io_error("give away", path))
            }
            None => Ok(()),
        }
    }

    fn sandboxed(
        &self,
        program: &[String],
        request: &Request<'_>,
        key: &Key,
        overlay: bool,
        agent_env: &BTreeMap<String, String>,
    ) -> Result<Command, CachedError> {
        let network = request.spec.network_max_age_s.is_some();
        let mut env = key.env.clone();
        let mut binds = vec![
            Bind::writable(self.path("home"), HOME),
            Bind::writable(self.path("tmp"), "/tmp"),
            Bind::read_only(self.path("steading"), STEADING_DIR),
            Bind::writable(self.path("commands"), format!("{STEADING_DIR}/commands")),
        ];
        binds.extend(key.tools.binds.iter().cloned());
        if network {
            let files = NETWORK_FILES.iter().filter(|path| Path::new(path).exists());
            for file in files {
                // What it shows besides the tools hides them.
                binds.retain(|bind| !bind.target.starts_with(file));
                binds.push(Bind::same(file));
            }
            for name in NETWORK_ENV {
                if let Some(value) = agent_env.get(name) {
                    env.entry(name.to_owned()).or_insert_with(|| value.clone());
                }
            }
        }
        let spec = Spec {
            root: self.path("root"),
            workspace: if overlay {
                Workspace::Overlay {
                    lower: self.path("lower"),
                    upper: self.path("upper"),
                    work: self.path("work"),
                }
            } else {
                Workspace::Folder(self.path("lower"))
            },
            binds,
            links: key.tools.links.clone(),
            files: Vec::new(),
            argv: arguments(request.shell, &format!("{STEADING_DIR}/{}", key.script_name)),
            env: env.into_iter().collect(),
            cwd: Path::new(WORKSPACE).join(request.working_directory),
            network,
            error_file: self.path("error"),
        };
        let file = self.path("spec");
        write_private(&file, &spec.with_system()).map_err(io_error("write", &file))?;
        let mut argv = program.to_vec();
        argv.extend([SUB_COMMAND.to_owned(), file.display().to_string()]);
        Ok(Command { argv, cwd: "/".into(), timeout: request.timeout, ..Command::default() })
    }

    /// Where there are no namespaces: the same layout and the same inputs, and all of
    /// the machine besides.
    fn bare(
        &self,
        request: &Request<'_>,
        key: &Key,
        agent_env: &BTreeMap<String, String>,
    ) -> Command {
        let outside = |text: &str| {
            let places = [
                (WORKSPACE, self.path("lower")),
                ("/steading/commands", self.path("commands")),
                (STEADING_DIR, self.path("steading")),
            ];
            let mut bytes = text.as_bytes().to_vec();
            for (from, to) in places {
                if let Some(replaced) = replace_path(&bytes, from, &to.to_string_lossy()) {
                    bytes = replaced;
                }
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let mut env: BTreeMap<String, String> =
            key.env.iter().map(|(name, value)| (name.clone(), outside(value))).collect();
        for name in ["HOME", "USER", "LOGNAME"] {
            if let Some(value) = agent_env.get(name) {
                env.insert(name.to_owned(), value.clone());
            }
        }
        let own = request.env.get("PATH").or_else(|| agent_env.get("PATH"));
        let path: Vec<String> = request
            .path_prefix
            .iter()
            .chain(own)
            .map(|entry| outside(&inside(entry, request.workspace)))
            .collect();
        env.insert("PATH".to_owned(), path.join(":"));
        let script = self.path("steading").join(&key.script_name);
        Command {
            argv: arguments(request.shell, &script.display().to_string()),
            env: env.into_iter().collect(),
            cwd: self.path("lower").join(request.working_directory),
            user: self.owner,
            timeout: request.timeout,
        }
    }

    /// The command files, with the workspace at its constant place.
    fn effects(&self) -> Result<SideEffects, CachedError> {
        let lower = self.path("lower");
        let read = |name: &str| -> Result<Vec<u8>, CachedError> {
            let path = self.path("commands").join(name);
            let mut bytes = Vec::new();
            // The command may have put anything here: a link must not lead elsewhere.
            let open = File::options()
                .read(true)
                .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
                .open(&path);
            let Ok(file) = open else { return Ok(bytes) };
            file.take(COMMAND_FILE_BYTES_MAX)
                .read_to_end(&mut bytes)
                .map_err(io_error("read", &path))?;
            Ok(replace_path(&bytes, &lower.to_string_lossy(), WORKSPACE).unwrap_or(bytes))
        };
        Ok(SideEffects {
            output: read("output")?,
            env: read("env")?,
            path: read("path")?,
            state: read("state")?,
            summary: read("summary")?,
        })
    }
}

/// Who a sandboxed command is outside, where the agent is root; none: the agent's own user.
fn outer_user() -> Option<(u32, u32)> {
    geteuid().is_root().then_some((OUTER_ID, OUTER_ID))
}

/// For the agent's own eyes: the environment is in it.
fn write_private(file: &Path, spec: &Spec) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(spec)?;
    File::options().write(true).create_new(true).mode(0o600).open(file)?.write_all(&bytes)
}

/// Keeps what it passes on.
struct Tee<'a> {
    file: BufWriter<File>,
    kept: u64,
    failed: bool,
    onward: &'a mut dyn OutputSink,
}

impl<'a> Tee<'a> {
    fn new(file: &Path, onward: &'a mut dyn OutputSink) -> Result<Self, CachedError> {
        let open = File::create(file).map_err(io_error("create", file))?;
        Ok(Self { file: BufWriter::new(open), kept: 0, failed: false, onward })
    }
}

impl OutputSink for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) {
        self.onward.write(bytes);
        let room = limits::STEP_LOG_BYTES_MAX - self.kept;
        let taken = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        self.kept += taken.len() as u64;
        if !self.failed && self.file.write_all(taken).is_err() {
            // The flush at the end tells.
            self.failed = true;
        }
    }
}
