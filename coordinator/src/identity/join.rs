//! The `Join` service.

use std::net::{IpAddr, Ipv4Addr};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use steading_core::{Effect, Proposal, Rejection};
use steading_model::Role;
use steading_proto::tls::Peer;
use steading_proto::v1;
use steading_proto::v1::join_server::Join;
use tonic::{Request, Response, Status};

use super::limiter::Limiter;
use super::{Asked, Credentials, Secured, add_authority};
use crate::auth;
use crate::leadership::Leadership;
use crate::replica::{ProposeError, Replica};

/// Longest secret that is looked at, bytes.
const SECRET_BYTES_MAX: usize = 128;

/// Of a token's name that nobody knows, how much is logged.
const TOKEN_LOGGED_CHARS: usize = 16;

/// Lets members in, and keeps them.
#[derive(Debug)]
pub(crate) struct JoinService {
    replica: Replica,
    leadership: Leadership,
    secured: Secured,
    limiter: Limiter,
}

impl JoinService {
    pub(crate) fn new(replica: Replica, leadership: Leadership, secured: Secured) -> Self {
        Self { replica, leadership, secured, limiter: Limiter::default() }
    }

    fn credentials(&self) -> Result<&Credentials, Status> {
        self.secured.get().ok_or_else(unsecured)
    }

    async fn admit(&self, request: v1::JoinRequest) -> Result<v1::Credentials, Status> {
        let credentials = self.credentials()?;
        let asked = read(&request.csr)?;
        if request.secret.len() > SECRET_BYTES_MAX {
            return Err(ProposeError::Rejected(Rejection::TokenUnknown).into());
        }
        if auth::is_reserved(&request.name) {
            return Err(Status::invalid_argument("the name `local` is reserved"));
        }
        // The leader alone knows every token that was made. Another one says who leads.
        self.leadership.term()?;
        self.replica.read_barrier().await?;
        let secret = hash(request.secret.as_bytes());
        let role = self.role_of(&request.token_id, &secret)?;
        let authority = self.requested_authority(role, &request)?;
        let redeem = Proposal::RedeemToken {
            id: request.token_id.clone(),
            secret,
            key: asked.key.0,
            name: request.name,
        };
        let effects = self.replica.propose(redeem).await?;
        let redeemed = effects.into_iter().find_map(|effect| match effect {
            Effect::Redeemed { role, name } => Some((role, name)),
            _ => None,
        });
        let (role, name) =
            redeemed.ok_or_else(|| Status::internal("a token was redeemed without an answer"))?;
        let authority = match authority {
            Some(authority) => self.certify(credentials, &authority, &name).await?,
            None => Vec::new(),
        };
        tracing::info!(token = request.token_id, %role, name, key = %asked.key, "member joined");
        self.answer(credentials, &asked, role, &name, authority)
    }

    /// What the token makes of its holder. Looked at before anything is proposed, so that
    /// who guesses writes no log.
    fn role_of(&self, id: &str, secret: &[u8; 32]) -> Result<Role, Status> {
        let state = self.replica.view();
        let token = state.token(id);
        let right = token
            .is_some_and(|token| verify_slices_are_equal(&token.definition.secret, secret).is_ok());
        match token {
            Some(token) if right => Ok(token.definition.role),
            Some(_) | None => Err(ProposeError::Rejected(Rejection::TokenUnknown).into()),
        }
    }

    /// A coordinator brings the key of its CA; others must not.
    fn requested_authority(
        &self,
        role: Role,
        request: &v1::JoinRequest,
    ) -> Result<Option<Asked>, Status> {
        match (role, request.authority_csr.is_empty()) {
            (Role::Coordinator, false) => {
                let authority = read(&request.authority_csr)?;
                let state = self.replica.view();
                if let Some(known) = state.authority(&request.name) {
                    let certificate = known.certificate.as_slice().into();
                    let known = steading_proto::tls::SpkiHash::of(&certificate).ok();
                    if known != Some(authority.key) {
                        return Err(ProposeError::Rejected(Rejection::MemberDiffers).into());
                    }
                }
                Ok(Some(authority))
            }
            (Role::Coordinator, true) => Err(Status::invalid_argument(
                "the token is for a coordinator: use it with `stead coordinator --join`",
            )),
            (Role::Agent | Role::Client | Role::Admin, true) => Ok(None),
            (Role::Agent | Role::Client | Role::Admin, false) => Err(Status::invalid_argument(
                "the token makes no coordinator: `stead token create --role coordinator`",
            )),
        }
    }

