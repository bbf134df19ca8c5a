//! Whether this machine can make a sandbox: found out by making one.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Bind, HOME, SUB_COMMAND, Spec, WORKSPACE, Workspace};

/// How far isolation is enforced here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// Namespaces, and an overlay for the workspace.
    Enforced,
    /// Namespaces, but the data folder's file system carries no overlay: the
    /// workspace is a copy. As well isolated, slower.
    WithoutOverlay,
    /// None. Why, for people.
    Missing(String),
}

impl Support {
    /// Whether a command runs with nothing but what it is given.
    pub fn is_enforced(&self) -> bool {
        !matches!(self, Self::Missing(_))
    }
}

/// Makes a sandbox of each kind and runs `true` in it. `program` is what to start
/// this program with, `scratch` a folder on the file system that workspaces are on.
pub fn support(program: &[String], scratch: &Path) -> Support {
    match attempt(program, &scratch.join("probe"), true) {
        Ok(()) => return Support::Enforced,
        Err(why) => tracing::debug!(why, "no sandbox with an overlay"),
    }
    match attempt(program, &scratch.join("probe"), false) {
        Ok(()) => Support::WithoutOverlay,
        Err(why) => Support::Missing(why),
    }
}

fn attempt(program: &[String], dir: &Path, overlay: bool) -> Result<(), String> {
    let result = prepare(dir, overlay)
        .map_err(|error| format!("`{}`: {error}", dir.display()))
        .and_then(|file| run(program, &file));
    // What is left is empty folders, and the next probe makes do with them.
    let _ = steading_cas::remove_tree(dir);
    result
}

fn prepare(dir: &Path, overlay: bool) -> io::Result<PathBuf> {
    let folder = |name: &str| -> io::Result<PathBuf> {
        let path = dir.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(path)
    };
    let workspace = if overlay {
        Workspace::Overlay {
            lower: folder("lower")?,
            upper: folder("upper")?,
            work: folder("work")?,
        }
    } else {
        Workspace::Folder(folder("workspace")?)
    };
    fs::create_dir_all(dir.join("lower/a"))?;
    let spec = Spec {
        root: folder("root")?,
        workspace,
        binds: vec![Bind::writable(folder("home")?, HOME)],
        // A folder of the lower layer that is removed needs what overlays need most.
        argv: ["/bin/sh", "-c", "mkdir b && echo b >b/b && rmdir a 2>/dev/null; test -f b/b"]
            .map(str::to_owned)
            .to_vec(),
        cwd: WORKSPACE.into(),
        error_file: dir.join("error"),
        ..Spec::default()
    };
    let file = dir.join("spec");
    fs::write(&file, serde_json::to_vec(&spec.with_system())?)?;
    Ok(file)
}

fn run(program: &[String], file: &Path) -> Result<(), String> {
    let (first, rest) = program.split_first().ok_or("no program to start the sandbox with")?;
    let output = Command::new(first)
        .args(rest)
        .arg(SUB_COMMAND)
        .arg(file)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`{first}`: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next_back().unwrap_or("it says nothing").to_owned())
}
