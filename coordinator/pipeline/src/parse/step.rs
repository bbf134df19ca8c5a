//! `steps:`.

use std::collections::BTreeSet;

use steading_model::limits::STEPS_PER_JOB_MAX;

use super::allowed;
use super::lint;
use super::names::Names;
use super::reader::{Fields, Reader};
use super::yaml::{Node, Place};
use crate::expression::{fold_case, is_word};
use crate::job::{EnvLayer, StepKind, StepSpec};

use super::extension;

const COMMON: &[&str] =
    &["name", "id", "if", "env", "continue-on-error", "timeout-minutes", "x-steading"];
const RUN: &[&str] = &["run", "shell", "working-directory"];
const USES: &[&str] = &["uses", "with"];
const LATER: &[&str] = &["background", "wait", "wait-all", "cancel", "parallel"];

/// Longest id of a step or job, characters. What GitHub accepts.
pub(super) const ID_CHARS_MAX: usize = 100;

/// Actions that are part of the farm.
const NATIVE_ACTIONS: &[&str] =
    &["actions/checkout", "actions/upload-artifact", "actions/download-artifact"];

/// A step, and what is checked of it once the overlay is known.
#[derive(Debug)]
pub(super) struct ParsedStep {
    pub(super) spec: StepSpec,
    pub(super) place: Place,
    /// Secrets that its own expressions use.
    pub(super) secrets: BTreeSet<String>,
}

/// Reads the steps of a job.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node) -> Vec<ParsedStep> {
    let Some(items) = reader.sequence(node, "`steps`") else { return Vec::new() };
    if items.len() > STEPS_PER_JOB_MAX {
        let message = format!("{} steps, at most {STEPS_PER_JOB_MAX} are allowed", items.len());
        reader.error(node.place, message);
        return Vec::new();
    }
    let mut names = Names::default();
    let mut steps: Vec<ParsedStep> =
        items.iter().filter_map(|item| step(reader, item, &mut names)).collect();
    make_up_ids(&mut steps, &mut names);
    steps
}

fn step(reader: &mut Reader<'_>, node: &Node, names: &mut Names) -> Option<ParsedStep> {
    let known: Vec<&str> = [COMMON, RUN, USES].concat();
    let errors = reader.errors.len();
    let fields = reader.fields(node, "a step", &known, LATER)?;
    let has_more_to_say = reader.errors.len() > errors;
    let first = reader.references.len();
    let kind = kind(reader, &fields, has_more_to_say)?;
    let mut spec = StepSpec {
        id: fields.get("id").and_then(|node| id(reader, node, names)).unwrap_or_default(),
        name: fields.get("name").and_then(|node| reader.text(node, "`name`", allowed::STEP)),
        condition: fields.get("if").and_then(|node| reader.condition(node, allowed::STEP_IF)),
        env: fields.get("env").map(|node| env(reader, node, allowed::STEP)).unwrap_or_default(),
        continue_on_error: fields
            .get("continue-on-error")
            .and_then(|node| reader.bool_text(node, "`continue-on-error`", allowed::STEP)),
        timeout_minutes: fields
            .get("timeout-minutes")
            .and_then(|node| reader.number_text(node, "`timeout-minutes`", allowed::STEP)),
        cache: None,
        line: node.place.line,
        kind,
    };
    if let Some(extension) = fields.get("x-steading") {
        extension::apply_to_step(reader, extension, &mut spec);
    }
    let secrets = lint::secrets(&reader.references[first..]);
    Some(ParsedStep { spec, place: node.place, secrets })
}

/// `explained`: an error of the step's keys has been told, so that a missing one needs no other.
fn kind(reader: &mut Reader<'_>, fields: &Fields<'_>, explained: bool) -> Option<StepKind> {
    match (fields.get("run"), fields.get("uses")) {
        (Some(_), Some(_)) => {
            let place = fields.key_place("uses").unwrap_or(fields.place);
            reader.error_with(place, "a step has both `run` and `uses`", "make two steps of it");
            None
        }
        (None, None) => {
            if !explained {
                reader.error(fields.place, "a step has neither `run` nor `uses`");
            }
            None
        }
        (Some(run), None) => {
            misplaced(reader, fields, "with", "run");
            let first = reader.references.len();
            let script = reader.text(run, "`run`", allowed::STEP)?;
            lint::injections(reader, first);
            let text = |reader: &mut Reader<'_>, name: &str| {
                let node = fields.get(name)?;
                reader.full_text(node, &format!("`{name}`"), allowed::STEP)
            };
            let shell = text(reader, "shell");
            if let (Some(shell), Some(node)) = (&shell, fields.get("shell")) {
                check_shell(reader, node, &shell.value);
            }
            let working_directory = text(reader, "working-directory");
            Some(StepKind::Run { script, shell, working_directory })
        }
        (None, Some(uses)) => {
            misplaced(reader, fields, "shell", "uses");
            misplaced(reader, fields, "working-directory", "uses");
            let action = reader.name(uses, "`uses`")?;
            check_action(reader, uses, &action);
            let with = fields.get("with").map(|node| env(reader, node, allowed::STEP));
            Some(StepKind::Uses { action, with: with.unwrap_or_default() })
        }
    }
}

fn misplaced(reader: &mut Reader<'_>, fields: &Fields<'_>, name: &str, beside: &str) {
    if let Some(place) = fields.key_place(name) {
        reader.error(place, format!("`{name}` does not go with `{beside}`"));
    }
}

