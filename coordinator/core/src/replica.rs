//! Replicas: the directories that belong to the group, and where they listen. Who of
//! them votes is Raft's own configuration, which follows these rows.

use std::sync::Arc;

use steading_model::Timestamp;
use steading_model::codec::record;
use steading_model::limits::NAME_BYTES_MAX;

use crate::effect::Rejection;
use crate::limits::REPLICAS_MAX;
use crate::run::at_most;
use crate::state::{State, Turn};
use crate::table::Row;

/// Who founds a group has this id, so that it is never given to another.
pub const FOUNDER: u64 = 1;

/// Hexadecimal digits of the name of a directory.
const STORAGE_ID_LEN: usize = 32;

/// A member of the group, or one that was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Raft's name for it. Counted, so that an empty disk is always somebody new.
    pub id: u64,
    /// Names its directory, and the replica in its certificate.
    pub storage_id: String,
    /// Where it listens.
    pub endpoint: String,
    /// The newest kinds of proposals that its version knows.
    pub level: u32,
    pub admitted: Timestamp,
    /// Asked to leave. Absorbs; the row stays, so that it is refused when it comes back.
    pub removed: bool,
    /// It leaves even where that makes the number of voters even.
    pub forced: bool,
    pub version: u64,
}

record! { Replica { id, storage_id, endpoint, level, admitted, removed, forced, version } }

impl Row for Replica {
    type Key = u64;
    const TABLE: u8 = 9;
}

impl State {
    pub fn replica(&self, id: u64) -> Option<&Replica> {
        self.replicas.get(&id).map(Arc::as_ref)
    }

    /// The replica of a directory, removed or not.
    pub fn replica_by_storage(&self, storage_id: &str) -> Option<&Replica> {
        self.replicas().find(|replica| replica.storage_id == storage_id)
    }

    /// In the order of their ids, the removed ones with them.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().map(|(_, replica)| replica.as_ref())
    }

    /// A known directory keeps its id, whatever else it says of itself.
    pub(crate) fn admit_replica(
        &mut self,
        turn: &Turn,
        storage_id: String,
        endpoint: String,
        level: u32,
    ) -> Result<(), Rejection> {
        check_replica(&storage_id, &endpoint)?;
        self.check_replica_level(level)?;
        if let Some(known) = self.replica_by_storage(&storage_id) {
            return self.update_replica(turn, known.id, storage_id, endpoint, level);
        }
        self.make_room_for_a_replica()?;
        let id = self.meta.counters.replica.max(FOUNDER) + 1;
        self.meta.counters.replica = id;
        self.put_replica(turn, id, storage_id, endpoint, level);
        Ok(())
    }

    /// What a member says of itself under the id that it has. The founder of a group, and
    /// who carries one on alone, become known by it.
    pub(crate) fn update_replica(
        &mut self,
        turn: &Turn,
        id: u64,
        storage_id: String,
        endpoint: String,
        level: u32,
    ) -> Result<(), Rejection> {
        check_replica(&storage_id, &endpoint)?;
        self.check_replica_level(level)?;
        let other = self.replica_by_storage(&storage_id).is_some_and(|known| known.id != id);
        match self.replica(id) {
            _ if other => return Err(Rejection::ReplicaDiffers),
            Some(known) if known.storage_id != storage_id => return Err(Rejection::ReplicaDiffers),
            Some(known) if known.removed => return Err(Rejection::ReplicaRemoved),
            // Written only where something changes: it is asked at every start.
            Some(known) if known.endpoint == endpoint && known.level == level => return Ok(()),
            Some(known) => {
                let row = Replica { endpoint, level, version: turn.version, ..known.clone() };
                self.set_replica(row);
            }
            // Never given out; and what is counted from must not be somebody's choice.
            None if id == 0 || id > self.meta.counters.replica.max(FOUNDER) => {
                return Err(Rejection::ReplicaUnknown);
            }
            None => {
                self.make_room_for_a_replica()?;
                self.meta.counters.replica = self.meta.counters.replica.max(id);
                self.put_replica(turn, id, storage_id, endpoint, level);
            }
        }
        Ok(())
    }

    pub(crate) fn remove_replica(
        &mut self,
        turn: &Turn,
        id: u64,
        force: bool,
    ) -> Result<(), Rejection> {
        let known = self.replica(id).ok_or(Rejection::ReplicaUnknown)?;
        let others = self.replicas().filter(|replica| !replica.removed && replica.id != id);
        if others.count() == 0 {
            return Err(Rejection::ReplicaLast);
        }
        let forced = known.forced || force;
        let row = Replica { removed: true, forced, version: turn.version, ..known.clone() };
        self.retire_authority(turn, &row.storage_id);
        self.set_replica(row);
        Ok(())
    }

    fn set_replica(&mut self, row: Replica) {
        let was_of_one_version = self.is_of_one_version();
        let id = row.id;
        self.replicas.set(&id, Some(Arc::new(row)));
        // What the last one of another version hashed, or sent to others, is not comparable.
        if !was_of_one_version && self.is_of_one_version() {
            self.begin_chain();
        }
    }

    fn put_replica(
        &mut self,
        turn: &Turn,
        id: u64,
        storage_id: String,
        endpoint: String,
        level: u32,
    ) {
        let row = Replica {
            id,
            storage_id,
            endpoint,
            level,
            admitted: turn.now,
            removed: false,
            forced: false,
            version: turn.version,
        };
        self.set_replica(row);
    }

    /// Forgets the replica that was removed first, where the table is full.
    fn make_room_for_a_replica(&mut self) -> Result<(), Rejection> {
        if self.replicas.len() < REPLICAS_MAX {
            return Ok(());
        }
        let removed = self.replicas().filter(|replica| replica.removed);
        let oldest = removed.min_by_key(|replica| (replica.version, replica.id));
        match oldest.map(|replica| replica.id) {
            Some(id) => {
                self.replicas.set(&id, None);
                Ok(())
            }
            None => at_most("number of replicas", self.replicas.len() + 1, REPLICAS_MAX),
        }
    }
}

fn check_replica(storage_id: &str, endpoint: &str) -> Result<(), Rejection> {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if storage_id.len() != STORAGE_ID_LEN || !storage_id.bytes().all(digit) {
        return Err(Rejection::ReplicaDiffers);
    }
    at_most("size of an endpoint", endpoint.len(), NAME_BYTES_MAX)
}
