//! What is accepted, but should not be.

use std::collections::BTreeSet;

use super::reader::Reader;
use super::reference::Reference;
use super::yaml::Place;

/// What anyone who can open a pull request or an issue chooses freely. A `*`
/// stands for any one name.
const UNTRUSTED: &[&[&str]] = &[
    &["github", "head_ref"],
    &["github", "event", "issue", "title"],
    &["github", "event", "issue", "body"],
    &["github", "event", "pull_request", "title"],
    &["github", "event", "pull_request", "body"],
    &["github", "event", "pull_request", "head", "ref"],
    &["github", "event", "pull_request", "head", "label"],
    &["github", "event", "pull_request", "head", "repo", "default_branch"],
    &["github", "event", "comment", "body"],
    &["github", "event", "review", "body"],
    &["github", "event", "review_comment", "body"],
    &["github", "event", "discussion", "title"],
    &["github", "event", "discussion", "body"],
    &["github", "event", "pages", "*", "page_name"],
    &["github", "event", "commits", "*", "message"],
    &["github", "event", "commits", "*", "author", "email"],
    &["github", "event", "commits", "*", "author", "name"],
    &["github", "event", "head_commit", "message"],
    &["github", "event", "head_commit", "author", "email"],
    &["github", "event", "head_commit", "author", "name"],
    &["github", "event", "workflow_run", "head_branch"],
    &["github", "event", "workflow_run", "head_commit", "message"],
];

/// Warns of scripts that paste in what a stranger wrote: references from `first` on.
pub(super) fn injections(reader: &mut Reader<'_>, first: usize) {
    let found: Vec<Reference> = reader.references[first..]
        .iter()
        .filter(|reference| is_untrusted(reference))
        .cloned()
        .collect();
    for reference in found {
        let name = reference.path.join(".");
        reader.warning(
            reference.place,
            format!("`{name}` is written by strangers, and becomes part of this script"),
            format!("put it into `env` and use the variable: `env: {{TEXT: ${{{{ {name} }}}}}}`"),
        );
    }
}

fn is_untrusted(reference: &Reference) -> bool {
    UNTRUSTED.iter().any(|path| {
        path.len() == reference.path.len()
            && path.iter().zip(&reference.path).all(|(wanted, name)| {
                *wanted == "*" || wanted.eq_ignore_ascii_case(name) || name == "*"
            })
    })
}

/// Warns of an action that is named by a branch or tag.
pub(super) fn unpinned(reader: &mut Reader<'_>, place: Place, name: &str, reference: &str) {
    let pinned = reference.len() == 40 && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !pinned {
        reader.warning(
            place,
            format!("`{name}@{reference}` can change without this file changing"),
            "name the commit: `@` and its 40 hexadecimal digits",
        );
    }
}

/// The secrets among the references. `*` where all of them are used.
pub(super) fn secrets(references: &[Reference]) -> BTreeSet<String> {
    let secrets = references.iter().filter(|reference| reference.path[0] == "secrets");
    secrets.map(|secret| secret.path.get(1).map_or("*", String::as_str).to_owned()).collect()
}
