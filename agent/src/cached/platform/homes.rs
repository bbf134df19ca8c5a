//! Tools in people's homes: rustup, pyenv, nvm. Large, different for everybody, and
//! used by few steps; so a step sees one only if it names one of its programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::walk::{Depth, Root};
use crate::sandbox::{Bind, HOME};

/// A tool manager in somebody's home, found through an entry of PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Home {
    pub manager: Manager,
    /// Where its programs are called: entries of PATH.
    pub programs: Vec<PathBuf>,
    /// Its own folder.
    pub dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Manager {
    Rustup,
    Pyenv,
    Nvm,
}

impl Manager {
    /// What `cache.tools` calls it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Rustup => "rustup",
            Self::Pyenv => "pyenv",
            Self::Nvm => "nvm",
        }
    }
}

/// What a step gets of a home that it uses.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub roots: Vec<Root>,
    pub binds: Vec<Bind>,
    pub links: Vec<(PathBuf, PathBuf)>,
    /// In place of the home's entries of PATH.
    pub path: Vec<String>,
}

/// Which home an entry of PATH belongs to; none for a plain folder of programs.
pub(super) fn home_of(entry: &Path, env: &BTreeMap<String, String>) -> Option<(Manager, PathBuf)> {
    let text = entry.to_str()?;
    if let Some(start) = text.find("/.nvm/versions/node/") {
        return Some((Manager::Nvm, PathBuf::from(&text[..start + "/.nvm".len()])));
    }
    if let Some(root) = env.get("PYENV_ROOT").map(PathBuf::from).or_else(|| {
        let end = text.find("/.pyenv")? + "/.pyenv".len();
        Some(PathBuf::from(&text[..end]))
    }) && entry.starts_with(&root)
        && !entry.starts_with(root.join("versions"))
    {
        return Some((Manager::Pyenv, root));
    }
    let cargo = entry.parent()?;
    let is_cargo = cargo.file_name()? == ".cargo"
        || env.get("CARGO_HOME").is_some_and(|home| Path::new(home) == cargo);
    if is_cargo && entry.file_name()? == "bin" {
        let beside = || cargo.parent().map(|home| home.join(".rustup"));
        let dir = env.get("RUSTUP_HOME").map(PathBuf::from).or_else(beside)?;
        return Some((Manager::Rustup, dir));
    }
    None
}

impl Home {
    /// Whether a step that says these words may call one of its programs.
    pub(super) fn is_named(&self, words: &BTreeSet<String>, tools: &[String]) -> bool {
        tools.iter().any(|tool| tool == self.manager.as_str() || Path::new(tool) == self.dir)
            || words.iter().any(|word| self.has(word))
    }

    /// Whether it has a program of this name.
    pub(super) fn has(&self, program: &str) -> bool {
        !matches!(program, "" | "." | "..")
            && !program.contains('/')
            && self.programs.iter().any(|dir| dir.join(program).is_file())
    }

    pub(super) fn open(&self, words: &BTreeSet<String>, env: &BTreeMap<String, String>) -> Opened {
        match self.manager {
            Manager::Rustup => self.open_rustup(words, env),
            Manager::Pyenv => self.open_pyenv(env),
            Manager::Nvm => self.open_nvm(),
        }
    }

    /// Toolchains do not care where they stand, so they stand in the private home,
    /// the same for every user.
    fn open_rustup(&self, words: &BTreeSet<String>, env: &BTreeMap<String, String>) -> Opened {
        let inside = Path::new(HOME).join(".rustup");
        let mut opened = Opened::default();
        for programs in &self.programs {
            opened.roots.push(Root::flat(programs));
            opened.binds.push(Bind::read_only(programs, Path::new(HOME).join(".cargo/bin")));
            // Registries and mirrors; whoever fetched through one builds with it too.
            let config = programs.with_file_name("config.toml");
            if config.is_file() {
                opened.roots.push(Root::all(&config));
                opened
                    .binds
                    .push(Bind::read_only(config, Path::new(HOME).join(".cargo/config.toml")));
            }
        }
        let settings = self.dir.join("settings.toml");
        if settings.is_file() {
            opened.roots.push(Root::all(&settings));
            opened.binds.push(Bind::read_only(&settings, inside.join("settings.toml")));
        }
        for name in self.toolchains(words, env) {
            let toolchain = self.dir.join("toolchains").join(&name);
            let at = inside.join("toolchains").join(&name);
            let real = fs::canonicalize(&toolchain).unwrap_or(toolchain);
            opened.roots.push(Root { path: real.clone(), depth: Depth::WithoutShare });
            for part in names(&real) {
                if part != "share" {
                    opened.binds.push(Bind::read_only(real.join(&part), at.join(&part)));
                }
            }
        }
        opened.path.push(format!("{HOME}/.cargo/bin"));
        opened
    }

    /// The default toolchain, and those that the step, its files or its environment name.
    fn toolchains(&self, words: &BTreeSet<String>, env: &BTreeMap<String, String>) -> Vec<String> {
        let settings = fs::read_to_string(self.dir.join("settings.toml")).unwrap_or_default();
        let default = settings.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == "default_toolchain").then(|| value.trim().trim_matches('"').to_owned())
        });
        let wanted = env.get("RUSTUP_TOOLCHAIN").cloned();
        let named = |name: &str| {
            words.iter().chain(&wanted).any(|word| {
                name.strip_prefix(word.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
            })
        };
        let mut all = names(&self.dir.join("toolchains"));
        all.retain(|name| default.as_deref() == Some(name) || named(name));
        all
    }

    /// Scripts of a Python name their interpreter by its path, so versions stand where
    /// they stand outside.
    fn open_pyenv(&self, env: &BTreeMap<String, String>) -> Opened {
        let global = || fs::read_to_string(self.dir.join("version")).ok();
        let chosen = env.get("PYENV_VERSION").cloned().or_else(global).unwrap_or_default();
        let mut opened = Opened::default();
        for version in chosen.split([':', '\n', ' ']).filter(|version| !version.is_empty()) {
            let dir = self.dir.join("versions").join(version);
            if version.contains('/') || !dir.is_dir() {
                continue;
            }
            opened.path.extend(dir.join("bin").to_str().map(str::to_owned));
            opened.roots.push(Root::all(&dir));
            opened.binds.push(Bind::same(&dir));
        }
        opened
    }

    fn open_nvm(&self) -> Opened {
        let mut opened = Opened::default();
        for programs in &self.programs {
            let Some(dir) = programs.parent() else { continue };
            opened.path.extend(programs.to_str().map(str::to_owned));
            opened.roots.push(Root::all(dir));
            opened.binds.push(Bind::same(dir));
        }
        opened
    }
}

/// Names in a folder that are UTF-8, sorted. None where it cannot be listed.
fn names(dir: &Path) -> Vec<String> {
    let Ok(listing) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        listing.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
