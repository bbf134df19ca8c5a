//! A file system in memory that forgets what was not synced, in every way that a
//! power cut can: sectors lost, kept or older, in any order; names that were
//! not synced likewise. Deterministic for a seed.
//!
//! The model: a sector (512 bytes) is written whole or not at all; what a sync
//! that returned success covers is kept; a rename is atomic. A sync that failed
//! leaves pages that are readable, clean, and not on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use super::sim_dice::Dice;
use super::vfs::{Vfs, VfsFile};

/// What a disk writes whole, bytes.
const SECTOR: usize = 512;

/// What goes wrong besides power.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Every fdatasync says yes and does nothing: the disk that lies, or the code that forgot.
    pub ignore_data_syncs: bool,
    /// The disk holds this many bytes.
    pub capacity: Option<u64>,
    /// The n-th sync from now fails, and loses what it should have written.
    pub fail_sync_in: Option<u64>,
    /// The n-th write from now fails, half of it done.
    pub fail_write_in: Option<u64>,
}

/// What went wrong so far, so that a simulation can tell that it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Of unsynced sectors, when the power went: as they were before, as they were last,
    /// and as they were in between.
    pub sectors_lost: u64,
    pub sectors_kept: u64,
    pub sectors_older: u64,
    /// Unsynced changes of names that the power took back.
    pub names_lost: u64,
    /// Power cuts in the middle of an operation.
    pub cut_short: u64,
    pub syncs_failed: u64,
    pub writes_failed: u64,
    pub writes_refused: u64,
}

/// The file system; clones are handles of the same one.
#[derive(Clone, Debug, Default)]
pub struct SimFs(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    inodes: BTreeMap<u64, Inode>,
    inode_last: u64,
    /// Names as the running system sees them.
    names: BTreeMap<PathBuf, u64>,
    /// Names as they are on the disk.
    durable_names: BTreeMap<PathBuf, u64>,
    /// What was done to names since, oldest first.
    name_changes: Vec<NameChange>,
    dirs: BTreeSet<PathBuf>,
    faults: Faults,
    /// Operations until the power goes.
    fuse: Option<u64>,
    dead: bool,
    /// Raised by a power cut and by a kill: handles of earlier lives are dead.
    life: u64,
    operations: u64,
    losses: Losses,
}

#[derive(Clone, Debug)]
enum NameChange {
    Set(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// As the running system sees it.
    bytes: Vec<u8>,
    /// As it is on the disk.
    durable: Vec<u8>,
    /// Sectors written since the last sync, with every content they had meanwhile.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(self.bytes.len());
            self.dirty.entry(sector).or_default().push(self.bytes[from..to].to_vec());
        }
    }

    fn sync(&mut self) {
        self.durable.resize(self.bytes.len(), 0);
        for sector in std::mem::take(&mut self.dirty).into_keys() {
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(self.bytes.len());
            self.durable[from..to].copy_from_slice(&self.bytes[from..to]);
        }
    }

    fn persist(&mut self, from: usize, bytes: &[u8]) {
        let end = from + bytes.len();
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[from..end].copy_from_slice(bytes);
    }

    /// Each unsynced sector is as it was, as it is, or as it was in between.
    fn lose_power(&mut self, dice: &mut Dice, losses: &mut Losses) {
        // Whole files lost and whole files kept are the likely ends, so they get their share.
        let kept_of_4 = dice.below(5);
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            if dice.chance(kept_of_4, 4) {
                let last = versions.len() - 1;
                let version = match dice.chance(3, 4) {
                    true => last,
                    false => dice.below(versions.len() as u64) as usize,
                };
                losses.sectors_kept += u64::from(version == last);
                losses.sectors_older += u64::from(version < last);
                self.persist(sector * SECTOR, &versions[version]);
            } else {
                losses.sectors_lost += 1;
            }
        }
        if self.durable.len() < self.bytes.len() && dice.chance(1, 2) {
            self.durable.resize(self.bytes.len(), 0);
        }
        self.bytes = self.durable.clone();
    }
}

