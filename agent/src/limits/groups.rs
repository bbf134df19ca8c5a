//! Control groups: found, made, written. One folder per slot below one of the agent's own,
//! in each hierarchy (version 1), or in the one that there is (version 2).
//!
//! In version 2 a group whose members are processes cannot give its controllers to groups
//! below it. Where the agent's own group is such a one, as in a container, the agent moves
//! into a group beside the slots' first; it stays where it is if others are there too.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Share;
use crate::supervisor;

/// Of the agent's folder; its process id follows.
const PREFIX: &str = "steading-";

/// Where the agent itself is in version 2.
const OWN: &str = "agent";

/// What is limited, in both versions' words.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// In which CPU time is counted out, microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// The groups of one agent.
#[derive(Debug)]
pub struct Groups {
    /// The agent's own folders.
    folders: Vec<PathBuf>,
    slots: Vec<SlotGroup>,
}

/// The group of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotGroup {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// A folder for each controller that there is.
    Separate(BTreeMap<&'static str, PathBuf>),
    Unified(PathBuf),
}

impl Groups {
    /// Makes a group per slot and tries whether a process may join it.
    ///
    /// # Errors
    ///
    /// Why there can be none, for people.
    pub fn take(slots: u32, program: &[String]) -> Result<Self, String> {
        let text =
            |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let places = Places::read(&text("/proc/self/mountinfo")?, &text("/proc/self/cgroup")?);
        let groups = Self::make(&places, slots)
            .map_err(|(path, error)| format!("`{}`: {error}", path.display()))?;
        match groups.try_to_join(program) {
            Ok(()) => Ok(groups),
            Err(why) => {
                groups.remove();
                Err(why)
            }
        }
    }

    fn make(places: &Places, slots: u32) -> Result<Self, (PathBuf, io::Error)> {
        let name = format!("{PREFIX}{}", std::process::id());
        let unified = places.unified.as_deref().filter(|place| gives_all(place));
        if let Some(place) = unified {
            remove_old(place);
            let folder = place.join(&name);
            give_controllers(place)?;
            make_folder(&folder)?;
            give_controllers(&folder)?;
            let slots = (0..slots).map(|slot| {
                let folder = folder.join(slot.to_string());
                make_folder(&folder)?;
                Ok(SlotGroup { kind: Kind::Unified(folder) })
            });
            let slots = slots.collect::<Result<_, _>>();
            return Ok(Self { slots: slots?, folders: vec![folder] });
        }
        let mut made = vec![BTreeMap::new(); slots as usize];
        let mut folders = Vec::new();
        for (&controller, place) in &places.separate {
            remove_old(place);
            let folder = place.join(&name);
            make_folder(&folder)?;
            for (slot, made) in made.iter_mut().enumerate() {
                let folder = folder.join(slot.to_string());
                make_folder(&folder)?;
                made.insert(controller, folder);
            }
            folders.push(folder);
        }
        if folders.is_empty() {
            let none = io::Error::new(io::ErrorKind::NotFound, "no controllers are mounted there");
            return Err((PathBuf::from("/sys/fs/cgroup"), none));
        }
        let slots = made.into_iter().map(|folders| SlotGroup { kind: Kind::Separate(folders) });
        Ok(Self { slots: slots.collect(), folders })
    }

    /// The group of a slot.
    pub fn slot(&self, index: u32) -> Option<&SlotGroup> {
        self.slots.get(index as usize)
    }

    /// What is not limited, if anything.
    pub fn missing(&self) -> Option<String> {
        let Some(SlotGroup { kind: Kind::Separate(folders) }) = self.slots.first() else {
            return None;
        };
        let missing = CONTROLLERS.into_iter().filter(|name| !folders.contains_key(name));
        let missing = missing.collect::<Vec<_>>().join(", ");
        Some(missing).filter(|missing| !missing.is_empty())
    }

    /// Removes them. Those that somebody is in stay.
    pub fn remove(&self) {
        self.folders.iter().for_each(|folder| remove(folder));
    }

