//! The shell around a simulated replica: what the coordinator's services, dispatcher,
//! planner, sessions and expiry do, without a runtime. Pure: what should be sent comes
//! out as [`Out`], what should be proposed lies in `wave` and `reads`.

mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steading_coordinator::LeaseBook;
use steading_coordinator::replica::ProposeError;
use steading_coordinator::replica::testkit::Answer;
use steading_core::{Effect, JobStatus, Lease, Proposal, Rejection, State};
use steading_model::{AgentId, FailureClass, Incarnation, RunId};

use super::net::Peer;
use super::queue::{S, Us};

/// How long an agent that declined gets no offer.
const REST: Us = S;

/// Most plans under way at once.
const PLANS_MAX: usize = 2;

/// Finished runs that are kept; a simulation's state must stay small.
const FINISHED_KEPT: usize = 8;

/// What an agent says on its session.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    Hello { agent: AgentId, incarnation: Incarnation, running: Vec<Lease> },
    Renew { sequence: u64, leases: Vec<Lease> },
    Accept { sequence: u64, lease: Lease },
    Decline(Lease),
    Drain,
}

/// What it hears.
#[derive(Clone, Debug)]
pub(crate) enum Hear {
    Welcome { leases: Vec<Lease>, cancelling: Vec<Lease> },
    Offer(Lease),
    Renewed { sequence: u64, leases: Vec<Lease>, refused: Vec<Lease> },
    Revoke(Lease),
    Cancel(Lease),
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Broken,
    NotLeader,
    /// The incarnation is not the agent's current one.
    Stale,
}

/// What a caller is told.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Done(Vec<Effect>),
    Rejected(Rejection),
    NotLeader,
    Unknown,
}

/// What the shell wants sent.
#[derive(Debug)]
pub(crate) enum Out {
    Hear { conn: u64, hear: Hear },
    Close { conn: u64, end: End },
    Told { to: Peer, call: u64, told: Told },
}

/// What the shell sees: the published state, and its own clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    pub(crate) now: Us,
}

impl View<'_> {
    /// The same clock, as the account of leases wants it.
    const fn time(self) -> Duration {
        Duration::from_micros(self.now)
    }
}

#[derive(Debug)]
struct Session {
    conn: u64,
    incarnation: Incarnation,
    welcomed: bool,
    draining: bool,
    rests_until: Us,
    waiting: Vec<(u64, Vec<Lease>)>,
    /// A barrier for renewals is under way.
    asked: bool,
    known: BTreeSet<Lease>,
}

impl Session {
    /// Unless the agent knows of it.
    fn offer(&mut self, state: &State, lease: Lease, out: &mut Vec<Out>) {
        if !self.known.insert(lease) {
            return;
        }
        out.push(Out::Hear { conn: self.conn, hear: Hear::Offer(lease) });
        // What was said of it before, the agent did not know what to do with.
        if state.is_cancelling(lease) {
            out.push(Out::Hear { conn: self.conn, hear: Hear::Cancel(lease) });
        }
    }
}

#[derive(Debug)]
enum Pending {
    Call {
        from: Peer,
        call: u64,
        proposal: Box<Proposal>,
    },
    Assign,
    Plan {
        run: RunId,
        later: Vec<Proposal>,
    },
    Expire(Vec<Lease>),
    Settle(Vec<Lease>),
    Welcome {
        conn: u64,
        agent: AgentId,
    },
    Renew {
        conn: u64,
        agent: AgentId,
        asked: Vec<(u64, Vec<Lease>)>,
    },
    Decline(Lease),
    /// Nobody waits for it.
    Aside,
}

/// The memory of one process.
#[derive(Debug, Default)]
pub(crate) struct Shell {
    sessions: BTreeMap<AgentId, Session>,
    book: LeaseBook,
    /// The term that has begun here.
    begun: Option<u64>,
    pending: BTreeMap<u64, Pending>,
    number: u64,
    pub(crate) wave: Vec<(u64, Proposal)>,
    pub(crate) reads: Vec<u64>,
    dispatch: bool,
    assigning: bool,
    due: BTreeSet<RunId>,
    /// Planned, and on their way: when they are there.
    plans: Vec<(Us, RunId, Vec<Proposal>)>,
    planning: BTreeSet<RunId>,
    expiring: bool,
    retire: bool,
    /// Something that must not happen did.
    pub(crate) broken: Option<String>,
}

