//! INT and TERM: the first asks for an orderly end, the second for an immediate one. The
//! end of a process that started this one as a part of its own asks for an end as well.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Set for a part of another process: that one lives as long as this one's stdin is open.
pub const END_WITH_STDIN: &str = "STEADING_END_WITH_STDIN";

/// Signals that ask this process to end. From its making on they end nothing by themselves.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Resolves, once, with the end of the process that this one is a part of.
    parent: Option<oneshot::Receiver<()>>,
}

impl Signals {
    /// Starts to catch INT and TERM. Must be called inside the runtime.
    ///
    /// # Errors
    ///
    /// What the system says where it refuses a handler.
    pub fn catch() -> std::io::Result<Self> {
        let parent = match std::env::var_os(END_WITH_STDIN) {
            Some(_) => Some(watch_stdin()?),
            None => None,
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            parent,
        })
    }

    /// Resolves with the next signal. Dropping the future loses none.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
            () = parent_ended(&mut self.parent) => (),
        }
    }
}

/// A thread of its own: it waits as long as the process lives.
fn watch_stdin() -> std::io::Result<oneshot::Receiver<()>> {
    let (ended, parent) = oneshot::channel();
    std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
        // An error is an end as well.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    })?;
    Ok(parent)
}

async fn parent_ended(parent: &mut Option<oneshot::Receiver<()>>) {
    let Some(receiver) = parent else {
        return std::future::pending().await;
    };
    // An error: the thread is gone, and stdin with it.
    let _ = receiver.await;
    *parent = None;
}
