//! Which farm is meant: what the command line says, or else the environment.
//!
//! A context file holds what has to be known of a farm: where its coordinators listen,
//! and the folder of the certificate that is shown to them.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use steading_proto::tls::{self, Identity};

use crate::args;
use crate::connect::Endpoint;
use crate::coordinators::Coordinators;
use crate::exit::Failure;

/// Names the coordinators.
const COORDINATOR: &str = "STEADING_COORDINATOR";

/// Names the context file.
const CONTEXT: &str = "STEADING_CONTEXT";

/// A context file.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    pub coordinators: Vec<String>,
    /// The folder of the certificate; beside the file, where it is relative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PathBuf>,
}

/// A farm that was named.
#[derive(Debug)]
pub struct Named {
    pub coordinators: Coordinators,
    /// For people: where it is.
    pub name: String,
    /// What a command for people has to say to reach it again: ` --coordinator E`.
    pub arguments: String,
}

/// What was said of a farm, and where.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    coordinator: Option<String>,
    context: Option<PathBuf>,
    /// The command line said so, and has to say so again.
    arguments: String,
}

impl Context {
    /// Reads a context file.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] where it cannot be read, or holds something else.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let read = || -> anyhow::Result<Self> {
            let mut context: Self = serde_json::from_slice(&std::fs::read(path)?)?;
            if let (Some(identity), Some(folder)) = (&mut context.identity, path.parent()) {
                *identity = folder.join(&identity);
            }
            Ok(context)
        };
        let read = read().with_context(|| format!("cannot read the context `{}`", path.display()));
        read.map_err(Failure::Usage)
    }
}

/// The farm that is named, if one is.
///
/// # Errors
///
/// [`Failure::Usage`] where what names it is wrong.
pub fn find(farm: &args::Farm) -> Result<Option<Named>, Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    said(farm, variable).map(named).transpose()
}

/// The farm that is named: there has to be one.
///
/// # Errors
///
/// [`Failure::Usage`] where none is named, or what names it is wrong.
pub fn require(farm: &args::Farm) -> Result<Named, Failure> {
    find(farm)?.ok_or_else(|| {
        Failure::usage(format!(
            "no farm is named\n  hint: say --coordinator or --context, or set {COORDINATOR} or \
             {CONTEXT}"
        ))
    })
}

/// The farm of a context file.
///
/// # Errors
///
/// [`Failure::Usage`] where the file, or what it says, is wrong.
pub fn load(path: &Path) -> Result<Coordinators, Failure> {
    let said = Said { coordinator: None, context: Some(path.to_owned()), arguments: String::new() };
    named(said).map(|named| named.coordinators)
}

/// The command line is stronger than the environment, and endpoints are stronger than
/// those of a context, of which then only the certificate counts.
fn said(farm: &args::Farm, variable: impl Fn(&str) -> Option<String>) -> Option<Said> {
    let environment = || variable(CONTEXT).map(PathBuf::from);
    let quoted = |path: &Path| crate::follow::quoted(&path.to_string_lossy());
    let (coordinator, context, arguments) = match (&farm.coordinator, &farm.context) {
        (Some(coordinator), Some(context)) => {
            let arguments = format!(" --coordinator {coordinator} --context {}", quoted(context));
            (Some(coordinator.clone()), Some(context.clone()), arguments)
        }
        (Some(coordinator), None) => {
            (Some(coordinator.clone()), environment(), format!(" --coordinator {coordinator}"))
        }
        (None, Some(context)) => {
            (None, Some(context.clone()), format!(" --context {}", quoted(context)))
        }
        (None, None) => (variable(COORDINATOR), environment(), String::new()),
    };
    let some = coordinator.is_some() || context.is_some();
    some.then_some(Said { coordinator, context, arguments })
}

fn named(said: Said) -> Result<Named, Failure> {
    let context = said.context.as_deref().map(Context::load).transpose()?;
    let (listed, identity) = match context {
        Some(context) => (Some(context.coordinators.join(",")), context.identity),
        None => (None, None),
    };
    let name = said.coordinator.or(listed).unwrap_or_default();
    let endpoints = Endpoint::read_all(&name)?;
    let secure = endpoints.iter().any(|endpoint| matches!(endpoint, Endpoint::Tls(_)));
    let identity = match identity {
        Some(dir) if secure => {
            let loaded = Identity::load(&dir);
            let loaded =
                loaded.with_context(|| format!("cannot use the identity `{}`", dir.display()));
            let loaded = loaded.map_err(Failure::Usage)?;
            if tls::is_over(&loaded) {
                return Err(Failure::usage(format!(
                    "the certificate in `{}` is over\n  hint: ask an admin for a token, and \
                     `stead login` again",
                    dir.display()
                )));
            }
            Some(loaded)
        }
        None if secure => {
            return Err(Failure::usage(format!(
                "`{name}` wants to know who asks\n  hint: name a context with an `identity` by \
                 --context or {CONTEXT}"
            )));
        }
        _ => None,
    };
    let coordinators = Coordinators::new(endpoints, identity);
    Ok(Named { coordinators, name, arguments: said.arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_stronger_than_the_environment() {
        check("", "", "nothing");
        check("", "COORDINATOR=e", "e -");
        check("", "COORDINATOR=e CONTEXT=f", "e f");
        check("coordinator=a", "COORDINATOR=e CONTEXT=f", "a f --coordinator a");
        check("context=c", "COORDINATOR=e CONTEXT=f", "- c --context c");
        check("coordinator=a context=c", "", "a c --coordinator a --context c");
    }

    #[test]
    fn a_context_names_its_folder_beside_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("context.json");
        std::fs::write(&path, r#"{"coordinators": ["unix:/s"], "identity": "me"}"#).unwrap();
        let context = Context::load(&path).unwrap();
        assert_eq!(context.identity, Some(dir.path().join("me")));
        std::fs::write(&path, r#"{"coordinator": "unix:/s"}"#).unwrap();
        let error = Context::load(&path).unwrap_err().to_string();
        assert!(error.contains("unknown field `coordinator`"), "{error}");
    }

    fn check(line: &str, environment: &str, want: &str) {
        let value = |text: &str, name: &str| {
            let all = text.split(' ').filter_map(|word| word.split_once('='));
            all.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        let farm = args::Farm {
            coordinator: value(line, "coordinator"),
            context: value(line, "context").map(PathBuf::from),
        };
        let variable = |name: &str| value(environment, name.strip_prefix("STEADING_").unwrap());
        let got = said(&farm, variable).map_or("nothing".to_owned(), |said| {
            let context = said.context.map(|path| path.display().to_string());
            let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            format!("{} {}{}", or(said.coordinator), or(context), said.arguments)
        });
        assert_eq!(got, want, "{line} / {environment}");
    }
}
