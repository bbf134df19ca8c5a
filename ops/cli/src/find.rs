//! Which pipeline is meant, and which tree is its source.

use std::path::{Path, PathBuf};

use steading_model::limits::PIPELINE_BYTES_MAX;

/// Where pipelines are looked for, in this order: the first folder that has any decides.
const FOLDERS: [&str; 2] = [".steading/pipelines", ".github/workflows"];

/// Where the overlay of a source stands.
const OVERLAY: &str = ".steading/overlay.yml";

/// Which of several pipelines is meant where none is named, in this order.
const PREFERRED: [&str; 2] = ["main", "ci"];

/// A pipeline and the tree that it runs on.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The file, as it is opened.
    pub file: PathBuf,
    /// The file as messages and `github.workflow_ref` name it: relative to the source
    /// where it lies in it.
    pub name: String,
    /// The file as an editor started here finds it.
    pub shown: String,
    /// Absolute.
    pub source: PathBuf,
}

/// Why there is no pipeline to run. Always the caller's mistake.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error(
        "no pipeline in `{}`: neither .steading/pipelines/*.yml nor .github/workflows/*.yml is there\n  \
         hint: name the file, or write .steading/pipelines/main.yml", .0.display()
    )]
    None(PathBuf),
    #[error("several pipelines in `{}`: {}\n  hint: name one of them", folder.display(), names.join(", "))]
    Several { folder: PathBuf, names: Vec<String> },
    #[error("`{}` is not there\n  hint: without a file, .steading/pipelines/*.yml and .github/workflows/*.yml are looked for", .0.display())]
    NotThere(PathBuf),
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the source `{}` is no folder", .0.display())]
    Source(PathBuf),
    #[error(
        "{}:1:1: the pipeline has {bytes} bytes, and may have {PIPELINE_BYTES_MAX}\n  \
         hint: move scripts into files of the repository", path.display()
    )]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("`{}` is no file", .0.display())]
    NoFile(PathBuf),
}

/// Finds the pipeline: `named` is a file, a folder, or nothing, which stands for
/// `here` and the folders above it up to the repository's.
///
/// Of several files in one folder `main.yml` is meant, else `ci.yml`.
///
/// # Errors
///
/// [`FindError`] where there is none, or several and none of them is meant.
pub fn pipeline(
    named: Option<&Path>,
    source: Option<&Path>,
    here: &Path,
) -> Result<Found, FindError> {
    let file = match named {
        None => search_upwards(here)?,
        Some(path) => {
            let path = here.join(path);
            let meta = std::fs::metadata(&path).map_err(|source| failed(&path, source))?;
            if meta.is_dir() { one_of(&path)?.ok_or(FindError::None(path))? } else { path }
        }
    };
    let file = canonical(&file)?;
    let source = match source {
        Some(source) => {
            let source = here.join(source);
            if !source.is_dir() {
                return Err(FindError::Source(source));
            }
            canonical(&source)?
        }
        None => source_of(&file),
    };
    let name = file.strip_prefix(&source).unwrap_or(&file).to_string_lossy().into_owned();
    let shown = canonical(here)?;
    let shown = file.strip_prefix(shown).unwrap_or(&file).to_string_lossy().into_owned();
    Ok(Found { file, name, shown, source })
}

/// Every pipeline in the folder, for `lint`.
///
/// # Errors
///
/// [`FindError::Read`] where a folder is there but cannot be listed.
pub fn all(folder: &Path) -> Result<Vec<PathBuf>, FindError> {
    let mut files = Vec::new();
    for pipelines in FOLDERS {
        files.extend(yaml_files(&folder.join(pipelines))?);
    }
    Ok(files)
}

