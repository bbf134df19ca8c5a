//! Macro benchmarks as JSON lines, one a measure. Every figure stands beside what
//! the disk, the file system or the bare shell gives in the same run, for
//! machines are noisy and only ratios travel.
//!
//! `cargo run --release -p steading-benches -- [--stead PATH] [MEASURE…]`

mod disk;
mod farm;
mod group;
mod placement;
mod replica;
mod report;
mod runs;
mod tree;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

/// Measures the farm, and prints one JSON line a figure.
#[derive(Parser, Debug)]
struct Arguments {
    /// The `stead` to measure; the one beside this program unless said.
    #[arg(long)]
    stead: Option<PathBuf>,
    /// Where the data goes; its disk is what is measured.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Which measures: proposals, group, placement, latency, trivial, thousand, tree. All unless said.
    measures: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let stead = match arguments.stead {
        Some(path) => path,
        None => std::env::current_exe()
            .context("find this program")?
            .parent()
            .context("find this program's folder")?
            .join("stead"),
    };
    let scratch = tempfile::Builder::new()
        .prefix(".steading-bench-")
        .tempdir_in(&arguments.dir)
        .with_context(|| format!("make a scratch folder in `{}`", arguments.dir.display()))?;
    let wants = |name: &str| {
        arguments.measures.is_empty() || arguments.measures.iter().any(|measure| measure == name)
    };
    let disk = disk::measure(scratch.path())?;
    report::print("disk", &disk.to_json());
    if wants("proposals") {
        replica::proposals(scratch.path(), &disk)?;
    }
    if wants("group") {
        group::measure(scratch.path(), &disk)?;
    }
    if wants("placement") {
        placement::measure()?;
    }
    if wants("tree") {
        tree::measure(scratch.path())?;
    }
    let needs_stead = ["latency", "trivial", "thousand"];
    if needs_stead.iter().any(|name| wants(name)) {
        anyhow::ensure!(
            stead.exists(),
            "no `{}`: build it (`cargo build --release -p stead`) or name another with --stead",
            stead.display()
        );
    }
    if wants("trivial") {
        runs::trivial(&stead, scratch.path())?;
    }
    if wants("latency") {
        farm::submit_to_start(&stead, scratch.path(), &disk)?;
    }
    if wants("thousand") {
        runs::thousand(&stead, scratch.path())?;
    }
    Ok(())
}
