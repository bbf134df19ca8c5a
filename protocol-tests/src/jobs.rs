//! Jobs for a farm of real processes: some that run for as long as a test wants, and short
//! ones that are submitted one after another meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::cluster::Cluster;
use crate::farm::{Process, holds_in_time, wait_for, wait_for_lines};

/// As many jobs as legs; each says once that it started, and goes on until `go` is there.
const LONG: &str = r#"on: push
jobs:
  long:
    runs-on: ubuntu-latest
    strategy:
      matrix: {leg: [LEGS]}
    steps:
      - run: |
          echo "${{ matrix.leg }}" >> "DIR/started"
          while [ ! -e "DIR/go" ]; do sleep 0.5; done
          echo "the end of ${{ matrix.leg }}"
"#;

/// Says of which run it is, and when it started, nanoseconds since the epoch.
const SHORT: &str = r#"on: push
jobs:
  short:
    runs-on: ubuntu-latest
    steps:
      - run: echo "run-$GITHUB_RUN_ID $(date +%s%N)" >> "DIR/short"
"#;

/// Jobs that run until the test has seen enough, and the watch that follows them.
#[derive(Debug)]
pub struct LongJobs {
    started: PathBuf,
    go: PathBuf,
    count: usize,
    watch: Process,
}

impl LongJobs {
    /// Submits them; all run when this returns.
    pub fn start(farm: &Cluster, count: usize) -> Self {
        farm.farm().shared_file("started");
        let legs: Vec<String> = (1..=count).map(|leg| leg.to_string()).collect();
        let run = farm.submit(&project(farm, "long", &LONG.replace("LEGS", &legs.join(", "))));
        let watch = farm.watch(&run);
        let dir = farm.farm().dir();
        let jobs = Self { started: dir.join("started"), go: dir.join("go"), count, watch };
        wait_for_lines(&jobs.started, count);
        jobs
    }

    /// Lets them end: the watch must have followed them all the time, and each must have
    /// started once.
    pub fn finish(mut self, farm: &Cluster) {
        assert!(self.watch.is_running(), "the watch ended before its run\n{}", farm.logs());
        std::fs::write(&self.go, "").expect("let the jobs end");
        let (code, summary) = self.watch.finish();
        assert_eq!(code, Some(0), "{summary}\n{}", farm.logs());
        let mut started = wait_for_lines(&self.started, self.count);
        started.sort();
        started.dedup();
        let lines = std::fs::read_to_string(&self.started).unwrap_or_default();
        assert_eq!(started.len(), self.count, "{lines}");
        assert_eq!(lines.lines().count(), self.count, "started twice: {lines}\n{}", farm.logs());
    }
}

/// A client that submits a run of one short job, waits for the answer, and submits the next.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Submitted>>,
}

/// What became of one submission.
#[derive(Debug)]
struct Submitted {
    took: Duration,
    /// The run, or what was said instead.
    answer: Result<String, String>,
}

/// What was submitted, and acknowledged.
#[derive(Debug)]
pub struct Done {
    /// When the job of each run started.
    pub starts: Vec<SystemTime>,
    /// What was said to submissions that were refused.
    pub refused: Vec<String>,
}

impl Load {
    /// Begins.
    pub fn start(farm: &Cluster) -> Self {
        farm.farm().shared_file("short");
        let project = project(farm, "short-jobs", SHORT).display().to_string();
        let mut submit = farm.command(&["submit", &project]);
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut all = Vec::new();
            while !until.load(Ordering::Relaxed) {
                let began = Instant::now();
                let out = submit.output().expect("stead runs");
                let run = String::from_utf8_lossy(&out.stdout).trim().to_owned();
                let answer = match out.status.success() {
                    true => Ok(run),
                    false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
                };
                all.push(Submitted { took: began.elapsed(), answer });
            }
            all
        });
        let load = Self { stop, thread };
        load.wait_for(farm, 1);
        load
    }

    /// Waits until so many short jobs more have started.
    pub fn wait_for(&self, farm: &Cluster, more: usize) {
        let path = farm.farm().dir().join("short");
        let before = started(&path).len();
        wait_for(&format!("{more} short jobs"), || started(&path).len() >= before + more);
    }

    /// Ends it. Every run that was acknowledged must have succeeded, its job started once.
    pub fn finish(self, farm: &Cluster) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.thread.join().expect("the client");
        let slowest = all.iter().map(|one| one.took).max().unwrap_or_default();
        let (runs, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.answer.is_ok());
        let runs: Vec<String> = runs.into_iter().filter_map(|one| one.answer.ok()).collect();
        let refused: Vec<String> = refused.into_iter().filter_map(|one| one.answer.err()).collect();
        let path = farm.farm().dir().join("short");
        let mut ended = BTreeMap::new();
        let all_ended = holds_in_time(|| {
            ended = states(farm);
            runs.iter().all(|run| ended.get(run).is_some_and(|state| state == "success"))
        });
        assert!(all_ended, "of {runs:?} there is {ended:?}\n{}", farm.logs());
        let starts = started(&path);
        let mut times = Vec::new();
        for run in &runs {
            let of_run: Vec<_> = starts.iter().filter(|(name, _)| name == run).collect();
            assert_eq!(of_run.len(), 1, "{run} started {} times\n{}", of_run.len(), farm.logs());
            times.extend(of_run.iter().map(|(_, at)| *at));
        }
        times.sort();
        println!(
            "{} runs were submitted meanwhile, {} refused, the slowest answer took {slowest:?}",
            runs.len(),
            refused.len()
        );
        Done { starts: times, refused }
    }
}

/// How each run stands, by its name.
fn states(farm: &Cluster) -> BTreeMap<String, String> {
    let text = farm.stead(&["runs", "--json", "-n", "1000"]);
    let runs = text.lines().filter_map(|line| {
        let run: serde_json::Value = serde_json::from_str(line).ok()?;
        Some((run["run"].as_str()?.to_owned(), run["state"].as_str()?.to_owned()))
    });
    runs.collect()
}

/// The runs of the short jobs that started, and when.
fn started(path: &Path) -> Vec<(String, SystemTime)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let read = whole.map(|line| {
        let (run, nanos) = line.split_once(' ').expect("a run and a time");
        let nanos = Duration::from_nanos(nanos.parse().expect("nanoseconds"));
        (run.to_owned(), SystemTime::UNIX_EPOCH + nanos)
    });
    read.collect()
}

fn project(farm: &Cluster, name: &str, pipeline: &str) -> PathBuf {
    let dir = farm.farm().dir().display().to_string();
    farm.farm().project(name, &pipeline.replace("DIR", &dir), &[])
}