impl Shell {
    fn propose(&mut self, proposal: Proposal, pending: Pending) {
        self.number += 1;
        self.pending.insert(self.number, pending);
        self.wave.push((self.number, proposal));
    }

    fn read(&mut self, pending: Pending) {
        self.number += 1;
        self.pending.insert(self.number, pending);
        self.reads.push(self.number);
    }

    /// A unary call.
    pub(crate) fn called(&mut self, from: Peer, call: u64, proposal: Proposal) {
        self.propose(proposal.clone(), Pending::Call { from, call, proposal: Box::new(proposal) });
    }

    /// An agent said something on its session.
    pub(crate) fn heard(&mut self, view: View<'_>, conn: u64, say: Say, out: &mut Vec<Out>) {
        if let Say::Hello { agent, incarnation, running } = say {
            return self.hello(view, conn, agent, incarnation, running, out);
        }
        let found = self.sessions.iter().find(|(_, session)| session.conn == conn);
        let Some((&agent, _)) = found else { return };
        let Some(session) = self.sessions.get_mut(&agent) else { return };
        match say {
            Say::Hello { .. } => (),
            Say::Renew { sequence, leases } => session.waiting.push((sequence, leases)),
            Say::Accept { sequence, lease } => session.waiting.push((sequence, vec![lease])),
            Say::Decline(lease) => {
                session.rests_until = view.now + REST;
                let (class, started) = (FailureClass::Preempted, false);
                let release = Proposal::ReleaseLease { lease, class, started };
                self.propose(release, Pending::Decline(lease));
            }
            Say::Drain => session.draining = true,
        }
        self.ask(agent);
    }

    fn hello(
        &mut self,
        view: View<'_>,
        conn: u64,
        agent: AgentId,
        incarnation: Incarnation,
        running: Vec<Lease>,
        out: &mut Vec<Out>,
    ) {
        if view.state.agent(agent).is_some_and(|known| known.incarnation > incarnation) {
            out.push(Out::Close { conn, end: End::Stale });
            return;
        }
        let session = Session {
            conn,
            incarnation,
            welcomed: false,
            draining: false,
            rests_until: 0,
            waiting: Vec::new(),
            asked: false,
            known: running.into_iter().collect(),
        };
        if let Some(before) = self.sessions.insert(agent, session) {
            out.push(Out::Close { conn: before.conn, end: End::Broken });
        }
        self.read(Pending::Welcome { conn, agent });
    }

    /// One quorum round for everything that was asked before it began.
    fn ask(&mut self, agent: AgentId) {
        let Some(session) = self.sessions.get_mut(&agent) else { return };
        if session.waiting.is_empty() || session.asked || !session.welcomed {
            return;
        }
        let conn = session.conn;
        let asked = std::mem::take(&mut session.waiting);
        session.asked = true;
        self.read(Pending::Renew { conn, agent, asked });
    }

    /// The connection is gone.
    pub(crate) fn closed(&mut self, conn: u64) {
        self.sessions.retain(|_, session| session.conn != conn);
    }

    /// This replica does not lead any more: its agents go to the one that does.
    pub(crate) fn stepped_down(&mut self, out: &mut Vec<Out>) {
        self.sessions.retain(|_, session| {
            if session.welcomed {
                out.push(Out::Close { conn: session.conn, end: End::NotLeader });
            }
            !session.welcomed
        });
    }

    fn close(&mut self, agent: AgentId, conn: u64, end: End, out: &mut Vec<Out>) {
        if self.sessions.get(&agent).is_some_and(|session| session.conn == conn) {
            self.sessions.remove(&agent);
        }
        out.push(Out::Close { conn, end });
    }

