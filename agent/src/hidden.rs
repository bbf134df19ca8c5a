//! Hidden sub-commands: what this program is when it starts itself again.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::{sandbox, supervisor};

/// Runs a hidden sub-command if `arguments` (the program's name first) names one,
/// and returns its exit code.
///
/// Every binary that embeds an agent calls this first thing in `main`, before it
/// reads its arguments or starts a runtime: the sub-commands must be the only
/// thread of their process.
pub fn hidden_main(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    let first = arguments.next()?;
    if first == supervisor::SUB_COMMAND {
        let rest: Vec<OsString> = arguments.collect();
        return Some(supervisor::main(&rest));
    }
    if first == sandbox::SUB_COMMAND {
        let rest: Vec<OsString> = arguments.collect();
        return Some(sandbox::main(&rest));
    }
    None
}
