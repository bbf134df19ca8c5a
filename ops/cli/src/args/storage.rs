//! The words of what outlives a coordinator: backup, restore, recovery.

use std::path::PathBuf;

use clap::Args;

use super::Coordinated;

#[derive(Args, Debug)]
pub struct Backup {
    #[command(flatten)]
    pub coordinated: Coordinated,
    /// Also write the key that opens submitted secrets, to FILE.keys
    #[arg(long)]
    pub include_keys: bool,
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Args, Debug)]
pub struct Restore {
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The new coordinator's; made where it is missing
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The origin of the farm that the backup is of, or a copy of it
    #[arg(long, value_name = "DIR|URL")]
    pub object_store: Option<String>,
    /// What `stead backup --include-keys` wrote beside the backup
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Recover {
    /// Of a coordinator that is stopped
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Only print what it holds, to compare the survivors
    #[arg(long, conflicts_with = "i_accept_data_loss")]
    pub show: bool,
    /// What only the lost coordinators had is lost
    #[arg(long)]
    pub i_accept_data_loss: bool,
}