/// A shell that the agent knows, a template with `{0}`, or an expression.
pub(super) fn check_shell(reader: &mut Reader<'_>, node: &Node, shell: &str) {
    const KNOWN: &[&str] = &["bash", "sh", "python", "pwsh"];
    const ELSEWHERE: &[&str] = &["cmd", "powershell"];
    let computed = shell.contains("${{");
    if computed || KNOWN.contains(&shell) || shell.contains("{0}") {
        return;
    }
    if ELSEWHERE.contains(&shell) {
        reader.unsupported(node.place, &format!("shell `{shell}`"));
        return;
    }
    reader.error_with(
        node.place,
        format!("unknown shell `{shell}`"),
        "want `bash`, `sh`, `python`, `pwsh`, or a command with `{0}` for the script's file",
    );
}

/// `{org}/{repo}[/path]@ref`, `./path` or `docker://image`, and built already.
fn check_action(reader: &mut Reader<'_>, node: &Node, action: &str) {
    if action.starts_with("docker://") {
        reader.unsupported(node.place, "a `docker://` action");
        return;
    }
    if action.starts_with("./") || action.starts_with(".\\") {
        reader.unsupported(node.place, "an action of the repository itself (`./…`)");
        return;
    }
    let Some((name, reference)) = action_parts(action) else {
        let message = format!("`{action}` names no action");
        let hint = "want `{org}/{repo}[/path]@ref`, as in `actions/checkout@v4`";
        reader.error_with(node.place, message, hint);
        return;
    };
    if !NATIVE_ACTIONS.iter().any(|native| native.eq_ignore_ascii_case(name)) {
        reader.unsupported(node.place, &format!("action `{name}`"));
        lint::unpinned(reader, node.place, name, reference);
    }
}

/// The action's repository with its path, and the ref.
fn action_parts(action: &str) -> Option<(&str, &str)> {
    let (name, reference) = action.split_once('@')?;
    let mut parts = name.split(['/', '\\']);
    let (org, repo) = (parts.next()?, parts.next()?);
    let whole = !org.is_empty() && !repo.is_empty() && !reference.is_empty();
    (whole && !reference.contains('@')).then_some((name, reference))
}

/// A mapping from names to texts: `env` and `with`.
pub(super) fn env(reader: &mut Reader<'_>, node: &Node, allowed: allowed::Allowed) -> EnvLayer {
    let mut layer = Vec::new();
    for (key, value) in reader.mapping(node, "`env` or `with`").unwrap_or(&[]) {
        if key.text().is_some_and(|key| is_insert(&key)) {
            reader.unsupported(key.place, "`${{ insert }}`");
            continue;
        }
        let Some(name) = reader.name(key, "the name") else { continue };
        if let Some(text) = reader.text(value, &format!("`{name}`"), allowed) {
            layer.push((name, text));
        }
    }
    layer
}

/// Whether the key is the directive that merges a mapping.
pub(super) fn is_insert(key: &str) -> bool {
    let inner = key.trim().strip_prefix("${{").and_then(|rest| rest.strip_suffix("}}"));
    inner.is_some_and(|inner| inner.trim() == "insert")
}

fn id(reader: &mut Reader<'_>, node: &Node, names: &mut Names) -> Option<String> {
    let id = reader.name(node, "`id`")?;
    if !check_id(reader, node, &id) {
        return None;
    }
    if !names.insert(&id) {
        let message = format!("the step id `{id}` is already used in this job");
        reader.error_with(node.place, message, "ids differ in more than case");
        return None;
    }
    Some(id)
}

/// Whether it may be the id of a step or job; says what is wrong.
pub(super) fn check_id(reader: &mut Reader<'_>, node: &Node, id: &str) -> bool {
    let hint = "letters, digits, `_` and `-`, with a letter or `_` first";
    if !is_word(id) {
        reader.error_with(node.place, format!("`{id}` is no id"), hint);
    } else if id.chars().count() >= ID_CHARS_MAX {
        let message = format!("the id is {} characters long", id.chars().count());
        reader.error_with(node.place, message, format!("want less than {ID_CHARS_MAX}"));
    } else if id.starts_with("__") {
        let message = format!("the id `{id}` starts with `__`");
        reader.error_with(node.place, message, "such ids are for those that the farm makes up");
    } else {
        return true;
    }
    false
}

/// Steps without an id get `__run`, `__actions_checkout`, and on collision a count: `__run_2`.
fn make_up_ids(steps: &mut [ParsedStep], names: &mut Names) {
    let specs = steps.iter_mut().map(|step| &mut step.spec);
    for step in specs.filter(|step| step.id.is_empty()) {
        let base = match &step.kind {
            StepKind::Run { .. } => "__run".to_owned(),
            StepKind::Uses { action, .. } => format!("__{}", action_id(action)),
        };
        let mut id = base.clone();
        let mut count = 1;
        while !names.insert(&id) {
            count += 1;
            id = format!("{base}_{count}");
        }
        step.id = id;
    }
}

/// An action's name with only what an id may have.
fn action_id(action: &str) -> String {
    if action.starts_with("./") || action.starts_with(".\\") {
        return "self".to_owned();
    }
    let name = action.strip_prefix("docker://").unwrap_or(action);
    let name =
        if action.starts_with("docker://") { name } else { name.split('@').next().unwrap_or(name) };
    let sane = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    name.chars().map(sane).take(ID_CHARS_MAX / 2).collect()
}

/// The step that a selector of the overlay means: by id, or by exact name.
pub(super) fn select(steps: &[ParsedStep], selector: &str) -> Vec<usize> {
    let wanted = fold_case(selector);
    let by = |test: &dyn Fn(&StepSpec) -> bool| {
        let found = steps.iter().enumerate().filter(|(_, step)| test(&step.spec));
        found.map(|(at, _)| at).collect::<Vec<_>>()
    };
    let ids = by(&|step| fold_case(&step.id) == wanted);
    if !ids.is_empty() {
        return ids;
    }
    by(&|step| step.name.as_ref().is_some_and(|name| name.value == selector))
}
