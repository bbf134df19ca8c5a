//! What is said about agents.

use clap::{Args, Subcommand};

use super::{Agent, Farm};

/// `stead agent`: serving, or one of the verbs.
#[derive(Args, Debug)]
pub struct AgentOf {
    #[command(subcommand)]
    pub verb: Option<AgentVerb>,
    #[command(flatten)]
    pub serve: Option<Agent>,
}

#[derive(Debug, Subcommand)]
pub enum AgentVerb {
    /// Make an agent empty: it gets no more work, and what it runs ends, or moves
    Drain(Drain),
    /// Give an agent no more work; what it runs goes on
    Cordon(AgentNamed),
    /// Give a cordoned or drained agent work again
    Uncordon(AgentNamed),
    /// Never let an agent of this name come back
    ///
    /// It gets no more work, and what it runs is stopped, given back, and runs elsewhere; an
    /// agent that does not answer loses its leases within 15 seconds. Once it holds nothing
    /// its certificate is denied, as by `stead deny spiffe://CLUSTER/agent/NAME`, which does
    /// not wait. To empty an agent that is to come back, drain it.
    Remove(AgentNamed),
}

#[derive(Args, Debug)]
pub struct AgentNamed {
    /// As `stead agents` lists it
    pub name: String,
    #[command(flatten)]
    pub farm: Farm,
}

#[derive(Args, Debug)]
pub struct Drain {
    #[command(flatten)]
    pub agent: AgentNamed,
    /// When what still runs is stopped, and runs elsewhere: 90s, 30m, 2h; or `none`
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub deadline: String,
    /// Stop what runs now
    #[arg(long, conflicts_with = "deadline")]
    pub force: bool,
    /// Wait until the agent is empty, and say how it goes
    #[arg(long)]
    pub monitor: bool,
}

#[derive(Args, Debug)]
pub struct Agents {
    #[command(flatten)]
    pub farm: Farm,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}
