//! The key: the REAPI `Action` of a cached step.
//!
//! The input root holds the script under a fixed name and the declared part of the
//! workspace; the command holds shell, environment, working directory and output
//! patterns; the platform's properties hold all else that it can see. Nothing of it
//! tells where, for whom or when the step runs.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use prost::Message as _;
use steading_cas::Store;
use steading_cas::hash::digest_of;
use steading_cas::tree::{self, CaptureOptions, Folder, Modes, Patterns};
use steading_model::{Digest, DigestFunction};
use steading_proto::{reapi, reapi_digest};

use super::platform::{Platform, ToolQuery, Toolset, words};
use super::{CachedError, Isolation, Request};
use crate::sandbox::{HOME, USER, WORKSPACE};

/// Where the script and the command files are, inside.
pub(super) const STEADING_DIR: &str = "/steading";

/// Names of the command files, with the variable that tells where each is.
pub(super) const COMMAND_FILES: [(&str, &str); 5] = [
    ("GITHUB_OUTPUT", "output"),
    ("GITHUB_ENV", "env"),
    ("GITHUB_PATH", "path"),
    ("GITHUB_STATE", "state"),
    ("GITHUB_STEP_SUMMARY", "summary"),
];

/// Version of what a key means. Another one for another meaning: results of the
/// earlier one are then not found.
const KEY_VERSION: &str = "1";

/// In the script's place within the input root.
const SCRIPT_NODE: &str = "script";
const WORKSPACE_NODE: &str = "workspace";

/// A step's key, and what it was made of.
#[derive(Debug)]
pub(super) struct Key {
    /// Of the `Action`: the name of the result.
    pub action: Digest,
    /// The messages that the action consists of, to be uploaded with a result.
    pub messages: Vec<Bytes>,
    /// The declared inputs.
    pub inputs: Digest,
    pub input_folder: Folder,
    /// Patterns of the outputs, without the `?`.
    pub outputs: Patterns,
    /// Output patterns that may match nothing, without the `?`.
    pub optional: Vec<String>,
    pub tools: Toolset,
    /// What the command gets, secrets included.
    pub env: BTreeMap<String, String>,
    /// Under which name the script lies in [`STEADING_DIR`].
    pub script_name: String,
}

/// Makes the key. Reads the workspace and the tools.
pub(super) fn key(
    request: &Request<'_>,
    platform: &Platform,
    store: &Store,
    isolation: &Isolation,
) -> Result<Key, CachedError> {
    check_working_directory(request.working_directory)?;
    let secrets = named_secrets(request)?;
    refuse_secrets(request)?;
    let (outputs, optional) = output_patterns(request)?;
    let captured = tree::capture(
        store,
        request.workspace,
        &CaptureOptions {
            patterns: &input_patterns(request)?,
            modes: Modes::Executable,
            memo: None,
        },
    )?;
    let words =
        words(request.script, request.workspace, request.working_directory, &captured.folder);
    let tools = platform.tools(&ToolQuery {
        words: &words,
        tools: &request.spec.tools,
        path: request.env.get("PATH").map(String::as_str),
        prefix: request.path_prefix,
        workspace: request.workspace,
        stranger: request.owner.is_some(),
    })?;
    let env = environment(request, &tools);
    let script_name = script_name(request.shell);

    let script = Bytes::copy_from_slice(request.script.as_bytes());
    let root = input_root(&script, &captured.summary.root);
    let command = command(request, &env, &secrets, &script_name);
    let action = reapi::Action {
        command_digest: Some(reapi_digest(&digest(&command))),
        input_root_digest: Some(reapi_digest(&digest(&root))),
        platform: Some(properties(request, &tools, isolation, &secrets)),
        ..reapi::Action::default()
    };
    let action: Bytes = action.encode_to_vec().into();
    Ok(Key {
        action: digest(&action),
        messages: vec![script, root, command, action],
        inputs: captured.summary.root,
        input_folder: captured.folder,
        outputs,
        optional,
        tools,
        env,
        script_name,
    })
}

fn digest(bytes: &[u8]) -> Digest {
    digest_of(DigestFunction::Blake3, bytes)
}

