//! `x-steading:` and the overlay file: what GitHub has no key for.

use std::collections::BTreeSet;

use steading_model::{Resources, Spot};

use super::job::ParsedJob;
use super::names::list;
use super::reader::{Fields, Reader};
use super::step;
use super::yaml::{Kind, Node};
use crate::expression::{Value, fold_case};
use crate::job::{CacheSpec, StepKind, StepSpec};
use crate::pipeline::Pipeline;

/// What a pipeline may say for its jobs, and each job for itself.
const JOB_KEYS: &[&str] = &["priority", "resources", "spot", "deadline", "retry"];

/// Recognised elsewhere, but not here.
const STEP_KEYS: &[&str] = &["cache", "mounts"];

/// Most retries that a job may ask for.
const RETRIES_MAX: u32 = 10;

/// How long a result is believed that was made with the network, unless said, seconds.
const NETWORK_MAX_AGE_S: u64 = 24 * 3_600;

/// Largest priority either way. Leaves room for those that the farm gives by itself.
const PRIORITY_MAX: i32 = 1_000;

/// Applies `x-steading` of the whole pipeline.
pub(super) fn apply_to_pipeline(
    reader: &mut Reader<'_>,
    node: &Node,
    pipeline: &mut Pipeline,
    jobs: &mut [ParsedJob],
) {
    let Some(fields) = reader.fields(node, "`x-steading`", JOB_KEYS, STEP_KEYS) else { return };
    apply_pipeline_fields(reader, &fields, pipeline, jobs);
}

/// What the pipeline says is for those jobs that say nothing.
fn apply_pipeline_fields(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    pipeline: &mut Pipeline,
    jobs: &mut [ParsedJob],
) {
    if let Some(priority) = priority(reader, fields) {
        pipeline.priority = priority;
    }
    if let Some(node) = fields.get("resources") {
        let default = resources(reader, node, Resources::default());
        for job in jobs.iter_mut().filter(|job| job.job.resources == Resources::default()) {
            job.job.resources = default;
        }
    }
    let (spot, deadline_ms) = (spot(reader, fields), deadline_ms(reader, fields));
    let retries = retries(reader, fields);
    for ParsedJob { job, .. } in jobs {
        job.spot = job.spot.or(spot);
        job.deadline_ms = job.deadline_ms.or(deadline_ms);
        job.retries = job.retries.or(retries);
    }
}

/// Applies `x-steading` of a job.
pub(super) fn apply_to_job(reader: &mut Reader<'_>, node: &Node, job: &mut ParsedJob) {
    let Some(fields) = reader.fields(node, "`x-steading`", JOB_KEYS, STEP_KEYS) else { return };
    apply_job_fields(reader, &fields, job);
}

fn apply_job_fields(reader: &mut Reader<'_>, fields: &Fields<'_>, job: &mut ParsedJob) {
    if let Some(priority) = priority(reader, fields) {
        job.job.priority = Some(priority);
    }
    if let Some(node) = fields.get("resources") {
        job.job.resources = resources(reader, node, job.job.resources);
    }
    job.job.spot = spot(reader, fields).or(job.job.spot);
    job.job.deadline_ms = deadline_ms(reader, fields).or(job.job.deadline_ms);
    job.job.retries = retries(reader, fields).or(job.job.retries);
}

