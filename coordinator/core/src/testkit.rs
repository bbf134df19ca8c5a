//! Stories about the core: one proposal a line, with what should come of it.
//!
//! ```text
//! 0s   agent A1 slots=2                     -> agent-1 incarnation-1
//! 0s   admit R1 build(needed) test/0(fast)  -> run-1, dispatch
//! 1s   assign job-1 agent-1                 -> offer L1 agent-1 job-1#1, dispatch
//! 9s   complete L1 success                  -> plan run-1 r0, dispatch
//! 9s   complete L1 success                  -> ! lease is not held under this epoch
//! 9s   show job-1                           -> success
//! ```
//!
//! `L1` is the lease of epoch 1. A line without `->` must be accepted, whatever its
//! effects. `RunChanged` is left out. Every line is checked for what must always
//! hold besides: invariants, an equal follower, rejections without a trace, and an
//! image that keeps up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use steading_model::codec::{Decode, Encode};
use steading_model::{
    AgentId, Digest, Epoch, FailureClass, JobId, Resources, RunId, StepCounts, Timestamp, Work,
};

use crate::placement::place;
use crate::rows::JobStatus;
use crate::{
    Assignment, Effect, Lease, NewJob, NewRun, Outcome, Proposal, Rejection, Request, Resolution,
    State,
};

mod fleet;
mod scheduling;

/// Plays a story, and panics at the first line that goes otherwise.
///
/// # Panics
///
/// With the line, what it should have done and what it did.
pub fn check(story: &str) {
    Stage::default().tell(story);
}

/// A state with a follower and an image, which must keep up with it.
#[derive(Debug, Default)]
pub struct Stage {
    pub state: State,
    follower: State,
    image: BTreeMap<Vec<u8>, Vec<u8>>,
    leases: BTreeMap<u64, Lease>,
}

