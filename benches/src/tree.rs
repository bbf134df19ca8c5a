//! Snapshot of a tree of 10,000 files, first and second, and materialising it
//! beside `cp -al` and `cp -a`.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use steading_cas::tree::{self, Materialize};
use steading_cas::{Store, StoreOptions, source};

use crate::report;

const FOLDERS: usize = 100;
const FILES_PER_FOLDER: usize = 100;
const ROUNDS: usize = 5;

/// Prints both.
pub(crate) fn measure(scratch: &Path) -> anyhow::Result<()> {
    let dir = scratch.join("tree");
    make_tree(&dir)?;
    let store = Store::open(
        &scratch.join("tree-store"),
        StoreOptions { bytes_max: 10 << 30, durable: false },
    )?;
    let memo = scratch.join("tree-memo");
    let (first, snapshot) = timed(|| source::snapshot(&store, &dir, &memo))?;
    // What is younger than two seconds is hashed again, by rule.
    let settle = Instant::now() + Duration::from_millis(2_100);
    while Instant::now() < settle {
        std::thread::park_timeout(settle.saturating_duration_since(Instant::now()));
    }
    source::snapshot(&store, &dir, &memo)?;
    let mut second = Vec::new();
    for _ in 0..ROUNDS {
        let (wall, again) = timed(|| source::snapshot(&store, &dir, &memo))?;
        anyhow::ensure!(again.root == snapshot.root, "the unchanged tree has another digest");
        anyhow::ensure!(again.rehashed == 0, "{} files were hashed again", again.rehashed);
        second.push(wall);
    }
    report::print(
        "snapshot_10000_files",
        &json!({
            "first_ms": report::ms(first),
            "second_p50_ms": report::ms(report::percentile(&mut second, 0.5)),
        }),
    );

    let mut figures = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        let at = |name: &str| scratch.join(format!("{name}-{round}"));
        figures[0].push(copy(&dir, &at("cp-al"), "-al")?);
        figures[1].push(
            timed(|| tree::materialize(&store, &snapshot.root, &at("lower"), &Materialize::LOWER))?
                .0,
        );
        figures[2].push(copy(&dir, &at("cp-a"), "-a")?);
        figures[3].push(
            timed(|| {
                tree::materialize(&store, &snapshot.root, &at("writable"), &Materialize::WRITABLE)
            })?
            .0,
        );
    }
    let [link, lower, plain, writable] =
        figures.each_mut().map(|samples| report::percentile(samples, 0.5));
    report::print(
        "materialise_10000_files",
        &json!({
            "cp_al_p50_ms": report::ms(link),
            "lower_p50_ms": report::ms(lower),
            "lower_over_cp_al": report::rounded(lower.as_secs_f64() / link.as_secs_f64()),
            "cp_a_p50_ms": report::ms(plain),
            "writable_p50_ms": report::ms(writable),
            "writable_over_cp_a": report::rounded(writable.as_secs_f64() / plain.as_secs_f64()),
            "budget_ratio": 1.2,
        }),
    );
    Ok(())
}

fn make_tree(dir: &Path) -> anyhow::Result<()> {
    for folder in 0..FOLDERS {
        let folder_dir = dir.join(format!("folder{folder:03}"));
        std::fs::create_dir_all(&folder_dir)?;
        for file in 0..FILES_PER_FOLDER {
            // About 2 KiB each, all different, as sources are.
            let line = format!("file {folder} {file}\n");
            std::fs::write(folder_dir.join(format!("file{file:03}.c")), line.repeat(128))?;
        }
    }
    Ok(())
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(Duration, T), E> {
    let start = Instant::now();
    work().map(|value| (start.elapsed(), value))
}

fn copy(from: &Path, to: &Path, flags: &str) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let status = Command::new("cp").arg(flags).arg(from).arg(to).status().context("run `cp`")?;
    anyhow::ensure!(status.success(), "`cp {flags}` failed");
    Ok(start.elapsed())
}
