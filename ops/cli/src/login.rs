//! `stead login`: a certificate for a person or a program, and the context that names it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use steading_proto::tls::{self, EnrollError, JoinToken};

use crate::args;
use crate::connect::Endpoint;
use crate::context::Context;
use crate::exit::{Ended, Failure};
use crate::out;

/// Redeems the token, and writes a context file.
///
/// # Errors
///
/// [`Failure`] where the token is refused, or nothing can be written.
pub async fn run(args: args::Login) -> Result<Ended, Failure> {
    let token: JoinToken = args
        .token
        .parse()
        .map_err(|error| Failure::usage(format!("`--token` is no join token: {error}")))?;
    let endpoints: Vec<String> =
        Endpoint::read_all(&args.coordinator)?.iter().map(ToString::to_string).collect();
    if endpoints.iter().any(|endpoint| !endpoint.starts_with("https://")) {
        return Err(Failure::usage(
            "a certificate is for https://HOST:PORT\n  hint: on this machine none is needed",
        ));
    }
    let path = match args.context {
        Some(path) => std::path::absolute(path).map_err(anyhow::Error::from)?,
        None => default_context()?,
    };
    let name = args.name.unwrap_or_default();
    let identity = path.with_extension("identity");
    let joined = tls::join(&endpoints, &token, &name, &identity, Vec::new()).await;
    let joined = joined.map_err(|error| match error {
        EnrollError::Refused(status)
            if name.is_empty() && status.code() == tonic::Code::InvalidArgument =>
        {
            Failure::usage("the token is for any name\n  hint: say which with --name")
        }
        EnrollError::Refused(status) => Failure::usage(status.message()),
        error => Failure::Farm(error.into()),
    })?;
    let context = Context { coordinators: endpoints, identity: Some(beside(&path, &identity)) };
    let text = serde_json::to_vec_pretty(&context).map_err(anyhow::Error::from)?;
    std::fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
    out::line(format_args!("{}", joined.identity.current().certified.id))?;
    eprintln!("now say\n  export STEADING_CONTEXT={}", path.display());
    Ok(Ended::Success)
}

/// A context names its folder beside itself, so that both can be moved.
fn beside(context: &Path, identity: &Path) -> PathBuf {
    let name = identity.file_name().filter(|_| identity.parent() == context.parent());
    name.map_or_else(|| identity.to_owned(), PathBuf::from)
}

fn default_context() -> Result<PathBuf, Failure> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let config = of("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| of("HOME").map(|home| PathBuf::from(home).join(".config")));
    let config = config.ok_or_else(|| {
        Failure::usage("there is no home for the context\n  hint: say where with --context FILE")
    })?;
    Ok(config.join("steading").join("context.json"))
}
