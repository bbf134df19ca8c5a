//! The command line. What it means is in the verbs' own files.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod agent;
mod fleet;
mod identity;
mod storage;

pub use agent::{Agent, JobUser};
pub use fleet::{AgentNamed, AgentOf, AgentVerb, Agents, Drain};
pub use identity::{Allow, Deny, Login, Token, TokenCreate, TokenList, TokenRole, TokenVerb};
pub use storage::{Backup, Recover, Restore};

/// Runs pipelines: here, or on a farm.
#[derive(Debug, Parser)]
#[command(name = "stead", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a pipeline on this machine, with a whole farm inside this process
    Run(Run),
    /// Check pipelines without running them
    Lint(Lint),
    /// Evaluate one expression and print its kind and value as JSON
    Expr(Expr),
    /// Serve as a coordinator
    Coordinator(Coordinator),
    /// Serve as an agent of a coordinator, or tell the farm what to do with one
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Agent(AgentOf),
    /// List the agents of a farm
    Agents(Agents),
    /// Submit a pipeline to a coordinator
    Submit(Submit),
    /// Follow a run until it ends
    Watch(Watch),
    /// Print the logs of a run
    Logs(Logs),
    /// List runs, the newest first
    Runs(Runs),
    /// Ask for the end of a run
    Cancel(Cancel),
    /// Say why jobs wait, or how they got where they are
    Explain(Explain),
    /// Let a run that has ended go on from what failed
    Retry(Retry),
    /// Named outputs of runs
    Artifacts(Artifacts),
    /// Keep a copy of the farm's state in a file
    Backup(Backup),
    /// Make a new farm of one coordinator from a backup
    Restore(Restore),
    /// Go on with one coordinator of a farm whose majority is lost
    Recover(Recover),
    /// Get a certificate by a join token, and write a context file that names it
    Login(Login),
    /// Join tokens, which let agents, clients and coordinators in
    Token(Token),
    /// Believe a member no more: its calls are refused, its connections end
    Deny(Deny),
    /// Take a denial back
    Allow(Allow),
    /// The coordinators of a farm
    Cluster(crate::cluster::Cluster),
    /// Serve as a whole farm of several processes on this machine, to try it out
    Dev(crate::dev::Dev),
}

