//! `on:`: events, their filters, the inputs of manual and called runs.

use super::allowed;
use super::names::{Names, list};
use super::reader::{Fields, Reader};
use super::yaml::{Kind, Node};
use crate::expression::Value;
use crate::expression::template::has_expression;
use crate::pipeline::{EventFilter, Input, InputKind, Trigger};

/// An event: its name, the activity types it knows, the filters it takes besides `types`.
struct Event {
    name: &'static str,
    types: &'static [&'static str],
    filters: &'static [&'static str],
}

const fn event(
    name: &'static str,
    types: &'static [&'static str],
    filters: &'static [&'static str],
) -> Event {
    Event { name, types, filters }
}

const BRANCHES: &[&str] = &["branches", "branches-ignore"];
const BRANCHES_AND_PATHS: &[&str] = &["branches", "branches-ignore", "paths", "paths-ignore"];
const PULL_REQUEST: &[&str] = &[
    "assigned",
    "unassigned",
    "labeled",
    "unlabeled",
    "opened",
    "edited",
    "closed",
    "reopened",
    "synchronize",
    "converted_to_draft",
    "locked",
    "unlocked",
    "enqueued",
    "dequeued",
    "milestoned",
    "demilestoned",
    "ready_for_review",
    "review_requested",
    "review_request_removed",
    "auto_merge_enabled",
    "auto_merge_disabled",
    "stacked",
];
const ISSUES: &[&str] = &[
    "opened",
    "edited",
    "deleted",
    "transferred",
    "pinned",
    "unpinned",
    "closed",
    "reopened",
    "assigned",
    "unassigned",
    "labeled",
    "unlabeled",
    "locked",
    "unlocked",
    "milestoned",
    "demilestoned",
    "field_added",
    "field_removed",
    "typed",
    "untyped",
];
const DISCUSSION: &[&str] = &[
    "created",
    "edited",
    "deleted",
    "transferred",
    "pinned",
    "unpinned",
    "labeled",
    "unlabeled",
    "locked",
    "unlocked",
    "category_changed",
    "answered",
    "unanswered",
];
const CHANGES: &[&str] = &["created", "edited", "deleted"];

/// Every event of the pinned dialect. Those with keys of their own are read apart.
const EVENTS: &[Event] = &[
    event("branch_protection_rule", CHANGES, &[]),
    event("check_run", &["completed", "created", "rerequested", "requested_action"], &[]),
    event("check_suite", &["completed"], &[]),
    event("create", &[], &[]),
    event("delete", &[], &[]),
    event("deployment", &[], &[]),
    event("deployment_status", &[], &[]),
    event("discussion", DISCUSSION, &[]),
    event("discussion_comment", CHANGES, &[]),
    event("fork", &[], &[]),
    event("gollum", &[], &[]),
    event("image_version", &["created", "ready", "deleted"], &["names", "versions"]),
    event("issue_comment", CHANGES, &[]),
    event("issues", ISSUES, &[]),
    event("label", CHANGES, &[]),
    event("merge_group", &["checks_requested"], BRANCHES),
    event("milestone", &["created", "closed", "opened", "edited", "deleted"], &[]),
    event("page_build", &[], &[]),
    event("project", &["created", "closed", "reopened", "edited", "deleted"], &[]),
    event("project_card", &["created", "moved", "converted", "edited", "deleted"], &[]),
    event("project_column", &["created", "updated", "moved", "deleted"], &[]),
    event("public", &[], &[]),
    event("pull_request", PULL_REQUEST, BRANCHES_AND_PATHS),
    event("pull_request_comment", CHANGES, &[]),
    event("pull_request_review", &["submitted", "edited", "dismissed"], &[]),
    event("pull_request_review_comment", CHANGES, &[]),
    event("pull_request_target", PULL_REQUEST, BRANCHES_AND_PATHS),
    event(
        "push",
        &[],
        &["branches", "branches-ignore", "tags", "tags-ignore", "paths", "paths-ignore"],
    ),
    event("registry_package", &["published", "updated"], &[]),
    event(
        "release",
        &["published", "unpublished", "created", "edited", "deleted", "prereleased", "released"],
        &[],
    ),
    event("repository_dispatch", &[], &["types"]),
    event("schedule", &[], &[]),
    event("status", &[], &[]),
    event("watch", &["started"], &[]),
    event("workflow_call", &[], &[]),
    event("workflow_dispatch", &[], &[]),
    event(
        "workflow_run",
        &["requested", "completed", "in_progress"],
        &["workflows", "branches", "branches-ignore"],
    ),
];

