//! How the parts of the farm, and its user, get their certificates: by tokens. Whoever is
//! on the machine makes them on a coordinator's admin socket, also when every certificate
//! is over because the farm was switched off for days.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use steading_coordinator::replica::is_member;
use steading_proto::tls::{self, Identity, IdentityFiles, JoinToken};
use steading_proto::v1;
use steading_proto::v1::identities_client::IdentitiesClient;

use crate::connect::Endpoint;
use crate::coordinators::Coordinators;

/// How long a token is good: it is used at once, or a new one is made.
const TOKEN_TTL: Duration = Duration::from_secs(300);

/// How long the making of a token waits for a leader.
const TOKEN_MAX: Duration = Duration::from_secs(60);

/// Who the user is, by the certificate.
const USER: &str = "dev";

/// Makes tokens.
#[derive(Clone, Debug)]
pub struct Entry {
    sockets: Coordinators,
}

/// How a part gets in, if it is not in yet.
#[derive(Clone, Debug)]
pub enum Admission {
    /// It founds the farm.
    Founder,
    /// A coordinator, by its data directory.
    Coordinator {
        data_dir: PathBuf,
    },
    Agent {
        name: String,
        identity: PathBuf,
    },
}

impl Entry {
    /// By any of these admin sockets.
    pub fn new(sockets: impl Iterator<Item = PathBuf>) -> Self {
        let sockets = sockets.map(Endpoint::Unix).collect();
        Self { sockets: Coordinators::new(sockets, None) }
    }

    /// A token for one member. Who is bound to a name takes it, whoever had it before.
    ///
    /// # Errors
    ///
    /// No coordinator makes one.
    async fn token(&self, role: v1::Role, name: &str) -> anyhow::Result<String> {
        let request = v1::CreateTokenRequest {
            role: role.into(),
            pool: String::new(),
            name: name.to_owned(),
            uses: 1,
            ttl_ms: u64::try_from(TOKEN_TTL.as_millis())?,
        };
        let made = self.sockets.call_over(TOKEN_MAX, |channel| {
            let request = request.clone();
            async move { IdentitiesClient::new(channel).create_token(request).await }
        });
        let made = made.await.map_err(|status| anyhow::anyhow!("{}", status.message()));
        Ok(made.context("make a join token")?.token)
    }

    /// The token that the part needs now; none where it is in, and its certificate is good.
    ///
    /// # Errors
    ///
    /// As [`Entry::token`].
    pub async fn token_for(&self, admission: &Admission) -> anyhow::Result<Option<String>> {
        match admission {
            Admission::Coordinator { data_dir } if !is_member(data_dir) => {
                self.token(v1::Role::Coordinator, "").await.map(Some)
            }
            Admission::Agent { name, identity }
                if !IdentityFiles::exist(identity) || admission.is_over() =>
            {
                self.token(v1::Role::Agent, name).await.map(Some)
            }
            Admission::Founder | Admission::Coordinator { .. } | Admission::Agent { .. } => {
                Ok(None)
            }
        }
    }

    /// A new certificate for the user, whatever the folder holds: it may be over, or of a
    /// farm that was there before.
    ///
    /// # Errors
    ///
    /// No coordinator gives one, or it cannot be stored.
    pub async fn admit_user(&self, at: &[String], dir: &Path) -> anyhow::Result<Arc<Identity>> {
        let token: JoinToken = self.token(v1::Role::Admin, USER).await?.parse()?;
        Ok(tls::join(at, &token, USER, dir, Vec::new()).await?.identity)
    }
}

impl Admission {
    /// Whether its certificate is over, so that it never renews itself any more. A
    /// coordinator always can.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Founder | Self::Coordinator { .. } => false,
            Self::Agent { identity, .. } => {
                Identity::load(identity).is_ok_and(|identity| tls::is_over(&identity))
            }
        }
    }
}
