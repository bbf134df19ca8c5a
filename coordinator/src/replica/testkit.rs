//! A replica without threads and clocks, on any file system: the real log, the real
//! node and the real keeper, driven step by step. For the crash tests.

use std::path::PathBuf;
use std::sync::Arc;

use steading_core::{Effect, Proposal, State};
use steading_model::Timestamp;
use steading_model::codec::Encode;
use tokio::sync::oneshot;

pub use super::image::ImageStore;
pub use super::image_memory::MemStore;
pub use super::image_sled::SledStore;

use super::ProposeError;
use super::keeper::Keeper;
use super::node::{Cadence, Node, Output, ReplicaError};
use super::open::{Opened, Place, StartError, open};
use super::vfs::Vfs;

/// What a proposal was answered.
pub type Answer = Result<Vec<Effect>, ProposeError>;

/// How a replica without threads is laid out.
#[derive(Clone, Debug)]
pub struct Layout {
    pub vfs: Arc<dyn Vfs>,
    pub dir: PathBuf,
    pub segment_bytes: u64,
    /// Payload of one frame before it is split, bytes.
    pub frame_bytes: usize,
    pub cadence: Cadence,
}

/// A replica without threads.
#[derive(Debug)]
pub struct StepReplica {
    node: Node,
    keeper: Keeper,
    clock_ms: u64,
}

impl StepReplica {
    /// Opens the directory, or makes it; leads when this returns.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn open(layout: &Layout, store: Box<dyn ImageStore>) -> Result<Self, StartError> {
        let place = Place {
            vfs: Arc::clone(&layout.vfs),
            dir: layout.dir.clone(),
            segment_bytes: layout.segment_bytes,
            frame_bytes: layout.frame_bytes,
            background: false,
            cadence: layout.cadence,
            join: None,
        };
        let Opened { mut node, keeper, .. } = open(&place, store, || Ok([7; 32]))?;
        node.process(&mut Output::default())?;
        Ok(Self { node, keeper, clock_ms: 0 })
    }

    /// Proposes each wave as an entry of its own, and answers when all are durable and
    /// applied. The answers are in the order of the proposals.
    ///
    /// # Errors
    ///
    /// [`ReplicaError`]: the replica is dead, and the outcome of all unknown.
    pub fn propose(&mut self, waves: &[Vec<Proposal>]) -> Result<Vec<Answer>, ReplicaError> {
        let mut answers = Vec::new();
        let mut output = Output::default();
        for wave in waves {
            self.clock_ms += 1;
            let mut waiting = Vec::new();
            for proposal in wave {
                let (waiter, answer) = oneshot::channel();
                waiting.push((proposal.to_bytes(), waiter));
                answers.push(answer);
            }
            self.node.propose(Timestamp::from_ms(self.clock_ms), waiting, &mut output);
        }
        self.node.process(&mut output)?;
        for (waiter, answer) in output.answers {
            let _ = waiter.send(answer);
        }
        let unknown = |_| Err(ProposeError::Unknown);
        Ok(answers.iter_mut().map(|answer| answer.try_recv().unwrap_or_else(unknown)).collect())
    }

    /// Nothing came for a while: the log is sealed.
    ///
    /// # Errors
    ///
    /// [`ReplicaError`]: the replica is dead.
    pub fn idle(&mut self) -> Result<(), ReplicaError> {
        self.node.seal()
    }

    /// Does what is due for image, snapshots and old segments.
    pub fn keep(&mut self) {
        while let Some(job) = self.node.due(self.clock_ms) {
            let kept = self.keeper.run(job);
            self.node.kept(kept);
        }
    }

    /// The state.
    pub const fn state(&self) -> &State {
        self.node.state()
    }
}
