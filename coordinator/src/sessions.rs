//! Agents that are connected now, and how to reach them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steading_core::Lease;
use steading_model::{AgentId, Incarnation};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Most notices that wait for one session. An agent that takes none of so many is
/// cut off: at its next connection it is told everything at once.
const OUTBOX_MAX: usize = 4_096;
/// How long an agent that declined an offer gets none: what it lacked (a slot, disk)
/// must have time to come back, and the dispatcher must not spin. Twice as long each time
/// that it declines again before it accepted one, and each try costs a log entry or two.
const REST: Duration = Duration::from_secs(1);
/// The longest such rest.
const REST_MAX: Duration = Duration::from_secs(64);
/// Longest reason that is kept, bytes.
const REASON_BYTES_MAX: usize = 200;

/// What a session is to tell its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    Offer(Lease),
    Revoke(Lease),
    Cancel(Lease),
    /// Whether the agent is to be empty changed.
    Empty,
}

/// The connected agents. One session an agent: the newest.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    inner: Mutex<Inner>,
    /// The set of agents that take work changed, or should be looked at again.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: BTreeMap<AgentId, Entry>,
    last: u64,
    /// Of `sessions`, those that take work; made anew when one changes.
    takes_work: Option<Arc<BTreeSet<(AgentId, Incarnation)>>>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    incarnation: Incarnation,
    outbox: mpsc::Sender<Notice>,
    close: CancellationToken,
    draining: bool,
    rests_until: Option<Instant>,
    /// Offers declined since the last one that was accepted, and why the last was.
    declined: u32,
    reason: String,
}

/// One open session. Dropping it takes the agent off the list.
#[derive(Debug)]
pub(crate) struct Session {
    sessions: Arc<Sessions>,
    agent: AgentId,
    number: u64,
    pub(crate) outbox: mpsc::Receiver<Notice>,
    /// The session is to end: the agent opened another, registered again, or takes nothing.
    pub(crate) close: CancellationToken,
}

impl Sessions {
    /// Registers a session; an earlier one of the agent is closed.
    pub(crate) fn open(self: &Arc<Self>, agent: AgentId, incarnation: Incarnation) -> Session {
        let (sender, outbox) = mpsc::channel(OUTBOX_MAX);
        let close = CancellationToken::new();
        let mut inner = self.lock();
        inner.last += 1;
        let number = inner.last;
        let entry = Entry {
            number,
            incarnation,
            outbox: sender,
            close: close.clone(),
            draining: false,
            rests_until: None,
            declined: 0,
            reason: String::new(),
        };
        if let Some(before) = inner.sessions.insert(agent, entry) {
            before.close.cancel();
        }
        inner.takes_work = None;
        drop(inner);
        self.changed.notify_one();
        Session { sessions: Arc::clone(self), agent, number, outbox, close }
    }

    /// Tells the agent, if this incarnation of it is connected. What is not told now
    /// is told at its next connection.
    pub(crate) fn tell(&self, agent: AgentId, incarnation: Incarnation, notice: Notice) {
        let inner = self.lock();
        let Some(entry) = inner.sessions.get(&agent) else {
            return;
        };
        if entry.incarnation == incarnation && entry.outbox.try_send(notice).is_err() {
            entry.close.cancel();
        }
    }

    /// The agent registered anew: sessions of its earlier incarnations end.
    pub(crate) fn registered(&self, agent: AgentId, incarnation: Incarnation) {
        let inner = self.lock();
        if let Some(entry) = inner.sessions.get(&agent)
            && entry.incarnation < incarnation
        {
            entry.close.cancel();
        }
    }

    /// Agents that have a session.
    pub(crate) fn connected(&self) -> BTreeSet<(AgentId, Incarnation)> {
        self.lock().sessions.iter().map(|(agent, entry)| (*agent, entry.incarnation)).collect()
    }

    /// Agents that take work.
    pub(crate) fn taking_work(&self) -> Arc<BTreeSet<(AgentId, Incarnation)>> {
        let now = Instant::now();
        let mut inner = self.lock();
        for entry in inner.sessions.values_mut() {
            if entry.rests_until.is_some_and(|until| until <= now) {
                entry.rests_until = None;
            }
        }
        if let Some(set) = &inner.takes_work {
            return Arc::clone(set);
        }
        let set: BTreeSet<_> = inner
            .sessions
            .iter()
            .filter(|(_, entry)| !entry.draining && entry.rests_until.is_none())
            .map(|(agent, entry)| (*agent, entry.incarnation))
            .collect();
        let set = Arc::new(set);
        // A set that time changes is not kept.
        if inner.sessions.values().all(|entry| entry.rests_until.is_none()) {
            inner.takes_work = Some(Arc::clone(&set));
        }
        set
    }

    /// Agents that have declined an offer and accepted none since, and why they did.
    pub(crate) fn declined(&self) -> BTreeMap<AgentId, String> {
        let inner = self.lock();
        let resting = inner.sessions.iter().filter(|(_, entry)| entry.declined > 0);
        resting.map(|(agent, entry)| (*agent, entry.reason.clone())).collect()
    }

