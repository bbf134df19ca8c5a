//! The platform of a cached step: what of this machine it can see, and the digest of
//! all that.
//!
//! Whatever a sandboxed command can reach joins the key. What the package manager
//! installed (`/usr` and its aliases) joins by the package database, together with the
//! content of every folder of PATH and of the compilers' own folders, which people
//! replace by hand; `/usr/local`, `/opt`, further entries of PATH and `cache.tools` join
//! by content. Tool managers in somebody's home (rustup, pyenv, nvm) are seen and
//! counted only by steps that name one of their programs, see [`words`]: a C program's
//! key does not depend on whose Python it was built beside.
//!
//! Content is memoised by path, inode, size and times; a check, and the answer to a
//! whole question, is believed for [`TRUST`] within one process, unless
//! [`Platform::distrust`] says that a step ran that may have changed the machine.

mod homes;
mod memo;
mod system;
mod walk;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use homes::{Home, home_of};
use memo::Hash;
pub use system::SYSTEM_PATH;
use system::{ETC, ETC_PREFIXES, PACKAGES, SYSTEM_PATH_TOO, SYSTEM_ROOTS};
use walk::Root;
pub(crate) use words::words;

use crate::sandbox::{Bind, Support};

/// How long a fingerprint is believed without looking again: a run of many cached
/// steps looks once.
pub const TRUST: Duration = Duration::from_secs(1);

/// Most questions whose answers are remembered: jobs of few kinds follow each other.
const ANSWERS_MAX: usize = 64;

/// Why the platform's fingerprint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("cannot read the tool `{path}`, which joins the key of cached steps")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "`{path}` holds more than {} files: it cannot be a tool of cached steps, take it off PATH \
         or out of `cache.tools`",
        walk::FILES_MAX
    )]
    TooBig { path: PathBuf },
    #[error(
        "`{0}` in `cache.tools` is not to be reached by the job's user: open the folders above it, \
         or put the tool where every user finds it"
    )]
    Hidden(String),
    #[error("`{0}` in `cache.tools` is neither an absolute path nor rustup, pyenv or nvm")]
    Tool(String),
}

/// This machine's tools. One per agent.
#[derive(Debug)]
pub struct Platform {
    /// Memos of fingerprints.
    dir: PathBuf,
    /// The environment of whom the tools belong to.
    env: BTreeMap<String, String>,
    believed: Mutex<HashMap<Root, (Instant, Hash)>>,
    /// What [`Platform::tools`] answered, and when it began to look.
    answers: Mutex<HashMap<Question, (Instant, Toolset)>>,
    /// How often it was said that the machine may have changed.
    distrusted: AtomicU64,
    /// What the kernel offers, once that is known to be enough.
    pub(super) enforced: OnceLock<Support>,
    /// Held while tools are read: who comes second finds the memos of who came first.
    reading: Mutex<()>,
}

/// What one step asks.
#[derive(Debug, Clone, Copy)]
pub struct ToolQuery<'a> {
    pub words: &'a BTreeSet<String>,
    /// `cache.tools`.
    pub tools: &'a [String],
    /// Of the step, where it sets one: searched instead of the agent's own.
    pub path: Option<&'a str>,
    /// Entries that earlier steps added.
    pub prefix: &'a [String],
    /// Entries below this are the workspace's.
    pub workspace: &'a Path,
    /// The job has a user of its own: it must not see through a tool what that user may
    /// not reach.
    pub stranger: bool,
}

/// The same, to remember it by.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Question {
    words: BTreeSet<String>,
    tools: Vec<String>,
    path: Option<String>,
    prefix: Vec<String>,
    workspace: PathBuf,
}

impl Question {
    fn of(query: &ToolQuery<'_>) -> Self {
        Self {
            words: query.words.clone(),
            tools: query.tools.to_vec(),
            path: query.path.map(str::to_owned),
            prefix: query.prefix.to_vec(),
            workspace: query.workspace.to_owned(),
        }
    }
}