impl Stage {
    /// Plays a story on top of what was played before.
    ///
    /// # Panics
    ///
    /// As [`check`].
    pub fn tell(&mut self, story: &str) {
        for line in story.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (action, expected) = match line.split_once("->") {
                Some((action, expected)) => (action.trim(), Some(squeeze(expected))),
                None => (line, None),
            };
            let (time, rest) = action.split_once(char::is_whitespace).unwrap_or((action, ""));
            let now = Timestamp::from_ms(1_000_000).plus_ms(duration_ms(time));
            let answer = self.play(now, rest.trim());
            match expected {
                Some(expected) => assert_eq!(answer, expected, "in line `{line}`"),
                None => assert!(!answer.starts_with('!'), "`{line}` was refused: {answer}"),
            }
        }
    }

    /// Applies a proposal and checks what must hold after any.
    ///
    /// # Errors
    ///
    /// What `apply` answered.
    ///
    /// # Panics
    ///
    /// Where something does not hold.
    pub fn apply(&mut self, now: Timestamp, proposal: Proposal) -> Result<Vec<Effect>, Rejection> {
        assert_eq!(Proposal::from_bytes(&proposal.to_bytes()).as_ref(), Ok(&proposal));
        let before = self.state.clone();
        let outcome = self.state.apply(now, proposal.clone());
        assert_eq!(self.follower.apply(now, proposal.clone()), outcome, "the follower answers");
        assert_eq!(self.follower, self.state, "the follower");
        if outcome.is_err() {
            let mut rewound = self.state.clone();
            rewound.meta = before.meta.clone();
            assert_eq!(rewound, before, "{proposal:?} was refused, and left a trace");
            assert_eq!(self.state.version(), before.version());
        }
        if let Err(error) = self.state.check_invariants() {
            panic!("after {proposal:?}: {error}");
        }
        for (key, row) in self.state.take_writes() {
            match row {
                Some(row) => self.image.insert(key, row),
                None => self.image.remove(&key),
            };
        }
        assert_eq!(self.image, self.state.rows().collect(), "the image after {proposal:?}");
        for effect in outcome.iter().flatten() {
            if let Effect::Offer { lease, .. } = effect {
                self.leases.insert(lease.epoch.counter(), *lease);
            }
        }
        outcome
    }

    fn play(&mut self, now: Timestamp, action: &str) -> String {
        let words: Vec<&str> = action.split_whitespace().collect();
        let (verb, words) = words.split_first().expect("a line has a verb");
        if *verb == "show" {
            return self.show(words);
        }
        let proposal = self.proposal(verb, words);
        match self.apply(now, proposal) {
            Err(rejection) => format!("! {rejection}"),
            Ok(effects) => self.render(&effects),
        }
    }

    fn proposal(&self, verb: &str, words: &[&str]) -> Proposal {
        let options = Options::read(words);
        match verb {
            "admit" => Proposal::AdmitRun {
                run: new_run(&options),
                jobs: options.jobs(1),
                sealed: !options.flag("open"),
                complete: !options.flag("more"),
            },
            "append" => Proposal::AppendJobs {
                run: id(words[0]),
                offset: options.number("at", 0) as u32,
                jobs: options.jobs(1),
                sealed: options.flag("seal"),
            },
            "extend" => Proposal::ExtendRun {
                run: id(words[0]),
                revision: options.number("r", 0) as u32,
                seen: options.number("seen", 0) as u32,
                jobs: options.jobs(1),
                complete: !options.flag("more"),
            },
            "cancel" => Proposal::CancelRun {
                run: id(words[0]),
                request: request(words[1], &options),
                reason: "enough".into(),
            },
            "assign" => Proposal::Assign {
                assignments: options.plain.chunks(2).map(|pair| self.assignment(pair)).collect(),
            },
            "expire" => Proposal::ExpireLeases {
                leases: words.iter().map(|word| self.lease(word)).collect(),
            },
            "release" => Proposal::ReleaseLease {
                lease: self.lease(words[0]),
                class: class(words[1]),
                started: options.flag("started"),
            },
            "complete" => Proposal::CompleteAttempt {
                lease: self.lease(words[0]),
                outcome: outcome(words[1], words.get(2).copied()),
            },
            "claim" => Proposal::ClaimAction {
                scope: name("p"),
                action: digest(words[1]),
                lease: self.lease(words[0]),
            },
            "resolve" => Proposal::ResolveClaim {
                scope: name("p"),
                action: digest(words[1]),
                lease: self.lease(words[0]),
                resolution: match words[2] {
                    "published" => Resolution::Published,
                    "failed" => Resolution::Failed { detail: digest("detail") },
                    "abandoned" => Resolution::Abandoned,
                    other => panic!("no resolution `{other}`"),
                },
            },
            "artifact" => Proposal::RecordArtifact {
                lease: self.lease(words[0]),
                name: words[1].into(),
                root: digest(words[1]),
                files: 1,
                bytes: 10,
            },
            "retire" => Proposal::RetireRuns { runs: words.iter().map(|word| id(word)).collect() },
            "retry" | "give-up" | "late" => scheduling::proposal(self, verb, words, &options),
            other => fleet::proposal(self, other, words, &options),
        }
    }

    fn assignment(&self, pair: &[&str]) -> Assignment {
        let agent: AgentId = id(pair[1]);
        let current = self.state.agent(agent).map(|agent| agent.incarnation);
        Assignment { job: id(pair[0]), agent, incarnation: current.unwrap_or_default() }
    }

    fn lease(&self, word: &str) -> Lease {
        let epoch = word.strip_prefix('L').and_then(|epoch| epoch.parse().ok());
        let epoch: u64 = epoch.unwrap_or_else(|| panic!("`{word}` is no lease"));
        let never = Work { job: JobId::from_counter(999), attempt: 1 };
        let unknown = Lease { work: never, epoch: Epoch::from_counter(epoch) };
        self.leases.get(&epoch).copied().unwrap_or(unknown)
    }

    fn show(&self, words: &[&str]) -> String {
        match words[0] {
            "queue" => {
                let jobs: Vec<_> =
                    self.state.queued().iter().map(|job| job.id.to_string()).collect();
                jobs.join(" ")
            }
            "group" | "why" | "wait" | "denied" | "attempts" | "stale" => {
                scheduling::show(self, words)
            }
            "outstanding" => self.render(&self.state.outstanding()),
            "place" => {
                let connected: BTreeSet<_> = words[1..]
                    .iter()
                    .map(|word| id(word))
                    .map(|agent| (agent, self.state.agent(agent).map(|a| a.incarnation)))
                    .map(|(agent, incarnation)| (agent, incarnation.unwrap_or_default()))
                    .collect();
                let chosen = place(&self.state, &connected, 100);
                let chosen: Vec<_> = chosen
                    .iter()
                    .map(|choice| format!("{} {}", choice.job, choice.agent))
                    .collect();
                chosen.join(", ")
            }
            "retirable" => {
                let runs = self.state.runs_to_retire(usize::MAX, 100);
                runs.iter().map(RunId::to_string).collect::<Vec<_>>().join(" ")
            }
            word if word.starts_with("run-") => self.show_run(id(word)),
            word => self.show_job(id(word)),
        }
    }

    fn show_run(&self, run: RunId) -> String {
        match self.state.run(run) {
            None => "gone".into(),
            Some(run) => match run.conclusion {
                Some(conclusion) => conclusion.to_string(),
                None if !run.sealed => "unsealed".into(),
                None => "open".into(),
            },
        }
    }

    fn show_job(&self, job: JobId) -> String {
        let Some(job) = self.state.job(job) else { return "gone".into() };
        match &job.status {
            JobStatus::Queued => "queued".into(),
            JobStatus::Leased { epoch, cancelling: false, .. } => format!("L{}", epoch.counter()),
            JobStatus::Leased { epoch, .. } => format!("L{} cancelling", epoch.counter()),
            JobStatus::Done { outcome } => match outcome.class {
                Some(class) => format!("{} {class}", outcome.conclusion),
                None => outcome.conclusion.to_string(),
            },
        }
    }

    fn render(&self, effects: &[Effect]) -> String {
        let told = effects.iter().filter(|effect| !matches!(effect, Effect::RunChanged { .. }));
        let told: Vec<String> = told.map(|effect| self.render_one(effect)).collect();
        if told.is_empty() { "nothing".into() } else { told.join(", ") }
    }

    fn render_one(&self, effect: &Effect) -> String {
        let l = |lease: &Lease| format!("L{}", lease.epoch.counter());
        match effect {
            Effect::Admitted { run, repeated: false } => run.to_string(),
            Effect::Admitted { run, repeated: true } => format!("{run} again"),
            Effect::Registered { agent, incarnation } => format!("{agent} {incarnation}"),
            Effect::Redeemed { role, name } => format!("{role}/{name}"),
            Effect::Dispatch => "dispatch".into(),
            Effect::Offer { agent, lease, .. } => {
                format!("offer {} {agent} {}", l(lease), lease.work)
            }
            Effect::NotAssigned { job, why, .. } => format!("not {job}: {why}"),
            Effect::Revoke { agent, lease, .. } => format!("revoke {} {agent}", l(lease)),
            Effect::Cancel { agent, lease, .. } => format!("cancel {} {agent}", l(lease)),
            Effect::Empty { agent, .. } => fleet::render(self, *agent),
            Effect::PlanRun { run, revision } => format!("plan {run} r{revision}"),
            Effect::RunChanged { run } => format!("changed {run}"),
            Effect::RunFinished { run } => format!("{run} is {}", self.show_run(*run)),
            Effect::ClaimGranted { lease, .. } => format!("build {}", l(lease)),
            Effect::ClaimWaits { lease, holder, .. } => {
                format!("wait {} for {}", l(lease), l(holder))
            }
            Effect::ClaimResolved { waiters, resolution, .. } => {
                let mut text = match resolution {
                    Resolution::Published => "published".to_owned(),
                    Resolution::Failed { .. } => "failed".to_owned(),
                    Resolution::Abandoned => "abandoned".to_owned(),
                };
                for waiter in waiters {
                    let _ = write!(text, " {}", l(waiter));
                }
                text
            }
        }
    }
}

