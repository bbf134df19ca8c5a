//! The words of who is who: tokens, certificates, the deny-list.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Farm;

#[derive(Args, Debug)]
pub struct Login {
    /// As `stead token create --role client` or `--role admin` printed it
    #[arg(long, value_name = "TOKEN", env = "STEADING_TOKEN", hide_env_values = true)]
    pub token: String,
    /// https://HOST:PORT; several are separated by commas
    #[arg(long, value_name = "ENDPOINT,...", env = "STEADING_COORDINATOR")]
    pub coordinator: String,
    /// Who is to be known by the certificate, unless the token says it
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The file that is written, with the certificate in a folder beside it
    /// [default: ~/.config/steading/context.json]
    #[arg(long, value_name = "FILE")]
    pub context: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Token {
    #[command(subcommand)]
    pub verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make one, and print it
    Create(TokenCreate),
    /// List those that are good, without their secrets
    List(TokenList),
    /// Let nobody in with it any more
    Revoke(TokenRevoke),
}

#[derive(Args, Debug)]
pub struct TokenCreate {
    /// What who joins with it becomes
    #[arg(long, value_enum, default_value_t = TokenRole::Agent)]
    pub role: TokenRole,
    /// The pool that the agent must be in [default: any]
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// The name of who joins, also if another has it now [default: any that is free]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// How many may join with it
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=500))]
    pub uses: u32,
    /// How long it is good: 90s, 15m, 12h, 7d
    #[arg(long, value_name = "DURATION", default_value = "15m")]
    pub ttl: String,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub farm: Farm,
}

/// What somebody joins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenRole {
    /// Runs jobs.
    Agent,
    /// Submits runs and looks at them.
    Client,
    /// Operates the farm.
    Admin,
    /// Another coordinator.
    Coordinator,
}

#[derive(Args, Debug)]
pub struct TokenList {
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub farm: Farm,
}

#[derive(Args, Debug)]
pub struct TokenRevoke {
    /// The part before the first dot
    pub id: String,
    #[command(flatten)]
    pub farm: Farm,
}

#[derive(Args, Debug)]
pub struct Deny {
    /// spiffe://CLUSTER/ROLE/NAME, or serial:HEX for one certificate
    pub subject: String,
    /// Why, for those who read it later
    #[arg(long, default_value = "")]
    pub reason: String,
    #[command(flatten)]
    pub farm: Farm,
}

#[derive(Args, Debug)]
pub struct Allow {
    /// As it was denied
    pub subject: String,
    #[command(flatten)]
    pub farm: Farm,
}
