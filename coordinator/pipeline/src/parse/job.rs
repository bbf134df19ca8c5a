//! One entry under `jobs:`.

use std::collections::BTreeSet;

use super::allowed;
use super::concurrency;
use super::extension;
use super::lint;
use super::names::list;
use super::reader::{Fields, Reader};
use super::step::{self, ParsedStep};
use super::yaml::{Kind, Node};
use crate::expression::Value;
use crate::expression::template::{self, Piece};
use crate::job::Text;
use crate::pipeline::{self, Defaults, Job, Need, RunsOn, Strategy};

const KNOWN: &[&str] = &[
    "name",
    "needs",
    "if",
    "runs-on",
    "strategy",
    "env",
    "defaults",
    "outputs",
    "timeout-minutes",
    "continue-on-error",
    "permissions",
    "concurrency",
    "steps",
    "x-steading",
];
const LATER: &[&str] =
    &["container", "services", "environment", "snapshot", "cancel-timeout-minutes"];

/// A job, and what is checked of it once the overlay is known.
#[derive(Debug)]
pub(super) struct ParsedJob {
    pub(super) job: Job,
    pub(super) steps: Vec<ParsedStep>,
    /// Secrets that its `env` uses.
    pub(super) env_secrets: BTreeSet<String>,
}

/// Reads a job.
pub(super) fn read(reader: &mut Reader<'_>, key: &Node, node: &Node) -> Option<ParsedJob> {
    let name = reader.literal(key, "the job's key")?;
    step::check_id(reader, key, &name);
    let entries = reader.mapping(node, &format!("the job `{name}`"))?;
    if entries.iter().any(|(key, _)| key.text().as_deref() == Some("uses")) {
        return calling_job(reader, name, key, node);
    }
    let fields = reader.fields(node, "a job", KNOWN, LATER)?;
    let first = reader.references.len();
    let env = fields.get("env").map(|node| step::env(reader, node, allowed::JOB_ENV));
    let env_secrets = lint::secrets(&reader.references[first..]);
    let steps = fields.get("steps").map(|node| step::read(reader, node)).unwrap_or_default();
    if fields.get("steps").is_none() {
        reader.warning(key.place, format!("the job `{name}` has no `steps`"), "it does nothing");
    }
    let job = Job {
        key: name,
        name: fields.get("name").and_then(|node| reader.text(node, "`name`", allowed::JOB)),
        needs: fields.get("needs").map(|node| needs(reader, node)).unwrap_or_default(),
        condition: fields.get("if").and_then(|node| reader.condition(node, allowed::JOB_IF)),
        runs_on: runs_on(reader, &fields),
        strategy: fields.get("strategy").map(|node| strategy(reader, node)).unwrap_or_default(),
        env: env.unwrap_or_default(),
        defaults: fields
            .get("defaults")
            .map(|node| defaults(reader, node, true))
            .unwrap_or_default(),
        outputs: fields.get("outputs").map(|node| outputs(reader, node)).unwrap_or_default(),
        timeout_minutes: fields
            .get("timeout-minutes")
            .and_then(|node| reader.number_text(node, "`timeout-minutes`", allowed::JOB)),
        continue_on_error: fields
            .get("continue-on-error")
            .and_then(|node| reader.bool_text(node, "`continue-on-error`", allowed::JOB)),
        concurrency: fields
            .get("concurrency")
            .and_then(|node| concurrency::read(reader, node, allowed::JOB)),
        line: key.place.line,
        column: key.place.column,
        ..Job::default()
    };
    if let Some(node) = fields.get("permissions") {
        permissions(reader, node);
    }
    let mut parsed = ParsedJob { job, steps, env_secrets };
    if let Some(node) = fields.get("x-steading") {
        extension::apply_to_job(reader, node, &mut parsed);
    }
    check_references(reader, first, &parsed);
    Some(parsed)
}

/// A job that calls another workflow. Read as far as its shape and its `needs`, so that
/// what is wrong with it is told, and those who need it are not wrong as well.
fn calling_job(
    reader: &mut Reader<'_>,
    name: String,
    key: &Node,
    node: &Node,
) -> Option<ParsedJob> {
    const KNOWN: &[&str] = &[
        "name",
        "uses",
        "with",
        "secrets",
        "needs",
        "if",
        "permissions",
        "concurrency",
        "strategy",
        "x-steading",
    ];
    let fields = reader.fields(node, "a job with `uses`", KNOWN, &[])?;
    let place = fields.key_place("uses").unwrap_or(fields.place);
    reader.unsupported(place, "a job that `uses` a reusable workflow");
    if let Some(node) = fields.get("permissions") {
        permissions(reader, node);
    }
    let needs = fields.get("needs").map(|node| needs(reader, node)).unwrap_or_default();
    let (line, column) = (key.place.line, key.place.column);
    let job = Job { key: name, needs, line, column, ..Job::default() };
    Some(ParsedJob { job, steps: Vec::new(), env_secrets: BTreeSet::new() })
}