/// What one step sees.
#[derive(Debug, Clone, Default)]
pub struct Toolset {
    /// For the key: name and digest, sorted.
    pub properties: Vec<(String, String)>,
    pub binds: Vec<Bind>,
    pub links: Vec<(PathBuf, PathBuf)>,
    /// PATH inside.
    pub path: Vec<String>,
    unopened: Vec<Home>,
}

impl Toolset {
    /// Which tool manager, that the step does not see, has this program.
    pub fn would_have(&self, program: &str) -> Option<&'static str> {
        self.unopened.iter().find(|home| home.has(program)).map(|home| home.manager.as_str())
    }
}

impl Platform {
    /// `dir` keeps the memos; `env` is the environment whose PATH and homes count.
    pub fn new(dir: PathBuf, env: BTreeMap<String, String>) -> Self {
        Self {
            dir,
            env,
            believed: Mutex::default(),
            answers: Mutex::default(),
            distrusted: AtomicU64::new(0),
            enforced: OnceLock::new(),
            reading: Mutex::new(()),
        }
    }

    /// The environment of whom the tools belong to.
    pub(super) fn env(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// Where the memos are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Something ran that may have changed the machine: look again.
    pub fn distrust(&self) {
        self.distrusted.fetch_add(1, Ordering::SeqCst);
        self.believed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What the step sees, and its fingerprint. Reads the disk.
    ///
    /// # Errors
    ///
    /// [`PlatformError`] names the tool that cannot be read.
    pub fn tools(&self, query: &ToolQuery<'_>) -> Result<Toolset, PlatformError> {
        let (question, now) = (Question::of(query), Instant::now());
        let distrusted = self.distrusted.load(Ordering::SeqCst);
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < TRUST;
        let known = {
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.get(&question).filter(|(at, _)| fresh(at)).map(|(_, tools)| tools.clone())
        };
        if let Some(tools) = known {
            return Ok(tools);
        }
        let tools = self.look(query)?;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|_, (at, _)| fresh(at));
        // What was looked at before a change must not be believed after it.
        let changed = self.distrusted.load(Ordering::SeqCst) != distrusted;
        if !changed && answers.len() < ANSWERS_MAX {
            answers.insert(question, (now, tools.clone()));
        }
        Ok(tools)
    }

    fn look(&self, query: &ToolQuery<'_>) -> Result<Toolset, PlatformError> {
        let mut plan = Plan::default();
        plan.system();
        let of_the_system = plan.binds.len();
        plan.named_tools(query.tools)?;
        self.search_path(query, &mut plan);
        if query.stranger {
            plan.hide(of_the_system, query)?;
        }
        let mut properties = vec![
            ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
            ("os".to_owned(), std::env::consts::OS.to_owned()),
        ];
        plan.roots.sort();
        plan.roots.dedup();
        for (root, hash) in plan.roots.iter().zip(self.digests(&plan.roots)?) {
            let name = format!("tool:{}", plan.label(root));
            properties.push((name, blake3::Hash::from_bytes(hash).to_hex().to_string()));
        }
        if !PACKAGES.iter().any(|path| Path::new(path).exists()) {
            // `/usr` is known by nothing then, so results must stay here.
            properties.push(("packages".to_owned(), format!("unknown:{}", machine_id())));
        }
        properties.sort();
        plan.binds.dedup();
        Ok(Toolset {
            properties,
            binds: plan.binds,
            links: plan.links,
            path: plan.path,
            unopened: plan.unopened,
        })
    }

    fn search_path(&self, query: &ToolQuery<'_>, plan: &mut Plan) {
        let own = self.env.get("PATH").map_or("", String::as_str);
        let mut homes: Vec<Home> = Vec::new();
        let mut order: Vec<Place> = Vec::new();
        let entries = query
            .prefix
            .iter()
            .map(String::as_str)
            .chain(query.path.unwrap_or(own).split(':'))
            .filter(|entry| entry.starts_with('/'));
        for entry in entries {
            let dir = Path::new(entry.trim_end_matches('/'));
            if SYSTEM_PATH.iter().chain(&SYSTEM_PATH_TOO).any(|system| Path::new(system) == dir) {
                if !order.contains(&Place::System) {
                    order.push(Place::System);
                }
            } else if let Ok(inside) = dir.strip_prefix(query.workspace) {
                order.push(Place::Workspace(inside.to_owned()));
            } else if let Some((manager, home)) = home_of(dir, &self.env) {
                let known = homes.iter().position(|known| known.dir == home);
                let index = known.unwrap_or_else(|| {
                    homes.push(Home { manager, programs: Vec::new(), dir: home });
                    order.push(Place::Home(homes.len() - 1));
                    homes.len() - 1
                });
                let programs = &mut homes[index].programs;
                if !programs.iter().any(|known| known == dir) {
                    programs.push(dir.to_owned());
                }
            } else if !dir.as_os_str().is_empty() && fs::read_dir(dir).is_ok() {
                order.push(Place::Folder(dir.to_owned()));
            }
        }
        if !order.contains(&Place::System) {
            order.push(Place::System);
        }
        for place in order {
            plan.place(place, &homes, query, &self.env);
        }
        let mut seen = BTreeSet::new();
        plan.path.retain(|entry| seen.insert(entry.clone()));
    }

    /// Digests of the roots, in order; two at a time.
    fn digests(&self, roots: &[Root]) -> Result<Vec<Hash>, PlatformError> {
        let now = Instant::now();
        let mut known: Vec<Option<Hash>> = {
            let believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = |(at, hash): &(Instant, Hash)| (now - *at < TRUST).then_some(*hash);
            roots.iter().map(|root| believed.get(root).and_then(fresh)).collect()
        };
        let open: Vec<usize> = (0..roots.len()).filter(|&index| known[index].is_none()).collect();
        if open.is_empty() {
            return Ok(known.into_iter().flatten().collect());
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some(&index) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push((index, memo::digest(&self.dir, &roots[index])));
            }
            done
        };
        let done = std::thread::scope(|scope| {
            let other = (open.len() > 1).then(|| scope.spawn(work));
            let mut done = work();
            if let Some(other) = other {
                done.extend(other.join().expect("a panic is a bug, and goes on here"));
            }
            done
        });
        let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, hash) in done {
            let hash = hash?;
            believed.insert(roots[index].clone(), (now, hash));
            known[index] = Some(hash);
        }
        drop(believed);
        Ok(known.into_iter().map(|hash| hash.expect("each was known or was made")).collect())
    }
}

