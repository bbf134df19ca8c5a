//! Jobs for a farm of real processes: some that run for as long as a test wants, and short
//! ones that say when they start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::farm::{Process, holds_in_time, process_state, wait_for, wait_for_lines};

/// As many jobs as legs. Each says once that it started, and then again and again that it
/// is alive, until `go` is there, or it alone is told to end. (It waits in a `read` that gets
/// nothing, for hundreds that start a `sleep` each would be the load.)
const LONG: &str = r#"on: push
jobs:
  long:
    runs-on: ubuntu-latest
    strategy:
      matrix: {leg: [LEGS]}
    steps:
      - run: |
          me="${{ matrix.leg }} ${{ runner.name }} $$"
          echo "$me" >> "DIR/started"
          exec 3<> <(:)
          while echo "$me $EPOCHREALTIME" >> "DIR/alive"; do
            [ ! -e "DIR/go" ] && [ ! -e "DIR/end-${{ matrix.leg }}-${{ runner.name }}" ] || break
            read -r -t 0.2 -u 3 || true
          done
          echo "the end of ${{ matrix.leg }}"
"#;

/// Says of which run it is, and when it started, seconds since the epoch.
const SHORT: &str = r#"on: push
jobs:
  short:
    runs-on: RUNS_ON
    steps:
      - run: echo "run-$GITHUB_RUN_ID $EPOCHREALTIME" >> "DIR/short"
"#;

/// A number that whoever runs the tests may set, for stories larger than they are by default.
pub fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Jobs that run all the time: `STEADING_JOBS`, if that is set.
pub fn running_jobs(default: usize) -> usize {
    number("STEADING_JOBS", default)
}

/// Jobs that run until the test has seen enough, and the watch that follows them.
#[derive(Debug)]
pub struct LongJobs {
    dir: PathBuf,
    run: String,
    count: usize,
    watch: Process,
}

/// The process of a job that is one of [`LongJobs`].
#[derive(Clone, Debug)]
pub struct LongJob {
    pub leg: String,
    pub agent: String,
    pub pid: u32,
}

impl LongJobs {
    /// Submits them; all run when this returns.
    pub fn start(farm: &Cluster, count: usize) -> Self {
        let dir = farm.farm().dir().to_owned();
        ["started", "alive"].iter().for_each(|file| farm.farm().shared_file(file));
        let legs: Vec<String> = (1..=count).map(|leg| leg.to_string()).collect();
        let run = farm.submit(&project(farm, "long", &LONG.replace("LEGS", &legs.join(", "))));
        let watch = farm.watch(&run);
        let jobs = Self { dir, run, count, watch };
        jobs.started(count);
        jobs
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Waits until jobs have started so many times in all.
    pub fn started(&self, times: usize) -> Vec<LongJob> {
        let lines = wait_for_lines(&self.dir.join("started"), times);
        lines.iter().map(|line| LongJob::read(line)).collect()
    }

    /// How many times jobs have started so far.
    pub fn starts(&self) -> usize {
        let text = std::fs::read_to_string(self.dir.join("started"));
        text.map_or(0, |text| text.matches('\n').count())
    }

    /// The agent that has most jobs, and these.
    pub fn fullest(&self) -> (String, Vec<LongJob>) {
        let mut agents: BTreeMap<String, Vec<LongJob>> = BTreeMap::new();
        for job in self.started(self.count) {
            agents.entry(job.agent.clone()).or_default().push(job);
        }
        let fullest = agents.into_iter().max_by_key(|(_, jobs)| jobs.len());
        let (agent, jobs) = fullest.expect("there are jobs");
        assert!(jobs.len() > 1, "{agent}: {jobs:?}");
        (agent, jobs)
    }

    /// Lets one job end at this agent.
    pub fn end_one(&self, job: &LongJob) {
        let end = self.dir.join(format!("end-{}-{}", job.leg, job.agent));
        std::fs::write(end, "").expect("let a job end");
        wait_for("a job to end", || job.is_gone());
    }

    /// Waits until it is recorded that the job's first result came too late.
    pub fn wait_until_stale(&self, farm: &Cluster, job: &LongJob) {
        let name = format!("long ({})", job.leg);
        wait_for(&format!("a stale result of {name}"), || {
            let text = farm.stead(&["explain", &self.run, "--json"]);
            let jobs = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut jobs = jobs.filter(|explained| explained["name"] == name.as_str());
            // An agent that misses the answer says it again.
            jobs.any(|explained| explained["stale_results"].as_u64().is_some_and(|it| it > 0))
        });
    }

    /// Lets them end: the watch must have followed them all the time, and each must have
    /// started once.
    pub fn finish(self, farm: &Cluster) {
        let starts = self.count;
        self.finish_after(farm, starts);
    }

    /// The same where jobs started so many times in all: no two processes of one job may
    /// have run at a time.
    pub fn finish_after(mut self, farm: &Cluster, starts: usize) {
        assert!(self.watch.is_running(), "the watch ended before its run\n{}", farm.logs());
        std::fs::write(self.dir.join("go"), "").expect("let the jobs end");
        let (code, summary) = self.watch.finish();
        assert_eq!(code, Some(0), "{summary}\n{}", farm.logs());
        let lives = lives(&self.dir);
        assert_eq!(lives.len(), self.count, "{lives:?}");
        for (leg, lives) in &lives {
            let one_by_one = lives.windows(2).all(|pair| pair[0].1 < pair[1].0);
            assert!(one_by_one, "leg {leg} ran twice at a time: {lives:?}\n{}", farm.logs());
        }
        let all = std::fs::read_to_string(self.dir.join("started")).unwrap_or_default();
        assert_eq!(all.lines().count(), starts, "starts: {all}\n{}", farm.logs());
        assert_eq!(lives.values().map(Vec::len).sum::<usize>(), starts, "{lives:?}");
    }
}

impl LongJob {
    fn read(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let pid = words[2].parse().expect("a process id");
        Self { leg: words[0].to_owned(), agent: words[1].to_owned(), pid }
    }

