//! The `github` context as GitHub has it, as far as it is known before a job starts.
//!
//! What only the agent knows (`workspace`, `action`, `job`, …) and what differs from
//! run to run (`run_id`, `run_number`) is the agent's to add: a job's spec must not
//! differ between runs, so that equal jobs are one blob.

use serde_json::{Map, Value, json};

use crate::submission::Submission;

/// The farm has no web server of its own; tools build links from it.
const SERVER_URL: &str = "https://github.com";
const API_URL: &str = "https://api.github.com";
const GRAPHQL_URL: &str = "https://api.github.com/graphql";

/// The context. `title` is the pipeline's name.
pub(crate) fn context(submission: &Submission, title: &str) -> Value {
    let repository = or(&submission.repository, "local/local");
    let (owner, name) = repository.split_once('/').unwrap_or(("", repository));
    let actor = or(&submission.actor, "local");
    let git_ref = or(&submission.git_ref, "refs/heads/main");
    let sha = or(&submission.sha, "0000000000000000000000000000000000000000");
    let pull_request = submission.event.get("pull_request");
    let branch_of = |side: &str| {
        let branch = pull_request.and_then(|request| request.get(side)?.get("ref")?.as_str());
        branch.unwrap_or_default().to_owned()
    };
    json!({
        "event": event(submission, owner, name, actor, git_ref, sha),
        "event_name": submission.event_name,
        "ref": git_ref,
        "ref_name": ref_name(git_ref),
        "ref_type": if git_ref.starts_with("refs/tags/") { "tag" } else { "branch" },
        "ref_protected": false,
        "head_ref": branch_of("head"),
        "base_ref": branch_of("base"),
        "sha": sha,
        "repository": repository,
        "repository_owner": owner,
        "repositoryUrl": format!("git://github.com/{repository}.git"),
        "actor": actor,
        "triggering_actor": actor,
        "workflow": title,
        "workflow_ref": format!("{repository}/{}@{git_ref}", submission.file),
        "workflow_sha": sha,
        "run_attempt": "1",
        "retention_days": "90",
        "secret_source": if submission.secrets.is_empty() { "None" } else { "Actions" },
        "server_url": SERVER_URL,
        "api_url": API_URL,
        "graphql_url": GRAPHQL_URL,
    })
}

/// The event's payload: what was given, with what every payload has.
fn event(
    submission: &Submission,
    owner: &str,
    name: &str,
    actor: &str,
    git_ref: &str,
    sha: &str,
) -> Value {
    let mut event = submission.event.as_object().cloned().unwrap_or_else(Map::new);
    let mut give = |key: &str, value: Value| {
        event.entry(key).or_insert(value);
    };
    give(
        "repository",
        json!({
            "name": name,
            "full_name": format!("{owner}/{name}"),
            "owner": {"login": owner, "name": owner},
            "default_branch": "main",
        }),
    );
    give("sender", json!({"login": actor}));
    match submission.event_name.as_str() {
        "push" => {
            give("ref", git_ref.into());
            give("after", sha.into());
            give("pusher", json!({"name": actor}));
        }
        "workflow_dispatch" => {
            give("ref", git_ref.into());
            give("workflow", submission.file.as_str().into());
            give("inputs", json!(submission.inputs));
        }
        _ => (),
    }
    event.into()
}

/// The short name of a ref: what stands behind `refs/heads/` or `refs/tags/`, and for
/// a pull request `7/merge`.
fn ref_name(git_ref: &str) -> &str {
    ["refs/heads/", "refs/tags/", "refs/pull/"]
        .iter()
        .find_map(|prefix| git_ref.strip_prefix(prefix))
        .unwrap_or(git_ref)
}

fn or<'a>(value: &'a str, default: &'a str) -> &'a str {
    if value.is_empty() { default } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_to_a_branch_and_a_tag_and_a_pull_request_look_as_on_github() {
        check(
            "push",
            "refs/heads/topic/x",
            json!({}),
            &[
                ("/ref_name", json!("topic/x")),
                ("/ref_type", json!("branch")),
                ("/head_ref", json!("")),
                ("/repository_owner", json!("farm")),
                ("/workflow_ref", json!("farm/barn/.github/workflows/ci.yml@refs/heads/topic/x")),
                ("/event/repository/full_name", json!("farm/barn")),
                ("/event/ref", json!("refs/heads/topic/x")),
            ],
        );
        check(
            "push",
            "refs/tags/v1",
            json!({"ref": "given"}),
            &[
                ("/ref_name", json!("v1")),
                ("/ref_type", json!("tag")),
                ("/event/ref", json!("given")),
            ],
        );
        check(
            "pull_request",
            "refs/pull/7/merge",
            json!({"pull_request": {"head": {"ref": "fix"}, "base": {"ref": "main"}}}),
            &[
                ("/ref_name", json!("7/merge")),
                ("/head_ref", json!("fix")),
                ("/base_ref", json!("main")),
                ("/event/pull_request/head/ref", json!("fix")),
            ],
        );
    }

    fn check(event_name: &str, git_ref: &str, event: Value, want: &[(&str, Value)]) {
        let submission = Submission {
            file: ".github/workflows/ci.yml".into(),
            event_name: event_name.into(),
            event,
            git_ref: git_ref.into(),
            repository: "farm/barn".into(),
            ..Default::default()
        };
        let context = context(&submission, "CI");
        for (pointer, value) in want {
            assert_eq!(context.pointer(pointer), Some(value), "{pointer} of {event_name}");
        }
    }
}