/// An entry of PATH.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    System,
    Workspace(PathBuf),
    Home(usize),
    Folder(PathBuf),
}

#[derive(Debug, Default)]
struct Plan {
    roots: Vec<Root>,
    binds: Vec<Bind>,
    links: Vec<(PathBuf, PathBuf)>,
    path: Vec<String>,
    unopened: Vec<Home>,
    /// Outside paths that stand elsewhere inside: the key tells them by that name.
    renamed: Vec<(PathBuf, PathBuf)>,
}

impl Plan {
    fn system(&mut self) {
        self.roots.extend(PACKAGES.iter().map(Root::all).filter(|root| root.path.exists()));
        self.roots.extend(SYSTEM_ROOTS.iter().map(Root::all).filter(|root| root.path.exists()));
        // The merged aliases are the same folders again.
        let real = |path: &&&str| !Path::new(path).is_symlink() && Path::new(path).is_dir();
        let flat = SYSTEM_PATH.iter().filter(|path| !path.starts_with("/usr/local"));
        self.roots.extend(flat.filter(real).map(Root::flat));
        if Path::new("/opt").is_dir() {
            self.binds.push(Bind::same("/opt"));
        }
        let Ok(etc) = fs::read_dir("/etc") else { return };
        let mut names: Vec<String> =
            etc.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        for name in names {
            if ETC.contains(&name.as_str())
                || ETC_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            {
                self.show(Path::new("/etc").join(name));
            }
        }
        self.show(PathBuf::from("/etc/ssl/openssl.cnf"));
    }

    /// Counts and shows, where it stands.
    fn show(&mut self, path: PathBuf) {
        if path.exists() {
            self.roots.push(Root::all(&path));
            self.binds.push(Bind::same(path));
        }
    }

