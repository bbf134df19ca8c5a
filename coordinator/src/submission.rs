//! What was submitted: the blob that a run's every plan starts from.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use steading_model::limits::{EVENT_BYTES_MAX, PIPELINE_BYTES_MAX};
use steading_model::{Digest, ProjectName, RequestId};
use steading_pipeline::{Input, InputKind, Pipeline};
use steading_proto::v1;

/// Longest path, ref, repository or other name of a submission, bytes.
const TEXT_BYTES_MAX: usize = 4 << 10;
/// Most bytes of all inputs, variables and secrets together. GitHub takes 48 KiB a
/// secret; together with pipeline, overlay and event a message stays below 4 MiB.
const VALUES_BYTES_MAX: usize = 512 << 10;
/// The project of a submission that names none.
const PROJECT_DEFAULT: &str = "default";

/// A submission as it is stored. Additive, like every document in the store. The maps are
/// sorted, so that equal submissions are equal bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Submission {
    pub(crate) file: String,
    pub(crate) pipeline: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) overlay: Option<String>,
    /// Root `Directory`, `HASH/SIZE`.
    pub(crate) source: String,
    pub(crate) event_name: String,
    /// An object.
    pub(crate) event: serde_json::Value,
    #[serde(rename = "ref")]
    pub(crate) git_ref: String,
    pub(crate) sha: String,
    pub(crate) repository: String,
    pub(crate) actor: String,
    #[serde(default)]
    pub(crate) inputs: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) vars: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) dirty: bool,
    /// Names the sealed secrets, `HASH/SIZE`; empty where there are none.
    #[serde(default)]
    pub(crate) secrets: String,
}

/// A request to submit, read and bounded.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) project: ProjectName,
    pub(crate) request_id: RequestId,
    pub(crate) source: Digest,
    pub(crate) submission: Submission,
    pub(crate) secrets: BTreeMap<String, String>,
}

