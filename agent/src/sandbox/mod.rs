//! Runs one command with nothing of the machine but what it is given.
//!
//! The hidden sub-command `__sandbox SPECFILE` is started by the supervisor like
//! any other command. It is two processes: the outer one (`outer`) makes the
//! namespaces and stands for the command towards the supervisor; the inner one
//! (`inner`) is process 1 of the new pid namespace, makes the new root, becomes
//! an unprivileged user and runs the command. When either dies, all inside dies.
//!
//! Works as root, where the command gets a user id that owns nothing
//! ([`OUTER_ID`]), and as an ordinary user, where it is that user in a user
//! namespace. Inside it is `runner` (1000) in both cases.

mod inner;
mod loopback;
mod mounts;
mod outer;
mod probe;
mod spec;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

pub use probe::{Support, support};
pub use spec::{Bind, HOME, OUTER_ID, Spec, USER, USER_ID, WORKSPACE, Workspace};

/// Name of the hidden sub-command.
pub const SUB_COMMAND: &str = "__sandbox";

/// Exit code of the sub-command when the sandbox could not be made. The spec's
/// error file tells it from a command that ends with the same code.
pub const EXIT_NOT_MADE: u8 = 125;

/// In place of the spec's file: this is the inner process.
const INNER: &str = "--inner";

/// Largest spec, bytes: bounds what the inner process reads.
const SPEC_BYTES_MAX: u64 = 16 << 20;

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("{what} `{path}`")]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the sandbox's description is not readable")]
    Spec(#[source] serde_json::Error),
    #[error("{0}")]
    Inner(String),
}

/// Runs the sub-command with the arguments that follow its name. Must be the only
/// thread of its process.
pub fn main(arguments: &[OsString]) -> ExitCode {
    match arguments {
        [argument] if argument == INNER => inner::main(),
        [file] => outer::main(file.as_ref()),
        _ => {
            eprintln!("usage: {SUB_COMMAND} SPECFILE");
            ExitCode::from(2)
        }
    }
}

/// Attaches what was tried to a system error.
fn system(what: &'static str) -> impl Fn(nix::errno::Errno) -> SandboxError {
    move |errno| SandboxError::System { what, source: errno.into() }
}

/// An error with its causes, in one line.
fn in_one_line(error: &SandboxError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
