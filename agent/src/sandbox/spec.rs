//! What one sandbox looks like, as the agent writes it down for the sub-command.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The user inside, and its group.
pub const USER: &str = "runner";
/// Number of [`USER`] and of its group, inside.
pub const USER_ID: u32 = 1000;
/// Home folder inside.
pub const HOME: &str = "/home/runner";
/// The workspace inside: constant, so that no result depends on where it was made.
pub const WORKSPACE: &str = "/workspace";

/// Who the sandboxed processes are outside, where the agent may choose: a number
/// that no package and no `useradd` hands out, and that owns nothing but what the
/// agent gives to a sandbox.
pub const OUTER_ID: u32 = 64_999;

/// One sandboxed command. Written by the agent to a file that only it can read,
/// which the sub-command removes as soon as it has read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// An empty folder outside: the new root is mounted over it.
    pub root: PathBuf,
    pub workspace: Workspace,
    /// What else of the outside is seen inside, in order.
    pub binds: Vec<Bind>,
    /// Symbolic links: (path inside, target).
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Small files: (path inside, content).
    pub files: Vec<(PathBuf, String)>,
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Inside.
    pub cwd: PathBuf,
    /// Shares the network of the outside. Otherwise there is loopback and nothing else.
    pub network: bool,
    /// Where to say why the sandbox could not be made. Its existence tells such a
    /// failure from a failure of the command.
    pub error_file: PathBuf,
}

/// How the workspace comes to stand at [`WORKSPACE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workspace {
    /// An overlay: `lower` stays as it is, writes go to `upper`.
    Overlay { lower: PathBuf, upper: PathBuf, work: PathBuf },
    /// A folder that the command may change.
    Folder(PathBuf),
}

impl Default for Workspace {
    fn default() -> Self {
        Self::Folder(PathBuf::new())
    }
}

/// A file or folder of the outside that is seen inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    /// Inside, absolute.
    pub target: PathBuf,
    #[serde(default)]
    pub writable: bool,
    /// `source` has no links on its way; where it has by now, the sandbox is not made.
    #[serde(default)]
    pub exact: bool,
}

impl Bind {
    /// Seen inside where it stands outside, and not to be changed.
    pub fn same(path: impl Into<PathBuf>) -> Self {
        let source = path.into();
        Self { target: source.clone(), source, ..Self::default() }
    }

    /// Seen inside under another path, and not to be changed.
    pub fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), ..Self::default() }
    }

    /// Seen inside under another path; changes inside are changes outside.
    pub fn writable(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: true, ..Self::default() }
    }
}

impl Spec {
    /// Adds what every sandbox has: `/usr` and its aliases, and the user database.
    #[must_use]
    pub fn with_system(mut self) -> Self {
        let mut binds = vec![Bind::same("/usr")];
        for alias in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
            let path = Path::new(alias);
            // Merged on most systems: then a link into /usr, which costs no mount.
            match std::fs::read_link(path) {
                Ok(target) => self.links.push((path.to_owned(), target)),
                Err(_) if path.is_dir() => binds.push(Bind::same(alias)),
                Err(_) => (),
            }
        }
        binds.append(&mut self.binds);
        self.binds = binds;
        self.files.extend([
            (
                "/etc/passwd".into(),
                format!(
                    "root:x:0:0:root:/root:/bin/sh\n\
                     {USER}:x:{USER_ID}:{USER_ID}:{USER}:{HOME}:/bin/sh\n\
                     nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
                ),
            ),
            (
                "/etc/group".into(),
                format!("root:x:0:\n{USER}:x:{USER_ID}:\nnogroup:x:65534:\n"),
            ),
            (
                "/etc/nsswitch.conf".into(),
                "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"
                    .into(),
            ),
        ]);
        if !self.network {
            self.files.push((
                "/etc/hosts".into(),
                format!("127.0.0.1 localhost {HOST_NAME}\n::1 localhost\n"),
            ));
        }
        self
    }
}

/// The host's name inside: constant like all else.
pub(super) const HOST_NAME: &str = "steading";
