//! Reads that wait for the group: asked of the leader in waves, asked again where
//! the question or the answer was lost, and ended by a bound in time.
//!
//! Each question has a context that no other question of the group has: replica,
//! start, number. Were one used twice, the leader would answer the second with the
//! index that it read for the first.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::ProposeError;

/// Answers a read barrier.
pub(crate) type Reader_ = oneshot::Sender<Result<(), ProposeError>>;

/// Ticks after which a question that has no answer is asked again.
const ASK_AGAIN_TICKS: u64 = 4;

/// Ticks after which a read ends without an answer.
const WAIT_TICKS_MAX: u64 = 80;

/// Bytes of a context: replica, start and number.
const CONTEXT_BYTES: usize = 24;

/// Somebody who waits for a barrier.
#[derive(Debug)]
struct Waiting {
    reader: Reader_,
    /// Only this replica's own leadership will do.
    lead: bool,
    /// The tick at which it came.
    since: u64,
}

/// What stands where.
#[derive(Debug)]
pub(crate) struct Reads {
    replica: u64,
    start: u64,
    /// Number of the last question, and the tick at which it was asked.
    last: u64,
    asked_at: u64,
    new: Vec<Waiting>,
    /// By the first question that was asked after they came: the answer to it, or to
    /// any later one, is theirs.
    asked: BTreeMap<u64, Vec<Waiting>>,
    /// By the index that must be applied first.
    ready: BTreeMap<u64, Vec<Reader_>>,
}

impl Reads {
    pub(crate) const fn new(replica: u64) -> Self {
        Self {
            replica,
            start: 0,
            last: 0,
            asked_at: 0,
            new: Vec::new(),
            asked: BTreeMap::new(),
            ready: BTreeMap::new(),
        }
    }

    /// `start` must differ from that of every other start of this replica.
    pub(crate) const fn set_start(&mut self, start: u64) {
        self.start = start;
    }

    pub(crate) fn add(&mut self, reads: Vec<Reader_>, lead: bool, tick: u64) {
        self.new.extend(reads.into_iter().map(|reader| Waiting { reader, lead, since: tick }));
    }

    /// The context of a question to ask now, if one is due.
    pub(crate) fn question(&mut self, tick: u64) -> Option<Vec<u8>> {
        let again = !self.asked.is_empty() && tick >= self.asked_at + ASK_AGAIN_TICKS;
        if self.new.is_empty() && !again {
            return None;
        }
        self.last += 1;
        self.asked_at = tick;
        if !self.new.is_empty() {
            self.asked.insert(self.last, std::mem::take(&mut self.new));
        }
        let parts = [self.replica, self.start, self.last];
        Some(parts.iter().flat_map(|part| part.to_be_bytes()).collect())
    }

    /// Takes in the leader's answer.
    pub(crate) fn answered(&mut self, context: &[u8], index: u64) {
        let Some(number) = self.number(context) else { return };
        let later = self.asked.split_off(&(number + 1));
        let now = std::mem::replace(&mut self.asked, later).into_values().flatten();
        let now = now.map(|waiting| waiting.reader);
        self.ready.entry(index).or_default().extend(now);
    }

    /// Those whose index is applied.
    pub(crate) fn passed(&mut self, applied: u64) -> impl Iterator<Item = Reader_> + use<> {
        let later = self.ready.split_off(&(applied + 1));
        std::mem::replace(&mut self.ready, later).into_values().flatten()
    }

    /// Those that ask for leadership where there is none.
    pub(crate) fn take_lead(&mut self) -> Vec<Reader_> {
        self.take(|waiting| waiting.lead)
    }

    /// Those that have waited for too long.
    pub(crate) fn take_late(&mut self, tick: u64) -> Vec<Reader_> {
        self.take(|waiting| tick >= waiting.since + WAIT_TICKS_MAX)
    }

    fn take(&mut self, which: impl Fn(&Waiting) -> bool) -> Vec<Reader_> {
        let mut taken = Vec::new();
        for list in std::iter::once(&mut self.new).chain(self.asked.values_mut()) {
            if list.iter().any(&which) {
                let (out, stay) = std::mem::take(list).into_iter().partition(&which);
                *list = stay;
                taken.extend(Vec::into_iter(out).map(|waiting| waiting.reader));
            }
        }
        self.asked.retain(|_, list| !list.is_empty());
        taken
    }

    fn number(&self, context: &[u8]) -> Option<u64> {
        let context: &[u8; CONTEXT_BYTES] = context.try_into().ok()?;
        let part = |at: usize| {
            context.get(at..at + 8).and_then(<[u8]>::first_chunk).map(|it| u64::from_be_bytes(*it))
        };
        let ours = part(0)? == self.replica && part(8)? == self.start;
        ours.then(|| part(16)).flatten()
    }
}