/// Warns of `needs` and `steps` that are never there.
fn check_references(reader: &mut Reader<'_>, first: usize, parsed: &ParsedJob) {
    let references = reader.references[first..].to_vec();
    for reference in references {
        let [context, name, ..] = reference.path.as_slice() else { continue };
        let known: Vec<&str> = match context.as_str() {
            "needs" => parsed.job.needs.iter().map(|need| need.key.as_str()).collect(),
            "steps" => parsed.steps.iter().map(|step| step.spec.id.as_str()).collect(),
            _ => continue,
        };
        if name == "*" || known.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            continue;
        }
        let (message, hint) = if context == "needs" {
            let message = format!("`needs.{name}` is always empty: the job does not need `{name}`");
            (message, format!("add it to `needs`, which has {}", list(known.into_iter())))
        } else {
            let message = format!("`steps.{name}` is always empty: no step has the id `{name}`");
            (message, "give the step that is meant an `id`".to_owned())
        };
        reader.warning(reference.place, message, hint);
    }
}

fn needs(reader: &mut Reader<'_>, node: &Node) -> Vec<Need> {
    let items = reader.one_or_more(node, "`needs`");
    let mut needs: Vec<Need> = Vec::new();
    for item in items {
        let Some(key) = reader.name(item, "`needs`") else { continue };
        if needs.iter().any(|need| need.key.eq_ignore_ascii_case(&key)) {
            continue;
        }
        needs.push(Need { key, line: item.place.line, column: item.place.column });
    }
    needs
}

fn runs_on(reader: &mut Reader<'_>, fields: &Fields<'_>) -> RunsOn {
    let Some(node) = fields.get("runs-on") else {
        let hint = "as in `runs-on: ubuntu-latest`";
        reader.error_with(fields.place, "`runs-on` is missing in this job", hint);
        return RunsOn::default();
    };
    if !matches!(node.kind, Kind::Mapping(_)) {
        return RunsOn { labels: labels(reader, node, "`runs-on`"), group: None };
    }
    let Some(fields) = reader.fields(node, "`runs-on`", &["group", "labels"], &[]) else {
        return RunsOn::default();
    };
    if fields.get("group").is_none() && fields.get("labels").is_none() {
        reader.error(node.place, "`runs-on` names neither `group` nor `labels`");
    }
    let group = fields.get("group");
    let group = group.and_then(|node| reader.full_text(node, "`group`", allowed::JOB));
    let labels = fields.get("labels").map(|node| labels(reader, node, "`labels`"));
    RunsOn { labels: labels.unwrap_or_default(), group }
}

fn labels(reader: &mut Reader<'_>, node: &Node, what: &str) -> Vec<Text> {
    let items = reader.one_or_more(node, what);
    if items.is_empty() && matches!(node.kind, Kind::Sequence(_)) {
        reader.error(node.place, format!("{what} names no label"));
    }
    items.iter().filter_map(|item| reader.full_text(item, what, allowed::JOB)).collect()
}

fn strategy(reader: &mut Reader<'_>, node: &Node) -> Strategy {
    let known = ["matrix", "fail-fast", "max-parallel"];
    let Some(fields) = reader.fields(node, "`strategy`", &known, &[]) else {
        return Strategy::default();
    };
    Strategy {
        matrix: fields.get("matrix").and_then(|node| matrix(reader, node)),
        fail_fast: fields
            .get("fail-fast")
            .and_then(|node| reader.bool_text(node, "`fail-fast`", allowed::STRATEGY)),
        max_parallel: fields
            .get("max-parallel")
            .and_then(|node| reader.number_text(node, "`max-parallel`", allowed::STRATEGY)),
    }
}

/// `matrix:`: vectors, `include` and `exclude`, each written out or as one expression.
fn matrix(reader: &mut Reader<'_>, node: &Node) -> Option<pipeline::Node> {
    let Kind::Mapping(entries) = &node.kind else {
        return expression(reader, node, "`matrix`", "a mapping or an expression");
    };
    for (key, value) in entries {
        let name = key.text().unwrap_or_default();
        match &value.kind {
            Kind::Sequence(items) if matches!(name.as_str(), "include" | "exclude") => {
                for item in items.iter().filter(|item| !matches!(item.kind, Kind::Mapping(_))) {
                    let what = format!("an entry of `{name}`");
                    expression(reader, item, &what, "a mapping or an expression");
                }
            }
            Kind::Sequence(items) if items.is_empty() => {
                reader.error(value.place, format!("the matrix vector `{name}` has no values"));
            }
            Kind::Sequence(_) => (),
            _ if step::is_insert(&name) => (),
            _ => {
                let what = format!("the matrix vector `{name}`");
                expression(reader, value, &what, "a sequence or an expression");
            }
        }
    }
    tree(reader, node)
}

