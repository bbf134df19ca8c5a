//! Proposals of every kind that no honest part of the farm would make: numbers at the end
//! of their range, ids that never were, names of any length. None may panic, leave a trace
//! where it is refused, or make a table grow beyond its bound. The stage checks the rest.

use proptest::collection::vec;
use proptest::prelude::*;
use steading_model::{
    AgentId, Conclusion, Digest, Epoch, FailureClass, Incarnation, JobId, Provisioning, Resources,
    Role, RunId, Spot, StepCounts, Timestamp, Work,
};

use crate::limits;
use crate::testkit::{Stage, digest};
use crate::tests::properties::{play, some_cases, step};
use crate::{
    Assignment, Concurrency, Job, Lease, NewAgent, NewJob, NewRun, NewToken, Outcome, Proposal,
    Request, Resolution, State,
};

/// Kinds of proposals here.
const KINDS: u64 = 32;

proptest! {
    #![proptest_config(some_cases())]

    #[test]
    fn whatever_absurdity_comes_the_state_stays_sound(
        rounds in vec((vec(step(), 0..20), vec(any::<u8>(), 24)), 1..8),
    ) {
        let mut stage = Stage::default();
        for (steps, bytes) in rounds {
            play(&mut stage, &steps);
            let mut dice = Dice(bytes);
            let now = match dice.below(4) {
                0 => Timestamp::default(),
                1 => Timestamp::from_ms(dice.number()),
                _ => stage.state.now(),
            };
            let proposal = absurd(&stage.state, &mut dice);
            let _ = stage.apply(now, proposal);
            check_bounds(&stage.state)?;
        }
    }
}

fn check_bounds(state: &State) -> Result<(), TestCaseError> {
    let tables = [
        ("agents", state.agents.len(), limits::AGENTS_MAX),
        ("replicas", state.replicas.len(), limits::REPLICAS_MAX),
        ("requests", state.requests.len(), limits::REQUEST_IDS_MAX),
        ("tokens", state.identities.tokens.len(), limits::TOKENS_MAX),
        ("denied", state.identities.denied.len(), limits::DENIED_MAX),
        ("members", state.identities.members.len(), limits::MEMBERS_MAX),
        ("authorities", state.identities.authorities.len(), limits::AUTHORITIES_MAX),
    ];
    for (table, len, max) in tables {
        prop_assert!(len <= max, "{} of {}: at most {}", len, table, max);
    }
    for (_, group) in state.groups.iter() {
        prop_assert!(group.pending.len() <= limits::GROUP_PENDING_MAX);
    }
    for job in state.runs_newest_first().flat_map(|run| state.jobs_of(run.id)) {
        prop_assert!(state.earlier_attempts(job.id).count() as u64 <= limits::ATTEMPTS_KEPT_MAX);
    }
    for (key, row) in state.rows() {
        let bytes = key.len() + row.len();
        prop_assert!(bytes <= 256 << 10, "a row of table {} has {} bytes", key[0], bytes);
    }
    Ok(())
}

/// Choices, one after the other; zeros when they are used up.
struct Dice(Vec<u8>);

impl Dice {
    fn below(&mut self, count: u64) -> u64 {
        u64::from(self.0.pop().unwrap_or(0)) % count
    }

    fn number(&mut self) -> u64 {
        let numbers = [0, 1, 2, 3, 5, 1 << 31, 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX];
        numbers[self.below(numbers.len() as u64) as usize]
    }