fn spot(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<Spot> {
    let node = fields.get("spot")?;
    let all = [Spot::Prefer, Spot::Only, Spot::Never];
    let text = node.text().unwrap_or_default();
    let found = all.into_iter().find(|spot| spot.as_str() == text);
    if found.is_none() {
        reader.wanted(node, "`spot`", "`prefer`, `only` or `never`");
    }
    found
}

fn deadline_ms(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<u64> {
    let node = fields.get("deadline")?;
    let seconds = node.text().as_deref().and_then(duration_s);
    let ms = seconds.and_then(|seconds| seconds.checked_mul(1_000));
    if ms.is_none() {
        reader.error(node.place, "`deadline` is a time: `30m`, `24h` or `7d`");
    }
    ms
}

fn retries(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<u32> {
    let node = fields.get("retry")?;
    let number: Option<u32> = node.text().and_then(|text| text.parse().ok());
    let retries = number.filter(|number| *number <= RETRIES_MAX);
    if retries.is_none() {
        reader.error(node.place, format!("`retry` is a whole number from 0 to {RETRIES_MAX}"));
    }
    retries
}

/// Applies `x-steading` of a step.
pub(super) fn apply_to_step(reader: &mut Reader<'_>, node: &Node, step: &mut StepSpec) {
    let later = [JOB_KEYS, &["mounts"]].concat();
    let Some(fields) = reader.fields(node, "`x-steading`", &["cache"], &later) else { return };
    if let Some(node) = fields.get("cache") {
        step.cache = cache(reader, node);
    }
}

fn priority(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<i32> {
    let node = fields.get("priority")?;
    let number: Option<i32> = node.text().and_then(|text| text.parse().ok());
    let priority = number.filter(|number| number.abs() <= PRIORITY_MAX);
    if priority.is_none() {
        let message =
            format!("`priority` is a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}");
        reader.error(node.place, message);
    }
    priority
}

fn resources(reader: &mut Reader<'_>, node: &Node, before: Resources) -> Resources {
    let Some(fields) = reader.fields(node, "`resources`", &["cpu", "memory"], &[]) else {
        return before;
    };
    let mut resources = before;
    if let Some(node) = fields.get("cpu") {
        match node.text().as_deref().and_then(cpu_milli) {
            Some(cpu_milli) => resources.cpu_milli = cpu_milli,
            None => reader.error(node.place, "`cpu` is a number of cores: `2`, `0.5` or `500m`"),
        }
    }
    if let Some(node) = fields.get("memory") {
        match node.text().as_deref().and_then(memory_mib) {
            Some(memory_mib) => resources.memory_mib = memory_mib,
            None => reader.error(node.place, "`memory` is a number with a unit: `512MiB`, `4GiB`"),
        }
    }
    resources
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
fn cpu_milli(text: &str) -> Option<u32> {
    let milli = match text.strip_suffix('m') {
        Some(milli) => milli.parse::<f64>().ok()?,
        None => text.parse::<f64>().ok()? * 1000.0,
    };
    (milli >= 1.0 && milli <= f64::from(u32::MAX)).then_some(milli as u32)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
fn memory_mib(text: &str) -> Option<u32> {
    const MIB: f64 = 1_048_576.0;
    /// Longest first, so that no unit hides behind its own beginning.
    const UNITS: &[(&str, f64)] = &[
        ("MiB", MIB),
        ("GiB", 1024.0 * MIB),
        ("MB", 1e6),
        ("GB", 1e9),
        ("Mi", MIB),
        ("Gi", 1024.0 * MIB),
        ("M", 1e6),
        ("G", 1e9),
    ];
    let (number, unit) = UNITS.iter().find_map(|(suffix, unit)| {
        text.strip_suffix(suffix).map(|number| (number.trim_end(), *unit))
    })?;
    let mib = (number.parse::<f64>().ok()? * unit / MIB).ceil();
    (mib >= 1.0 && mib <= f64::from(u32::MAX)).then_some(mib as u32)
}

const CACHE_KEYS: &[&str] = &["inputs", "outputs", "env", "tools", "secrets", "network", "strict"];

/// `cache:` of a step; `None` for `false` and for what is wrong.
fn cache(reader: &mut Reader<'_>, node: &Node) -> Option<CacheSpec> {
    if let Kind::Scalar { value: Value::Bool(cached), .. } = node.kind {
        return cached.then(|| CacheSpec { whole: true, ..CacheSpec::default() });
    }
    if !matches!(node.kind, Kind::Mapping(_)) {
        reader.wanted(node, "`cache`", "`true` or a mapping of inputs and outputs");
        return None;
    }
    let fields = reader.fields(node, "`cache`", CACHE_KEYS, &["mounts", "scope"])?;
    let mut strings = |name: &str| {
        fields.get(name).map(|node| reader.names(node, &format!("`{name}`"))).unwrap_or_default()
    };
    let (inputs, outputs) = (strings("inputs"), strings("outputs"));
    let (env, tools, secrets) = (strings("env"), strings("tools"), strings("secrets"));
    check_patterns(reader, &fields, "inputs", &inputs);
    check_patterns(reader, &fields, "outputs", &outputs);
    if let Some(tool) = tools.iter().find(|tool| !tool.starts_with('/')) {
        let place = fields.get("tools").map_or(node.place, |node| node.place);
        reader.error(place, format!("the tool `{tool}` is no absolute path"));
    }
    let whole = fields.get("inputs").is_none();
    if whole && fields.get("outputs").is_some() {
        reader.error_with(
            node.place,
            "`cache` has `outputs`, but no `inputs`",
            "`inputs: []` for a step that reads nothing, `inputs: ['**']` for one that reads all",
        );
    }
    let network_max_age_s = fields.get("network").and_then(|node| network(reader, node));
    let strict = fields.get("strict").and_then(|node| reader.literal_bool(node, "`strict`"));
    let strict = strict.unwrap_or(false);
    Some(CacheSpec { whole, inputs, outputs, env, tools, secrets, network_max_age_s, strict })
}

/// Patterns are relative to the workspace and stay in it.
fn check_patterns(reader: &mut Reader<'_>, fields: &Fields<'_>, name: &str, patterns: &[String]) {
    let place = fields.get(name).map_or(fields.place, |node| node.place);
    for pattern in patterns {
        let path = pattern.strip_prefix(['!', '?']).unwrap_or(pattern);
        let leaves = path.split('/').any(|part| part == "..");
        if path.is_empty() || path.starts_with('/') || leaves {
            let message = format!("the pattern `{pattern}` in `{name}` leaves the workspace");
            reader.error_with(place, message, "want a path relative to the workspace");
        }
        if name == "inputs" && pattern.starts_with('?') {
            let message = format!("`{pattern}`: only `outputs` can be optional");
            reader.error_with(place, message, "an input that is missing is simply not there");
        }
    }
}

fn network(reader: &mut Reader<'_>, node: &Node) -> Option<u64> {
    if let Kind::Scalar { value: Value::Bool(used), .. } = node.kind {
        return used.then_some(NETWORK_MAX_AGE_S);
    }
    let fields = reader.fields(node, "`network`", &["max-age"], &[])?;
    let age = fields.get("max-age")?;
    let seconds = age.text().as_deref().and_then(duration_s);
    if seconds.is_none() {
        reader.error(age.place, "`max-age` is a time: `30m`, `24h` or `7d`");
    }
    seconds
}

fn duration_s(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 24 * 3_600,
        _ => return None,
    };
    text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(seconds).filter(|&s| s > 0)
}

/// Checks what a cached step may not do, once it is known which steps are cached.
pub(super) fn check_cached_steps(
    reader: &mut Reader<'_>,
    pipeline_secrets: &BTreeSet<String>,
    jobs: &[ParsedJob],
) {
    for job in jobs {
        for step in &job.steps {
            let Some(cache) = &step.spec.cache else { continue };
            if !matches!(step.spec.kind, StepKind::Run { .. }) {
                let message = "`cache` belongs to a step with `run`, this one `uses` an action";
                reader.error(step.place, message);
            }
            let named: BTreeSet<String> =
                cache.secrets.iter().map(|name| fold_case(name)).collect();
            let used = step.secrets.iter().chain(&job.env_secrets).chain(pipeline_secrets);
            let missing: BTreeSet<&str> =
                used.filter(|name| !named.contains(&fold_case(name))).map(String::as_str).collect();
            if !missing.is_empty() {
                reader.error_with(
                    step.place,
                    format!("this cached step sees {}", list(missing.into_iter())),
                    "name the secrets in `cache.secrets`, or keep them out of its `env`",
                );
            }
        }
    }
}

/// Applies the overlay's section for `file`. Sections of other files are left alone.
pub(super) fn apply_overlay(
    reader: &mut Reader<'_>,
    overlay: &Node,
    file: &str,
    pipeline: &mut Pipeline,
    jobs: &mut [ParsedJob],
) {
    if overlay.is_null() {
        return;
    }
    let Some(sections) = reader.mapping(overlay, "the overlay") else { return };
    for (key, section) in sections {
        let Some(name) = reader.name(key, "the file's name") else { continue };
        if !is_same_file(&name, file) {
            continue;
        }
        let known = [JOB_KEYS, &["jobs"]].concat();
        let fields = reader.fields(section, "the overlay", &known, STEP_KEYS);
        let Some(fields) = fields else { continue };
        if let Some(node) = fields.get("jobs") {
            for (key, section) in reader.mapping(node, "`jobs`").unwrap_or(&[]) {
                overlay_job(reader, key, section, jobs);
            }
        }
        apply_pipeline_fields(reader, &fields, pipeline, jobs);
    }
}

/// The overlay names files as the repository does; the pipeline may have been
/// given by another path to the same.
fn is_same_file(name: &str, file: &str) -> bool {
    let plain = |path: &str| path.trim_start_matches("./").to_owned();
    let (name, file) = (plain(name), plain(file));
    file == name || file.strip_suffix(&name).is_some_and(|before| before.ends_with('/'))
}

fn overlay_job(reader: &mut Reader<'_>, key: &Node, section: &Node, jobs: &mut [ParsedJob]) {
    let Some(name) = reader.name(key, "the job's key") else { return };
    let Some(job) = jobs.iter_mut().find(|job| fold_case(&job.job.key) == fold_case(&name)) else {
        reader.error(key.place, format!("the overlay's job `{name}` is not in the pipeline"));
        return;
    };
    let known = [JOB_KEYS, &["steps"]].concat();
    let fields = reader.fields(section, "a job of the overlay", &known, STEP_KEYS);
    let Some(fields) = fields else { return };
    apply_job_fields(reader, &fields, job);
    let Some(steps) = fields.get("steps") else { return };
    for (key, section) in reader.mapping(steps, "`steps`").unwrap_or(&[]) {
        let Some(selector) = reader.name(key, "the step's id or name") else { continue };
        match step::select(&job.steps, &selector).as_slice() {
            [at] => apply_to_step(reader, section, &mut job.steps[*at].spec),
            [] => {
                let message = format!("no step of job `{name}` has the id or name `{selector}`");
                reader.error(key.place, message);
            }
            several => {
                let lines: Vec<String> =
                    several.iter().map(|&at| job.steps[at].place.line.to_string()).collect();
                let message = format!("several steps of job `{name}` are named `{selector}`");
                let hint = format!("give one an `id`; they are on lines {}", lines.join(", "));
                reader.error_with(key.place, message, hint);
            }
        }
    }
}
