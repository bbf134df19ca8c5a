//! Who asks, and what they may ask. The one place that turns a request into an identity.
//!
//! A [`Gate`] stands in front of every service: it finds out who calls, looks the method
//! up in the table ([`table`]), and puts the [`Caller`] into the request. What is not in
//! the table nobody may call.

mod connections;
mod gate;
mod table;
mod writers;

use std::fmt;
use std::sync::Arc;

use steading_core::{Lease, Rejection, State};
use steading_model::{AgentId, Principal, Role};
use steading_proto::tls::Certified;
use tonic::{Request, Status};

use crate::replica::ProposeError;

pub(crate) use connections::Connections;
pub(crate) use gate::{Gate, Trust};
pub(crate) use writers::LeaseHolders;

/// Metadata of a request that was passed on by another replica: who asked, `ROLE/ID`.
/// Believed from coordinators, and within this machine.
pub(crate) const ON_BEHALF_OF: &str = "steading-on-behalf-of";

/// The id of whoever reaches this process within its machine.
const LOCAL: &str = "local";

/// Who sent a request. Its `Display` is `ROLE/ID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) role: Role,
    pub(crate) id: String,
    /// What they showed, if it was they who connected.
    pub(crate) certified: Option<Arc<Certified>>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.id)
    }
}

impl Caller {
    /// Over a Unix socket, a loopback address in plain text, or in memory.
    pub(crate) fn local() -> Self {
        Self { role: Role::Admin, id: LOCAL.to_owned(), certified: None }
    }

    fn certified(certified: &Arc<Certified>) -> Self {
        let id = &certified.id;
        let certified = Some(Arc::clone(certified));
        Self { role: id.role(), id: id.id().to_owned(), certified }
    }

    fn read(text: &str) -> Option<Self> {
        let (role, id) = text.split_once('/')?;
        let role = role.parse().ok()?;
        steading_model::SpiffeId::new("cluster", role, id).ok()?;
        Some(Self { role, id: id.to_owned(), certified: None })
    }

    /// Whether it is an agent, and then its name. Others speak for any.
    pub(crate) fn agent(&self) -> Option<&str> {
        (self.role == Role::Agent).then_some(self.id.as_str())
    }

    /// May the caller speak as the agent of this name?
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED for another agent.
    pub(crate) fn speaks_for(&self, name: &str) -> Result<(), Status> {
        match self.agent() {
            Some(agent) if agent != name => Err(Status::permission_denied(format!(
                "agent `{agent}` speaks for itself only, not for `{name}`"
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// May the caller speak as the agent of this id?
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED for another agent, FAILED_PRECONDITION where there is none.
    pub(crate) fn is_agent(&self, state: &State, agent: AgentId) -> Result<(), Status> {
        if self.agent().is_none() {
            return Ok(());
        }
        let unknown = || Status::from(ProposeError::Rejected(Rejection::AgentUnknown));
        self.speaks_for(&state.agent(agent).ok_or_else(unknown)?.definition.name)
    }

    /// May the caller say what came of this lease, which may have passed to another
    /// attempt since?
    ///
    /// # Errors
    ///
    /// As [`Caller::holds`].
    pub(crate) fn held(&self, state: &State, lease: Lease) -> Result<(), Status> {
        let number = u64::from(lease.work.attempt);
        let mut earlier = state.earlier_attempts(lease.work.job);
        match earlier.find(|(attempt, _)| *attempt == number) {
            Some((_, attempt)) if self.agent().is_some() => {
                let holder = attempt.agent.and_then(|agent| state.agent(agent));
                let stale = || Status::from(ProposeError::Rejected(Rejection::LeaseStale));
                self.speaks_for(&holder.ok_or_else(stale)?.definition.name)
            }
            Some(_) | None => self.holds(state, lease),
        }
    }

    /// May the caller say something of this lease?
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED where another agent held it, FAILED_PRECONDITION where it is not
    /// known any more.
    pub(crate) fn holds(&self, state: &State, lease: Lease) -> Result<(), Status> {
        if self.agent().is_none() {
            return Ok(());
        }
        let stale = || Status::from(ProposeError::Rejected(Rejection::LeaseStale));
        let job = state.job(lease.work.job).ok_or_else(stale)?;
        if job.attempts != lease.work.attempt {
            return Err(stale());
        }
        let holder = job.agent.and_then(|agent| state.agent(agent)).ok_or_else(stale)?;
        self.speaks_for(&holder.definition.name)
    }
}

/// Who sent the request, as the [`Gate`] found out.
///
/// # Errors
///
/// UNAUTHENTICATED where the request came around it.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.cloned().ok_or_else(|| Status::unauthenticated("it is not known who asks"))
}

/// The directory that a calling coordinator's certificate names; `None` where the caller
/// is on this machine and shows none, and is believed whatever it says.
///
/// # Errors
///
/// UNAUTHENTICATED, and PERMISSION_DENIED for who is no coordinator.
pub(crate) fn coordinator<T>(request: &Request<T>) -> Result<Option<String>, Status> {
    let caller = caller(request)?;
    match caller.role {
        Role::Coordinator => Ok(Some(caller.id)),
        Role::Admin if caller == Caller::local() => Ok(None),
        Role::Admin | Role::Agent | Role::Client => {
            Err(Status::permission_denied("only a coordinator may say this"))
        }
    }
}

/// In whose name the request is made: that of a client is its own; of others, it says
/// what they are, so that no client has it.
///
/// # Errors
///
/// UNAUTHENTICATED.
pub(crate) fn principal<T>(request: &Request<T>) -> Result<Principal, Status> {
    let caller = caller(request)?;
    let name = match (caller.role, caller.id.as_str()) {
        (Role::Admin, LOCAL) => LOCAL.to_owned(),
        (Role::Client, id) => id.to_owned(),
        (role @ (Role::Admin | Role::Agent | Role::Coordinator), id) => format!("{role}:{id}"),
    };
    name.parse().map_err(|_| Status::unauthenticated("the name in the certificate is too long"))
}

/// Names that nobody joins under, for they mean something else.
pub(crate) fn is_reserved(name: &str) -> bool {
    name == LOCAL
}

#[cfg(test)]
mod tests;
