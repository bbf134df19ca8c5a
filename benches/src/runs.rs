//! Whole processes: what a person waits for.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::report;

/// Jobs of the large run: four keys, for a matrix has 256 legs at most.
const KEYS: usize = 4;
const LEGS: usize = 250;
const SAMPLES: usize = 15;

/// `stead run` of a pipeline of one `true`: the first run, then warm, executed and cached.
pub(crate) fn trivial(stead: &Path, scratch: &Path) -> anyhow::Result<()> {
    let plain = project(scratch, "trivial", "      - run: 'true'\n", 1, 1)?;
    let (cold, _) = run(stead, &plain)?;
    let mut executed = Vec::new();
    for _ in 0..SAMPLES {
        executed.push(run(stead, &plain)?.0);
    }
    let cached = project(scratch, "trivial-cached", CACHED_STEP, 1, 1)?;
    let (fill, _) = run(stead, &cached)?;
    let mut hits = Vec::new();
    for _ in 0..SAMPLES {
        let (wall, summary) = run(stead, &cached)?;
        anyhow::ensure!(summary["cacheable"]["executed"] == 0, "a hit was executed: {summary}");
        hits.push(wall);
    }
    report::print(
        "stead_run_trivial",
        &json!({
            "cold_ms": report::ms(cold),
            "executed_p50_ms": report::ms(report::percentile(&mut executed, 0.5)),
            "executed_p90_ms": report::ms(report::percentile(&mut executed, 0.9)),
            "first_cached_ms": report::ms(fill),
            "cached_p50_ms": report::ms(report::percentile(&mut hits, 0.5)),
            "cached_p90_ms": report::ms(report::percentile(&mut hits, 0.9)),
            "budget_executed_ms": 150,
            "budget_cached_ms": 100,
        }),
    );
    Ok(())
}

/// A run of 1,000 jobs of `true`, executed and cached, beside a bare loop of `bash -e`.
pub(crate) fn thousand(stead: &Path, scratch: &Path) -> anyhow::Result<()> {
    let jobs = KEYS * LEGS;
    let bare = bare_loop(jobs)?;
    let plain = project(scratch, "thousand", "      - run: 'true'\n", KEYS, LEGS)?;
    run(stead, &plain)?;
    let (executed, summary) = run(stead, &plain)?;
    anyhow::ensure!(summary["jobs"]["succeeded"] == jobs, "not all jobs succeeded: {summary}");
    let cached = project(scratch, "thousand-cached", CACHED_STEP, KEYS, LEGS)?;
    run(stead, &cached)?;
    let (hit, summary) = run(stead, &cached)?;
    anyhow::ensure!(summary["cacheable"]["executed"] == 0, "a hit was executed: {summary}");
    let per_second = |wall: Duration| report::rounded(jobs as f64 / wall.as_secs_f64());
    report::print(
        "run_of_1000_jobs",
        &json!({
            "bare_bash_per_s": per_second(bare),
            "executed_ms": report::ms(executed),
            "executed_per_s": per_second(executed),
            "ratio_to_bare": report::rounded(bare.as_secs_f64() / executed.as_secs_f64()),
            "budget_ratio_to_bare": 0.5,
            "cached_ms": report::ms(hit),
            "budget_cached_ms": 500,
        }),
    );
    Ok(())
}

const CACHED_STEP: &str =
    "      - run: 'true'\n        x-steading: {cache: {inputs: [], outputs: []}}\n";

/// A folder with one pipeline of `keys` × `legs` jobs of this one step.
fn project(
    scratch: &Path,
    name: &str,
    step: &str,
    keys: usize,
    legs: usize,
) -> anyhow::Result<std::path::PathBuf> {
    let dir = scratch.join(name);
    let pipelines = dir.join(".steading/pipelines");
    std::fs::create_dir_all(&pipelines)?;
    let mut text = String::from("on: push\njobs:\n");
    for key in 0..keys {
        text.push_str(&format!("  job{key}:\n    runs-on: ubuntu-latest\n"));
        if legs > 1 {
            let list: Vec<String> = (0..legs).map(|leg| leg.to_string()).collect();
            text.push_str(&format!("    strategy: {{matrix: {{leg: [{}]}}}}\n", list.join(", ")));
        }
        text.push_str("    steps:\n");
        text.push_str(step);
    }
    std::fs::write(pipelines.join("main.yml"), text)?;
    Ok(dir)
}

/// Runs the folder's pipeline: wall time of the whole process, and its summary.
fn run(stead: &Path, dir: &Path) -> anyhow::Result<(Duration, Value)> {
    let start = Instant::now();
    let out = Command::new(stead)
        .args(["run", "--json"])
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run `{}`", stead.display()))?;
    let wall = start.elapsed();
    anyhow::ensure!(
        out.status.success(),
        "`stead run` failed: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok((wall, serde_json::from_slice(&out.stdout).context("read the summary")?))
}

/// The same number of `bash -e SCRIPT`, one after the other on each core.
fn bare_loop(count: usize) -> anyhow::Result<Duration> {
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(script.path(), "true\n")?;
    let cores = std::thread::available_parallelism()?.get();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    for _ in 0..count / cores {
                        let status = Command::new("bash").arg("-e").arg(script.path()).status()?;
                        anyhow::ensure!(status.success(), "`bash -e` failed");
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the loop panicked")))
        })
    })?;
    Ok(start.elapsed())
}
