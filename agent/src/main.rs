//! `steading-agent`: runs jobs for a coordinator.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = steading_agent::hidden_main(std::env::args_os()) {
        return code;
    }
    ExitCode::SUCCESS
}
