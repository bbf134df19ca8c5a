//! How full the coordinator's disk is, and what follows.
//!
//! A leader on a full disk keeps its lead and takes nothing, which stops the whole group.
//! So one that runs low hands its lead away and refuses submissions, and one that is about
//! to fail stops by itself, cleanly, before a write does it. A file that holds nothing is
//! kept meanwhile: when it is removed, a stopped coordinator can start and compact its log.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::blocking::blocking;
use crate::replica::{Bar, Replica};

/// Low: less than this part of the disk is free, in hundredths.
const LOW_PERCENT: u64 = 10;
/// Above this the part does not matter, bytes: on a large disk a tenth is plenty.
const LOW_BYTES_MAX: u64 = 4 << 30;
/// Critical: less than this part is free, in hundredths.
const CRITICAL_PERCENT: u64 = 2;
/// As for low, bytes.
const CRITICAL_BYTES_MAX: u64 = 512 << 20;
/// What is critical where low is configured, as a part of it.
const CRITICAL_OF_LOW: u64 = 8;
/// What has to be free besides, before a disk that was low is so no more: a part of low.
/// Else leadership would come and go with every blob.
const RECOVERED_OF_LOW: u64 = 4;
/// How often the task looks.
const PERIOD: Duration = Duration::from_secs(1);
/// How long a coordinator that starts on a critical disk may try to compact.
const GRACE: Duration = Duration::from_secs(90);

const BALLAST: &str = "ballast";

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    /// Every write may be the one that fails.
    Critical,
    Low,
    Enough,
}

/// Below which numbers of free bytes there is how much room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    low: u64,
    critical: u64,
}

impl Marks {
    /// For a disk of so many bytes. `low`: what the configuration says, if it does.
    pub(crate) fn of(total: u64, low: Option<u64>) -> Self {
        let part = |percent: u64| total / 100 * percent;
        match low {
            Some(low) => Self { low, critical: low / CRITICAL_OF_LOW },
            None => Self {
                low: part(LOW_PERCENT).min(LOW_BYTES_MAX),
                critical: part(CRITICAL_PERCENT).min(CRITICAL_BYTES_MAX),
            },
        }
    }

    /// How much room there is now, which was `before`.
    pub(crate) fn room(self, before: Room, free: u64) -> Room {
        let recovered = self.low.saturating_add(self.low / RECOVERED_OF_LOW);
        if free < self.critical {
            Room::Critical
        } else if free < self.low || (before != Room::Enough && free < recovered) {
            Room::Low
        } else {
            Room::Enough
        }
    }
}

/// The disk of a data directory.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    /// Bytes; zero: nobody looks.
    low: Option<u64>,
    ballast_bytes: u64,
}

impl Disk {
    /// `low` in bytes: zero is never low, none is a part of the disk.
    pub(crate) fn new(dir: &Path, low: Option<u64>, ballast_bytes: u64) -> Self {
        Self { dir: dir.to_owned(), low, ballast_bytes }
    }

    /// How much room there is, and the free bytes. A disk that cannot be asked has enough.
    fn look(&self, before: Room) -> (Room, u64) {
        self.look_without(0, before)
    }

    /// The same as if so many bytes more were taken.
    fn look_without(&self, taken: u64, before: Room) -> (Room, u64) {
        if self.low == Some(0) {
            return (Room::Enough, u64::MAX);
        }
        match statvfs(&self.dir) {
            Ok(stat) => {
                let unit = stat.fragment_size();
                let free = (stat.blocks_available() * unit).saturating_sub(taken);
                let marks = Marks::of(stat.blocks() * unit, self.low);
                (marks.room(before, free), free)
            }
            Err(error) => {
                tracing::warn!(%error, "the disk does not say how full it is");
                (Room::Enough, u64::MAX)
            }
        }
    }

    /// Before a submission is taken.
    ///
    /// # Errors
    ///
    /// RESOURCE_EXHAUSTED where room is low, with what to do.
    pub(crate) fn check(&self) -> Result<(), Status> {
        match self.look(Room::Enough) {
            (Room::Enough, _) => Ok(()),
            (Room::Low | Room::Critical, free) => Err(Status::resource_exhausted(format!(
                "the coordinator's disk is nearly full: {free} bytes are free; make room in `{}`, \
                 or lower `store_bytes_max` and `finished_runs_kept` in the file that --config \
                 names and start it again",
                self.dir.display()
            ))),
        }
    }

