//! A process with a replica, made to be killed: tells what it has, then what is
//! acknowledged, one line each, until somebody ends it.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use steading_coordinator::replica::{Options, Replica, Started};
use steading_protocol_tests::replica_kit::{register, registered};
use tokio::task::JoinSet;

/// Clients that propose at once.
const CLIENTS: u64 = 4;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().context("usage: replica-victim DIR LIFE")?);
    let life: u64 = args.next().context("usage: replica-victim DIR LIFE")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(dir, life))
}

async fn serve(dir: PathBuf, life: u64) -> anyhow::Result<()> {
    let mut options = Options::embedded(dir);
    // Small, so that segments, checkpoints and snapshots happen in every life.
    options.segment_bytes = 16 << 10;
    options.cadence.checkpoint_entries = 20;
    options.cadence.snapshot_bytes = 24 << 10;
    // Nobody listens to the notices: they must not be in anybody's way.
    let Started { replica, .. } = Replica::start(options)?;
    replica.read_barrier().await?;
    let mut lines = String::new();
    for agent in replica.view().agents() {
        lines.push_str(&format!("have {} {}\n", agent.definition.name, agent.id));
    }
    lines.push_str("go\n");
    say(&lines)?;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(propose(replica.clone(), life, client));
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

async fn propose(replica: Replica, life: u64, client: u64) -> anyhow::Result<()> {
    for number in 0u64.. {
        let name = format!("l{life}-c{client}-{number}");
        let effects = replica.propose(register(&name, 100)).await?;
        let id = registered(&effects).context("a registration answers with the agent")?;
        ensure!(replica.view().agent(id).is_some(), "an answer came before its view");
        say(&format!("ack {name} {id}\n"))?;
    }
    Ok(())
}

/// One write: a line is there as a whole or not at all.
fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