/// What is submitted, and as what.
#[derive(Args, Clone, Debug)]
pub struct Submission {
    /// The pipeline's file, or a folder that holds one; by default it is looked for
    /// here: .steading/pipelines/*.yml, then .github/workflows/*.yml
    #[arg(value_name = "FILE|DIR")]
    pub pipeline: Option<PathBuf>,
    /// The tree that jobs check out; by default the folder that holds .steading or
    /// .github, else the repository or the folder that holds the file
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// A secret for the jobs; with the name alone its value is taken from the environment
    #[arg(long = "secret", value_name = "KEY[=VALUE]")]
    pub secrets: Vec<String>,
    /// A variable added to the workflow's `env`, and stronger than it
    #[arg(long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// An entry of the `vars` context
    #[arg(long = "var", value_name = "KEY=VALUE")]
    pub vars: Vec<String>,
    /// An input of `workflow_dispatch`, which is then the default event
    #[arg(long = "input", value_name = "KEY=VALUE")]
    pub inputs: Vec<String>,
    /// The ref that is built: refs/heads/main, or the short name of a branch
    #[arg(long = "ref", value_name = "REF")]
    pub git_ref: Option<String>,
    /// The commit that is built
    #[arg(long, value_name = "SHA")]
    pub sha: Option<String>,
    /// The project that the run belongs to
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub project: String,
    /// Stream the whole log of every job
    #[arg(long, short)]
    pub verbose: bool,
    /// Print the summary as one JSON object on stdout, and all else on stderr
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Run {
    #[command(flatten)]
    pub submission: Submission,
    /// The event that the run plays [default: push]
    #[arg(long, value_name = "NAME")]
    pub event: Option<String>,
    /// A file with the event's payload, a JSON object
    #[arg(long, value_name = "FILE")]
    pub event_payload: Option<PathBuf>,
    /// Where the state is kept [default: .steading/state in the source]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Jobs that run at once [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub slots: Option<u32>,
    /// Labels that this host has besides the usual ones, separated by commas
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Where the run's artifacts are put, each in a folder of its name, also after a failure
    #[arg(long, value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Submit {
    #[command(flatten)]
    pub submission: Submission,
    #[command(flatten)]
    pub farm: Farm,
    /// A file with the event's payload, a JSON object
    #[arg(long, value_name = "FILE")]
    pub event: Option<PathBuf>,
    /// The event's name [default: push]
    #[arg(long, value_name = "NAME")]
    pub event_name: Option<String>,
    /// Stream logs and annotations until the run ends, and exit as it did
    #[arg(long)]
    pub wait: bool,
    /// Where the run's artifacts are put, each in a folder of its name, also after a failure
    #[arg(long, value_name = "DIR", requires = "wait")]
    pub artifacts: Option<PathBuf>,
}

/// Which farm is spoken to, or else the state of `stead run`.
#[derive(Args, Clone, Debug)]
pub struct Coordinated {
    #[command(flatten)]
    pub farm: Farm,
    /// The state of `stead run`, where no farm is named [default: .steading/state, here
    /// or in a folder above]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Which farm is spoken to. What is said here is stronger than the environment.
#[derive(Args, Clone, Debug, Default)]
pub struct Farm {
    /// https://HOST:PORT, unix:/PATH or http://127.0.0.1:PORT; of several coordinators any,
    /// or all, separated by commas [env: STEADING_COORDINATOR]
    #[arg(long, value_name = "ENDPOINT,...")]
    pub coordinator: Option<String>,
    /// A file that says where the coordinators are, and which certificate to show to them
    /// [env: STEADING_CONTEXT]
    #[arg(long, value_name = "FILE")]
    pub context: Option<PathBuf>,
}

impl Farm {
    /// Whether the command line names a farm.
    pub const fn is_named(&self) -> bool {
        self.coordinator.is_some() || self.context.is_some()
    }
}

#[derive(Args, Debug)]
pub struct Lint {
    /// Pipelines; by default all that are found here
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Expr {
    /// A JSON object: the name of each context, and its value
    #[arg(long, value_name = "FILE")]
    pub contexts: Option<PathBuf>,
    /// Without the surrounding ${{ }}
    #[arg(value_name = "EXPRESSION", allow_hyphen_values = true)]
    pub expression: String,
}

#[derive(Args, Debug)]
pub struct Coordinator {
    /// Where the log, the store and the logs of jobs are kept
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    pub data_dir: Option<PathBuf>,
    /// A JSON file with `data_dir` and more settings, such as `store_bytes_max`,
    /// `finished_runs_kept` and `disk_low_bytes`; other arguments win over what it says
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where blobs are durable, for several coordinators: a directory that all of them see,
    /// or gs://NAME/PREFIX or s3://NAME/PREFIX
    #[arg(long, value_name = "DIR|URL")]
    pub object_store: Option<String>,
    /// https://HOST:PORT, unix:PATH or 127.0.0.1:PORT; may be given several times. With
    /// https an admin of this machine is served on DIR/admin.sock, too
    #[arg(long = "listen", value_name = "ADDRESS", required = true)]
    pub listen: Vec<String>,
    /// Allow plain text on loopback, where every user of this machine can connect
    #[arg(long)]
    pub insecure_loopback: bool,
    /// Where the other coordinators reach this one [default: the first address]
    #[arg(long, value_name = "ENDPOINT")]
    pub advertise: Option<String>,
    /// Coordinators whose group an empty directory joins, separated by commas
    #[arg(long, value_name = "ENDPOINT,...", value_delimiter = ',')]
    pub join: Vec<String>,
    /// With --join over https: as `stead token create --role coordinator` printed it
    #[arg(long, value_name = "TOKEN", env = "STEADING_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

#[derive(Args, Debug)]
pub struct Watch {
    /// run-7, or 7
    pub run: String,
    #[command(flatten)]
    pub coordinated: Coordinated,
    /// Stream the whole log of every job
    #[arg(long, short)]
    pub verbose: bool,
    /// Print the summary as one JSON object on stdout, and all else on stderr
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Logs {
    /// run-7, or 7
    pub run: String,
    /// The job's name, its key in the pipeline, or job-9; by default all jobs
    pub job: Option<String>,
    /// Only this step, counted from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub step: Option<u32>,
    /// Only this attempt [default: the last]
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
    /// Go on until the jobs have ended
    #[arg(long, short)]
    pub follow: bool,
    #[command(flatten)]
    pub coordinated: Coordinated,
}

#[derive(Args, Debug)]
pub struct Runs {
    #[command(flatten)]
    pub coordinated: Coordinated,
    /// How many at most
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// The project that the runs belong to
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub project: String,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Cancel {
    /// run-7, or 7
    pub run: String,
    /// Why, for those who read it later
    #[arg(long, default_value = "")]
    pub reason: String,
    #[command(flatten)]
    pub coordinated: Coordinated,
}

#[derive(Args, Debug)]
pub struct Explain {
    /// run-7, or 7
    pub run: String,
    /// Key, name or id of a job; all of them unless said
    pub job: Option<String>,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub coordinated: Coordinated,
}

#[derive(Args, Debug)]
pub struct Retry {
    /// run-7, or 7
    pub run: String,
    #[command(flatten)]
    pub coordinated: Coordinated,
}

#[derive(Args, Debug)]
pub struct Artifacts {
    #[command(subcommand)]
    pub verb: ArtifactsVerb,
}

#[derive(Debug, Subcommand)]
pub enum ArtifactsVerb {
    /// Fetch a run's artifacts
    Get(ArtifactsGet),
}

#[derive(Args, Debug)]
pub struct ArtifactsGet {
    /// run-7, or 7
    pub run: String,
    /// The artifact's name; by default all of them
    pub name: Option<String>,
    /// Where they are put, each in a folder of its name
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub coordinated: Coordinated,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_valid_parses_and_what_is_not_is_bad_usage() {
        let valid = [
            "run",
            "run .",
            "run ci.yml --source . --event push --secret A=1 --env B=2 --json --slots 3",
            "run --data-dir /tmp/x --labels gpu,big",
            "lint",
            "lint a.yml b.yml",
            "expr --contexts c.json -1",
            "expr 1",
            "backup f --include-keys --coordinator unix:/s",
            "restore f --data-dir d --object-store gs://b/p --keys k",
            "recover --data-dir d --show",
            "recover --data-dir d --i-accept-data-loss",
            "coordinator --data-dir d --listen unix:/tmp/s --listen 127.0.0.1:1 --insecure-loopback",
            "coordinator --data-dir d --listen unix:s --advertise unix:/s --join unix:/a,unix:/b",
            "coordinator --config f --listen unix:s",
            "coordinator --config f --data-dir d --listen unix:s",
            "agent --coordinator unix:/s --data-dir d --name n --slots 2 --labels a,b --pool p --user self",
            "agent --coordinator unix:/s --data-dir d --user per-slot",
            "agent --coordinator unix:/a,unix:/b --data-dir d --spot --zone z --gce",
            "agent drain a1 --coordinator unix:/s --deadline 30m --monitor",
            "agent drain a1 --force",
            "agent cordon a1",
            "agent uncordon a1 --context c.json",
            "agent remove a1",
            "agents --json",
            "submit ci.yml --coordinator unix:/s --wait --ref R --sha S --event e.json --input K=V --artifacts out --json",
            "watch run-1",
            "logs 1 test --step 2 --follow",
            "submit --context farm.json",
            "watch run-1 --coordinator unix:/a,unix:/b",
            "runs --json -n 5",
            "cancel run-1 --reason because",
            "token create --role client --uses 3 --ttl 1h --coordinator unix:/s",
            "token list --json",
            "token revoke 7f3a",
            "login --token t --coordinator https://h:1 --name ada --context c.json",
            "deny spiffe://c/agent/a --reason lost",
            "allow serial:7f",
            "agent --join t --coordinator https://h:1 --data-dir d",
            "artifacts get run-1 dist --dir out",
            "dev",
            "dev --coordinators 3 --agents 4 --dir d --slots 1",
            "cluster status --json",
            "cluster add",
            "cluster remove 3 --force",
            "cluster transfer",
            "cluster transfer 2 --coordinator unix:/s",
        ];
        for line in valid {
            if let Err(error) = parse(line) {
                panic!("`stead {line}` should parse: {error}");
            }
        }
        let invalid = [
            "",
            "sprint",
            "run a.yml b.yml",
            "run --slots 0",
            "run --event",
            "expr",
            "coordinator --data-dir d",
            "coordinator --listen unix:s",
            "agent --coordinator unix:/s",
            "agent drain",
            "agent drain a1 --force --deadline 1h",
            "submit --coordinator unix:/s --artifacts out",
            "logs 1 test --step 0",
            "runs -n 0",
            "dev --coordinators 0",
            "token create --uses 0",
            "token create --role root",
            "artifacts get 1",
            "cluster",
            "cluster remove",
            "cluster remove x",
        ];
        for line in invalid {
            assert!(parse(line).is_err(), "`stead {line}` should be refused");
        }
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("stead").chain(line.split_whitespace()))
    }
}