    /// Before anything is opened: gives up the ballast where the disk is too full to start,
    /// and takes it where there is room. Blocks.
    pub(crate) fn make_room_to_start(&self) {
        let path = self.dir.join(BALLAST);
        let room = self.look(Room::Enough).0;
        if room == Room::Enough {
            self.keep_ballast();
        }
        if room == Room::Critical && path.exists() {
            tracing::error!(path = %path.display(), "the disk is full: the ballast is given up");
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::error!(%error, "the ballast cannot be removed");
            }
        }
    }

    /// Takes room where that leaves enough. Blocks.
    fn keep_ballast(&self) {
        let path = self.dir.join(BALLAST);
        if self.ballast_bytes == 0 || path.exists() {
            return;
        }
        // As much as a disk that was low needs, or giving it up and taking it would alternate.
        if self.look_without(self.ballast_bytes, Room::Low).0 != Room::Enough {
            return;
        }
        let made = File::create(&path).and_then(|file| {
            let size = i64::try_from(self.ballast_bytes).unwrap_or(i64::MAX);
            posix_fallocate(&file, 0, size)?;
            file.sync_all()
        });
        if let Err(error) = made {
            tracing::warn!(%error, "no ballast is kept");
            // What there is of it helps nobody.
            let _ = std::fs::remove_file(&path);
        }
    }

    /// Looks until `stop`. Ends by itself where the next write may fail.
    pub(crate) async fn run(self, replica: Replica, stop: CancellationToken) -> anyhow::Result<()> {
        let started = tokio::time::Instant::now();
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut room = Room::Enough;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let disk = self.clone();
            let looked = blocking(move || {
                let (now, free) = disk.look(room);
                if now == Room::Enough {
                    disk.keep_ballast();
                }
                (now, free)
            });
            let (now, free) = looked.await.context("look at the disk")?;
            if now != room {
                let dir = self.dir.display();
                match now {
                    Room::Enough => tracing::info!(free, "there is room on the disk again"),
                    Room::Low => tracing::error!(free, %dir, "the disk is nearly full: make room"),
                    Room::Critical => tracing::error!(free, %dir, "the disk is full: make room"),
                }
                room = now;
            }
            // Said again each time: it may have been lost. Who is alone has nobody to lead.
            let alone = replica.membership().is_single(replica.id());
            replica.bar(Bar::Disk, room != Room::Enough && !alone);
            if room == Room::Critical && started.elapsed() > GRACE {
                anyhow::bail!(
                    "the disk of `{}` has {free} bytes left: this coordinator stops before a \
                     write fails; make room and start it again",
                    self.dir.display()
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    #[test]
    fn room_is_a_part_of_the_disk_or_a_number_of_bytes() {
        use Room::{Critical, Enough, Low};
        // (disk, configured, before, free) -> room
        for (total, low, before, free, want) in [
            (10 * GB, None, Enough, 2 * GB, Enough),
            (10 * GB, None, Enough, GB - GB / 10, Low),
            (10 * GB, None, Enough, GB / 10, Critical),
            // A tenth of a large disk is plenty.
            (1_000 * GB, None, Enough, 5 * GB, Enough),
            (1_000 * GB, None, Enough, 3 * GB, Low),
            (1_000 * GB, None, Enough, GB / 4, Critical),
            // Not back and forth with every blob.
            (10 * GB, None, Low, GB + GB / 10, Low),
            (10 * GB, None, Critical, GB + GB / 10, Low),
            (10 * GB, None, Low, GB + GB / 2, Enough),
            (10 * GB, Some(800), Enough, 801, Enough),
            (10 * GB, Some(800), Enough, 799, Low),
            (10 * GB, Some(800), Low, 99, Critical),
            (0, None, Enough, 0, Enough),
        ] {
            let room = Marks::of(total, low).room(before, free);
            assert_eq!(room, want, "{free} of {total} ({low:?}), was {before:?}");
        }
    }

    #[test]
    fn the_ballast_is_given_up_only_where_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = dir.path().join(BALLAST);
        let disk = |low| Disk::new(dir.path(), low, 1 << 20);
        disk(Some(0)).keep_ballast();
        assert_eq!(std::fs::metadata(&ballast).unwrap().len(), 1 << 20);
        disk(Some(0)).make_room_to_start();
        assert!(ballast.exists());
        // No disk is as large as this.
        disk(Some(u64::MAX)).make_room_to_start();
        assert!(!ballast.exists());
        let refused = disk(Some(u64::MAX)).check().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("make room in"), "{refused}");
    }
}