    fn small(&mut self) -> u32 {
        u32::try_from(self.number()).unwrap_or(u32::MAX)
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn text(&mut self) -> String {
        match self.below(7) {
            0 => String::new(),
            1 => "a1".to_owned(),
            2 => format!("{:032x}", self.below(6)),
            3 => "é".repeat(150),
            4 => "x".repeat(5_000),
            5 => "a\0b\n`\u{202e}".to_owned(),
            _ => format!("t{}", self.below(6)),
        }
    }

    fn storage_id(&mut self) -> String {
        match self.below(4) {
            0 => self.text(),
            choice => format!("{choice:032x}"),
        }
    }

    fn texts(&mut self) -> Vec<String> {
        (0..[0, 1, 3, 100][self.below(4) as usize]).map(|_| self.text()).collect()
    }

    fn hash(&mut self) -> [u8; 32] {
        [self.below(3) as u8; 32]
    }

    fn digest(&mut self) -> Digest {
        Digest { hash: self.hash(), size: self.number() }
    }

    fn run(&mut self, state: &State) -> RunId {
        let known: Vec<RunId> = state.runs_newest_first().map(|run| run.id).collect();
        let any = RunId::from_counter(self.number());
        known.get(self.below(4) as usize).copied().unwrap_or(any)
    }

    fn job(&mut self, state: &State) -> JobId {
        let run = self.run(state);
        let job = state.jobs_of(run).next().map(|job| job.id);
        job.unwrap_or_else(|| JobId::from_counter(self.number()))
    }

    fn lease(&mut self, state: &State) -> Lease {
        let live: Vec<Lease> = state.leased().filter_map(Job::lease).collect();
        let work = Work { job: self.job(state), attempt: self.small() };
        let any = Lease { work, epoch: Epoch::from_counter(self.number()) };
        live.get(self.below(6) as usize).copied().unwrap_or(any)
    }

    fn leases(&mut self, state: &State) -> Vec<Lease> {
        // Doubled ones too.
        let lease = self.lease(state);
        [vec![lease, lease, self.lease(state)], vec![lease; 600], vec![]][self.below(3) as usize]
            .clone()
    }

    fn agent(&mut self, state: &State) -> (AgentId, Incarnation) {
        let known: Vec<_> = state.agents().map(|agent| (agent.id, agent.incarnation)).collect();
        let any = (AgentId::from_counter(self.number()), Incarnation::from_counter(self.number()));
        known.get(self.below(6) as usize).copied().unwrap_or(any)
    }

    fn role(&mut self) -> Role {
        [Role::Coordinator, Role::Agent, Role::Client, Role::Admin][self.below(4) as usize]
    }

    fn class(&mut self) -> FailureClass {
        let all = [FailureClass::AgentLost, FailureClass::User, FailureClass::Preempted];
        all[self.below(3) as usize]
    }

    fn outcome(&mut self) -> Outcome {
        let conclusions = [Conclusion::Success, Conclusion::Failure, Conclusion::Skipped];
        Outcome {
            conclusion: conclusions[self.below(3) as usize],
            class: self.flag().then(|| self.class()),
            result: self.flag().then(|| self.digest()),
            counts: StepCounts {
                executed: self.small(),
                cached: self.small(),
                skipped: self.small(),
                cacheable_executed: self.small(),
            },
            message: self.text(),
        }
    }

    fn request(&mut self) -> Request {
        Request {
            project: "p".parse().unwrap(),
            principal: "me".parse().unwrap(),
            id: format!("absurd-{}", self.below(9)).parse().unwrap(),
            body: digest("one"),
        }
    }

    fn resources(&mut self) -> Resources {
        Resources { cpu_milli: self.small(), memory_mib: self.small() }
    }

    fn concurrency(&mut self) -> Option<Concurrency> {
        self.flag().then(|| Concurrency {
            group: self.text(),
            cancel_in_progress: self.flag(),
            queue_all: self.flag(),
        })
    }

    fn new_job(&mut self) -> NewJob {
        NewJob {
            key: self.text(),
            leg: self.small(),
            name: self.text(),
            spec: self.digest(),
            labels: self.texts(),
            resources: self.resources(),
            needed: self.flag(),
            fail_fast: self.flag(),
            max_parallel: self.small(),
            continue_on_error: self.flag(),
            decided: self.flag().then(|| self.outcome()),
            priority: self.flag().then_some(i32::MIN),
            spot: self.flag().then_some(Spot::Only),
            deadline_ms: self.number(),
            user_retries: self.small(),
            concurrency: self.concurrency(),
        }
    }

    fn new_jobs(&mut self) -> Vec<NewJob> {
        (0..self.below(3)).map(|_| self.new_job()).collect()
    }

    fn new_agent(&mut self) -> NewAgent {
        NewAgent {
            name: self.text(),
            pool: self.text(),
            provisioning: Provisioning::Spot,
            labels: self.texts(),
            slots: self.small(),
            resources: self.resources(),
            cache_endpoint: self.text(),
            properties: self.texts().into_iter().map(|name| (name, "v".to_owned())).collect(),
            start: self.number(),
        }
    }

    fn new_token(&mut self) -> NewToken {
        NewToken {
            id: self.text(),
            secret: self.hash(),
            role: self.role(),
            pool: self.text(),
            name: self.text(),
            uses: self.small(),
            ttl_ms: self.number(),
            by: "me".parse().unwrap(),
        }
    }
}

fn absurd(state: &State, dice: &mut Dice) -> Proposal {
    let scope = || "p".parse().unwrap();
    match dice.below(KINDS) {
        0 | 1 => Proposal::AdmitRun {
            run: NewRun {
                request: dice.request(),
                name: dice.text(),
                file: dice.text(),
                submission: dice.digest(),
                dialect: dice.text(),
                priority: i32::MAX,
                concurrency: dice.concurrency(),
            },
            jobs: dice.new_jobs(),
            sealed: dice.flag(),
            complete: dice.flag(),
        },
        2 => Proposal::AppendJobs {
            run: dice.run(state),
            offset: dice.small(),
            jobs: dice.new_jobs(),
            sealed: dice.flag(),
        },
        3 => Proposal::ExtendRun {
            run: dice.run(state),
            revision: dice.small(),
            seen: dice.small(),
            jobs: dice.new_jobs(),
            complete: dice.flag(),
        },
        4 => Proposal::CancelRun {
            run: dice.run(state),
            request: dice.request(),
            reason: dice.text(),
        },
        5 => Proposal::RegisterAgent { agent: dice.new_agent() },
        6 => {
            let (agent, incarnation) = dice.agent(state);
            Proposal::RetireAgent { agent, incarnation }
        }
        7 | 8 => {
            let (agent, incarnation) = dice.agent(state);
            let assignment = Assignment { job: dice.job(state), agent, incarnation };
            Proposal::Assign { assignments: vec![assignment; [2, 600][dice.below(2) as usize]] }
        }
        9 => Proposal::ExpireLeases { leases: dice.leases(state) },
        10 => Proposal::ReleaseLease {
            lease: dice.lease(state),
            class: dice.class(),
            started: dice.flag(),
        },
        11 => Proposal::CompleteAttempt { lease: dice.lease(state), outcome: dice.outcome() },
        12 => Proposal::ClaimAction {
            scope: scope(),
            action: dice.digest(),
            lease: dice.lease(state),
        },
        13 => Proposal::ResolveClaim {
            scope: scope(),
            action: dice.digest(),
            lease: dice.lease(state),
            resolution: Resolution::Abandoned,
        },
        14 => Proposal::RecordArtifact {
            lease: dice.lease(state),
            name: dice.text(),
            root: dice.digest(),
            files: dice.small(),
            bytes: dice.number(),
        },
        15 => Proposal::RetireRuns { runs: vec![dice.run(state); 2] },
        16 => Proposal::RetryRun {
            run: dice.run(state),
            request: dice.request(),
            revision: dice.small(),
            again: dice.texts(),
        },
        17 => Proposal::GiveUp { jobs: vec![dice.job(state); 3] },
        18 => Proposal::RecordStale { lease: dice.lease(state), outcome: dice.outcome() },
        19 => {
            let (agent, incarnation) = dice.agent(state);
            Proposal::HandBack {
                agent,
                incarnation,
                leases: dice.leases(state),
                window_ms: dice.flag().then(|| dice.number()),
                preempted: dice.flag(),
            }
        }
        20 => Proposal::CordonAgent { name: dice.text(), cordoned: dice.flag() },
        21 => Proposal::DrainAgent {
            name: dice.text(),
            request: format!("drain-{}", dice.below(3)).parse().unwrap(),
            deadline_ms: dice.flag().then(|| dice.number()),
        },
        22 => Proposal::RemoveAgent { name: dice.text() },
        23 => Proposal::AdmitReplica {
            storage_id: dice.storage_id(),
            endpoint: dice.text(),
            level: dice.below(3) as u32,
        },
        24 => Proposal::UpdateReplica {
            replica: dice.number(),
            storage_id: dice.storage_id(),
            endpoint: dice.text(),
            level: dice.below(3) as u32,
        },
        25 => Proposal::RemoveReplica { replica: dice.number(), force: dice.flag() },
        26 => match dice.flag() {
            true => Proposal::SetFeatureLevel { level: dice.small() },
            false => Proposal::CompareChain { index: dice.number(), chain: dice.hash() },
        },
        27 => Proposal::CreateToken { token: dice.new_token() },
        28 => Proposal::RedeemToken {
            id: dice.text(),
            secret: dice.hash(),
            key: dice.hash(),
            name: dice.text(),
        },
        29 => Proposal::RenewMember { role: dice.role(), name: dice.text(), key: dice.hash() },
        30 => Proposal::AddAuthority {
            storage_id: dice.text(),
            certificate: dice.text().into_bytes(),
            ancestors: dice.texts().into_iter().map(String::into_bytes).collect(),
        },
        _ => match dice.below(3) {
            0 => {
                let (subject, reason) = (dice.text(), dice.text());
                Proposal::Deny { subject, reason, by: "me".parse().unwrap() }
            }
            1 => Proposal::Allow { subject: dice.text() },
            _ => Proposal::RevokeToken { id: dice.text() },
        },
    }
}