/// The bytes of a pipeline, never more than one may have.
///
/// # Errors
///
/// [`FindError`] where it cannot be read, is no file or is too large.
pub fn read(path: &Path) -> Result<Vec<u8>, FindError> {
    use std::io::Read as _;
    let failed = |source| failed(path, source);
    // A pipe would be waited for without end.
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(FindError::NoFile(path.to_owned()));
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let bound = PIPELINE_BYTES_MAX as u64;
    file.take(bound + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bound {
        let bytes = meta.len().max(bound + 1);
        return Err(FindError::TooLarge { path: path.to_owned(), bytes });
    }
    Ok(bytes)
}

/// `.steading/overlay.yml` of the source, if it has one.
///
/// # Errors
///
/// As [`read`].
pub fn overlay(source: &Path) -> Result<Option<Vec<u8>>, FindError> {
    let path = source.join(OVERLAY);
    if path.exists() { read(&path).map(Some) } else { Ok(None) }
}

/// The folder of `git`'s repository that holds the path.
pub fn repository_of(path: &Path) -> Option<&Path> {
    path.ancestors().find(|folder| folder.join(".git").exists())
}

fn search_upwards(here: &Path) -> Result<PathBuf, FindError> {
    let top = repository_of(here).unwrap_or(here);
    for folder in here.ancestors() {
        if let Some(file) = one_of(folder)? {
            return Ok(file);
        }
        if folder == top {
            break;
        }
    }
    Err(FindError::None(here.to_owned()))
}

fn one_of(folder: &Path) -> Result<Option<PathBuf>, FindError> {
    for pipelines in FOLDERS {
        let files = yaml_files(&folder.join(pipelines))?;
        if let [file] = files.as_slice() {
            return Ok(Some(file.clone()));
        }
        let preferred = PREFERRED.iter().find_map(|stem| {
            files.iter().find(|file| file.file_stem().is_some_and(|name| name == *stem))
        });
        if let Some(file) = preferred {
            return Ok(Some(file.clone()));
        }
        if !files.is_empty() {
            let names = files
                .iter()
                .map(|file| file.strip_prefix(folder).unwrap_or(file).display().to_string())
                .collect();
            return Err(FindError::Several { folder: folder.to_owned(), names });
        }
    }
    Ok(None)
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>, FindError> {
    let failed = |source| FindError::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let yaml = path.extension().is_some_and(|end| end == "yml" || end == "yaml");
        if yaml && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The folder that `.steading/pipelines` or `.github/workflows` lies in; for a file
/// elsewhere its repository, or else its folder.
fn source_of(file: &Path) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new("/"));
    for pipelines in FOLDERS {
        if folder.ends_with(pipelines)
            && let Some(root) = folder.ancestors().nth(2)
        {
            return root.to_owned();
        }
    }
    repository_of(folder).unwrap_or(folder).to_owned()
}

fn canonical(path: &Path) -> Result<PathBuf, FindError> {
    path.canonicalize().map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: std::io::Error) -> FindError {
    match source.kind() {
        std::io::ErrorKind::NotFound => FindError::NotThere(path.to_owned()),
        _ => FindError::Read { path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_pipeline_of_a_folder_is_meant() {
        check(
            &[".steading/pipelines/a.yml", ".github/workflows/b.yml"],
            None,
            "",
            ".steading/pipelines/a.yml in .",
        );
        check(&[".github/workflows/b.yaml", "x"], None, "", ".github/workflows/b.yaml in .");
        check(
            &["ops/x/.steading/pipelines/a.yml"],
            Some("ops/x"),
            "",
            ".steading/pipelines/a.yml in ops/x",
        );
    }

    #[test]
    fn of_several_main_is_meant_then_ci_and_else_the_caller_has_to_say() {
        let three = [
            ".steading/pipelines/ci.yml",
            ".steading/pipelines/main.yml",
            ".steading/pipelines/z.yml",
        ];
        check(&three, None, "", ".steading/pipelines/main.yml in .");
        check(&[three[0], three[2]], None, "", ".steading/pipelines/ci.yml in .");
        check(
            &[".steading/pipelines/a.yml", three[2]],
            None,
            "",
            "several pipelines: .steading/pipelines/a.yml, .steading/pipelines/z.yml",
        );
    }

    #[test]
    fn without_a_name_the_folders_above_are_searched_up_to_the_repository() {
        let files = [".github/workflows/ci.yml", ".git/HEAD", "src/deep/x.c"];
        check(&files, None, "src/deep", ".github/workflows/ci.yml in .");
        check(&["above/x", ".github/workflows/ci.yml"], None, "above", "none");
    }

    #[test]
    fn the_source_of_a_file_elsewhere_is_its_repository_or_its_folder() {
        check(&["a/b/p.yml"], Some("a/b/p.yml"), "", "p.yml in a/b");
        check(&["a/b/p.yml", "a/.git/HEAD"], Some("a/b/p.yml"), "", "b/p.yml in a");
    }

    #[test]
    fn what_is_not_there_is_an_error_that_names_it() {
        check(&["x"], None, "", "none");
        check(&["x"], Some("y.yml"), "", "not there");
    }

    #[test]
    fn a_pipeline_of_two_mebibytes_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big.yml");
        std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        assert!(matches!(read(&path), Err(FindError::TooLarge { bytes, .. }) if bytes == 2 << 20));
    }

    fn check(files: &[&str], named: Option<&str>, here: &str, want: &str) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for file in files {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let here = root.join(here);
        let here = if here.ends_with("") { here } else { root.clone() };
        let got = match pipeline(named.map(Path::new), None, here.components().as_path()) {
            Ok(found) => {
                let source = found.source.strip_prefix(&root).unwrap().display().to_string();
                let source = if source.is_empty() { ".".to_owned() } else { source };
                format!("{} in {source}", found.name)
            }
            Err(FindError::None(_)) => "none".to_owned(),
            Err(FindError::Several { names, .. }) => {
                format!("several pipelines: {}", names.join(", "))
            }
            Err(FindError::NotThere(_)) => "not there".to_owned(),
            Err(other) => other.to_string(),
        };
        assert_eq!(got, want, "{files:?} {named:?}");
    }
}