/// Reads `on:`.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node) -> Vec<Trigger> {
    match &node.kind {
        Kind::Mapping(entries) => {
            entries.iter().filter_map(|(key, value)| trigger(reader, key, Some(value))).collect()
        }
        Kind::Sequence(items) if items.is_empty() => {
            reader.error(node.place, "`on` names no event");
            Vec::new()
        }
        _ => {
            let items = reader.one_or_more(node, "`on`");
            items.iter().filter_map(|item| trigger(reader, item, None)).collect()
        }
    }
}

fn trigger(reader: &mut Reader<'_>, name: &Node, config: Option<&Node>) -> Option<Trigger> {
    let text = reader.name(name, "the event")?;
    let Some(known) = EVENTS.iter().find(|event| event.name == text) else {
        let names: Vec<&str> = EVENTS.iter().map(|event| event.name).collect();
        let hint = reader.did_you_mean(&text, &names).unwrap_or_default();
        reader.error_with(name.place, format!("unknown event `{text}`"), hint);
        return None;
    };
    let (line, column) = (name.place.line, name.place.column);
    let mut trigger = Trigger { event: text, line, column, ..Trigger::default() };
    // `push:` without anything after it is the bare event.
    let config = config.filter(|config| !config.is_null());
    match (known.name, config) {
        ("schedule", Some(config)) => schedule(reader, config, &mut trigger),
        ("schedule", None) => {
            reader.error(name.place, "`schedule` has no `cron`");
        }
        (_, None) => (),
        ("workflow_dispatch", Some(config)) => dispatch(reader, config, &mut trigger),
        ("workflow_call", Some(config)) => call(reader, config, &mut trigger),
        (_, Some(config)) => filters(reader, known, config, &mut trigger),
    }
    Some(trigger)
}

fn filters(reader: &mut Reader<'_>, event: &Event, config: &Node, trigger: &mut Trigger) {
    let what = format!("`{}`", event.name);
    let mut known = event.filters.to_vec();
    if !event.types.is_empty() {
        known.push("types");
    }
    let Some(fields) = reader.fields(config, &what, &known, &[]) else { return };
    for name in known {
        let Some(node) = fields.get(name) else { continue };
        let patterns = reader.names(node, &format!("`{name}`"));
        if name == "types" && !event.types.is_empty() {
            check_types(reader, event, node, &patterns);
        }
        trigger.filters.push(EventFilter { name: name.to_owned(), patterns });
    }
    one_of(reader, &fields, &what);
}

fn check_types(reader: &mut Reader<'_>, event: &Event, node: &Node, types: &[String]) {
    for name in types {
        if !event.types.contains(&name.as_str()) {
            let hint = reader
                .did_you_mean(name, event.types)
                .unwrap_or_else(|| format!("it knows {}", list(event.types.iter().copied())));
            let message = format!("`{}` has no activity type `{name}`", event.name);
            reader.error_with(node.place, message, hint);
        }
    }
}

/// A filter and its `-ignore` exclude each other.
fn one_of(reader: &mut Reader<'_>, fields: &Fields<'_>, what: &str) {
    for (name, ignore) in
        [("branches", "branches-ignore"), ("tags", "tags-ignore"), ("paths", "paths-ignore")]
    {
        if let (Some(_), Some(place)) = (fields.get(name), fields.key_place(ignore)) {
            reader.warning(
                place,
                format!("{what} has both `{name}` and `{ignore}`, GitHub takes only one"),
                format!("put `!` before what `{name}` is to leave out"),
            );
        }
    }
}

