//! The `Fleet` service: what operators see and want of agents.

use std::sync::Arc;

use steading_core::{Agent, Proposal, Rejection, State};
use steading_model::{Provisioning, RequestId, Timestamp};
use steading_proto::v1;
use steading_proto::v1::agent_info::State as Standing;
use steading_proto::v1::fleet_server::Fleet;
use tonic::{Request, Response, Status};

use crate::auth;
use crate::replica::{ProposeError, Replica};
use crate::sessions::Sessions;

/// Agents on a page that asks for no number.
const PAGE_SIZE_DEFAULT: u32 = 100;
/// Most agents on a page.
const PAGE_SIZE_MAX: u32 = 1_000;

/// What operators ask for.
#[derive(Clone, Debug)]
pub(crate) struct FleetService {
    pub(crate) replica: Replica,
    pub(crate) sessions: Arc<Sessions>,
}

#[tonic::async_trait]
impl Fleet for FleetService {
    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        auth::principal(&request)?;
        let v1::ListAgentsRequest { page_size, page_token, name } = request.into_inner();
        // What was acknowledged to an operator is seen by the next question.
        self.replica.read_barrier().await?;
        let state = self.replica.view();
        let connected = self.sessions.connected();
        let info = |agent: &Agent| {
            let here = connected.contains(&(agent.id, agent.incarnation));
            info(&state, agent, here)
        };
        if !name.is_empty() {
            let agent = state.agent_by_name(&name).ok_or_else(|| unknown(&name))?;
            let agents = vec![info(agent)];
            return Ok(Response::new(v1::ListAgentsResponse {
                agents,
                next_page_token: String::new(),
            }));
        }
        let size = match page_size {
            0 => PAGE_SIZE_DEFAULT,
            size => size.min(PAGE_SIZE_MAX),
        } as usize;
        let mut page: Vec<&Agent> =
            state.agents_by_name_after(&page_token).take(size + 1).collect();
        let more = page.len() > size;
        page.truncate(size);
        let last = page.last().map(|agent| agent.definition.name.clone());
        Ok(Response::new(v1::ListAgentsResponse {
            agents: page.into_iter().map(info).collect(),
            next_page_token: last.filter(|_| more).unwrap_or_default(),
        }))
    }

    #[tracing::instrument(name = "agent.cordon", skip_all, fields(name = request.get_ref().name))]
    async fn cordon_agent(
        &self,
        request: Request<v1::CordonAgentRequest>,
    ) -> Result<Response<v1::CordonAgentResponse>, Status> {
        auth::principal(&request)?;
        let v1::CordonAgentRequest { name, cordoned } = request.into_inner();
        let proposal = Proposal::CordonAgent { name: name.clone(), cordoned };
        self.propose(&name, proposal).await?;
        Ok(Response::new(v1::CordonAgentResponse {}))
    }

    #[tracing::instrument(name = "agent.drain", skip_all, fields(name = request.get_ref().name))]
    async fn drain_agent(
        &self,
        request: Request<v1::DrainAgentRequest>,
    ) -> Result<Response<v1::DrainAgentResponse>, Status> {
        auth::principal(&request)?;
        let v1::DrainAgentRequest { name, request_id, deadline_ms } = request.into_inner();
        let id: RequestId = request_id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("`request_id`: {error}")))?;
        let proposal = Proposal::DrainAgent { name: name.clone(), request: id, deadline_ms };
        self.propose(&name, proposal).await?;
        Ok(Response::new(v1::DrainAgentResponse {}))
    }

    #[tracing::instrument(name = "agent.remove", skip_all, fields(name = request.get_ref().name))]
    async fn remove_agent(
        &self,
        request: Request<v1::RemoveAgentRequest>,
    ) -> Result<Response<v1::RemoveAgentResponse>, Status> {
        auth::principal(&request)?;
        let name = request.into_inner().name;
        let proposal = Proposal::RemoveAgent { name: name.clone() };
        self.propose(&name, proposal).await?;
        Ok(Response::new(v1::RemoveAgentResponse {}))
    }
}

impl FleetService {
    async fn propose(&self, name: &str, proposal: Proposal) -> Result<(), Status> {
        match self.replica.propose(proposal).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Rejected(Rejection::AgentUnknown)) => Err(unknown(name)),
            Err(error) => Err(error.into()),
        }
    }
}

fn unknown(name: &str) -> Status {
    Status::not_found(format!("no agent `{name}` is known: `stead agents` lists them"))
}

fn info(state: &State, agent: &Agent, connected: bool) -> v1::AgentInfo {
    let leases = state.leases_of(agent.id).count() as u32;
    let definition = &agent.definition;
    let deadline = agent.drain.as_ref().and_then(|drain| drain.deadline);
    v1::AgentInfo {
        agent_id: agent.id.counter(),
        name: definition.name.clone(),
        pool: definition.pool.clone(),
        spot: definition.provisioning == Provisioning::Spot,
        labels: definition.labels.clone(),
        slots: definition.slots,
        slots_used: leases,
        state: standing(agent, leases).into(),
        incarnation: agent.incarnation.counter(),
        connected,
        registered_ms: agent.registered.as_ms(),
        drain_deadline_ms: deadline.map_or(0, Timestamp::as_ms),
        properties: definition.properties.clone().into_iter().collect(),
    }
}

fn standing(agent: &Agent, leases: u32) -> Standing {
    let leaving = agent.leaves > Timestamp::default();
    match () {
        () if agent.removed => Standing::Removed,
        () if agent.retired => Standing::Gone,
        () if agent.drain.is_some() && leases > 0 => Standing::Draining,
        () if agent.drain.is_some() => Standing::Drained,
        () if leaving => Standing::Leaving,
        () if agent.cordoned => Standing::Cordoned,
        () => Standing::Ready,
    }
}