impl SimFs {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.disk().faults = faults;
    }

    /// Cuts the power in the middle of the operation after `operations` more.
    pub fn cut_power_after(&self, operations: u64) {
        self.disk().fuse = Some(operations);
    }

    /// Operations so far that changed something.
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Faults so far that somebody was told of: syncs and writes that failed, and writes that
    /// a full disk refused. Not what power cuts did.
    pub fn failures(&self) -> u64 {
        let losses = self.losses();
        losses.syncs_failed + losses.writes_failed + losses.writes_refused
    }

    /// Everything that went wrong so far.
    pub fn losses(&self) -> Losses {
        self.disk().losses
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// A power cut that is to come is called off.
    pub fn calm(&self) {
        self.disk().fuse = None;
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.disk().dead
    }

    /// The power is back (and was cut, if it was not): what is left is decided by `dice`.
    pub fn power_cycle(&self, dice: &mut Dice) {
        let mut disk = self.disk();
        disk.life += 1;
        disk.dead = false;
        disk.fuse = None;
        let changes = std::mem::take(&mut disk.name_changes);
        let kept_of_4 = dice.below(5);
        for change in changes {
            if dice.chance(kept_of_4, 4) {
                change.apply(&mut disk.durable_names);
            } else {
                disk.losses.names_lost += 1;
            }
        }
        disk.names = disk.durable_names.clone();
        let mut losses = disk.losses;
        for inode in disk.inodes.values_mut() {
            inode.lose_power(dice, &mut losses);
        }
        disk.losses = losses;
        let named: BTreeSet<u64> = disk.names.values().copied().collect();
        disk.inodes.retain(|inode, _| named.contains(inode));
    }

    /// The process is killed: its handles are gone, the page cache stays.
    pub fn kill(&self) {
        let mut disk = self.disk();
        disk.life += 1;
        disk.fuse = None;
    }

    /// The bytes of a file as the running system sees them.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk();
        disk.names.get(path).map(|inode| disk.inodes[inode].bytes.clone())
    }

    /// Every file, by its path.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.disk().names.keys().cloned().collect()
    }

    /// Replaces the bytes of a file, on the disk too: a fault of the disk.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.disk();
        let Some(&inode) = disk.names.get(path) else { return };
        let inode = disk.inodes.entry(inode).or_default();
        change(&mut inode.bytes);
        inode.durable = inode.bytes.clone();
        inode.dirty.clear();
    }

    /// A disk with the same content, apart from this one.
    pub fn copy(&self) -> Self {
        let disk = self.disk();
        Self(Arc::new(Mutex::new(Disk {
            inodes: disk.inodes.clone(),
            inode_last: disk.inode_last,
            names: disk.names.clone(),
            durable_names: disk.durable_names.clone(),
            name_changes: disk.name_changes.clone(),
            dirs: disk.dirs.clone(),
            ..Disk::default()
        })))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, inode: u64, life: u64) -> Box<dyn VfsFile> {
        Box::new(SimFile { fs: self.clone(), inode, life })
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Set(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, inode) => {
                names.insert(to.clone(), *inode);
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
            }
        }
    }

    fn dir(&self) -> Option<&Path> {
        let (Self::Set(path, _) | Self::Remove(path) | Self::Rename(path, ..)) = self;
        path.parent()
    }
}