fn check_working_directory(path: &str) -> Result<(), CachedError> {
    let bad = path.starts_with('/') || path.split('/').any(|part| part == "..");
    if bad { Err(CachedError::WorkingDirectory(path.to_owned())) } else { Ok(()) }
}

fn input_patterns(request: &Request<'_>) -> Result<Patterns, CachedError> {
    if request.spec.whole {
        return Ok(Patterns::whole_workspace());
    }
    Ok(Patterns::parse(&request.spec.inputs)?)
}

fn output_patterns(request: &Request<'_>) -> Result<(Patterns, Vec<String>), CachedError> {
    if request.spec.whole {
        return Ok((Patterns::whole_workspace(), vec!["**".to_owned()]));
    }
    let mut optional = Vec::new();
    let mut patterns = Vec::new();
    for pattern in &request.spec.outputs {
        if let Some(pattern) = pattern.strip_prefix('?') {
            optional.push(pattern.to_owned());
            patterns.push(pattern);
        } else {
            patterns.push(pattern);
        }
    }
    Ok((Patterns::parse(&patterns)?, optional))
}

/// Values of the secrets that the step may use.
fn named_secrets<'a>(request: &Request<'a>) -> Result<BTreeMap<&'a str, &'a str>, CachedError> {
    let spec: &'a [String] = &request.spec.secrets;
    let all: &'a BTreeMap<String, String> = request.secrets;
    spec.iter()
        .map(|name| {
            let (name, value) = all
                .get_key_value(name)
                .or_else(|| all.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)))
                .ok_or_else(|| CachedError::NoSuchSecret(name.clone()))?;
            Ok((name.as_str(), value.as_str()))
        })
        .collect()
}

/// Shortest secret that is looked for in longer text, bytes: shorter ones are found
/// everywhere by chance.
pub(super) const SECRET_BYTES_MIN: usize = 4;

fn refuse_secrets(request: &Request<'_>) -> Result<(), CachedError> {
    for (name, value) in request.secrets {
        let holds = |text: &str| {
            text == value || (value.len() >= SECRET_BYTES_MIN && text.contains(value.as_str()))
        };
        if value.is_empty() {
            continue;
        }
        if holds(request.script) {
            return Err(CachedError::Secret { name: name.clone(), place: "script" });
        }
        let allowed = request.spec.secrets.iter().any(|known| known.eq_ignore_ascii_case(name));
        if !allowed && request.env.values().any(|text| holds(text)) {
            return Err(CachedError::Secret { name: name.clone(), place: "env" });
        }
    }
    Ok(())
}

/// All that the command finds in its environment, with the workspace at its constant place.
fn environment(request: &Request<'_>, tools: &Toolset) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = [
        ("CI", "true"),
        ("GITHUB_ACTIONS", "true"),
        ("GITHUB_WORKSPACE", WORKSPACE),
        ("HOME", HOME),
        ("LANG", "C.UTF-8"),
        ("LC_ALL", "C.UTF-8"),
        ("LOGNAME", USER),
        ("RUNNER_TEMP", "/tmp"),
        ("SHELL", "/bin/sh"),
        ("TZ", "UTC"),
        ("USER", USER),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    for (variable, name) in COMMAND_FILES {
        env.insert(variable.to_owned(), format!("{STEADING_DIR}/commands/{name}"));
    }
    for (key, value) in request.env {
        let of_the_run = key.starts_with("GITHUB_") || key.starts_with("RUNNER_");
        let constant = env.contains_key(key) && of_the_run;
        let passed = !of_the_run || request.spec.env.iter().any(|name| name == key);
        if passed && !constant {
            env.insert(key.clone(), inside(value, request.workspace));
        }
    }
    env.insert("PATH".to_owned(), tools.path.join(":"));
    env
}

/// Text about paths of the workspace, as it reads inside.
pub(super) fn inside(text: &str, workspace: &Path) -> String {
    match workspace.to_str() {
        Some(outside) => replace_path(text.as_bytes(), outside, WORKSPACE)
            .map_or_else(|| text.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned()),
        None => text.to_owned(),
    }
}

