//! Whether users that have nothing to do with a folder can pass to it: jobs that run as
//! users of their own must reach their workspaces through every folder above.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Lets others pass, in a folder's mode.
const OTHERS_PASS: u32 = 0o001;

/// Those of the folder and the folders above it that let nobody else pass, the topmost one
/// first. What does not exist yet counts as open: whoever makes it sees to that.
///
/// # Errors
///
/// What the file system says.
pub fn closed_to_others(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let dir = std::path::absolute(dir)?;
    let mut above = dir.ancestors();
    let real = loop {
        let Some(folder) = above.next() else { return Ok(Vec::new()) };
        match folder.canonicalize() {
            Ok(real) => break real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
    };
    let mut closed = Vec::new();
    for folder in real.ancestors() {
        if std::fs::metadata(folder)?.permissions().mode() & OTHERS_PASS == 0 {
            closed.push(folder.to_owned());
        }
    }
    closed.reverse();
    Ok(closed)
}

/// The command that opens them, as a person types it.
pub fn command_to_open(closed: &[PathBuf]) -> String {
    let folders: Vec<String> = closed.iter().map(|folder| folder.display().to_string()).collect();
    format!("chmod o+x {}", folders.join(" "))
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir, set_permissions};

    use super::*;

    #[test]
    fn every_folder_on_the_way_has_to_let_others_pass() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let (outer, inner) = (top.join("outer"), top.join("outer/inner"));
        create_dir(&outer).unwrap();
        create_dir(&inner).unwrap();
        let mode = |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let work = inner.join("not/there/yet");
        // Whatever the folders above the test's own are.
        let closed = |path: &Path| -> Vec<PathBuf> {
            let closed = closed_to_others(path).unwrap().into_iter();
            closed.filter(|folder| folder.starts_with(&top)).collect()
        };
        for (modes, want) in [
            ([0o711, 0o711, 0o755], vec![]),
            ([0o700, 0o711, 0o711], vec![&top]),
            ([0o711, 0o750, 0o711], vec![&outer]),
            // To look into a folder is not to pass through it.
            ([0o711, 0o754, 0o710], vec![&outer, &inner]),
        ] {
            let [first, second, third] = modes;
            mode(&inner, third);
            mode(&outer, second);
            mode(&top, first);
            assert_eq!(closed(&work).iter().collect::<Vec<_>>(), want, "{modes:?}");
        }
        // A link leads through the folders that it points to.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&inner, &link).unwrap();
        assert_eq!(closed(&link), [outer.clone(), inner.clone()]);
        let command = command_to_open(&[outer.clone(), inner.clone()]);
        assert_eq!(command, format!("chmod o+x {} {}", outer.display(), inner.display()));
    }
}
