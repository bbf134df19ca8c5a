//! Typed ids. All are counters in the replicated state: a larger id is always
//! the later one, and none is ever used twice.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use crate::codec::{Decode, DecodeError, Encode, Reader};

/// Why a string is not an id. Always the sender's mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    #[error("want `{prefix}-NUMBER`")]
    Prefix { prefix: &'static str },
    #[error("want `{prefix}-NUMBER`")]
    Number {
        prefix: &'static str,
        #[source]
        source: ParseIntError,
    },
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The id that counter value `counter` stands for. For decoders and counters only.
            pub const fn from_counter(counter: u64) -> Self {
                Self(counter)
            }

            /// The counter value behind the id, for encoders.
            pub const fn counter(self) -> u64 {
                self.0
            }

            /// The id after this one. Ids are counted inside the replicated state, so
            /// they need no randomness, and a larger id is always the later one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "-{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            /// Reads `PREFIX-NUMBER`, and the bare number that people type.
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let digits = text.strip_prefix(concat!($prefix, "-")).unwrap_or(text);
                if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(ParseIdError::Prefix { prefix: $prefix });
                }
                digits
                    .parse()
                    .map(Self)
                    .map_err(|source| ParseIdError::Number { prefix: $prefix, source })
            }
        }

        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }

        impl Decode for $name {
            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                u64::decode(reader).map(Self)
            }
        }
    )*};
}

ids! {
    /// One accepted submission of a pipeline at one source tree.
    RunId = "run";
    /// A node of a run's DAG. Unique in the whole farm, not only in its run.
    JobId = "job";
    /// A registered agent, the same over all its restarts.
    AgentId = "agent";
    /// One start of an agent, registered after it killed what an earlier start left.
    Incarnation = "incarnation";
    /// Counts leases. The fencing token: a report under any other epoch than the
    /// current one is stale and changes nothing.
    Epoch = "epoch";
    /// A member of the coordinator's Raft group. Minted when the disk is.
    ReplicaId = "replica";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_prints_and_the_bare_number() {
        let id = RunId::from_counter(7);
        assert_eq!(id.to_string(), "run-7");
        assert_eq!("run-7".parse(), Ok(id));
        assert_eq!("7".parse(), Ok(id));
        for bad in ["", "run-", "job-7", "run--7", "run-+7", "run-99999999999999999999999"] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?} is no run id");
        }
    }
}
