//! What the tests of the replica share: small proposals with names, and looking them up.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use steading_coordinator::replica::Cadence;
use steading_coordinator::replica::sim_fs::SimFs;
use steading_coordinator::replica::testkit::Layout;
use steading_core::{Effect, NewAgent, Proposal, State};
use steading_model::{AgentId, Provisioning, Resources};

/// A proposal that leaves a row of this name, of about `bytes` bytes.
pub fn register(name: &str, bytes: usize) -> Proposal {
    let filler = BTreeMap::from([("filler".to_owned(), "x".repeat(bytes))]);
    Proposal::RegisterAgent {
        agent: NewAgent {
            name: name.to_owned(),
            pool: "pool".into(),
            provisioning: Provisioning::OnDemand,
            labels: Vec::new(),
            slots: 1,
            resources: Resources { cpu_milli: 1000, memory_mib: 1024 },
            cache_endpoint: String::new(),
            start: 0,
            properties: filler,
        },
    }
}

/// The id that a registration was answered.
pub fn registered(effects: &[Effect]) -> Option<AgentId> {
    effects.iter().find_map(|effect| match effect {
        Effect::Registered { agent, .. } => Some(*agent),
        _ => None,
    })
}

/// What was acknowledged: names and the ids that were answered.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged(pub Vec<(String, AgentId)>);

impl Acknowledged {
    /// The first that `state` does not hold as it was answered.
    pub fn missing_in(&self, state: &State) -> Option<&str> {
        let lost = |(name, id): &&(String, AgentId)| {
            state.agent_by_name(name).is_none_or(|agent| agent.id != *id)
        };
        self.0.iter().find(lost).map(|(name, _)| name.as_str())
    }
}

/// A replica on a simulated disk, with everything so small that all of it happens often.
pub fn small_layout(fs: &SimFs) -> Layout {
    Layout {
        vfs: Arc::new(fs.clone()),
        dir: PathBuf::from("/replica"),
        segment_bytes: 3 << 10,
        frame_bytes: 300,
        cadence: Cadence { checkpoint_entries: 7, checkpoint_ms: 10_000, snapshot_bytes: 5 << 10 },
    }
}
