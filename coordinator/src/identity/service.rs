//! The `Identities` service: tokens, and who is denied.

use steading_core::{Denial, NewToken, Proposal, Rejection, Token, serial_subject, subject};
use steading_model::limits::{TOKEN_MS_MAX, TOKEN_USES_MAX};
use steading_model::{Role, SpiffeId};
use steading_proto::tls::JoinToken;
use steading_proto::v1;
use steading_proto::v1::identities_server::Identities;
use tonic::{Request, Response, Status};

use super::Secured;
use super::join::{hash, internal, unsecured};
use crate::auth;
use crate::replica::{ProposeError, Replica};

/// Bytes of a token's name, and of its secret.
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 24;
/// How a certificate is named by its serial number.
const SERIAL: &str = "serial:";

/// What admins say of members.
#[derive(Debug)]
pub(crate) struct IdentitiesService {
    pub(crate) replica: Replica,
    pub(crate) secured: Secured,
}

#[tonic::async_trait]
impl Identities for IdentitiesService {
    #[tracing::instrument(name = "token.create", skip_all)]
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let by = auth::principal(&request)?;
        let credentials = self.secured.get().ok_or_else(unsecured)?;
        let request = request.into_inner();
        let role = role(request.role())?;
        let within = |what: &str, given: u64, max: u64| match (1..=max).contains(&given) {
            true => Ok(()),
            false => Err(Status::invalid_argument(format!("`{what}` is {given}, want 1 to {max}"))),
        };
        within("uses", request.uses.into(), TOKEN_USES_MAX.into())?;
        within("ttl_ms", request.ttl_ms, TOKEN_MS_MAX)?;
        if auth::is_reserved(&request.name) {
            return Err(Status::invalid_argument("the name `local` is reserved"));
        }
        self.replica.read_barrier().await?;
        let pin = credentials.pin(&self.replica.view()).map_err(internal)?;
        let token = JoinToken { id: random::<ID_BYTES>()?, secret: random::<SECRET_BYTES>()?, pin };
        let new = NewToken {
            id: token.id.clone(),
            secret: hash(token.secret.as_bytes()),
            role,
            pool: request.pool,
            name: request.name,
            uses: request.uses,
            ttl_ms: request.ttl_ms,
            by,
        };
        tracing::info!(token = token.id, %role, by = %new.by, "token made");
        self.replica.propose(Proposal::CreateToken { token: new }).await?;
        let state = self.replica.view();
        let expires = state.token(&token.id).map(|token| token.expires.as_ms());
        Ok(Response::new(v1::CreateTokenResponse {
            token: token.to_string(),
            expires_ms: expires.unwrap_or_default(),
        }))
    }

    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        self.replica.read_barrier().await?;
        let state = self.replica.view();
        let live = state.tokens().filter(|token| token.expires > state.now());
        Ok(Response::new(v1::ListTokensResponse { tokens: live.map(wire_token).collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let (by, id) = (auth::principal(&request)?, request.into_inner().id);
        tracing::info!(token = id, %by, "token revoked");
        match self.replica.propose(Proposal::RevokeToken { id: id.clone() }).await {
            Err(ProposeError::Rejected(Rejection::TokenUnknown)) => {
                return Err(Status::not_found(format!("there is no token `{id}`, or no more")));
            }
            proposed => drop(proposed?),
        }
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn deny(
        &self,
        request: Request<v1::DenyRequest>,
    ) -> Result<Response<v1::DenyResponse>, Status> {
        let by = auth::principal(&request)?;
        let v1::DenyRequest { subject, reason } = request.into_inner();
        let key = self.key(&subject)?;
        tracing::info!(subject, %by, reason, "member denied");
        self.replica.propose(Proposal::Deny { subject: key, reason, by }).await?;
        Ok(Response::new(v1::DenyResponse {}))
    }

    async fn allow(
        &self,
        request: Request<v1::AllowRequest>,
    ) -> Result<Response<v1::AllowResponse>, Status> {
        let (by, subject) = (auth::principal(&request)?, request.into_inner().subject);
        let key = self.key(&subject)?;
        tracing::info!(subject, %by, "denial taken back");
        self.replica.propose(Proposal::Allow { subject: key }).await?;
        Ok(Response::new(v1::AllowResponse {}))
    }

    async fn list_denials(
        &self,
        _: Request<v1::ListDenialsRequest>,
    ) -> Result<Response<v1::ListDenialsResponse>, Status> {
        self.replica.read_barrier().await?;
        let state = self.replica.view();
        let denials = state.denials().map(|(key, denial)| self.wire_denial(key, denial));
        Ok(Response::new(v1::ListDenialsResponse { denials: denials.collect() }))
    }
}

impl IdentitiesService {
    fn cluster(&self) -> Option<String> {
        let credentials = self.secured.get()?;
        Some(credentials.identity.current().certified.id.cluster().to_owned())
    }

    /// How the state names a subject.
    fn key(&self, text: &str) -> Result<String, Status> {
        if let Some(serial) = text.strip_prefix(SERIAL) {
            let digits = !serial.is_empty()
                && serial.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            return match digits {
                true => Ok(serial_subject(serial)),
                false => Err(Status::invalid_argument(format!(
                    "`{text}` is no serial number: want serial:HEX in lower case"
                ))),
            };
        }
        let id: SpiffeId = text.parse().map_err(|error| {
            Status::invalid_argument(format!("`{text}` names no member: {error}"))
        })?;
        if self.cluster().is_some_and(|cluster| cluster != id.cluster()) {
            return Err(Status::invalid_argument(format!("`{text}` is of another cluster")));
        }
        if auth::is_reserved(id.id()) {
            return Err(Status::invalid_argument("who is on the machine cannot be denied"));
        }
        Ok(subject(id.role(), id.id()))
    }

    fn wire_denial(&self, key: &str, denial: &Denial) -> v1::Denial {
        let subject = match key.strip_prefix("serial/") {
            Some(serial) => format!("{SERIAL}{serial}"),
            None => format!("spiffe://{}/{key}", self.cluster().unwrap_or_default()),
        };
        v1::Denial {
            subject,
            reason: denial.reason.clone(),
            by: denial.by.to_string(),
            at_ms: denial.at.as_ms(),
        }
    }
}

fn wire_token(token: &Token) -> v1::Token {
    let definition = &token.definition;
    let role = match definition.role {
        Role::Coordinator => v1::Role::Coordinator,
        Role::Agent => v1::Role::Agent,
        Role::Client => v1::Role::Client,
        Role::Admin => v1::Role::Admin,
    };
    v1::Token {
        id: definition.id.clone(),
        role: role.into(),
        pool: definition.pool.clone(),
        name: definition.name.clone(),
        uses_left: token.uses_left(),
        expires_ms: token.expires.as_ms(),
        created_ms: token.created.as_ms(),
        created_by: definition.by.to_string(),
        joined: token.redeemed.values().cloned().collect(),
    }
}

fn role(wire: v1::Role) -> Result<Role, Status> {
    match wire {
        v1::Role::Coordinator => Ok(Role::Coordinator),
        v1::Role::Agent => Ok(Role::Agent),
        v1::Role::Client => Ok(Role::Client),
        v1::Role::Admin => Ok(Role::Admin),
        v1::Role::Unspecified => Err(Status::invalid_argument("`role` is missing")),
    }
}

fn random<const N: usize>() -> Result<String, Status> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(internal)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
