//! Who somebody is: `spiffe://CLUSTER/ROLE/ID`, the one name in a certificate.

use std::fmt;
use std::str::FromStr;

use crate::codec::{Decode, DecodeError, Encode, Reader, variants};
use crate::limits::NAME_BYTES_MAX;

const SCHEME: &str = "spiffe://";

/// What a caller may be. Which calls each may make stands in the coordinator's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A replica of the coordinator.
    Coordinator,
    /// A machine that runs jobs. Its id is its name, and it speaks for itself only.
    Agent,
    /// Whoever submits runs and looks at them: a person, or a CI system.
    Client,
    /// A client that also operates the farm.
    Admin,
}

variants! { Role { 1 = Coordinator, 2 = Agent, 3 = Client, 4 = Admin } }

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Coordinator, Self::Agent, Self::Client, Self::Admin];

    /// As it stands in a certificate.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Agent => "agent",
            Self::Client => "client",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = ParseSpiffeError;

    fn from_str(text: &str) -> Result<Self, ParseSpiffeError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| ParseSpiffeError::Role(text.to_owned()))
    }
}

/// Why a text names nobody. Whoever made the certificate is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSpiffeError {
    #[error("it does not have the form `spiffe://CLUSTER/ROLE/ID`")]
    Form,
    #[error("`{0}` is no role: want coordinator, agent, client or admin")]
    Role(String),
    #[error(
        "a cluster's name has 1 to {NAME_BYTES_MAX} lower-case letters, digits, `-`, `_` and `.`"
    )]
    Cluster,
    #[error(
        "an id has 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`, and is not all dots"
    )]
    Id,
}

/// A member of a cluster: one role, one id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    cluster: String,
    role: Role,
    id: String,
}

impl SpiffeId {
    /// # Errors
    ///
    /// [`ParseSpiffeError`] where a part has other characters than SPIFFE allows.
    pub fn new(cluster: &str, role: Role, id: &str) -> Result<Self, ParseSpiffeError> {
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if !is_made_of(cluster, lower) {
            return Err(ParseSpiffeError::Cluster);
        }
        let any = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        // `.` and `..` would be other paths.
        if !is_made_of(id, any) || id.bytes().all(|byte| byte == b'.') {
            return Err(ParseSpiffeError::Id);
        }
        Ok(Self { cluster: cluster.to_owned(), role, id: id.to_owned() })
    }

    /// The trust domain.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    pub const fn role(&self) -> Role {
        self.role
    }

    /// Unique in its role and cluster.
    pub fn id(&self) -> &str {
        &self.id
    }
}

fn is_made_of(text: &str, allowed: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(allowed)
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role, self.id)
    }
}

impl FromStr for SpiffeId {
    type Err = ParseSpiffeError;

    fn from_str(text: &str) -> Result<Self, ParseSpiffeError> {
        let path = text.strip_prefix(SCHEME).ok_or(ParseSpiffeError::Form)?;
        let mut parts = path.split('/');
        let (Some(cluster), Some(role), Some(id), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseSpiffeError::Form);
        };
        Self::new(cluster, role.parse()?, id)
    }
}

impl Encode for SpiffeId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.to_string().encode(out);
    }
}

impl Decode for SpiffeId {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        String::decode(reader)?.parse().map_err(|_| DecodeError::Invalid("SPIFFE id"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_names_one_member() {
        let id: SpiffeId = "spiffe://c0ffee/agent/Host-7.example".parse().unwrap();
        assert_eq!((id.cluster(), id.role(), id.id()), ("c0ffee", Role::Agent, "Host-7.example"));
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        use ParseSpiffeError::{Cluster, Form, Id};
        let role = |text: &str| ParseSpiffeError::Role(text.to_owned());
        check("", Form);
        check("https://c/agent/a", Form);
        check("SPIFFE://c/agent/a", Form);
        check("spiffe://c/agent", Form);
        check("spiffe://c/agent/a/", Form);
        check("spiffe://c/agent/a/b", Form);
        check("spiffe://c/agent/", Id);
        check("spiffe://c/agent/..", Id);
        check("spiffe://c/agent/a%2Fb", Id);
        check("spiffe://c/agent/a?b", Id);
        check("spiffe://c/agent/a b", Id);
        check("spiffe:///agent/a", Cluster);
        check("spiffe://C/agent/a", Cluster);
        check("spiffe://c:1/agent/a", Cluster);
        check("spiffe://u@c/agent/a", Cluster);
        check("spiffe://c/Agent/a", role("Agent"));
        check("spiffe://c//a", role(""));
        check(&format!("spiffe://c/agent/{}", "a".repeat(NAME_BYTES_MAX + 1)), Id);
    }

    fn check(text: &str, want: ParseSpiffeError) {
        assert_eq!(text.parse::<SpiffeId>(), Err(want), "{text}");
    }
}
