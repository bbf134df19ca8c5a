//! `stead` of the next version, as the tests of upgrades start it: it knows one more
//! feature level, with its one kind of proposal. Nothing but the tests proposes that:
//! whoever connects to the socket [`PROBES`] in a coordinator's data directory is told what
//! came of one.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use steading_coordinator::Coordinator;
use steading_core::{FEATURE_LEVEL, Proposal};
use steading_protocol_tests::cluster::PROBES;

fn main() -> std::process::ExitCode {
    stead::main_of(stead::Edition { feature_level: FEATURE_LEVEL + 1, started })
}

/// Ends with the process.
fn started(coordinator: &Coordinator, data_dir: &Path) {
    let replica = coordinator.replica();
    let path = data_dir.join(PROBES);
    // What an earlier start left.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("listen for probes");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for caller in listener.incoming() {
            let mut caller = caller.expect("a caller");
            let answer = runtime.block_on(replica.propose(Proposal::Probe { note: "new".into() }));
            let text = match answer {
                Ok(_) => "accepted".to_owned(),
                Err(error) => error.to_string(),
            };
            // Who asked may be gone.
            let _ = caller.write_all(text.as_bytes());
        }
    });
}
