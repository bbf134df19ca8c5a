//! In front of every service: who calls, and whether they may.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use steading_core::{State, serial_subject, subject};
use steading_model::{Role, Timestamp};
use steading_proto::tls::{Certified, Peer};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::table::who;
use super::{Caller, ON_BEHALF_OF};
use crate::replica::Replica;

/// How a listener knows who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Who can connect at all may do everything: a Unix socket, memory, or a loopback
    /// address that was allowed on purpose.
    Local,
    /// By the certificate of the connection.
    Certificates,
}

/// Lets through what the table allows.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) trust: Trust,
    /// Knows who is denied.
    pub(crate) replica: Replica,
}

impl Gate {
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        let caller = self.caller(request)?;
        let path = request.uri().path();
        let Some(who) = who(path) else {
            return Err(Status::unimplemented(format!("there is no method `{path}`")));
        };
        let role = caller.as_ref().map(|caller| caller.role);
        // Within one machine replicas show no certificates to each other.
        let everything = self.trust == Trust::Local && caller == Some(Caller::local());
        if !everything && !who.includes(role) {
            return Err(match &caller {
                None => Status::unauthenticated("without a certificate nobody may call this"),
                Some(caller) => {
                    tracing::info!(%caller, path, "call refused");
                    Status::permission_denied(format!("`{caller}` may not call `{path}`"))
                }
            });
        }
        if let Some(caller) = caller {
            request.extensions_mut().insert(steading_cas::server::Writer(caller.to_string()));
            request.extensions_mut().insert(caller);
        }
        Ok(())
    }

    /// Who calls; none: somebody without a certificate.
    fn caller(&self, request: &Request<Body>) -> Result<Option<Caller>, Status> {
        let direct = match self.trust {
            Trust::Local => Caller::local(),
            Trust::Certificates => {
                let peer = request.extensions().get::<Peer>();
                match peer.and_then(|peer| peer.certified.as_ref()) {
                    Some(certified) => Caller::certified(certified),
                    None => return Ok(None),
                }
            }
        };
        let state = self.replica.view();
        if let Some(certified) = &direct.certified {
            self.check(&state, certified, request.uri().path())?;
        }
        let Some(behalf) = request.headers().get(ON_BEHALF_OF) else {
            return Ok(Some(direct));
        };
        match (self.trust, direct.role) {
            (Trust::Local, _) => (),
            (Trust::Certificates, Role::Coordinator) if self.is_member(&state, &direct.id) => (),
            (Trust::Certificates, Role::Coordinator) => return Err(gone()),
            (Trust::Certificates, Role::Agent | Role::Client | Role::Admin) => {
                return Ok(Some(direct));
            }
        }
        let asked = behalf.to_str().ok().and_then(Caller::read);
        let asked = asked
            .ok_or_else(|| Status::invalid_argument(format!("`{ON_BEHALF_OF}` is not ROLE/ID")))?;
        match state.is_denied(&subject(asked.role, &asked.id)) {
            true => Err(denied()),
            false => Ok(Some(asked)),
        }
    }

    /// Whether a certificate that is good is to be believed.
    fn check(&self, state: &State, shown: &Certified, path: &str) -> Result<(), Status> {
        let (role, id) = (shown.id.role(), shown.id.id());
        if state.is_denied(&subject(role, id)) || state.is_denied(&serial_subject(&shown.serial)) {
            return Err(denied());
        }
        // Somebody with a token that was bound to the name took it since.
        if state.member(role, id).is_some_and(|member| member.key != shown.key.0) {
            return Err(match self.replica.standing().borrow().leads {
                true => Status::permission_denied("the name belongs to another key by now"),
                false => Status::unavailable("the name may belong to another key: ask the leader"),
            });
        }
        // Who was removed is told so, and is of no more use: neither is its certificate
        // renewed, nor does anybody speak through it.
        let left = role == Role::Coordinator && self.has_left(state, id);
        match left && !TOLD_THAT_THEY_LEFT.iter().any(|told| path.starts_with(told)) {
            true => Err(gone()),
            false => Ok(()),
        }
    }

    /// Whether this directory's replica was removed, and Raft needs it no more.
    fn has_left(&self, state: &State, storage_id: &str) -> bool {
        match state.replica_by_storage(storage_id) {
            Some(row) => row.removed && !self.replica.membership().contains(row.id),
            // Its row may be forgotten before its CA is.
            None => state
                .authority(storage_id)
                .is_some_and(|authority| authority.retired != Timestamp::default()),
        }
    }

    fn is_member(&self, state: &State, storage_id: &str) -> bool {
        state.replica_by_storage(storage_id).is_some() && !self.has_left(state, storage_id)
    }
}

/// What coordinators are told that were removed; each of these looks at that itself.
const TOLD_THAT_THEY_LEFT: [&str; 2] =
    ["/steading.v1.Replication/", "/steading.v1.Cluster/AdmitReplica"];

fn denied() -> Status {
    Status::permission_denied("the farm was told not to believe this member")
}

fn gone() -> Status {
    Status::unavailable("this coordinator is not of the group: ask another one")
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// Services with a [`Gate`] in front of them.
#[derive(Clone, Debug)]
pub(crate) struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.gate.admit(&mut request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}