    /// A barrier passed or did not.
    pub(crate) fn read_done(
        &mut self,
        view: View<'_>,
        number: u64,
        passed: Result<(), ProposeError>,
        out: &mut Vec<Out>,
    ) {
        match self.pending.remove(&number) {
            Some(Pending::Welcome { conn, agent }) => match passed {
                Ok(()) => self.welcome(view, agent, conn, out),
                Err(_) => self.close(agent, conn, End::NotLeader, out),
            },
            Some(Pending::Renew { conn, agent, asked }) => match passed {
                Ok(()) => {
                    self.renew(view, agent, conn, asked, out);
                    self.ask(agent);
                }
                Err(_) => self.close(agent, conn, End::NotLeader, out),
            },
            Some(Pending::Settle(leases)) => match passed {
                Err(ProposeError::Unknown | ProposeError::Busy) => {
                    self.read(Pending::Settle(leases));
                }
                Ok(()) | Err(_) => {
                    self.expiring = false;
                    self.book.not_expired(view.time(), &leases);
                }
            },
            _ => (),
        }
    }

    /// The full sets.
    fn welcome(&mut self, view: View<'_>, agent: AgentId, conn: u64, out: &mut Vec<Out>) {
        let Some(session) = self.sessions.get_mut(&agent).filter(|it| it.conn == conn) else {
            return;
        };
        let current = view.state.agent(agent).map(|agent| agent.incarnation);
        if current != Some(session.incarnation) {
            return self.close(agent, conn, End::Stale, out);
        }
        session.welcomed = true;
        let held = || view.state.leases_of(agent);
        let leases: Vec<Lease> = held().filter_map(|job| job.lease()).collect();
        let cancelling =
            leases.iter().copied().filter(|lease| view.state.is_cancelling(*lease)).collect();
        let hear = Hear::Welcome { leases: leases.clone(), cancelling };
        out.push(Out::Hear { conn, hear });
        leases.into_iter().for_each(|lease| session.offer(view.state, lease, out));
        self.dispatch = true;
        self.ask(agent);
    }

    fn renew(
        &mut self,
        view: View<'_>,
        agent: AgentId,
        conn: u64,
        asked: Vec<(u64, Vec<Lease>)>,
        out: &mut Vec<Out>,
    ) {
        let Some(session) = self.sessions.get_mut(&agent).filter(|it| it.conn == conn) else {
            return;
        };
        session.asked = false;
        for (sequence, leases) in asked {
            let holds = |lease: &Lease| {
                let status = view.state.leased_job(*lease).map(|job| &job.status);
                matches!(status, Some(JobStatus::Leased { agent: holder, .. }) if *holder == agent)
            };
            let (held, refused): (Vec<Lease>, Vec<Lease>) = leases.into_iter().partition(holds);
            let renewed = self.book.renew(view.time(), &held);
            let hear = Hear::Renewed { sequence, leases: renewed, refused };
            out.push(Out::Hear { conn, hear });
        }
        session.known.retain(|lease| view.state.leased_job(*lease).is_some());
    }

    /// Begins a term, or ends it. `leads`: the term in which this replica leads.
    pub(crate) fn stand(&mut self, view: View<'_>, leads: Option<u64>, out: &mut Vec<Out>) -> bool {
        if self.begun == leads {
            return false;
        }
        if self.begun.is_some() {
            self.book.end_term();
            self.stepped_down(out);
        }
        if let Some(term) = leads {
            let leases = view.state.leased().filter_map(|job| job.lease());
            self.book.begin_term(view.time(), term, leases);
            self.derive(view, out);
        }
        self.begun = leads;
        leads.is_some()
    }

    /// Some effects were missed. Not leading, there is nothing to miss.
    pub(crate) fn resync(&mut self, view: View<'_>, out: &mut Vec<Out>) {
        if self.begun.is_some() {
            let leases = view.state.leased().filter_map(|job| job.lease()).collect();
            self.book.resync(view.time(), &leases);
            self.derive(view, out);
        }
    }

    fn derive(&mut self, view: View<'_>, out: &mut Vec<Out>) {
        for effect in view.state.outstanding() {
            self.route(view, effect, out);
        }
        self.dispatch = true;
        self.retire = true;
    }

