//! In front of every service: who calls, and whether they may.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use steading_core::{serial_subject, subject};
use steading_model::Role;
use steading_proto::tls::Peer;
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
        let serial = direct.certified.as_ref().map(|shown| serial_subject(&shown.serial));
        if state.is_denied(&subject(direct.role, &direct.id))
            || serial.is_some_and(|serial| state.is_denied(&serial))
        {
            return Err(denied());
        }
        let Some(behalf) = request.headers().get(ON_BEHALF_OF) else {
            return Ok(Some(direct));
        };
        let believed = self.trust == Trust::Local || direct.role == Role::Coordinator;
        if !believed {
            return Ok(Some(direct));
        }
        let asked = behalf.to_str().ok().and_then(Caller::read);
        let asked = asked
            .ok_or_else(|| Status::invalid_argument(format!("`{ON_BEHALF_OF}` is not ROLE/ID")))?;
        match state.is_denied(&subject(asked.role, &asked.id)) {
            true => Err(denied()),
            false => Ok(Some(asked)),
        }
    }
}

fn denied() -> Status {
    Status::permission_denied("the farm was told not to believe this member")
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
