//! Actions that the agent knows itself. GitHub runs them from their repositories;
//! here they are native code, whatever version is asked for.

mod artifacts;
mod checkout;

use std::collections::BTreeMap;

use super::Host;
use super::output::StepOutput;
use super::state::JobState;
use super::step::{Executed, StepEnd};
use steading_model::FailureClass;

/// Runs the action that `uses` names.
pub(super) async fn run(
    state: &mut JobState<'_>,
    host: &mut Host<'_>,
    uses: &str,
    with: &BTreeMap<String, String>,
    output: &mut StepOutput,
) -> Executed {
    let name = uses.split_once('@').map_or(uses, |(name, _)| name).trim().to_ascii_lowercase();
    match name.as_str() {
        "actions/checkout" => checkout::run(state, host, with, output).await,
        "actions/upload-artifact" => artifacts::upload(state, host, with, output).await,
        "actions/download-artifact" => artifacts::download(state, host, with, output).await,
        _ => Err(StepEnd {
            class: Some(FailureClass::Config),
            ..StepEnd::failure(format!(
                "action `{uses}` is not supported yet: actions/checkout, actions/upload-artifact \
                 and actions/download-artifact are; write what it does as `run:`"
            ))
        }),
    }
}

/// An input that is true or false in YAML's words.
fn flag(with: &BTreeMap<String, String>, name: &str, default: bool) -> Result<bool, StepEnd> {
    match with.get(name).map(|value| value.trim().to_ascii_lowercase()).as_deref() {
        None | Some("") => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => {
            Err(StepEnd::failure(format!("input `{name}` is `{other}`, want true or false")))
        }
    }
}

/// An input that is given and not empty.
fn input<'a>(with: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    with.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
}