    /// The CA of a coordinator, known to all before it signs anything.
    async fn certify(
        &self,
        credentials: &Credentials,
        asked: &Asked,
        storage_id: &str,
    ) -> Result<Vec<Vec<u8>>, Status> {
        if let Some(known) = self.replica.view().authority(storage_id) {
            let known = std::iter::once(&known.certificate).chain(&known.ancestors);
            return Ok(known.cloned().collect());
        }
        let chain = credentials.ca.load().sign_authority(asked, storage_id).map_err(internal)?;
        self.replica.propose(add_authority(storage_id, chain.clone())).await?;
        Ok(chain)
    }

    fn answer(
        &self,
        credentials: &Credentials,
        asked: &Asked,
        role: Role,
        name: &str,
        authority: Vec<Vec<u8>>,
    ) -> Result<v1::Credentials, Status> {
        let chain = credentials.ca.load().sign(asked, role, name).map_err(internal)?;
        let cluster = &credentials.identity.current().certified.id;
        let id = steading_model::SpiffeId::new(cluster.cluster(), role, name);
        Ok(v1::Credentials {
            certificates: chain.into_iter().map(Into::into).collect(),
            bundle: Some(credentials.bundle(&self.replica.view())),
            spiffe_id: id.map_err(internal)?.to_string(),
            authority: authority.into_iter().map(Into::into).collect(),
        })
    }
}

#[tonic::async_trait]
impl Join for JoinService {
    #[tracing::instrument(name = "member.join", skip_all)]
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::Credentials>, Status> {
        let peer = request.extensions().get::<Peer>();
        let address = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.address.ip());
        if !self.limiter.may_try(address) {
            return Err(Status::resource_exhausted("too many tokens failed: try again later"));
        }
        let request = request.into_inner();
        // Whoever it is may have written a book there, or the whole token.
        let token: String = request.token_id.chars().take(TOKEN_LOGGED_CHARS).collect();
        match self.admit(request).await {
            Ok(answer) => Ok(Response::new(answer)),
            Err(status) => {
                // Who asked the wrong replica has done nothing wrong.
                if status.code() != tonic::Code::Unavailable {
                    self.limiter.failed(address);
                    tracing::warn!(token, %address, why = status.message(), "join refused");
                }
                Err(status)
            }
        }
    }

    #[tracing::instrument(name = "member.renew", skip_all)]
    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::Credentials>, Status> {
        let caller = auth::caller(&request)?;
        let credentials = self.credentials()?;
        let Some(shown) = &caller.certified else {
            return Err(Status::failed_precondition("only a certificate is renewed"));
        };
        let asked = read(&request.get_ref().csr)?;
        if asked.key != shown.key {
            return Err(Status::invalid_argument("the request is not of the certificate's key"));
        }
        let (role, name) = (caller.role, caller.id.as_str());
        let key = asked.key.0;
        self.leadership.term()?;
        self.replica.propose(Proposal::RenewMember { role, name: name.to_owned(), key }).await?;
        tracing::info!(%caller, "certificate renewed");
        self.answer(credentials, &asked, role, name, Vec::new()).map(Response::new)
    }

    async fn get_bundle(
        &self,
        _: Request<v1::GetBundleRequest>,
    ) -> Result<Response<v1::Bundle>, Status> {
        let credentials = self.credentials()?;
        // Whoever is told of too few CAs believes nobody else any more. A replica that has
        // just joined, or was away, does not know them all.
        self.replica.read_barrier_anywhere().await?;
        Ok(Response::new(credentials.bundle(&self.replica.view())))
    }
}

fn read(csr: &[u8]) -> Result<Asked, Status> {
    Asked::read(csr)
        .map_err(|error| Status::invalid_argument(format!("`csr` cannot be used: {error}")))
}

/// SHA-256. Enough for a secret that nobody can guess.
pub(super) fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

pub(super) fn unsecured() -> Status {
    Status::failed_precondition(
        "this coordinator listens on this machine only: start it with --listen https://HOST:PORT",
    )
}

pub(super) fn internal(error: impl std::fmt::Display) -> Status {
    tracing::error!(%error, "an identity cannot be made");
    Status::internal(error.to_string())
}
