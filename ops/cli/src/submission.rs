//! From the command line to a submission: the pipeline, the event, the tree.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use steading_cas::source::Source;
use steading_model::{RunId, limits};
use steading_proto::v1;

use crate::args;
use crate::connect::failure;
use crate::coordinators::Coordinators;
use crate::diagnostics;
use crate::exit::Failure;
use crate::find::{self, FindError, Found};
use crate::pairs;

/// The ref of a tree that has none.
const REF_DEFAULT: &str = "refs/heads/main";

/// How GitHub spells the commit before the first one.
const SHA_NONE: &str = "0000000000000000000000000000000000000000";

/// Which event a run is told that it comes from.
#[derive(Clone, Debug, Default)]
pub struct Event {
    pub name: Option<String>,
    /// A file with a JSON object.
    pub payload: Option<PathBuf>,
}

/// A submission that lacks only its source tree.
#[derive(Debug)]
pub struct Prepared {
    pub found: Found,
    request: v1::SubmitRequest,
}

/// Reads and checks everything that can be checked without a farm. The pipeline's
/// warnings and errors are printed.
///
/// # Errors
///
/// [`Failure::Printed`] for a bad pipeline, [`Failure::Usage`] for anything else.
pub fn prepare(args: &args::Submission, event: &Event) -> Result<Prepared, Failure> {
    let here = std::env::current_dir().map_err(anyhow::Error::from)?;
    let found =
        find::pipeline(args.pipeline.as_deref(), args.source.as_deref(), &here).map_err(usage)?;
    let pipeline = find::read(&found.file).map_err(usage)?;
    let overlay = find::overlay(&found.source).map_err(usage)?;
    check(&found, &pipeline, overlay.as_deref())?;
    let request = v1::SubmitRequest {
        project: args.project.clone(),
        request_id: crate::id::request_id().map_err(anyhow::Error::from)?,
        file: found.name.clone(),
        pipeline: pipeline.into(),
        overlay: overlay.unwrap_or_default().into(),
        event_name: event_name(event, args),
        event_payload: event_payload(event)?.into(),
        r#ref: args.git_ref.as_deref().map(full_ref).unwrap_or_default(),
        sha: args.sha.clone().unwrap_or_default(),
        repository: repository(&found.source),
        actor: actor(),
        inputs: pairs::read("input", &args.inputs)?,
        vars: pairs::read("var", &args.vars)?,
        env: pairs::read("env", &args.env)?,
        secrets: pairs::secrets(&args.secrets, |name| std::env::var_os(name))?,
        ..Default::default()
    };
    Ok(Prepared { found, request })
}

impl Prepared {
    /// The request with the tree that was taken.
    pub fn with_source(self, source: &Source) -> v1::SubmitRequest {
        let mut request = self.request;
        request.source_digest = source.root.to_string();
        request.dirty = source.dirty;
        if request.r#ref.is_empty() {
            request.r#ref = source.git_ref.clone().unwrap_or_else(|| REF_DEFAULT.to_owned());
        }
        if request.sha.is_empty() {
            request.sha = source.head.clone().unwrap_or_default();
        }
        if request.event_payload.is_empty() {
            request.event_payload = payload(&request).to_string().into();
        }
        request
    }
}

/// Submits until the coordinator has taken it down, always under the same request id.
///
/// # Errors
///
/// [`Failure`] where the coordinator refuses, or stays away for longer than `bound`.
pub async fn submit(
    coordinators: &Coordinators,
    request: &v1::SubmitRequest,
    bound: Duration,
) -> Result<RunId, Failure> {
    let submitted = coordinators.call(bound, |mut client| {
        let request = request.clone();
        async move { client.submit(request).await }
    });
    match submitted.await {
        Ok(response) => Ok(RunId::from_counter(response.run_id)),
        Err(status) if status.code() == tonic::Code::InvalidArgument => {
            Err(refused(status.message()))
        }
        Err(status) => Err(failure("submit the pipeline", status)),
    }
}

/// Diagnostics that the coordinator sent, one per line.
fn refused(message: &str) -> Failure {
    for line in message.lines() {
        let indented = line.starts_with(' ');
        eprintln!("{}{}", if indented { "" } else { "error: " }, crate::text::clean(line));
    }
    Failure::Printed
}

fn usage(error: FindError) -> Failure {
    Failure::Usage(error.into())
}

fn check(found: &Found, pipeline: &[u8], overlay: Option<&[u8]>) -> Result<(), Failure> {
    let (text, good) = diagnostics::check(found, pipeline, overlay);
    eprint!("{text}");
    if good { Ok(()) } else { Err(Failure::Printed) }
}

fn event_name(event: &Event, args: &args::Submission) -> String {
    let default = if args.inputs.is_empty() { "push" } else { "workflow_dispatch" };
    event.name.clone().unwrap_or_else(|| default.to_owned())
}