/// The words of a line: `key=value`, and plain ones.
#[derive(Debug)]
struct Options<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

/// Words that are no job's key.
const FLAGS: &[&str] = &["open", "more", "seal", "started", "cancels", "queues"];

impl<'a> Options<'a> {
    fn read(words: &[&'a str]) -> Self {
        let mut options = Self { plain: Vec::new(), named: BTreeMap::new() };
        for word in words {
            match word.split_once('=') {
                Some((name, value)) if !name.contains('(') => {
                    options.named.insert(name, value);
                }
                Some(_) | None => options.plain.push(word),
            }
        }
        options
    }

    fn flag(&self, flag: &str) -> bool {
        self.plain.contains(&flag)
    }

    fn text(&self, name: &str, otherwise: &'a str) -> &'a str {
        self.named.get(name).copied().unwrap_or(otherwise)
    }

    fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.named.get(name).map_or(otherwise, |value| {
            value.parse().unwrap_or_else(|_| panic!("`{name}={value}` is no number"))
        })
    }

    fn jobs(&self, skip: usize) -> Vec<NewJob> {
        let words = self.plain.iter().skip(skip).filter(|word| !FLAGS.contains(word));
        words.map(|word| job(word)).collect()
    }
}

/// `KEY/LEG(flag,flag=value)`: needed, fast, max=N, coe, cpu=N, mem=N, on=LABEL+LABEL,
/// skipped, failed, prio=N, spot=never, due=MS, retry=N, group=NAME, cancels, queues.
pub fn job(word: &str) -> NewJob {
    let (head, flags) = word.split_once('(').unwrap_or((word, ""));
    let (key, leg) = head.split_once('/').unwrap_or((head, "0"));
    let flags: Vec<&str> = flags.trim_end_matches(')').split(',').collect();
    let options = Options::read(&flags);
    let decided = match () {
        () if options.flag("skipped") => Some(outcome("skipped", None)),
        () if options.flag("failed") => Some(outcome("failure", Some("config"))),
        () => None,
    };
    let labels = options.text("on", "").split('+').filter(|label| !label.is_empty());
    NewJob {
        key: key.into(),
        leg: leg.parse().expect("a leg is a number"),
        name: head.into(),
        spec: digest(if decided.is_some() { "" } else { head }),
        labels: labels.map(str::to_owned).collect(),
        resources: Resources {
            cpu_milli: options.number("cpu", 0) as u32,
            memory_mib: options.number("mem", 0) as u32,
        },
        needed: options.flag("needed"),
        fail_fast: options.flag("fast"),
        max_parallel: options.number("max", 0) as u32,
        continue_on_error: options.flag("coe"),
        decided,
        priority: options.named.get("prio").map(|text| text.parse().expect("a number")),
        spot: options.named.get("spot").map(|word| scheduling::spot(word)),
        deadline_ms: options.number("due", 0),
        user_retries: options.number("retry", 0) as u32,
        concurrency: scheduling::concurrency(&options),
    }
}

fn new_run(options: &Options<'_>) -> NewRun {
    NewRun {
        request: request(options.plain[0], options),
        name: "ci".into(),
        file: ".steading/pipelines/main.yml".into(),
        submission: digest("submission"),
        dialect: "2026-08".into(),
        priority: options.named.get("priority").map_or(0, |text| text.parse().expect("a number")),
        concurrency: scheduling::concurrency(options),
    }
}

fn request(request: &str, options: &Options<'_>) -> Request {
    Request {
        project: name(options.text("project", "p")),
        principal: name(options.text("by", "me")),
        id: name(request),
        body: digest(options.text("body", "body")),
    }
}

/// The outcome of an attempt.
pub fn outcome(conclusion: &str, failure: Option<&str>) -> Outcome {
    Outcome {
        conclusion: conclusion.parse().expect("a conclusion"),
        class: failure.map(class),
        result: (conclusion != "skipped").then(|| digest("result")),
        counts: StepCounts::default(),
        message: String::new(),
    }
}

/// A digest that stands for a word.
pub fn digest(word: &str) -> Digest {
    Digest { hash: *blake3::hash(word.as_bytes()).as_bytes(), size: word.len() as u64 }
}

fn class(word: &str) -> FailureClass {
    let all = [
        FailureClass::User,
        FailureClass::Timeout,
        FailureClass::Cancelled,
        FailureClass::AgentLost,
        FailureClass::Preempted,
        FailureClass::ImagePull,
        FailureClass::Cache,
        FailureClass::Config,
        FailureClass::Oom,
    ];
    let found = all.into_iter().find(|class| class.as_str() == word);
    found.unwrap_or_else(|| panic!("no failure class `{word}`"))
}

fn name<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("`{word}` is no name"))
}

fn id<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("`{word}` is no id"))
}

fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `250ms`, `9s`, `25h`.
fn duration_ms(word: &str) -> u64 {
    let units = [("ms", 1), ("s", 1_000), ("h", 3_600_000)];
    let found = units.iter().find_map(|(unit, ms)| {
        let number: u64 = word.strip_suffix(unit)?.parse().ok()?;
        Some(number * ms)
    });
    found.unwrap_or_else(|| panic!("`{word}` is no time"))
}