    /// Waits for a change of [`Sessions::taking_work`]; the end of a rest is one.
    pub(crate) async fn changed(&self) {
        let rested = self.lock().sessions.values().filter_map(|entry| entry.rests_until).min();
        match rested {
            None => self.changed.notified().await,
            Some(until) => tokio::select! {
                () = self.changed.notified() => (),
                () = tokio::time::sleep_until(until) => (),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// The agent takes no more offers.
    pub(crate) fn drain(&self) {
        self.edit(|entry| entry.draining = true);
    }

    /// The agent declined an offer: it gets no other for a while. What else it declines
    /// meanwhile was offered before.
    pub(crate) fn declined(&self, reason: &str) {
        self.edit(|entry| {
            let now = Instant::now();
            if entry.rests_until.is_none_or(|until| until <= now) {
                let rest = REST.saturating_mul(1 << entry.declined.min(16)).min(REST_MAX);
                entry.rests_until = Some(now + rest);
                entry.declined += 1;
            }
            let end =
                (0..=REASON_BYTES_MAX.min(reason.len())).rfind(|at| reason.is_char_boundary(*at));
            entry.reason = reason[..end.unwrap_or(0)].to_owned();
        });
    }

    /// What the agent was to be offered cannot be had for now, which is not its fault.
    pub(crate) fn rest(&self) {
        self.edit(|entry| entry.rests_until = entry.rests_until.max(Some(Instant::now() + REST)));
    }

    /// The agent accepted an offer: whatever it lacked has come back.
    pub(crate) fn accepted(&self) {
        let declined = {
            let inner = self.sessions.lock();
            inner.sessions.get(&self.agent).is_some_and(|entry| entry.declined > 0)
        };
        if declined {
            self.edit(|entry| entry.declined = 0);
        }
    }

    fn edit(&self, edit: impl FnOnce(&mut Entry)) {
        let mut inner = self.sessions.lock();
        if let Some(entry) = inner.sessions.get_mut(&self.agent)
            && entry.number == self.number
        {
            edit(entry);
            inner.takes_work = None;
        }
        drop(inner);
        self.sessions.changed.notify_one();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut inner = self.sessions.lock();
        if inner.sessions.get(&self.agent).is_some_and(|entry| entry.number == self.number) {
            inner.sessions.remove(&self.agent);
            inner.takes_work = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use steading_model::{Epoch, JobId, Work};

    use super::*;

    const AGENT: AgentId = AgentId::from_counter(1);
    const FIRST: Incarnation = Incarnation::from_counter(1);
    const SECOND: Incarnation = Incarnation::from_counter(2);

    #[tokio::test]
    async fn the_newest_session_of_an_agent_is_the_one_that_counts() {
        let sessions = Arc::new(Sessions::default());
        let old = sessions.open(AGENT, FIRST);
        let mut new = sessions.open(AGENT, SECOND);
        assert!(old.close.is_cancelled());
        sessions.tell(AGENT, FIRST, Notice::Offer(lease()));
        sessions.tell(AGENT, SECOND, Notice::Revoke(lease()));
        assert_eq!(new.outbox.recv().await, Some(Notice::Revoke(lease())));
        // The end of the old one does not take the agent off the list.
        drop(old);
        assert_eq!(*sessions.taking_work(), BTreeSet::from([(AGENT, SECOND)]));
        drop(new);
        assert!(sessions.taking_work().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_declined_rests_and_comes_back() {
        let sessions = Arc::new(Sessions::default());
        let session = sessions.open(AGENT, FIRST);
        sessions.changed().await;
        assert_eq!(sessions.taking_work().len(), 1);
        // Two that were offered at once.
        session.declined("no disk");
        session.declined("no disk");
        for rest in [REST, REST * 2, REST * 4] {
            sessions.changed().await;
            assert!(sessions.taking_work().is_empty());
            assert_eq!(sessions.declined()[&AGENT], "no disk");
            let start = Instant::now();
            sessions.changed().await;
            assert_eq!(start.elapsed(), rest);
            assert_eq!(sessions.taking_work().len(), 1);
            session.declined("no disk");
        }
        for _ in 0..20 {
            tokio::time::advance(REST_MAX).await;
            assert_eq!(sessions.taking_work().len(), 1);
            session.declined("no disk");
        }
        session.accepted();
        assert!(sessions.declined().is_empty());
        tokio::time::advance(REST_MAX).await;
        session.declined("no slot");
        tokio::time::advance(REST).await;
        assert_eq!(sessions.taking_work().len(), 1);
        session.drain();
        assert!(sessions.taking_work().is_empty());
    }

    #[tokio::test]
    async fn an_agent_that_takes_no_notices_is_cut_off() {
        let sessions = Arc::new(Sessions::default());
        let session = sessions.open(AGENT, FIRST);
        for _ in 0..=OUTBOX_MAX {
            assert!(!session.close.is_cancelled());
            sessions.tell(AGENT, FIRST, Notice::Offer(lease()));
        }
        assert!(session.close.is_cancelled());
    }

    fn lease() -> Lease {
        let work = Work { job: JobId::from_counter(1), attempt: 1 };
        Lease { work, epoch: Epoch::from_counter(1) }
    }
}
