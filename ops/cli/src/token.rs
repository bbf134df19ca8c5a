//! `stead token`, `stead deny` and `stead allow`: who is let in, and who is kept out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steading_proto::v1;
use steading_proto::v1::identities_client::IdentitiesClient;
use tonic::transport::Channel;

use crate::args::{self, TokenRole, TokenVerb};
use crate::cluster::line_of_coordinator;
use crate::connect::failure;
use crate::context;
use crate::exit::{Ended, Failure};
use crate::out;

/// Makes, lists or revokes join tokens.
///
/// # Errors
///
/// [`Failure`] where no farm is named, or it refuses.
pub async fn run(args: args::Token) -> Result<Ended, Failure> {
    match args.verb {
        TokenVerb::Create(args) => create(args).await,
        TokenVerb::List(args) => list(args).await,
        TokenVerb::Revoke(args) => {
            let request = v1::RevokeTokenRequest { id: args.id.clone() };
            let revoked = client(&args.farm)?.revoke_token(request).await;
            revoked.map_err(|status| failure("revoke the token", status))?;
            out::line(format_args!("token {} lets nobody in any more", args.id))?;
            Ok(Ended::Success)
        }
    }
}

async fn create(args: args::TokenCreate) -> Result<Ended, Failure> {
    let role = match args.role {
        TokenRole::Agent => v1::Role::Agent,
        TokenRole::Client => v1::Role::Client,
        TokenRole::Admin => v1::Role::Admin,
        TokenRole::Coordinator => v1::Role::Coordinator,
    };
    let ttl = duration(&args.ttl)?;
    let request = v1::CreateTokenRequest {
        role: role.into(),
        pool: args.pool.unwrap_or_default(),
        name: args.name.clone().unwrap_or_default(),
        uses: args.uses,
        ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
    };
    let made = client(&args.farm)?.create_token(request).await;
    let made = made.map_err(|status| failure("make a token", status))?.into_inner();
    if args.json {
        let object = serde_json::json!({ "token": made.token, "expires_ms": made.expires_ms });
        out::line(object)?;
        return Ok(Ended::Success);
    }
    out::line(&made.token)?;
    let line = line_to_join(args.role, args.name.as_deref(), &made.token);
    eprintln!("good for {} and {}, with:\n  {line}", keys(args.uses), args.ttl);
    Ok(Ended::Success)
}

/// What whoever joins with the token runs.
fn line_to_join(role: TokenRole, name: Option<&str>, token: &str) -> String {
    let name = name.map(|name| format!(" --name {name}")).unwrap_or_default();
    match role {
        TokenRole::Agent => {
            format!(
                "stead agent --join {token}{name} --coordinator https://HOST:PORT --data-dir DIR"
            )
        }
        TokenRole::Client | TokenRole::Admin => {
            format!("stead login --token {token}{name} --coordinator https://HOST:PORT")
        }
        TokenRole::Coordinator => line_of_coordinator("https://HOST:PORT", Some(token)),
    }
}

async fn list(args: args::TokenList) -> Result<Ended, Failure> {
    let listed = client(&args.farm)?.list_tokens(v1::ListTokensRequest {}).await;
    let listed = listed.map_err(|status| failure("list the tokens", status))?.into_inner();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for token in listed.tokens {
        let left = Duration::from_millis(token.expires_ms).saturating_sub(now).as_secs();
        let role = token.role().as_str_name().trim_start_matches("ROLE_").to_lowercase();
        if args.json {
            out::line(serde_json::json!({
                "id": token.id, "role": role, "pool": token.pool, "name": token.name,
                "uses_left": token.uses_left, "expires_ms": token.expires_ms,
                "created_by": token.created_by, "joined": token.joined,
            }))?;
        } else {
            let bound = [("pool", &token.pool), ("name", &token.name)];
            let bound: String = bound
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(what, value)| format!("  {what} {value}"))
                .collect();
            let joined = token.joined.join(", ");
            out::line(format_args!(
                "{}  {role}  {} left  {left} s{bound}  {joined}",
                token.id,
                keys(token.uses_left)
            ))?;
        }
    }
    Ok(Ended::Success)
}

/// Nobody believes the member any more.
///
/// # Errors
///
/// [`Failure`].
pub async fn deny(args: args::Deny) -> Result<Ended, Failure> {
    let request = v1::DenyRequest { subject: args.subject.clone(), reason: args.reason };
    let denied = client(&args.farm)?.deny(request).await;
    denied.map_err(|status| failure("deny the member", status))?;
    out::line(format_args!("{} is denied", args.subject))?;
    Ok(Ended::Success)
}

/// Takes a denial back.
///
/// # Errors
///
/// [`Failure`].
pub async fn allow(args: args::Allow) -> Result<Ended, Failure> {
    let request = v1::AllowRequest { subject: args.subject.clone() };
    let allowed = client(&args.farm)?.allow(request).await;
    allowed.map_err(|status| failure("allow the member", status))?;
    out::line(format_args!("{} is allowed again", args.subject))?;
    Ok(Ended::Success)
}

fn client(farm: &args::Farm) -> Result<IdentitiesClient<Channel>, Failure> {
    Ok(IdentitiesClient::new(context::require(farm)?.coordinators.channel()))
}

fn keys(count: u32) -> String {
    match count {
        1 => "one use".to_owned(),
        count => format!("{count} uses"),
    }
}

/// Reads `90s`, `15m`, `12h` or `7d`.
fn duration(text: &str) -> Result<Duration, Failure> {
    let wrong = || Failure::usage(format!("`{text}` is no duration\n  hint: write 15m, 12h or 7d"));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let seconds = count.checked_mul(unit).filter(|seconds| *seconds > 0).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_join_has_all_that_is_wanted_of_the_role() {
        for (role, name, want) in [
            (
                TokenRole::Agent,
                Some("a"),
                "stead agent --join T --name a --coordinator https://HOST:PORT --data-dir DIR",
            ),
            (TokenRole::Client, None, "stead login --token T --coordinator https://HOST:PORT"),
            (
                TokenRole::Coordinator,
                None,
                "stead coordinator --data-dir DIR --listen https://HOST:PORT \
                 --object-store DIR|URL --join https://HOST:PORT --token T",
            ),
        ] {
            assert_eq!(line_to_join(role, name, "T"), want);
        }
    }

    #[test]
    fn a_duration_has_a_unit() {
        for (text, want) in [("90s", Some(90)), ("15m", Some(900)), ("12h", Some(43_200))] {
            assert_eq!(duration(text).ok(), want.map(Duration::from_secs), "{text}");
        }
        for text in ["", "15", "m", "-1m", "0s", "1w", "99999999999999999999d", "1.5h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