    /// Whether it is stopped.
    pub fn is_frozen(&self) -> bool {
        process_state(self.pid) == Some('T')
    }

    /// Whether it ended, reaped or not.
    pub fn is_gone(&self) -> bool {
        matches!(process_state(self.pid), None | Some('Z' | 'X'))
    }
}

/// By leg, the times at which each of its processes was first and last seen alive.
fn lives(dir: &Path) -> BTreeMap<String, Vec<(f64, f64)>> {
    let text = std::fs::read_to_string(dir.join("alive")).expect("signs of life");
    let mut lives: BTreeMap<(&str, &str), (f64, f64)> = BTreeMap::new();
    for line in text.lines() {
        let (process, at) = line.rsplit_once(' ').expect("a process and a time");
        let key = process.split_once(' ').expect("a leg and a process");
        let at = at.parse().expect("seconds since the epoch");
        lives.entry(key).and_modify(|life| life.1 = at).or_insert((at, at));
    }
    let mut legs: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for ((leg, _), life) in lives {
        legs.entry(leg.to_owned()).or_default().push(life);
    }
    legs.values_mut().for_each(|lives| lives.sort_by(|one, other| one.0.total_cmp(&other.0)));
    legs
}

/// A project with one short job, for agents with this label.
pub fn short_project(farm: &Cluster, runs_on: &str) -> PathBuf {
    farm.farm().shared_file("short");
    project(farm, &format!("short-{runs_on}"), &SHORT.replace("RUNS_ON", runs_on))
}

/// Submits a run of one short job, and returns its name.
pub fn submit_short(farm: &Cluster, runs_on: &str) -> String {
    farm.submit(&short_project(farm, runs_on))
}

/// Waits until the short job of this run has started, and returns when that was.
pub fn short_started(farm: &Cluster, run: &str) -> SystemTime {
    let mut at = None;
    wait_for(&format!("the job of {run}"), || {
        at = started(farm).into_iter().find_map(|(name, at)| (name == run).then_some(at));
        at.is_some()
    });
    at.expect("waited for it")
}

/// Submits a short job now, and waits until it has started: the time from `since` until then.
pub fn next_short(farm: &Cluster, since: SystemTime) -> Duration {
    let run = submit_short(farm, "ubuntu-latest");
    short_started(farm, &run).duration_since(since).unwrap_or_default()
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
        let project = short_project(farm, "ubuntu-latest").display().to_string();
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
        let before = started(farm).len();
        wait_for(&format!("{more} short jobs"), || started(farm).len() >= before + more);
    }

    /// Ends it. Every run that was acknowledged must have succeeded, its job started once.
    pub fn finish(self, farm: &Cluster) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.thread.join().expect("the client");
        let slowest = all.iter().map(|one| one.took).max().unwrap_or_default();
        let (runs, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.answer.is_ok());
        let runs: Vec<String> = runs.into_iter().filter_map(|one| one.answer.ok()).collect();
        let refused: Vec<String> = refused.into_iter().filter_map(|one| one.answer.err()).collect();
        wait_for_success(farm, &runs);
        let starts = started(farm);
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

/// Waits until all these runs have ended well.
pub fn wait_for_success(farm: &Cluster, runs: &[String]) {
    let mut states = BTreeMap::new();
    let all = holds_in_time(|| {
        states = run_states(farm);
        runs.iter().all(|run| states.get(run).is_some_and(|state| state == "success"))
    });
    assert!(all, "of {runs:?} there is {states:?}\n{}", farm.logs());
}

/// How each run stands, by its name.
pub fn run_states(farm: &Cluster) -> BTreeMap<String, String> {
    let text = farm.stead(&["runs", "--json", "-n", "1000"]);
    let runs = text.lines().filter_map(|line| {
        let run: Value = serde_json::from_str(line).ok()?;
        Some((run["run"].as_str()?.to_owned(), run["state"].as_str()?.to_owned()))
    });
    runs.collect()
}

/// The runs of the short jobs that started, and when.
fn started(farm: &Cluster) -> Vec<(String, SystemTime)> {
    let text = std::fs::read_to_string(farm.farm().dir().join("short")).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let read = whole.map(|line| {
        let (run, seconds) = line.split_once(' ').expect("a run and a time");
        let since = Duration::from_secs_f64(seconds.parse().expect("seconds"));
        (run.to_owned(), SystemTime::UNIX_EPOCH + since)
    });
    read.collect()
}

fn project(farm: &Cluster, name: &str, pipeline: &str) -> PathBuf {
    let dir = farm.farm().dir().display().to_string();
    farm.farm().project(name, &pipeline.replace("DIR", &dir), &[])
}
