//! The agent's certificate: got once by a token, renewed by itself.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use steading_proto::tls::{self, Identity, IdentityFiles, JoinToken};

/// The agent's certificate in `dir`, where one of the coordinators asks for one. `token` is needed
/// once: who has joined, and whose certificate is not over, has no use for it, unless it is of
/// another farm than the certificate: one that was restored from a backup, for example.
///
/// # Errors
///
/// There is neither a certificate nor a token, the token is refused, or the certificate
/// is another agent's.
pub async fn identity(
    dir: &Path,
    name: &str,
    endpoints: &[String],
    token: Option<&str>,
) -> anyhow::Result<Option<Arc<Identity>>> {
    let secure: Vec<String> = endpoints.iter().filter(|one| is_secure(one)).cloned().collect();
    if secure.is_empty() {
        return Ok(None);
    }
    let known = match IdentityFiles::exist(dir) {
        true => Some(Identity::load(dir).context("read the agent's certificate")?),
        false => None,
    };
    let token = token.map(str::parse::<JoinToken>).transpose().context("read the join token")?;
    let join = async |token: &JoinToken| {
        let joined = tls::join(&secure, token, name, dir, Vec::new()).await;
        Ok::<_, tls::EnrollError>(joined?.identity)
    };
    let identity = match (known.filter(|known| !tls::is_over(known)), token) {
        (Some(identity), Some(token)) if !IdentityFiles::read(dir)?.knows(token.pin) => {
            match join(&token).await {
                Ok(joined) => joined,
                // The token may be the one that it came with, long ago, made by a coordinator
                // that has left since.
                Err(error) => {
                    tracing::warn!(%error, "the join token is of no use: the certificate stays");
                    identity
                }
            }
        }
        (Some(identity), _) => identity,
        (None, Some(token)) => join(&token).await.context("join the farm")?,
        (None, None) => bail!(
            "there is no certificate in `{}`, or it is over: let an admin make a join token \
             (`stead token create --role agent`), and start with --join TOKEN",
            dir.display()
        ),
    };
    let id = identity.current().certified.id.clone();
    if id.role() != steading_model::Role::Agent || id.id() != name {
        bail!("the certificate in `{}` is that of `{id}`, not of agent `{name}`", dir.display());
    }
    Ok(Some(identity))
}

/// Renews the certificate whenever it is due, until it is dropped.
pub async fn keep_identity(identity: Option<Arc<Identity>>, endpoints: Vec<String>) {
    match identity {
        Some(identity) => {
            tls::keep(identity, endpoints.into_iter().filter(|one| is_secure(one)).collect()).await;
        }
        None => std::future::pending().await,
    }
}

fn is_secure(endpoint: &str) -> bool {
    endpoint.starts_with("https://")
}
