//! What an agent is told by whoever starts it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use steading_cas::Store;
use steading_model::Resources;

use crate::limits;
use crate::preemption::Preemption;

/// One agent. All required: whoever composes the process knows better defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// Unique in the cluster.
    pub name: String,
    pub pool: String,
    /// Its machine may be taken away.
    pub spot: bool,
    /// What `runs-on` may ask for, besides `self-hosted` and the host's own.
    pub labels: Vec<String>,
    /// Jobs that it runs at once.
    pub slots: u32,
    /// Leases that it takes besides, to have the next job at hand when a slot frees. What
    /// it holds so, another agent cannot have: 0, unless it is its coordinator's only one.
    pub leases_ahead: u32,
    pub resources: Resources,
    /// Everything it keeps; mode 0700. Workspaces are under `work/`.
    pub data_dir: PathBuf,
    pub blobs: BlobsSetting,
    pub user: RunAs,
    /// Zone, machine type, and what else is to be known of the machine.
    pub properties: BTreeMap<String, String>,
    /// What jobs are held to; none: nothing, as on a person's own machine.
    pub limits: Option<limits::Setting>,
    /// Who says that the machine is about to go.
    pub preemption: Preemption,
    /// How long after a notice the machine is still there, milliseconds.
    pub leave_window_ms: u64,
    /// How this program is started again for its hidden sub-commands: the path of the
    /// current executable, and arguments before the sub-command if it wants any.
    pub program: Vec<String>,
}

/// [`Config::leave_window_ms`] where nothing else is known: what an ordinary pod of GKE
/// gets on a spot machine.
pub const LEAVE_WINDOW_MS_DEFAULT: u64 = 15_000;

/// Where blobs are.
#[derive(Clone, Debug)]
pub enum BlobsSetting {
    /// In a store of its own under the data directory, filled over the wire.
    Own {
        /// What it may take on disk, bytes.
        bytes_max: u64,
    },
    /// In the coordinator's own store, in the same process.
    Shared(Store),
}

/// Who steps run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAs {
    /// The agent's own user, with its home and its environment: for a person's own
    /// machine, and for agents that serve one trust scope.
    SelfUser,
    /// A user of its own for each slot, `base` for slot 0 and so on, which owns the
    /// job's workspace and nothing else. Needs root.
    PerSlotUid { base: u32 },
}

impl RunAs {
    /// User and group of the steps in `slot`; none: the agent's own.
    pub fn of_slot(self, slot: u32) -> Option<(u32, u32)> {
        match self {
            Self::SelfUser => None,
            Self::PerSlotUid { base } => Some((base + slot, base + slot)),
        }
    }
}