/// A scalar that is exactly one expression.
fn expression(
    reader: &mut Reader<'_>,
    node: &Node,
    what: &str,
    wanted: &str,
) -> Option<pipeline::Node> {
    let text = node.text().unwrap_or_default();
    // A bad expression is told where the whole tree is read.
    let good =
        matches!(template::pieces(&text).as_deref(), Ok([Piece::Expression { .. }]) | Err(_));
    if !good {
        reader.wanted(node, what, wanted);
        return None;
    }
    reader.text(node, what, allowed::STRATEGY).map(pipeline::Node::String)
}

/// A part of the matrix, expressions checked.
fn tree(reader: &mut Reader<'_>, node: &Node) -> Option<pipeline::Node> {
    let (line, column) = (node.place.line, node.place.column);
    let at = || Text { value: String::new(), line, column };
    match &node.kind {
        Kind::Scalar { value: Value::String(_), .. } => {
            reader.text(node, "the value", allowed::STRATEGY).map(pipeline::Node::String)
        }
        Kind::Scalar { value, .. } => Some(pipeline::Node::Literal(value.to_json(), at())),
        Kind::Sequence(items) => {
            let items = items.iter().filter_map(|item| tree(reader, item)).collect();
            Some(pipeline::Node::Sequence(items, at()))
        }
        Kind::Mapping(entries) => {
            let mut members = Vec::new();
            for (key, value) in entries {
                if key.text().is_some_and(|key| step::is_insert(&key)) {
                    reader.unsupported(key.place, "`${{ insert }}`");
                    continue;
                }
                let name = reader.name(key, "the key");
                let (Some(name), Some(value)) = (name, tree(reader, value)) else { continue };
                let (line, column) = (key.place.line, key.place.column);
                members.push((Text { value: name, line, column }, value));
            }
            Some(pipeline::Node::Mapping(members, at()))
        }
    }
}

/// `defaults:` of the workflow, which takes no expressions, or of a job.
pub(super) fn defaults(reader: &mut Reader<'_>, node: &Node, of_job: bool) -> Defaults {
    let run = reader.fields(node, "`defaults`", &["run"], &[]);
    let Some(run) = run.and_then(|fields| fields.get("run")) else { return Defaults::default() };
    let known = ["shell", "working-directory"];
    let Some(fields) = reader.fields(run, "`defaults.run`", &known, &[]) else {
        return Defaults::default();
    };
    let mut text = |name: &str| {
        let node = fields.get(name)?;
        let what = format!("`{name}`");
        if of_job {
            return reader.full_text(node, &what, allowed::JOB_DEFAULTS);
        }
        let value = reader.name(node, &what)?;
        Some(Text { value, line: node.place.line, column: node.place.column })
    };
    let (shell, working_directory) = (text("shell"), text("working-directory"));
    if let (Some(shell), Some(node)) = (&shell, fields.get("shell")) {
        step::check_shell(reader, node, &shell.value);
    }
    Defaults { shell, working_directory }
}

fn outputs(reader: &mut Reader<'_>, node: &Node) -> Vec<(String, Text)> {
    let mut outputs = Vec::new();
    for (key, value) in reader.mapping(node, "`outputs`").unwrap_or(&[]) {
        let Some(name) = reader.name(key, "the output's name") else { continue };
        if let Some(text) = reader.text(value, &format!("`{name}`"), allowed::OUTPUTS) {
            outputs.push((name, text));
        }
    }
    outputs
}

/// Checks `permissions:`. No token exists here whose rights they could limit.
pub(super) fn permissions(reader: &mut Reader<'_>, node: &Node) {
    const ANY: &[&str] = &["read", "write", "none"];
    const SCOPES: &[(&str, &[&str])] = &[
        ("actions", ANY),
        ("artifact-metadata", ANY),
        ("attestations", ANY),
        ("checks", ANY),
        ("code-quality", ANY),
        ("contents", ANY),
        ("copilot-requests", &["write", "none"]),
        ("deployments", ANY),
        ("discussions", ANY),
        ("drives", ANY),
        ("id-token", &["write", "none"]),
        ("issues", ANY),
        ("models", &["read", "none"]),
        ("packages", ANY),
        ("pages", ANY),
        ("pull-requests", ANY),
        ("repository-projects", ANY),
        ("security-events", ANY),
        ("statuses", ANY),
        ("vulnerability-alerts", &["read", "none"]),
    ];
    if let Some(text) = node.text() {
        if text != "read-all" && text != "write-all" {
            reader.wanted(node, "`permissions`", "`read-all`, `write-all` or a mapping");
        }
        return;
    }
    let known: Vec<&str> = SCOPES.iter().map(|(scope, _)| *scope).collect();
    let Some(fields) = reader.fields(node, "`permissions`", &known, &[]) else { return };
    for (scope, levels) in SCOPES {
        let Some(node) = fields.get(scope) else { continue };
        let level = node.text().unwrap_or_default();
        if !levels.contains(&level.as_str()) {
            let message = format!("`{scope}` is `{level}`");
            let hint = format!("want {}", list(levels.iter().copied()));
            reader.error_with(node.place, message, hint);
        }
    }
}