    pub(crate) fn route(&mut self, view: View<'_>, effect: Effect, out: &mut Vec<Out>) {
        match effect {
            Effect::Registered { agent, incarnation } => {
                let old = self.sessions.get(&agent).filter(|it| it.incarnation < incarnation);
                if let Some(conn) = old.map(|session| session.conn) {
                    self.close(agent, conn, End::Broken, out);
                }
            }
            Effect::Dispatch => self.dispatch = true,
            Effect::Offer { agent, incarnation, lease } => {
                self.book.granted(view.time(), lease);
                let session = self.sessions.get_mut(&agent);
                if let Some(session) = session.filter(|it| it.incarnation == incarnation)
                    && session.welcomed
                {
                    session.offer(view.state, lease, out);
                }
            }
            Effect::Revoke { agent, incarnation, lease } => {
                self.book.ended(lease);
                self.tell(agent, incarnation, Hear::Revoke(lease), out);
            }
            Effect::Cancel { agent, incarnation, lease } => {
                self.tell(agent, incarnation, Hear::Cancel(lease), out);
            }
            Effect::PlanRun { run, .. } => {
                self.due.insert(run);
            }
            Effect::RunFinished { .. } => self.retire = true,
            _ => (),
        }
    }

    fn tell(&self, agent: AgentId, incarnation: Incarnation, hear: Hear, out: &mut Vec<Out>) {
        let session = self.sessions.get(&agent).filter(|it| it.incarnation == incarnation);
        if let Some(session) = session.filter(|it| it.welcomed) {
            out.push(Out::Hear { conn: session.conn, hear });
        }
    }

    /// A proposal was answered.
    pub(crate) fn answered(
        &mut self,
        view: View<'_>,
        number: u64,
        answer: Answer,
        out: &mut Vec<Out>,
    ) {
        match self.pending.remove(&number) {
            Some(Pending::Call { from, call, proposal }) => {
                self.call_answered(view.state, &proposal, &answer);
                let told = match answer {
                    Ok(effects) => Told::Done(effects),
                    Err(ProposeError::Rejected(rejection)) => Told::Rejected(rejection),
                    Err(ProposeError::NotLeader) => Told::NotLeader,
                    Err(_) => Told::Unknown,
                };
                out.push(Out::Told { to: from, call, told });
            }
            Some(Pending::Assign) => {
                self.assigning = false;
                let granted = |effect: &Effect| matches!(effect, Effect::Offer { .. });
                self.dispatch |= match answer {
                    Ok(effects) => effects.iter().any(granted),
                    Err(ProposeError::Busy) => true,
                    Err(_) => false,
                };
            }
            Some(Pending::Plan { run, later }) => self.planned(run, later, answer),
            Some(Pending::Expire(leases)) => match answer {
                Ok(_) => {
                    self.expiring = false;
                    leases.iter().for_each(|lease| self.book.ended(*lease));
                }
                Err(ProposeError::Unknown) => self.read(Pending::Settle(leases)),
                Err(_) => {
                    self.expiring = false;
                    self.book.not_expired(view.time(), &leases);
                }
            },
            Some(Pending::Decline(lease)) if answer.is_ok() => self.book.ended(lease),
            _ => (),
        }
    }

    fn call_answered(&mut self, state: &State, proposal: &Proposal, answer: &Answer) {
        match (proposal, answer) {
            (
                Proposal::CompleteAttempt { lease, .. } | Proposal::ReleaseLease { lease, .. },
                Ok(_),
            ) => self.book.ended(*lease),
            (Proposal::HandBack { leases, .. }, Ok(_)) => {
                let ended = leases.iter().filter(|lease| state.leased_job(**lease).is_none());
                ended.for_each(|lease| self.book.ended(*lease));
            }
            (
                Proposal::CompleteAttempt { lease, outcome },
                Err(ProposeError::Rejected(Rejection::LeaseStale)),
            ) => {
                let late = Proposal::RecordStale { lease: *lease, outcome: outcome.clone() };
                self.propose(late, Pending::Aside);
            }
            _ => (),
        }
    }
}