fn schedule(reader: &mut Reader<'_>, config: &Node, trigger: &mut Trigger) {
    let mut patterns = Vec::new();
    for item in reader.sequence(config, "`schedule`").unwrap_or(&[]) {
        let Some(fields) = reader.fields(item, "`schedule`", &["cron", "timezone"], &[]) else {
            continue;
        };
        if let Some(timezone) = fields.get("timezone") {
            reader.name(timezone, "`timezone`");
        }
        let Some(node) = fields.get("cron") else {
            reader.error(item.place, "`cron` is missing");
            continue;
        };
        let Some(cron) = reader.name(node, "`cron`") else { continue };
        if !is_cron(&cron) {
            let message = format!("`{cron}` is no cron pattern");
            let hint = "want five fields: minute, hour, day of month, month, day of week";
            reader.error_with(node.place, message, hint);
        }
        patterns.push(cron);
    }
    trigger.filters.push(EventFilter { name: "cron".to_owned(), patterns });
}

/// Whether it has the shape of a cron pattern.
fn is_cron(text: &str) -> bool {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let good = |c: char| c.is_ascii_alphanumeric() || "*/,-?#".contains(c);
    fields.len() == 5 && fields.iter().all(|field| field.chars().all(good))
}

fn dispatch(reader: &mut Reader<'_>, config: &Node, trigger: &mut Trigger) {
    let known = ["inputs"];
    let Some(fields) = reader.fields(config, "`workflow_dispatch`", &known, &[]) else { return };
    if let Some(node) = fields.get("inputs").filter(|node| !node.is_null()) {
        trigger.inputs = inputs(reader, node, false);
    }
}

fn call(reader: &mut Reader<'_>, config: &Node, trigger: &mut Trigger) {
    let known = ["inputs", "secrets", "outputs"];
    let Some(fields) = reader.fields(config, "`workflow_call`", &known, &[]) else { return };
    if let Some(node) = fields.get("inputs").filter(|node| !node.is_null()) {
        trigger.inputs = inputs(reader, node, true);
    }
    if let Some(node) = fields.get("secrets").filter(|node| !node.is_null()) {
        for (key, value) in reader.mapping(node, "`secrets`").unwrap_or(&[]) {
            let Some(name) = reader.name(key, "the secret's name") else { continue };
            let required = required(reader, value, &["description", "required"]);
            trigger.secrets.push((name, required));
        }
    }
    if let Some(node) = fields.get("outputs").filter(|node| !node.is_null()) {
        for (_, value) in reader.mapping(node, "`outputs`").unwrap_or(&[]) {
            let known = ["description", "value"];
            let Some(fields) = reader.fields(value, "the output", &known, &[]) else { continue };
            match fields.get("value") {
                Some(value) => {
                    reader.text(value, "`value`", allowed::CALL_OUTPUT);
                }
                None => reader.error(value.place, "`value` is missing"),
            }
        }
    }
}

fn required(reader: &mut Reader<'_>, node: &Node, known: &[&str]) -> bool {
    if node.is_null() {
        return false;
    }
    let Some(fields) = reader.fields(node, "the secret", known, &[]) else { return false };
    let required = fields.get("required");
    required.and_then(|node| reader.literal_bool(node, "`required`")).unwrap_or(false)
}

const INPUT_KEYS: &[&str] =
    &["description", "type", "required", "default", "options", "deprecationMessage"];