/// Why a request is not a submission. Always the sender's mistake.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubmissionError {
    #[error("{0}")]
    Name(#[from] steading_model::ParseNameError),
    #[error("`source_digest` is not a digest: {0}")]
    Source(#[from] steading_model::ParseDigestError),
    #[error("`{field}` has {len} bytes, at most {max} are allowed")]
    TooLong { field: &'static str, len: usize, max: usize },
    #[error("`{field}` is empty")]
    Empty { field: &'static str },
    #[error("{file}: not UTF-8 at byte {at}; save it as UTF-8")]
    Utf8 { file: String, at: usize },
    #[error("`event_payload` is not a JSON object: {0}")]
    Event(String),
    #[error("`sha` is not 40 hexadecimal digits")]
    Sha,
    #[error("`{name}` is no name for an entry of `{field}`: want letters, digits and `_`")]
    EntryName { field: &'static str, name: String },
    #[error("{0}")]
    Input(String),
}

impl Received {
    /// Reads a request.
    pub(crate) fn from_wire(request: v1::SubmitRequest) -> Result<Self, SubmissionError> {
        let project = match request.project.as_str() {
            "" => PROJECT_DEFAULT.parse()?,
            project => project.parse()?,
        };
        let request_id = request.request_id.parse()?;
        let file = bounded("file", request.file)?;
        if file.is_empty() {
            return Err(SubmissionError::Empty { field: "file" });
        }
        let pipeline = text(&file, request.pipeline)?;
        let overlay = match request.overlay {
            overlay if overlay.is_empty() => None,
            overlay => Some(text(".steading/overlay.yml", overlay)?),
        };
        let secrets = entries("secrets", request.secrets)?;
        let submission = Submission {
            pipeline,
            overlay,
            source: request.source_digest,
            event_name: match bounded("event_name", request.event_name)? {
                name if name.is_empty() => "push".to_owned(),
                name => name,
            },
            event: event(&request.event_payload)?,
            git_ref: bounded("ref", request.r#ref)?,
            sha: sha(request.sha)?,
            repository: bounded("repository", request.repository)?,
            actor: bounded("actor", request.actor)?,
            inputs: request.inputs.into_iter().collect(),
            vars: entries("vars", request.vars)?,
            env: request.env.into_iter().collect(),
            dirty: request.dirty,
            secrets: String::new(),
            file,
        };
        for (field, map) in [("inputs", &submission.inputs), ("env", &submission.env)] {
            bounded_map(field, map)?;
        }
        let source = submission.source.parse()?;
        Ok(Self { project, request_id, source, submission, secrets })
    }
}

impl Submission {
    /// The document's bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text and JSON values are always written")
    }

    /// The `inputs` context: what was given or is the default, of its declared type.
    pub(crate) fn inputs_context(
        &self,
        pipeline: &Pipeline,
    ) -> Result<serde_json::Value, SubmissionError> {
        const EVENT: &str = "workflow_dispatch";
        let declared = if self.event_name == EVENT { pipeline.inputs(EVENT) } else { &[] };
        for name in self.inputs.keys() {
            if !declared.iter().any(|input| input.name.eq_ignore_ascii_case(name)) {
                let known: Vec<&str> = declared.iter().map(|input| input.name.as_str()).collect();
                let known = match known.as_slice() {
                    [] if self.event_name == EVENT => "it declares none".to_owned(),
                    [] => format!("inputs go with the event `{EVENT}`"),
                    known => format!("it declares {}", known.join(", ")),
                };
                let file = &self.file;
                return Err(SubmissionError::Input(format!(
                    "{file}: the pipeline takes no input `{name}`: {known}"
                )));
            }
        }
        let mut context = serde_json::Map::new();
        for input in declared {
            let given = self.inputs.iter().find(|(name, _)| name.eq_ignore_ascii_case(&input.name));
            let value = input_value(&self.file, input, given.map(|(_, value)| value.as_str()))?;
            context.insert(input.name.clone(), value);
        }
        Ok(context.into())
    }
}

fn input_value(
    file: &str,
    input: &Input,
    given: Option<&str>,
) -> Result<serde_json::Value, SubmissionError> {
    let name = &input.name;
    let wrong = |want: &str, given: &str| {
        SubmissionError::Input(format!("{file}: input `{name}` is `{given}`, want {want}"))
    };
    let Some(given) = given else {
        return match &input.default {
            Some(default) => Ok(default.clone()),
            None if input.required => Err(SubmissionError::Input(format!(
                "{file}: input `{name}` is required and was not given"
            ))),
            None => Ok(match input.kind {
                InputKind::Boolean => false.into(),
                InputKind::Number => 0.into(),
                InputKind::String | InputKind::Choice | InputKind::Environment => "".into(),
            }),
        };
    };
    match input.kind {
        InputKind::String | InputKind::Environment => Ok(given.into()),
        InputKind::Boolean => {
            given.parse::<bool>().map(Into::into).map_err(|_| wrong("true or false", given))
        }
        InputKind::Number => match serde_json::from_str(given) {
            Ok(value @ serde_json::Value::Number(_)) => Ok(value),
            _ => Err(wrong("a number", given)),
        },
        InputKind::Choice if input.options.iter().any(|option| option == given) => Ok(given.into()),
        InputKind::Choice => Err(wrong(&format!("one of {}", input.options.join(", ")), given)),
    }
}

fn text(file: &str, bytes: Bytes) -> Result<String, SubmissionError> {
    let len = bytes.len();
    if len > PIPELINE_BYTES_MAX {
        let field = if file.ends_with("overlay.yml") { "overlay" } else { "pipeline" };
        return Err(SubmissionError::TooLong { field, len, max: PIPELINE_BYTES_MAX });
    }
    String::from_utf8(bytes.into()).map_err(|error| SubmissionError::Utf8 {
        file: file.to_owned(),
        at: error.utf8_error().valid_up_to(),
    })
}

fn event(payload: &[u8]) -> Result<serde_json::Value, SubmissionError> {
    if payload.len() > EVENT_BYTES_MAX {
        let (len, max) = (payload.len(), EVENT_BYTES_MAX);
        return Err(SubmissionError::TooLong { field: "event_payload", len, max });
    }
    if payload.is_empty() {
        return Ok(serde_json::Value::Object(serde_json::Map::new()));
    }
    match serde_json::from_slice(payload) {
        Ok(event @ serde_json::Value::Object(_)) => Ok(event),
        Ok(_) => Err(SubmissionError::Event("it is another JSON value".to_owned())),
        Err(error) => Err(SubmissionError::Event(error.to_string())),
    }
}

fn sha(sha: String) -> Result<String, SubmissionError> {
    let hexadecimal = sha.bytes().all(|byte| byte.is_ascii_hexdigit());
    if sha.is_empty() || (hexadecimal && sha.len() == 40) {
        Ok(sha.to_ascii_lowercase())
    } else {
        Err(SubmissionError::Sha)
    }
}

fn bounded(field: &'static str, value: String) -> Result<String, SubmissionError> {
    match value.len() {
        len if len > TEXT_BYTES_MAX => {
            Err(SubmissionError::TooLong { field, len, max: TEXT_BYTES_MAX })
        }
        _ => Ok(value),
    }
}

/// Entries whose names expressions use.
fn entries(
    field: &'static str,
    map: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>, SubmissionError> {
    let map: BTreeMap<String, String> = map.into_iter().collect();
    bounded_map(field, &map)?;
    let named = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match map.keys().find(|name| !named(name)) {
        Some(name) => Err(SubmissionError::EntryName { field, name: name.clone() }),
        None => Ok(map),
    }
}

fn bounded_map(field: &'static str, map: &BTreeMap<String, String>) -> Result<(), SubmissionError> {
    let len = map.iter().map(|(name, value)| name.len() + value.len()).sum();
    if len > VALUES_BYTES_MAX {
        return Err(SubmissionError::TooLong { field, len, max: VALUES_BYTES_MAX });
    }
    match map.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        Some(name) => Err(SubmissionError::EntryName { field, name: name.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_is_wrong_with_it() {
        check(|_| (), "ok");
        check(|request| request.project = "no spaces".into(), "` ` stands in a project name");
        check(|request| request.request_id.clear(), "a request id is empty");
        check(|request| request.file.clear(), "`file` is empty");
        check(|request| request.source_digest = "x".into(), "no `/` between hash and size");
        check(|request| request.sha = "main".into(), "`sha` is not 40 hexadecimal digits");
        check(
            |request| request.event_payload = Bytes::from_static(b"[]"),
            "it is another JSON value",
        );
        check(|request| request.event_payload = Bytes::from_static(b"{"), "EOF while parsing");
        check(
            |request| request.pipeline = Bytes::from_static(b"on: \xff"),
            "ci.yml: not UTF-8 at byte 4",
        );
        check(
            |request| request.pipeline = vec![b'#'; PIPELINE_BYTES_MAX + 1].into(),
            "`pipeline` has 1048577 bytes, at most 1048576 are allowed",
        );
        check(
            |request| request.secrets = [("a-b".to_owned(), String::new())].into(),
            "`a-b` is no name for an entry of `secrets`",
        );
        check(
            |request| request.env = [("A".to_owned(), "x".repeat(VALUES_BYTES_MAX))].into(),
            "`env` has 524289 bytes",
        );
    }

    #[test]
    fn inputs_get_their_declared_types() {
        let pipeline = Pipeline {
            on: vec![steading_pipeline::Trigger {
                event: "workflow_dispatch".into(),
                inputs: vec![
                    declare("fast", InputKind::Boolean, false),
                    declare("count", InputKind::Number, false),
                    Input {
                        options: vec!["a".into(), "b".into()],
                        ..declare("which", InputKind::Choice, true)
                    },
                ],
                ..Default::default()
            }],
            ..Default::default()
        };
        for (given, want) in [
            ("which=a", r#"{"fast":false,"count":0,"which":"a"}"#),
            ("which=b fast=true count=3", r#"{"fast":true,"count":3,"which":"b"}"#),
            ("", "ci.yml: input `which` is required and was not given"),
            ("which=c", "ci.yml: input `which` is `c`, want one of a, b"),
            ("which=a fast=yes", "ci.yml: input `fast` is `yes`, want true or false"),
            ("which=a count=x", "ci.yml: input `count` is `x`, want a number"),
            (
                "what=a",
                "ci.yml: the pipeline takes no input `what`: it declares fast, count, which",
            ),
        ] {
            let inputs = given.split_whitespace().filter_map(|pair| pair.split_once('='));
            let submission = Submission {
                file: "ci.yml".into(),
                event_name: "workflow_dispatch".into(),
                inputs: inputs.map(|(name, value)| (name.into(), value.into())).collect(),
                ..Default::default()
            };
            let got = match submission.inputs_context(&pipeline) {
                Ok(context) => context.to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, want, "{given}");
        }
    }

    fn declare(name: &str, kind: InputKind, required: bool) -> Input {
        Input {
            name: name.into(),
            description: String::new(),
            kind,
            required,
            default: None,
            options: Vec::new(),
        }
    }

    fn check(change: impl FnOnce(&mut v1::SubmitRequest), want: &str) {
        let mut request = v1::SubmitRequest {
            request_id: "1".into(),
            file: "ci.yml".into(),
            source_digest: format!("{}/0", "0".repeat(64)),
            ..Default::default()
        };
        change(&mut request);
        match Received::from_wire(request) {
            Ok(_) => assert_eq!(want, "ok"),
            Err(error) => {
                assert!(error.to_string().contains(want), "want `{want}`, got `{error}`");
            }
        }
    }
}
