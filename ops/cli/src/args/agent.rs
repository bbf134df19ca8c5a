//! What `stead agent` is told.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Args, Debug)]
pub struct Agent {
    /// https://HOST:PORT, unix:/PATH or http://127.0.0.1:PORT; several are separated by
    /// commas
    #[arg(long, value_name = "ENDPOINT,...", env = "STEADING_COORDINATOR")]
    pub coordinator: String,
    /// As `stead token create` printed it; needed once
    #[arg(long, value_name = "TOKEN", env = "STEADING_TOKEN", hide_env_values = true)]
    pub join: Option<String>,
    /// Where its store and workspaces are kept
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Unique on the farm [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The group of like agents that it belongs to
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub pool: String,
    /// The folder of the certificate that it shows to coordinators on other machines
    #[arg(long, value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// Its machine may be taken away
    #[arg(long)]
    pub spot: bool,
    /// Where its machine is
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// What its machine is
    #[arg(long, value_name = "NAME")]
    pub machine_type: Option<String>,
    /// Ask GCE's metadata server for zone, machine type and provisioning, and listen there
    /// for the machine's end
    #[arg(long)]
    pub gce: bool,
    /// Where that server is
    #[arg(
        long,
        value_name = "HOST",
        env = "GCE_METADATA_HOST",
        default_value = steading_agent::preemption::gce::HOST_DEFAULT
    )]
    pub gce_metadata_host: String,
    /// When this file appears, the machine is about to go away
    #[arg(long, value_name = "FILE")]
    pub preemption_file: Option<PathBuf>,
    /// How long the machine lasts after TERM or a notice, milliseconds
    #[arg(long, value_name = "MS", default_value_t = steading_agent::LEAVE_WINDOW_MS_DEFAULT)]
    pub leave_window_ms: u64,
    /// Jobs that run at once [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub slots: Option<u32>,
    /// Jobs held besides, so that the next one is at hand when one ends: other agents
    /// cannot have them meanwhile
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=256)
    )]
    pub leases_ahead: u32,
    /// Processes and threads that one job may have at once
    #[arg(
        long,
        value_name = "N",
        default_value_t = steading_agent::limits::PROCESSES_DEFAULT,
        value_parser = clap::value_parser!(u32).range(16..)
    )]
    pub processes_per_job: u32,
    /// What `runs-on` may ask for, besides the usual labels of this host
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Whom jobs run as: `self`, the agent's own user, or `per-slot`, one of its own
    /// for every slot (needs root) [default: per-slot where the agent is root]
    #[arg(long, value_name = "USER", value_enum)]
    pub user: Option<JobUser>,
}

/// Whom jobs run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum JobUser {
    /// The agent's own user.
    #[value(name = "self")]
    SelfUser,
    /// One user per slot, which owns nothing of the agent's.
    PerSlot,
}