    /// A supervisor joins, finds that nobody wants anything of it, and ends.
    fn try_to_join(&self, program: &[String]) -> Result<(), String> {
        let (Some(group), Some((name, arguments))) = (self.slots.first(), program.split_first())
        else {
            return Ok(());
        };
        let tried = Command::new(name)
            .args(arguments)
            .arg(supervisor::SUB_COMMAND)
            .args(group.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .output()
            .map_err(|error| format!("`{name}`: {error}"))?;
        match tried.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned()),
        }
    }
}

impl SlotGroup {
    /// For the supervisor that is to join.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let folders: Vec<&PathBuf> = match &self.kind {
            Kind::Separate(folders) => folders.values().collect(),
            Kind::Unified(folder) => vec![folder],
        };
        let members = folders.into_iter().map(|folder| folder.join("cgroup.procs"));
        let flags = members.map(|path| format!("{}{}", supervisor::GROUP_FLAG, path.display()));
        flags.collect()
    }

    /// Holds its members to the share.
    ///
    /// # Errors
    ///
    /// The kernel's, for instance where less memory is allowed than is in use.
    pub fn set(&self, share: Share) -> io::Result<()> {
        let bytes = u64::from(share.memory_mib) << 20;
        let quota_us = u64::from(share.cpu_milli) * CPU_PERIOD_US / 1_000;
        match &self.kind {
            Kind::Unified(folder) => {
                // Not everywhere, and of no account where there is no swap.
                let _ = fs::write(folder.join("memory.swap.max"), "0");
                fs::write(folder.join("memory.max"), or_max(bytes))?;
                let cpu = format!("{} {CPU_PERIOD_US}", or_max(quota_us));
                fs::write(folder.join("cpu.max"), cpu)?;
                fs::write(folder.join("pids.max"), or_max(share.processes.into()))
            }
            Kind::Separate(folders) => {
                if let Some(folder) = folders.get("memory") {
                    let bytes = if bytes == 0 { "-1".to_owned() } else { bytes.to_string() };
                    // With swap it may not be less than without: first where it grows, last
                    // where it shrinks. Not every kernel has it.
                    let with_swap = folder.join("memory.memsw.limit_in_bytes");
                    let _ = fs::write(&with_swap, &bytes);
                    fs::write(folder.join("memory.limit_in_bytes"), &bytes)?;
                    let _ = fs::write(&with_swap, &bytes);
                }
                if let Some(folder) = folders.get("cpu") {
                    fs::write(folder.join("cpu.cfs_period_us"), CPU_PERIOD_US.to_string())?;
                    let quota = match quota_us {
                        0 => "-1".to_owned(),
                        quota => quota.to_string(),
                    };
                    fs::write(folder.join("cpu.cfs_quota_us"), quota)?;
                }
                match folders.get("pids") {
                    Some(folder) => {
                        fs::write(folder.join("pids.max"), or_max(share.processes.into()))
                    }
                    None => Ok(()),
                }
            }
        }
    }

    /// How many processes the kernel killed here for want of memory; 0 where it does not
    /// say.
    pub fn oom_kills(&self) -> u64 {
        let path = match &self.kind {
            Kind::Unified(folder) => folder.join("memory.events"),
            Kind::Separate(folders) => match folders.get("memory") {
                Some(folder) => folder.join("memory.oom_control"),
                None => return 0,
            },
        };
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut counts = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
        counts.next().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// What its members may have of memory, MiB; 0: as much as there is.
    pub fn memory_mib(&self) -> u64 {
        let path = match &self.kind {
            Kind::Unified(folder) => folder.join("memory.max"),
            Kind::Separate(folders) => match folders.get("memory") {
                Some(folder) => folder.join("memory.limit_in_bytes"),
                None => return 0,
            },
        };
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse::<u64>().map_or(0, |bytes| bytes >> 20)
    }
}

fn or_max(number: u64) -> String {
    if number == 0 { "max".to_owned() } else { number.to_string() }
}

/// Whether all controllers are there to be given on.
fn gives_all(place: &Path) -> bool {
    let text = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
    let has = |name: &&str| text.split_ascii_whitespace().any(|word| word == *name);
    CONTROLLERS.iter().all(has)
}