    fn named_tools(&mut self, tools: &[String]) -> Result<(), PlatformError> {
        for tool in tools {
            let manager = [homes::Manager::Rustup, homes::Manager::Pyenv, homes::Manager::Nvm]
                .iter()
                .any(|manager| manager.as_str() == tool);
            if manager {
                continue;
            }
            let path = Path::new(tool);
            if !path.is_absolute() || path.components().count() < 2 {
                return Err(PlatformError::Tool(tool.clone()));
            }
            self.show(path.to_owned());
        }
        Ok(())
    }

    fn place(
        &mut self,
        place: Place,
        homes: &[Home],
        query: &ToolQuery<'_>,
        env: &BTreeMap<String, String>,
    ) {
        match place {
            Place::System => self.path.extend(SYSTEM_PATH.map(str::to_owned)),
            Place::Workspace(inside) => {
                let inside = Path::new(crate::sandbox::WORKSPACE).join(inside);
                self.path.extend(inside.to_str().map(str::to_owned));
            }
            Place::Folder(dir) => {
                self.path.extend(dir.to_str().map(str::to_owned));
                self.binds.push(Bind::same(&dir));
                self.show_link_targets(&dir);
                self.roots.push(Root::flat(dir));
            }
            Place::Home(index) => {
                let home = &homes[index];
                if !home.is_named(query.words, query.tools) {
                    self.unopened.push(home.clone());
                    return;
                }
                let opened = home.open(query.words, env);
                for bind in &opened.binds {
                    self.renamed.push((bind.source.clone(), bind.target.clone()));
                }
                self.roots.extend(opened.roots);
                self.binds.extend(opened.binds);
                self.links.extend(opened.links);
                self.path.extend(opened.path);
            }
        }
    }

    /// Programs that a folder of PATH only links to.
    fn show_link_targets(&mut self, dir: &Path) {
        let Ok(listing) = fs::read_dir(dir) else { return };
        for entry in listing.flatten().filter(|entry| entry.path().is_symlink()) {
            let Ok(target) = fs::canonicalize(entry.path()) else { continue };
            let seen = ["/usr", "/opt"].iter().any(|root| target.starts_with(root));
            if target.is_file() && !seen && !target.starts_with(dir) {
                self.binds.push(Bind::same(target));
            }
        }
    }

    /// Takes out what a pipeline named and its job's user could not reach. Shown in a
    /// sandbox, a folder is open even where the ones above it are closed.
    fn hide(&mut self, from: usize, query: &ToolQuery<'_>) -> Result<(), PlatformError> {
        for mut bind in self.binds.split_off(from) {
            if let Some(real) = reachable(&bind.source, query.workspace) {
                bind.source = real;
                bind.exact = true;
                self.binds.push(bind);
            } else if let Some(tool) =
                query.tools.iter().find(|tool| bind.source == Path::new(tool))
            {
                return Err(PlatformError::Hidden(tool.clone()));
            }
        }
        Ok(())
    }

    /// The root's name in the key: where it is seen inside, so that it does not tell
    /// whose home it is in.
    fn label(&self, root: &Root) -> String {
        for (source, target) in &self.renamed {
            if &root.path == source {
                return target.display().to_string();
            }
            // A toolchain is seen in parts.
            if source.parent() == Some(&root.path)
                && let Some(parent) = target.parent()
            {
                return parent.display().to_string();
            }
        }
        root.path.display().to_string()
    }
}

/// The path without links, if a user who owns nothing but the job's folders gets there.
fn reachable(path: &Path, workspace: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(path).ok()?;
    let job = fs::canonicalize(workspace.parent()?).ok()?;
    // Temporary folder and home: the job's own, closed to others.
    let own = ["t", "h"].iter().any(|name| real.starts_with(job.join(name)));
    let open = |folder: &Path| fs::metadata(folder).is_ok_and(|about| about.mode() & 0o1 != 0);
    (own || real.ancestors().skip(1).all(open)).then_some(real)
}

/// What tells this machine from others, for results that must not leave it.
pub fn machine_id() -> String {
    ["/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/random/boot_id"]
        .iter()
        .find_map(|path| {
            let id = fs::read_to_string(path).ok()?.trim().to_owned();
            (!id.is_empty()).then_some(id)
        })
        .unwrap_or_else(|| "unknown".to_owned())
}
