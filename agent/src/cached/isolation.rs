//! How far isolation is enforced, found out once for each start of the machine.

use std::fs;
use std::path::Path;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::platform::{Platform, machine_id};
use crate::sandbox::{self, Support};

/// How far a cached step saw nothing but its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Isolation {
    Enforced,
    /// Not at all, and why. The result stays on this machine.
    Off(String),
}

impl Isolation {
    /// Its value among the platform's properties.
    pub(super) fn property(&self) -> String {
        match self {
            Self::Enforced => "enforced".to_owned(),
            Self::Off(_) => format!("none:{}", machine_id()),
        }
    }

    pub(super) fn of(support: &Support) -> Self {
        match support {
            Support::Enforced | Support::WithoutOverlay => Self::Enforced,
            Support::Missing(why) => Self::Off(why.clone()),
        }
    }
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Memo {
    /// Of the kernel's start, and of whom the agent runs as: what the answer depends on.
    boot: String,
    user: u32,
    enforced: bool,
    overlay: bool,
}

/// As [`sandbox::support`]; a yes is remembered, by the process, and beside the
/// platform's memos until the machine starts again.
pub(super) fn support(program: &[String], platform: &Platform, scratch: &Path) -> Support {
    if let Some(support) = platform.enforced.get() {
        return support.clone();
    }
    let support = found_out(program, platform.dir(), scratch);
    if support.is_enforced() {
        // Set before by another step: the same.
        let _ = platform.enforced.set(support.clone());
    }
    support
}

fn found_out(program: &[String], dir: &Path, scratch: &Path) -> Support {
    let file = dir.join("isolation.json");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let user = geteuid().as_raw();
    let known = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Memo>(&bytes).ok());
    if let Some(known) = known.filter(|known| known.boot == boot && known.user == user)
        && known.enforced
    {
        return if known.overlay { Support::Enforced } else { Support::WithoutOverlay };
    }
    // Without it the probe says what is missing.
    let _ = fs::create_dir_all(scratch);
    let support = sandbox::support(program, scratch);
    if support.is_enforced() {
        let memo = Memo { boot, user, enforced: true, overlay: support == Support::Enforced };
        let bytes = serde_json::to_vec(&memo).expect("a struct of plain values is JSON");
        // Only time is lost.
        let _ = fs::create_dir_all(dir).and_then(|()| fs::write(&file, bytes));
    }
    support
}