impl Disk {
    /// Counts one operation that changes something. `Ok(true)`: the power goes
    /// while it happens, so it has its effect but nobody hears of it.
    fn burn(&mut self) -> io::Result<bool> {
        if self.dead {
            return Err(power_is_off());
        }
        self.operations += 1;
        match &mut self.fuse {
            None => Ok(false),
            Some(0) => {
                self.dead = true;
                self.losses.cut_short += 1;
                Ok(true)
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
        }
    }

    fn change_name(&mut self, change: NameChange) -> io::Result<()> {
        let cut = self.burn()?;
        change.apply(&mut self.names);
        self.name_changes.push(change);
        if cut { Err(power_is_off()) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|inode| inode.bytes.len() as u64).sum()
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

fn no_such_file(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()))
}

impl Vfs for SimFs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        let mut disk = self.disk();
        disk.inode_last += 1;
        let inode = disk.inode_last;
        disk.inodes.insert(inode, Inode::default());
        disk.change_name(NameChange::Set(path.to_owned(), inode))?;
        Ok(self.handle(inode, disk.life))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn VfsFile>> {
        let disk = self.disk();
        if disk.dead {
            return Err(power_is_off());
        }
        let inode = disk.names.get(path).copied().ok_or_else(|| no_such_file(path))?;
        Ok(self.handle(inode, disk.life))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk();
        if disk.dead {
            return Err(power_is_off());
        }
        if !disk.dirs.contains(dir) {
            return Err(no_such_file(dir));
        }
        let names = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.burn()? {
            return Err(power_is_off());
        }
        disk.dirs.insert(dir.to_owned());
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        let inode = disk.names.get(from).copied().ok_or_else(|| no_such_file(from))?;
        disk.change_name(NameChange::Rename(from.to_owned(), to.to_owned(), inode))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        if !disk.names.contains_key(path) {
            return Err(no_such_file(path));
        }
        disk.change_name(NameChange::Remove(path.to_owned()))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.burn()? {
            return Err(power_is_off());
        }
        let changes = std::mem::take(&mut disk.name_changes);
        for change in changes {
            if change.dir() == Some(dir) {
                change.apply(&mut disk.durable_names);
            } else {
                disk.name_changes.push(change);
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    fs: SimFs,
    inode: u64,
    life: u64,
}

impl SimFile {
    fn with<T>(&self, run: impl FnOnce(&mut Disk, u64) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.fs.disk();
        if disk.life != self.life || disk.dead {
            return Err(power_is_off());
        }
        run(&mut disk, self.inode)
    }
}

impl VfsFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        self.with(|disk, inode| Ok(disk.inodes.entry(inode).or_default().bytes.len() as u64))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(|disk, inode| {
            let bytes = &disk.inodes.entry(inode).or_default().bytes;
            let from = (offset as usize).min(bytes.len());
            let len = buffer.len().min(bytes.len() - from);
            buffer[..len].copy_from_slice(&bytes[from..from + len]);
            Ok(len)
        })
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|disk, inode| {
            let cut = disk.burn()?;
            let size = disk.inodes.entry(inode).or_default().bytes.len() as u64;
            let grown = (offset + bytes.len() as u64).saturating_sub(size);
            if disk.faults.capacity.is_some_and(|capacity| disk.used() + grown > capacity) {
                disk.losses.writes_refused += 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            match &mut disk.faults.fail_write_in {
                Some(0) => {
                    disk.faults.fail_write_in = None;
                    disk.losses.writes_failed += 1;
                    let half = &bytes[..bytes.len() / 2];
                    disk.inodes.entry(inode).or_default().write(offset as usize, half);
                    return Err(io::Error::other("input/output error"));
                }
                Some(left) => *left -= 1,
                None => (),
            }
            disk.inodes.entry(inode).or_default().write(offset as usize, bytes);
            if cut { Err(power_is_off()) } else { Ok(()) }
        })
    }

    fn sync_data(&mut self) -> io::Result<()> {
        if self.with(|disk, _| Ok(disk.faults.ignore_data_syncs))? {
            return Ok(());
        }
        self.sync_all()
    }

    fn sync_all(&mut self) -> io::Result<()> {
        self.with(|disk, inode| {
            if disk.burn()? {
                return Err(power_is_off());
            }
            let inode = disk.inodes.entry(inode).or_default();
            match &mut disk.faults.fail_sync_in {
                Some(0) => {
                    disk.faults.fail_sync_in = None;
                    disk.losses.syncs_failed += 1;
                    // The pages stay readable and are clean, as Linux leaves them.
                    inode.dirty.clear();
                    return Err(io::Error::other("input/output error"));
                }
                Some(left) => *left -= 1,
                None => (),
            }
            inode.sync();
            Ok(())
        })
    }
}