/// Replaces the path `from` where it stands as a whole name or is followed by `/`.
/// None where it does not.
pub(super) fn replace_path(text: &[u8], from: &str, to: &str) -> Option<Vec<u8>> {
    let from = from.trim_end_matches('/').as_bytes();
    if from.is_empty() || text.len() < from.len() {
        return None;
    }
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let mut out = Vec::with_capacity(text.len());
    let mut changed = false;
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let starts = rest.starts_with(from)
            && !rest.get(from.len()).is_some_and(is_name)
            && !out.last().is_some_and(|byte| is_name(byte) || *byte == b'/');
        if starts {
            out.extend_from_slice(to.as_bytes());
            rest = &rest[from.len()..];
            changed = true;
        } else {
            out.push(first);
            rest = after;
        }
    }
    changed.then_some(out)
}

/// The script's name has the ending that its shell asks for.
fn script_name(shell: &[String]) -> String {
    let program = shell.first().map_or("", String::as_str);
    let ending = match program.rsplit('/').next().unwrap_or(program) {
        "python" | "python3" => "py",
        "pwsh" | "powershell" => "ps1",
        "cmd" => "cmd",
        _ => "sh",
    };
    format!("script.{ending}")
}

/// The shell's arguments for a script at this path.
pub(super) fn arguments(shell: &[String], script: &str) -> Vec<String> {
    shell.iter().map(|argument| argument.replace("{0}", script)).collect()
}

fn input_root(script: &[u8], workspace: &Digest) -> Bytes {
    let root = reapi::Directory {
        files: vec![reapi::FileNode {
            name: SCRIPT_NODE.to_owned(),
            digest: Some(reapi_digest(&digest(script))),
            ..reapi::FileNode::default()
        }],
        directories: vec![reapi::DirectoryNode {
            name: WORKSPACE_NODE.to_owned(),
            digest: Some(reapi_digest(workspace)),
        }],
        ..reapi::Directory::default()
    };
    root.encode_to_vec().into()
}

fn command(
    request: &Request<'_>,
    env: &BTreeMap<String, String>,
    secrets: &BTreeMap<&str, &str>,
    script_name: &str,
) -> Bytes {
    let variables = env.iter().map(|(name, value)| {
        let mut value = value.clone();
        for (secret, text) in secrets {
            if !text.is_empty() {
                value = value.replace(text, &format!("${{{{ secrets.{secret} }}}}"));
            }
        }
        reapi::command::EnvironmentVariable { name: name.clone(), value }
    });
    let directory = request.working_directory.trim_matches('/');
    let directory = directory.strip_prefix("./").unwrap_or(directory);
    let working_directory = match directory {
        "" | "." => WORKSPACE_NODE.to_owned(),
        inside => format!("{WORKSPACE_NODE}/{inside}"),
    };
    // In the order in which they are written, because the last one that matches decides.
    let output_paths =
        if request.spec.whole { vec!["**".to_owned()] } else { request.spec.outputs.clone() };
    let command = reapi::Command {
        arguments: arguments(request.shell, &format!("{STEADING_DIR}/{script_name}")),
        environment_variables: variables.collect(),
        output_paths,
        working_directory,
        ..reapi::Command::default()
    };
    command.encode_to_vec().into()
}

fn properties(
    request: &Request<'_>,
    tools: &Toolset,
    isolation: &Isolation,
    secrets: &BTreeMap<&str, &str>,
) -> reapi::Platform {
    let mut all = tools.properties.clone();
    all.push(("steading-key".to_owned(), KEY_VERSION.to_owned()));
    all.push(("isolation".to_owned(), isolation.property()));
    all.push(("strict".to_owned(), request.spec.strict.to_string()));
    // How long a result is believed does not change what it is.
    let network = if request.spec.network_max_age_s.is_some() { "host" } else { "none" };
    all.push(("network".to_owned(), network.to_owned()));
    for (name, value) in secrets {
        all.push((format!("secret:{name}"), secret_mark(request.scope, name, value)));
    }
    all.sort();
    let properties =
        all.into_iter().map(|(name, value)| reapi::platform::Property { name, value }).collect();
    reapi::Platform { properties }
}

/// Tells one value of a secret from another, without telling it.
fn secret_mark(scope: &str, name: &str, value: &str) -> String {
    let key = blake3::derive_key("steading cached step secret v1", scope.as_bytes());
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(value.as_bytes());
    hasher.finalize().to_hex().to_string()
}