fn inputs(reader: &mut Reader<'_>, node: &Node, called: bool) -> Vec<Input> {
    let (mut inputs, mut names) = (Vec::new(), Names::default());
    for (key, value) in reader.mapping(node, "`inputs`").unwrap_or(&[]) {
        let Some(name) = reader.name(key, "the input's name") else { continue };
        if !names.insert(&name) {
            reader.error(key.place, format!("input `{name}` is already defined"));
        }
        if value.is_null() && !called {
            inputs.push(Input { name, ..plain_input() });
            continue;
        }
        let Some(fields) = reader.fields(value, "the input", INPUT_KEYS, &[]) else { continue };
        if let Some(input) = input(reader, name, &fields, called) {
            inputs.push(input);
        }
    }
    inputs
}

fn plain_input() -> Input {
    Input {
        name: String::new(),
        description: String::new(),
        kind: InputKind::String,
        required: false,
        default: None,
        options: Vec::new(),
    }
}

fn input(
    reader: &mut Reader<'_>,
    name: String,
    fields: &Fields<'_>,
    called: bool,
) -> Option<Input> {
    let kind = match fields.get("type") {
        Some(node) => input_kind(reader, node, called)?,
        None if called => {
            reader.error(fields.place, format!("`type` of the input `{name}` is missing"));
            return None;
        }
        None => InputKind::String,
    };
    let description = fields.get("description").and_then(Node::text).unwrap_or_default();
    let required = fields.get("required");
    let required =
        required.and_then(|node| reader.literal_bool(node, "`required`")).unwrap_or(false);
    let options = fields.get("options").map(|node| reader.names(node, "`options`"));
    if kind == InputKind::Choice && options.as_ref().is_none_or(Vec::is_empty) {
        let message = format!("the input `{name}` is a choice without `options`");
        reader.error(fields.place, message);
    }
    let options = options.unwrap_or_default();
    let default = fields.get("default").filter(|node| !node.is_null());
    let default = default.and_then(|node| default_value(reader, node, kind, &options, called));
    Some(Input { name, description, kind, required, default, options })
}

fn input_kind(reader: &mut Reader<'_>, node: &Node, called: bool) -> Option<InputKind> {
    let text = reader.name(node, "`type`")?;
    let kind = match text.as_str() {
        "string" => Some(InputKind::String),
        "boolean" => Some(InputKind::Boolean),
        "number" => Some(InputKind::Number),
        "choice" if !called => Some(InputKind::Choice),
        "environment" if !called => Some(InputKind::Environment),
        _ => None,
    };
    if kind.is_none() {
        let called_types = ["string", "boolean", "number"];
        let types = ["string", "boolean", "number", "choice", "environment"];
        let known: &[&str] = if called { &called_types } else { &types };
        let hint = format!("want {}", list(known.iter().copied()));
        reader.error_with(node.place, format!("unknown type `{text}` of an input"), hint);
    }
    kind
}

fn default_value(
    reader: &mut Reader<'_>,
    node: &Node,
    kind: InputKind,
    options: &[String],
    called: bool,
) -> Option<serde_json::Value> {
    let Kind::Scalar { value, .. } = &node.kind else {
        reader.wanted(node, "`default`", "a string, a boolean or a number");
        return None;
    };
    let text = value.to_text();
    if called && has_expression(&text) {
        reader.text(node, "`default`", allowed::INPUT_DEFAULT);
        return Some(text.into());
    }
    let fits = match kind {
        InputKind::Boolean => matches!(value, Value::Bool(_)) || text == "true" || text == "false",
        InputKind::Number => !value.to_number().is_nan(),
        InputKind::Choice => options.is_empty() || options.contains(&text),
        InputKind::String | InputKind::Environment => true,
    };
    if !fits {
        let wanted = match kind {
            InputKind::Boolean => "`true` or `false`".to_owned(),
            InputKind::Number => "a number".to_owned(),
            _ => format!("one of {}", list(options.iter().map(String::as_str))),
        };
        reader.error(node.place, format!("the default is `{text}`, want {wanted}"));
        return None;
    }
    Some(match kind {
        InputKind::Boolean => (text == "true").into(),
        InputKind::Number => Value::Number(value.to_number()).to_json(),
        InputKind::String | InputKind::Choice | InputKind::Environment => text.into(),
    })
}
