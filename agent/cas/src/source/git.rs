//! A source in a git repository, as git itself tells it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Listed, Listing, SourceError, State};

/// Deepest nesting of submodules.
const SUBMODULE_DEPTH_MAX: usize = 16;

/// Modes in git's index.
const MODE_EXECUTABLE: &str = "100755";
const MODE_SUBMODULE: &str = "160000";

/// Lists the folder's part of its repository; none if it is in none.
pub(super) fn list(dir: &Path) -> Result<Option<(Listing, State)>, SourceError> {
    let Some(top) = top_of(dir) else { return Ok(None) };
    let mut listing = Listing::new();
    let state = match list_into(dir, &top, "", &mut listing, 0) {
        Ok(state) => state,
        // Without git a folder is a folder, unless only git knows what is in it.
        Err(SourceError::Git { message, .. }) if message == NO_GIT => return Ok(None),
        Err(error) => return Err(error),
    };
    // A folder that its repository ignores, such as a scratch folder: it stands for itself.
    if listing.is_empty() && dir != top {
        return Ok(None);
    }
    Ok(Some((listing, state)))
}

/// What [`start`] says when there is no git. Compared with, so it stands once.
const NO_GIT: &str = "git is not installed";

/// The folder or the nearest one above it that holds a `.git`.
fn top_of(dir: &Path) -> Option<PathBuf> {
    dir.ancestors().find(|path| path.join(".git").exists()).map(Path::to_owned)
}

fn list_into(
    dir: &Path,
    top: &Path,
    prefix: &str,
    listing: &mut Listing,
    depth: usize,
) -> Result<State, SourceError> {
    // Both at once: each looks at every file.
    let status = start(
        dir,
        "status",
        &[
            "--porcelain=v2",
            "--branch",
            "-z",
            "--untracked-files=all",
            "--ignored=no",
            "--no-renames",
            "--",
            ".",
        ],
    )?;
    let index = start(dir, "ls-files", &["--stage", "-z"])?;
    let index = finish(index, dir, "ls-files")?;
    let status = finish(status, dir, "status")?;
    let below = dir.strip_prefix(top).ok().and_then(Path::to_str).unwrap_or_default();
    let status = parse_status(&status, below, prefix)?;

    let mut nested = Vec::new();
    for record in records(&index) {
        // MODE OBJECT STAGE\tPATH
        let Some((head, path)) = split_tab(record) else { continue };
        let path = text(path, prefix)?;
        let mode = head.split(' ').next().unwrap_or_default();
        if mode == MODE_SUBMODULE {
            nested.push(path.to_owned());
            continue;
        }
        let executable = match status.modes.get(path) {
            Some(&executable) => executable,
            None => mode == MODE_EXECUTABLE,
        };
        let listed = Listed::Entry { executable: Some(executable) };
        listing.insert(format!("{prefix}{path}"), listed);
    }
    for path in status.untracked {
        match path.strip_suffix('/') {
            // A repository within this one that it does not know as a submodule.
            Some(path) => nested.push(path.to_owned()),
            None => {
                let listed = Listed::Entry { executable: None };
                listing.insert(format!("{prefix}{path}"), listed);
            }
        }
    }
    let mut state = status.state;
    for path in nested {
        let inner = dir.join(&path);
        listing.insert(format!("{prefix}{path}"), Listed::Folder);
        // Not checked out: an empty folder, as a clone without submodules has it.
        if !inner.join(".git").exists() {
            continue;
        }
        if depth >= SUBMODULE_DEPTH_MAX {
            let message = format!("submodules are nested deeper than {SUBMODULE_DEPTH_MAX}");
            return Err(SourceError::Git { command: "status", dir: inner, message });
        }
        let prefix = format!("{prefix}{path}/");
        state.dirty |= list_into(&inner, &inner, &prefix, listing, depth + 1)?.dirty;
    }
    Ok(state)
}

/// What `git status` says.
#[derive(Default)]
struct Status {
    state: State,
    /// Whether tracked files that differ from the index are executable now.
    modes: HashMap<String, bool>,
    /// Relative to the folder; a `/` at the end marks a repository.
    untracked: Vec<String>,
}

/// Reads `git status --porcelain=v2 --branch -z`. Its paths are relative to the top;
/// `below` is the folder's own place there.
fn parse_status(bytes: &[u8], below: &str, prefix: &str) -> Result<Status, SourceError> {
    let mut status = Status::default();
    for record in records(bytes) {
        let record = text(record, prefix)?;
        let (kind, rest) = record.split_once(' ').unwrap_or((record, ""));
        match kind {
            "#" => parse_header(rest, &mut status.state),
            "?" => {
                status.state.dirty = true;
                status.untracked.extend(relative(rest, below));
            }
            // XY SUB MODE_HEAD MODE_INDEX MODE_HERE HASH HASH PATH
            "1" => {
                status.state.dirty = true;
                let fields: Vec<&str> = rest.splitn(8, ' ').collect();
                if let [_, _, _, _, here, _, _, path] = fields[..]
                    && here.starts_with("100")
                    && let Some(path) = relative(path, below)
                {
                    status.modes.insert(path, here == MODE_EXECUTABLE);
                }
            }
            // Unmerged, and what later versions may say.
            _ => status.state.dirty = true,
        }
    }
    Ok(status)
}

fn parse_header(header: &str, state: &mut State) {
    match header.split_once(' ') {
        Some(("branch.oid", "(initial)")) => state.dirty = true,
        Some(("branch.oid", head)) => state.head = Some(head.to_owned()),
        Some(("branch.head", name)) if name != "(detached)" => {
            state.git_ref = Some(format!("refs/heads/{name}"));
        }
        _ => (),
    }
}

fn relative(path: &str, below: &str) -> Option<String> {
    if below.is_empty() {
        return Some(path.to_owned());
    }
    path.strip_prefix(below)?.strip_prefix('/').map(str::to_owned)
}

fn records(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|&byte| byte == 0).filter(|record| !record.is_empty())
}

fn split_tab(record: &[u8]) -> Option<(&str, &[u8])> {
    let at = record.iter().position(|&byte| byte == b'\t')?;
    Some((std::str::from_utf8(&record[..at]).ok()?, &record[at + 1..]))
}

fn text<'a>(bytes: &'a [u8], prefix: &str) -> Result<&'a str, SourceError> {
    std::str::from_utf8(bytes).map_err(|_| SourceError::NotUtf8 {
        path: format!("{prefix}{}", String::from_utf8_lossy(bytes)),
    })
}

fn start(dir: &Path, command: &'static str, arguments: &[&str]) -> Result<Child, SourceError> {
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(dir)
        // Neither a program of the repository's choice nor a lock that gets in the way.
        .args(["-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "--no-optional-locks"])
        .arg(command)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C");
    // Set in hooks, where they name another repository than the folder's.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"] {
        git.env_remove(name);
    }
    git.spawn().map_err(|error| {
        let message = match error.kind() {
            std::io::ErrorKind::NotFound => NO_GIT.to_owned(),
            _ => error.to_string(),
        };
        SourceError::Git { command, dir: dir.to_owned(), message }
    })
}

fn finish(child: Child, dir: &Path, command: &'static str) -> Result<Vec<u8>, SourceError> {
    let failed = |message| SourceError::Git { command, dir: dir.to_owned(), message };
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(output.stdout)
}