fn event_payload(event: &Event) -> Result<Vec<u8>, Failure> {
    event.payload.as_deref().map_or_else(|| Ok(Vec::new()), read_payload)
}

fn read_payload(path: &Path) -> Result<Vec<u8>, Failure> {
    let shown = path.display();
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::usage(format!("cannot read the event `{shown}`: {error}")))?;
    if bytes.len() > limits::EVENT_BYTES_MAX {
        return Err(Failure::usage(format!(
            "the event `{shown}` has {} bytes, and may have {}",
            bytes.len(),
            limits::EVENT_BYTES_MAX
        )));
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(_)) => Ok(bytes),
        Ok(_) => Err(Failure::usage(format!("the event `{shown}` is no JSON object"))),
        Err(error) => Err(Failure::usage(format!("the event `{shown}` is no JSON: {error}"))),
    }
}

/// The payload of an event that only the command line tells of, in GitHub's shape.
fn payload(request: &v1::SubmitRequest) -> Value {
    let (owner, name) = request.repository.split_once('/').unwrap_or(("", &request.repository));
    let repository = json!({
        "name": name,
        "full_name": request.repository,
        "owner": { "login": owner, "name": owner },
    });
    let sender = json!({ "login": request.actor });
    match request.event_name.as_str() {
        "push" => json!({
            "ref": request.r#ref,
            "before": SHA_NONE,
            "after": request.sha,
            "head_commit": { "id": request.sha },
            "pusher": { "name": request.actor },
            "repository": repository,
            "sender": sender,
        }),
        "workflow_dispatch" => json!({
            "ref": request.r#ref,
            "inputs": request.inputs,
            "repository": repository,
            "sender": sender,
        }),
        _ => json!({ "repository": repository, "sender": sender }),
    }
}

fn full_ref(text: &str) -> String {
    if text.starts_with("refs/") { text.to_owned() } else { format!("refs/heads/{text}") }
}

fn actor() -> String {
    let name = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "local".to_owned())
}

/// `owner/name` of the tree: what its remote `origin` says, else `local/FOLDER`.
fn repository(source: &Path) -> String {
    let remote = find::repository_of(source).and_then(|root| {
        // A linked worktree has its configuration elsewhere; it is then called by its folder.
        let config = std::fs::read_to_string(root.join(".git/config")).ok()?;
        origin_of(&config)
    });
    remote.unwrap_or_else(|| {
        let folder = source.file_name().map(|name| name.to_string_lossy().into_owned());
        format!("local/{}", folder.unwrap_or_else(|| "source".to_owned()))
    })
}

/// The last two parts of the path of `remote.origin.url`.
fn origin_of(config: &str) -> Option<String> {
    let section = config.split_once("[remote \"origin\"]")?.1;
    let url = section
        .lines()
        .take_while(|line| !line.starts_with('['))
        .find_map(|line| line.trim().strip_prefix("url")?.trim_start().strip_prefix('='))?
        .trim();
    let path = url.trim_end_matches('/').trim_end_matches(".git");
    let mut parts = path.rsplit(['/', ':']);
    let (name, owner) = (parts.next()?, parts.next()?);
    (!name.is_empty() && !owner.is_empty()).then(|| format!("{owner}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_named_by_its_origin() {
        let table = [
            ("git@github.com:acme/anvil.git", Some("acme/anvil")),
            ("https://github.com/acme/anvil", Some("acme/anvil")),
            ("ssh://git@host:22/deep/acme/anvil.git/", Some("acme/anvil")),
            ("anvil", None),
        ];
        for (url, want) in table {
            let config = format!(
                "[core]\n\tbare = false\n[remote \"other\"]\n\turl = x/y\n\
                 [remote \"origin\"]\n\tfetch = +refs\n\turl = {url}\n[branch \"a\"]\n"
            );
            assert_eq!(origin_of(&config).as_deref(), want, "{url}");
        }
    }

    #[test]
    fn a_short_ref_is_a_branch() {
        assert_eq!(full_ref("main"), "refs/heads/main");
        assert_eq!(full_ref("refs/tags/v1"), "refs/tags/v1");
    }

    #[test]
    fn a_payload_has_githubs_shape() {
        let request = v1::SubmitRequest {
            event_name: "push".to_owned(),
            repository: "acme/anvil".to_owned(),
            r#ref: "refs/heads/main".to_owned(),
            sha: "abc".to_owned(),
            ..Default::default()
        };
        let payload = payload(&request);
        assert_eq!(payload["ref"], "refs/heads/main");
        assert_eq!(payload["head_commit"]["id"], "abc");
        assert_eq!(payload["repository"]["owner"]["login"], "acme");
    }

    #[test]
    fn an_event_that_is_no_object_is_bad_usage() {
        let dir = tempfile::tempdir().unwrap();
        for (text, good) in [("{\"a\":1}", true), ("[]", false), ("{", false)] {
            let path = dir.path().join("event.json");
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_payload(&path).is_ok(), good, "{text}");
        }
    }
}
