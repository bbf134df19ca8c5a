//! The agent's folder, and what an earlier incarnation left of it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use steading_cas::remove_tree;

use crate::config::Config;
use crate::passable::{closed_to_others, command_to_open};

/// Variable by which a process is known to belong to an agent's folder. GitHub's
/// runner uses the same name for the same purpose.
pub(super) const TRACKING_VARIABLE: &str = "RUNNER_TRACKING_ID";

/// How often leftovers are looked for, milliseconds, and how often in all: they are
/// killed or their own supervisor is doing so.
const LEFTOVER_POLL_MS: u64 = 10;
const LEFTOVER_POLLS_MAX: u32 = 3_000;

/// The agent's folder, held by this process.
#[derive(Debug)]
pub(super) struct Home {
    work: PathBuf,
    /// What the value of [`TRACKING_VARIABLE`] begins with for everything that runs here.
    tracking: String,
    _lock: File,
}

impl Home {
    /// Takes the folder: locks it, ends what an earlier incarnation left running, and
    /// removes its files.
    pub(super) async fn take(config: &Config) -> anyhow::Result<Self> {
        // The user of the steps passes through, and sees nothing on the way.
        let mode = match config.user.of_slot(0) {
            Some(_) => 0o711,
            None => 0o700,
        };
        let dir = &config.data_dir;
        let work = dir.join("work");
        make(dir, mode)?;
        make(&work, mode)?;
        if config.user.of_slot(0).is_some() {
            check_passable(&work)?;
        }
        let lock = lock(&work.join("LOCK"))?;
        let real =
            dir.canonicalize().with_context(|| format!("cannot find `{}`", dir.display()))?;
        let hash = blake3::hash(real.as_os_str().as_encoded_bytes()).to_hex();
        let home = Self { work, tracking: format!("steading_{}_", &hash[..16]), _lock: lock };
        let dirty = home.work.join("RUNNING");
        if dirty.exists() {
            home.end_tracked(&home.tracking).await?;
            remove_work(&home.work)?;
        }
        fs::write(&dirty, "").with_context(|| format!("cannot write `{}`", dirty.display()))?;
        Ok(home)
    }

    /// Where the job of a slot works.
    pub(super) fn slot(&self, index: u32) -> PathBuf {
        self.work.join(index.to_string())
    }

    /// Value of [`TRACKING_VARIABLE`] of everything that runs in a slot.
    pub(super) fn tracking(&self, slot: u32) -> String {
        format!("{}{slot}.", self.tracking)
    }

    /// Ends what a slot's supervisor left when it was killed itself.
    pub(super) async fn end_slot(&self, slot: u32) {
        if let Err(error) = self.end_tracked(&self.tracking(slot)).await {
            tracing::error!(%error, slot, "processes of a lost supervisor live on");
        }
    }

    /// Where the logs of a slot's job wait.
    pub(super) fn logs(&self, slot: u32) -> PathBuf {
        self.work.join("logs").join(slot.to_string())
    }

    /// RUNNER_TOOL_CACHE.
    pub(super) fn tool_cache(&self) -> PathBuf {
        self.work.join("tools")
    }

    /// Nothing runs here any more.
    pub(super) fn leave(&self) {
        if let Err(error) = fs::remove_file(self.work.join("RUNNING")) {
            tracing::debug!(%error, "mark of a running agent cannot be removed");
        }
    }

    /// Kills all processes whose mark begins so, and waits for their end. Supervisors do
    /// so themselves within moments; this is for the case that they were killed too.
    async fn end_tracked(&self, tracking: &str) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_millis(LEFTOVER_POLL_MS));
        for _ in 0..LEFTOVER_POLLS_MAX {
            let left = tracked(tracking);
            if left.is_empty() {
                return Ok(());
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            ticks.tick().await;
        }
        anyhow::bail!(
            "processes of an earlier start cannot be killed: {:?}; end them and start again",
            tracked(tracking)
        )
    }
}

fn make(dir: &Path, mode: u32) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(dir);
    made.and_then(|()| fs::set_permissions(dir, Permissions::from_mode(mode)))
        .with_context(|| format!("cannot make the agent's folder `{}`", dir.display()))
}

/// Whether jobs that run as users of their own get to their workspaces. Otherwise each of
/// their steps would end with a denied permission, and not say why.
fn check_passable(work: &Path) -> anyhow::Result<()> {
    let looked = || format!("cannot look at the folders above `{}`", work.display());
    let closed = closed_to_others(work).with_context(looked)?;
    if let Some(first) = closed.first() {
        anyhow::bail!(
            "jobs run as users of their own, and `{}` does not let them pass to `{}`: say \
             `{}`, choose another --data-dir, or run jobs as the agent's own user (`stead agent --user self`)",
            first.display(),
            work.display(),
            command_to_open(&closed)
        );
    }
    Ok(())
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => anyhow::bail!(
            "`{}` is locked: another agent uses this data directory; stop it, or choose another",
            path.display()
        ),
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock `{}`", path.display()))
        }
    }
}

/// Removes the folders of slots and logs, not what is worth keeping.
fn remove_work(work: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(work)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == "logs" || name.bytes().all(|byte| byte.is_ascii_digit()) {
            let path = entry.path();
            remove_tree(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
    }
    Ok(())
}

/// Processes whose environment has a mark that begins so.
fn tracked(tracking: &str) -> Vec<Pid> {
    let wanted = format!("{TRACKING_VARIABLE}={tracking}");
    let own = Pid::this();
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = processes.flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let environment = match fs::read(entry.path().join("environ")) {
            Ok(environment) => environment,
            // Of another user, or gone.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
            Err(_) => return None,
        };
        let mut lines = environment.split(|&byte| byte == 0);
        let ours = lines.any(|line| line.starts_with(wanted.as_bytes()));
        (ours && Pid::from_raw(pid) != own).then(|| Pid::from_raw(pid))
    });
    pids.collect()
}