/// Lets groups below this one use the controllers.
fn give_controllers(folder: &Path) -> Result<(), (PathBuf, io::Error)> {
    let path = folder.join("cgroup.subtree_control");
    let text = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    let Err(error) = fs::write(&path, &text) else { return Ok(()) };
    if error.kind() != io::ErrorKind::ResourceBusy {
        return Err((path, error));
    }
    // Processes are in the way: if the agent is the only one, it steps aside.
    let own = folder.join(OWN);
    make_folder(&own)?;
    let join = |folder: &Path| {
        let path = folder.join("cgroup.procs");
        fs::write(&path, "0").map_err(|error| (path, error))
    };
    join(&own)?;
    fs::write(&path, &text).map_err(|error| {
        let _ = join(folder);
        let _ = fs::remove_dir(&own);
        (path, error)
    })
}

fn make_folder(path: &Path) -> Result<(), (PathBuf, io::Error)> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err((path.into(), error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes what agents left here that are no more: only what nobody is in can be.
fn remove_old(place: &Path) {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            remove(&entry.path());
        }
    }
}

fn remove(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let _ = fs::remove_dir(entry.path());
    }
    if let Err(error) = fs::remove_dir(folder) {
        tracing::debug!(folder = %folder.display(), %error, "a control group stays");
    }
}

/// Where this process's own groups are seen.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    separate: BTreeMap<&'static str, PathBuf>,
    unified: Option<PathBuf>,
}

impl Places {
    /// From `/proc/self/mountinfo` and `/proc/self/cgroup`.
    fn read(mounts: &str, own: &str) -> Self {
        // `ID:CONTROLLER,CONTROLLER:PATH`; the unified one has ID 0 and no controllers.
        let own: Vec<(&str, &str)> =
            own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
        let own_of = |controller: &str| {
            let mut of =
                own.iter().filter(|(list, _)| list.split(',').any(|name| name == controller));
            of.next().map(|(_, path)| *path)
        };
        let mut places = Self::default();
        for line in mounts.lines() {
            // `ID PARENT DEVICE ROOT POINT OPTIONS … - TYPE SOURCE SUPER_OPTIONS`
            let Some((mount, system)) = line.split_once(" - ") else { continue };
            let mut mount = mount.split(' ').skip(3);
            let (Some(root), Some(point)) = (mount.next(), mount.next()) else { continue };
            let mut system = system.split(' ');
            let (kind, options) = (system.next(), system.nth(1).unwrap_or_default());
            let seen = |path: &str| seen_at(root, point, path);
            match kind {
                Some("cgroup2") => places.unified = own_of("").and_then(seen),
                Some("cgroup") => {
                    let has = |name: &&str| options.split(',').any(|option| option == *name);
                    for name in CONTROLLERS.into_iter().filter(has) {
                        if let Some(place) = own_of(name).and_then(seen) {
                            places.separate.insert(name, place);
                        }
                    }
                }
                _ => (),
            }
        }
        places
    }
}

/// Where a group is seen, if a mount at `point` shows `root` and what is below it.
fn seen_at(root: &str, point: &str, group: &str) -> Option<PathBuf> {
    let below = Path::new(group).strip_prefix(root).ok()?;
    Some(Path::new(point).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_groups_are_found_where_they_are_mounted() {
        let separate = "30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 29 0:27 /box /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 29 0:29 / /sys rw - sysfs sysfs rw";
        let own = "3:cpu,cpuacct:/\n2:memory:/box/in\n0::/user";
        let places = Places::read(separate, own);
        let at = |name: &str| places.separate.get(name).map(PathBuf::as_path);
        assert_eq!(at("cpu"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(at("memory"), Some(Path::new("/sys/fs/cgroup/memory/in")));
        assert_eq!(at("pids"), None);
        assert_eq!(places.unified, Some(PathBuf::from("/sys/fs/cgroup/unified/user")));
        // A group outside of what the mount shows.
        assert_eq!(seen_at("/box", "/sys/fs/cgroup/memory", "/other"), None);
    }
}
