//! The state as rows of bytes, and back: for the image on disk and for snapshots.

use std::collections::BTreeMap;

use steading_model::JobId;
use steading_model::RunId;
use steading_model::codec::{Decode, DecodeError, Encode};

use crate::attempt::{EndedAttempt, StaleResults};
use crate::group::Group;
use crate::identity::{Authority, Denial, Enrolled, Token};
use crate::replica::Replica;
use crate::rows::{Agent, Answered, Artifact, Claim, Job, Matrix, Run, Waiter};
use crate::state::{Meta, State};
use crate::table::{Row, Table, Write};

/// Key of the one row that is in no table: counters, time, hash chain.
const META_KEY: &[u8] = &[0];

/// Why rows are no state. The image is damaged, or of a later version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("there are rows, but not the one with the counters")]
    MetaMissing,
    #[error("a key is empty, or names the unknown table {0:?}")]
    Table(Option<u8>),
    #[error("a row of table {table} cannot be read")]
    Row {
        table: u8,
        #[source]
        source: DecodeError,
    },
    #[error("a row of table {table} does not belong to its key")]
    KeyDiffers { table: u8 },
    #[error("{job} is of {run}, which is not there")]
    RunMissing { job: JobId, run: RunId },
}

impl State {
    /// The rows that changed since the last call, each once with its last value:
    /// what brings an image that held the earlier rows up to date. Empty if nothing
    /// was applied in between.
    pub fn take_writes(&mut self) -> Vec<Write> {
        let batches = std::mem::take(&mut self.unsaved.batches);
        if self.unsaved.since == self.meta.applied {
            return Vec::new();
        }
        self.unsaved.since = self.meta.applied;
        let mut rows = BTreeMap::new();
        for batch in batches {
            rows.extend(batch.iter().cloned());
        }
        rows.insert(META_KEY.to_vec(), Some(self.meta.to_bytes()));
        rows.into_iter().collect()
    }

    /// Every row, table by table: the whole image.
    pub fn rows(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        std::iter::once((META_KEY.to_vec(), self.meta.to_bytes()))
            .chain(self.runs.encoded())
            .chain(self.jobs.encoded())
            .chain(self.matrices.encoded())
            .chain(self.agents.encoded())
            .chain(self.claims.encoded())
            .chain(self.waiters.encoded())
            .chain(self.requests.encoded())
            .chain(self.artifacts.encoded())
            .chain(self.replicas.encoded())
            .chain(self.groups.encoded())
            .chain(self.attempts.encoded())
            .chain(self.stale.encoded())
            .chain(self.identities.encoded())
    }

    /// The state that has these rows, in any order; the empty one for none.
    ///
    /// # Errors
    ///
    /// [`ImageError`] for rows that are none of a state. Never panics.
    pub fn from_rows(
        rows: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<Self, ImageError> {
        let mut state = Self::default();
        let mut meta = None;
        let mut empty = true;
        for (key, row) in rows {
            empty = false;
            if key == META_KEY {
                meta = Some(read(0, Meta::from_bytes(&row))?);
            } else {
                state.load(&key, &row)?;
            }
        }
        match meta {
            Some(meta) => state.meta = meta,
            None if empty => return Ok(state),
            None => return Err(ImageError::MetaMissing),
        }
        state.unsaved.since = state.meta.applied;
        state.check_keys()?;
        state.build_index()?;
        Ok(state)
    }

    fn load(&mut self, key: &[u8], row: &[u8]) -> Result<(), ImageError> {
        let Some((&table, key)) = key.split_first() else {
            return Err(ImageError::Table(None));
        };
        let outcome = match table {
            Run::TABLE => self.runs.load(key, row),
            Job::TABLE => self.jobs.load(key, row),
            Matrix::TABLE => self.matrices.load(key, row),
            Agent::TABLE => self.agents.load(key, row),
            Claim::TABLE => self.claims.load(key, row),
            Waiter::TABLE => self.waiters.load(key, row),
            Answered::TABLE => self.requests.load(key, row),
            Artifact::TABLE => self.artifacts.load(key, row),
            Replica::TABLE => self.replicas.load(key, row),
            Group::TABLE => self.groups.load(key, row),
            EndedAttempt::TABLE => self.attempts.load(key, row),
            StaleResults::TABLE => self.stale.load(key, row),
            Authority::TABLE => self.identities.authorities.load(key, row),
            Token::TABLE => self.identities.tokens.load(key, row),
            Denial::TABLE => self.identities.denied.load(key, row),
            Enrolled::TABLE => self.identities.members.load(key, row),
            _ => return Err(ImageError::Table(Some(table))),
        };
        read(table, outcome)
    }

    /// Rows that name themselves must stand under that name.
    fn check_keys(&self) -> Result<(), ImageError> {
        fn check<R: Row>(
            table: &Table<R>,
            belongs: impl Fn(&R::Key, &R) -> bool,
        ) -> Result<(), ImageError> {
            match table.iter().all(|(key, row)| belongs(key, row)) {
                true => Ok(()),
                false => Err(ImageError::KeyDiffers { table: R::TABLE }),
            }
        }
        check(&self.runs, |key, row| *key == row.id)?;
        check(&self.jobs, |key, row| *key == row.id)?;
        check(&self.agents, |key, row| *key == row.id)?;
        check(&self.replicas, |key, row| *key == row.id)?;
        check(&self.identities.authorities, |key, row| *key == row.storage_id)?;
        check(&self.identities.tokens, |key, row| *key == row.definition.id)
    }

    fn build_index(&mut self) -> Result<(), ImageError> {
        for (_, run) in self.runs.iter() {
            self.index.run(None, Some(run));
        }
        for (_, job) in self.jobs.iter() {
            let Some(run) = self.runs.get(&job.run) else {
                return Err(ImageError::RunMissing { job: job.id, run: job.run });
            };
            self.index.job(None, Some(job), run.is_started());
        }
        for (_, agent) in self.agents.iter() {
            self.index.agent(None, Some(agent));
        }
        for (key, claim) in self.claims.iter() {
            self.index.claim(key, None, Some(claim));
        }
        for (key, waiter) in self.waiters.iter() {
            self.index.waiter(key, None, Some(waiter));
        }
        for (key, answered) in self.requests.iter() {
            self.index.request(key, None, Some(answered));
        }
        Ok(())
    }
}

fn read<T>(table: u8, outcome: Result<T, DecodeError>) -> Result<T, ImageError> {
    outcome.map_err(|source| ImageError::Row { table, source })
}
