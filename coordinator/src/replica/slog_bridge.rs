//! Raft logs through slog; this hands it on to tracing.

use std::fmt::Write as _;

use slog::{Drain, KV, Key, Level, Logger, OwnedKVList, Record, Serializer};

/// A logger whose records become events of the target `raft`.
pub(crate) fn logger() -> Logger {
    Logger::root(Tracing, slog::o!())
}

#[derive(Debug)]
struct Tracing;

impl Drain for Tracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
        match record.level() {
            // Raft's own errors are ours to judge: a person must not look at each.
            Level::Critical => tracing::error!(target: "raft", "{}", text(record)),
            Level::Error | Level::Warning => tracing::warn!(target: "raft", "{}", text(record)),
            Level::Info | Level::Debug => {
                if tracing::enabled!(target: "raft", tracing::Level::DEBUG) {
                    tracing::debug!(target: "raft", "{}", text(record));
                }
            }
            Level::Trace => (),
        }
        Ok(())
    }
}

fn text(record: &Record<'_>) -> String {
    let mut text = Text(record.msg().to_string());
    // Only memory is written to.
    let _ = record.kv().serialize(record, &mut text);
    text.0
}

struct Text(String);

impl Serializer for Text {
    fn emit_arguments(&mut self, key: Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        Ok(write!(self.0, " {key}={value}")?)
    }
}
