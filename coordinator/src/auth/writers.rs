//! Who may say what an action gave: an agent, where it runs a job.

use std::time::Duration;

use steading_cas::server::Writers;
use steading_core::State;
use tonic::{Extensions, Status};

use super::Caller;
use crate::replica::Replica;

/// How far this replica may be behind the leader, which has granted the lease.
const BEHIND_MAX: Duration = Duration::from_secs(3);

/// Agents write in the scopes of the jobs that they hold leases of, as they claim actions
/// there only. Others write where they like.
#[derive(Debug)]
pub(crate) struct LeaseHolders(pub(crate) Replica);

#[tonic::async_trait]
impl Writers for LeaseHolders {
    async fn may_write(&self, sender: &Extensions, scope: &str) -> Result<(), Status> {
        let caller = sender.get::<Caller>();
        let caller = caller.ok_or_else(|| Status::unauthenticated("it is not known who asks"))?;
        let Some(agent) = caller.agent() else { return Ok(()) };
        let mut changes = self.0.changes();
        let runs_there = async {
            loop {
                changes.borrow_and_update();
                if works_in(&self.0.view(), agent, scope) || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        match tokio::time::timeout(BEHIND_MAX, runs_there).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Status::permission_denied(format!(
                "agent `{agent}` runs no job of `{scope}`, and says nothing of its actions"
            ))),
        }
    }
}

fn works_in(state: &State, agent: &str, scope: &str) -> bool {
    let Some(agent) = state.agent_by_name(agent) else { return false };
    let mut runs = state.leases_of(agent.id).filter_map(|job| state.run(job.run));
    runs.any(|run| run.definition.request.project.as_str() == scope)
}
