//! `actions/upload-artifact` and `actions/download-artifact`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use steading_cas::tree::{
    CaptureOptions, Materialize, Modes, Patterns, capture_in, materialize_in,
};
use steading_model::{Conclusion, Digest, FailureClass};
use steading_proto::v1;

use super::super::Host;
use super::super::effects::Written;
use super::super::output::StepOutput;
use super::super::state::JobState;
use super::super::step::{Executed, StepEnd};
use super::{flag, input};
use crate::blocking::blocking;
use crate::workspace::leaves_workspace;

/// Characters that no artifact's name may have, because no file's name may.
const NAME_FORBIDDEN: &str = "\":<>|*?\r\n\\/";

/// What makes a part of a path a pattern.
const GLOB: [char; 4] = ['*', '?', '[', '{'];

pub(super) async fn upload(
    state: &mut JobState<'_>,
    host: &mut Host<'_>,
    with: &BTreeMap<String, String>,
    output: &mut StepOutput,
) -> Executed {
    let name = input(with, "name").unwrap_or("artifact").to_owned();
    if let Some(bad) = name.chars().find(|&c| NAME_FORBIDDEN.contains(c)) {
        return Err(StepEnd::failure(format!("the artifact's name `{name}` has a `{bad}`")));
    }
    let paths = input(with, "path")
        .ok_or_else(|| StepEnd::failure("upload-artifact: input `path` is missing"))?;
    let hidden = flag(with, "include-hidden-files", false)?;
    let workspace = state.workspace.dir();
    let home = host.environment.get("HOME").map(PathBuf::from);
    let chosen = Chosen::parse(paths, &workspace, home.as_deref());

    let Some((root, patterns)) = chosen.root_and_patterns(hidden)? else {
        return no_files(with, &name, paths, output);
    };
    // From here on by the open folder: a link must not make the agent read what the job
    // may not, and a process of the job may change names at any moment.
    let root = state
        .workspace
        .folder(&root)
        .map_err(|error| not_opened("upload-artifact", &root, &error))?;
    let store = host.blobs.local().cloned().ok_or_else(|| cache_end("no local store"))?;
    let take = move || {
        let options = CaptureOptions { patterns: &patterns, modes: Modes::Executable, memo: None };
        capture_in(&store, &root, &options)
    };
    let taken = blocking(take)
        .await
        .map_err(|error| cache_end(&error.to_string()))?
        .map_err(|error| StepEnd::failure(format!("upload-artifact: {error}")))?
        .summary;
    if taken.files == 0 {
        return no_files(with, &name, paths, output);
    }
    record(host, &name, &taken).await?;
    output.line(&format!(
        "artifact `{name}`: {} files, {} bytes, {}",
        taken.files, taken.bytes, taken.root
    ));
    let mut end = StepEnd::new(Conclusion::Success, "");
    end.outputs.insert("artifact-digest".to_owned(), taken.root.hash_hex());
    Ok((end, Written::default()))
}

async fn record(
    host: &mut Host<'_>,
    name: &str,
    taken: &steading_cas::tree::TreeSummary,
) -> Result<(), StepEnd> {
    host.blobs
        .upload_tree(&taken.root)
        .await
        .map_err(|error| cache_end(&format!("artifact `{name}` cannot be stored: {error}")))?;
    let artifact = v1::Artifact {
        name: name.to_owned(),
        root_digest: taken.root.to_string(),
        files: taken.files,
        bytes: taken.bytes,
    };
    let request = v1::RecordArtifactRequest { lease: Some(host.lease), artifact: Some(artifact) };
    match host
        .agents
        .call(|mut client| {
            let request = request.clone();
            async move { client.record_artifact(request).await }
        })
        .await
    {
        Ok(_) => Ok(()),
        Err(status) => {
            Err(StepEnd::failure(format!("artifact `{name}` is not taken: {}", status.message())))
        }
    }
}

fn no_files(
    with: &BTreeMap<String, String>,
    name: &str,
    paths: &str,
    output: &mut StepOutput,
) -> Executed {
    let text = format!("no files match `{}`: artifact `{name}` is not made", paths.trim());
    match input(with, "if-no-files-found").unwrap_or("warn") {
        "error" => return Err(StepEnd::failure(text)),
        "ignore" => output.line(&text),
        "warn" => output.line(&format!("##[warning]{text}")),
        other => {
            return Err(StepEnd::failure(format!(
                "input `if-no-files-found` is `{other}`, want warn, error or ignore"
            )));
        }
    }
    Ok((StepEnd::new(Conclusion::Success, ""), Written::default()))
}

pub(super) async fn download(
    state: &mut JobState<'_>,
    host: &mut Host<'_>,
    with: &BTreeMap<String, String>,
    output: &mut StepOutput,
) -> Executed {
    for name in ["run-id", "repository", "artifact-ids"] {
        if input(with, name).is_some() {
            return Err(StepEnd::failure(format!(
                "download-artifact with `{name}` is not supported yet: only artifacts of this run \
                 can be downloaded, by name"
            )));
        }
    }
    let wanted = input(with, "name");
    let pattern = input(with, "pattern").map(|pattern| Patterns::parse(&[pattern])).transpose();
    let pattern = pattern.map_err(|error| StepEnd::failure(error.to_string()))?;
    let flat = flag(with, "merge-multiple", false)? || wanted.is_some();
    let dest = state.workspace.dir().join(input(with, "path").unwrap_or("."));
    let request = v1::ListRunArtifactsRequest { lease: Some(host.lease) };
    let known = host
        .agents
        .call(|mut client| async move { client.list_run_artifacts(request).await })
        .await
        .map_err(|status| {
            cache_end(&format!("artifacts cannot be listed: {}", status.message()))
        })?;
    let mut found = known.artifacts;
    found.retain(|artifact| match (wanted, &pattern) {
        (Some(name), _) => artifact.name == name,
        (None, Some(pattern)) => pattern.matches(&artifact.name),
        (None, None) => true,
    });
    if let (Some(name), true) = (wanted, found.is_empty()) {
        return Err(StepEnd::failure(format!("this run has no artifact `{name}`")));
    }
    for artifact in &found {
        let target = if flat { dest.clone() } else { dest.join(&artifact.name) };
        put(state, host, artifact, target).await?;
        output.line(&format!("artifact `{}`: {} files", artifact.name, artifact.files));
    }
    let mut end = StepEnd::new(Conclusion::Success, "");
    end.outputs.insert("download-path".to_owned(), dest.to_string_lossy().into_owned());
    Ok((end, Written::default()))
}

async fn put(
    state: &JobState<'_>,
    host: &Host<'_>,
    artifact: &v1::Artifact,
    target: PathBuf,
) -> Result<(), StepEnd> {
    let failed = |why: String| cache_end(&format!("artifact `{}`: {why}", artifact.name));
    let root: Digest = artifact.root_digest.parse().map_err(|error| failed(format!("{error}")))?;
    let tree = host.blobs.fetch_tree(&root).await.map_err(|error| failed(error.to_string()))?;
    let target = state
        .workspace
        .make_folder(&target)
        .map_err(|error| not_opened("download-artifact", &target, &error))?;
    let store = host.blobs.local().cloned().ok_or_else(|| failed("no local store".to_owned()))?;
    let options = Materialize { owner: state.workspace.user(), ..Materialize::WRITABLE };
    let write = move || materialize_in(&store, &root, &target, &options);
    blocking(write)
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| StepEnd::failure(format!("artifact `{}`: {error}", artifact.name)))?;
    drop(tree);
    Ok(())
}

fn not_opened(action: &str, folder: &Path, error: &std::io::Error) -> StepEnd {
    let folder = folder.display();
    StepEnd::failure(if leaves_workspace(error) {
        format!("{action}: `{folder}` is not inside the workspace")
    } else {
        format!("{action}: `{folder}` cannot be opened: {error}")
    })
}

fn cache_end(message: &str) -> StepEnd {
    StepEnd { class: Some(FailureClass::Cache), ..StepEnd::failure(message) }
}

/// The lines of `path`, as absolute paths without `.` and `..`.
#[derive(Debug)]
struct Chosen {
    lines: Vec<(bool, PathBuf)>,
}

impl Chosen {
    fn parse(text: &str, workspace: &Path, home: Option<&Path>) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines = lines.filter(|line| !line.starts_with('#')).map(|line| {
            let (exclude, path) = match line.strip_prefix('!') {
                Some(path) => (true, path.trim()),
                None => (false, line),
            };
            let path = match (path.strip_prefix('~'), home) {
                (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
                    home.join(rest.trim_start_matches('/'))
                }
                _ => workspace.join(path),
            };
            (exclude, normal(&path))
        });
        Self { lines: lines.collect() }
    }

    /// The folder that the artifact's paths begin below, and what is chosen of it; none
    /// where that folder does not exist. With one path it is that folder, with several
    /// the one that all of them share, with one file the folder that it is in.
    fn root_and_patterns(&self, hidden: bool) -> Result<Option<(PathBuf, Patterns)>, StepEnd> {
        let mut searched = self.lines.iter().filter(|(exclude, _)| !exclude).map(|(_, path)| {
            let literal = path
                .components()
                .take_while(|part| !part.as_os_str().to_string_lossy().contains(GLOB));
            literal.collect::<PathBuf>()
        });
        let Some(first) = searched.next() else {
            return Ok(None);
        };
        let mut root = searched.fold(first, |root, path| {
            let shared = root.components().zip(path.components()).take_while(|(a, b)| a == b);
            shared.map(|(part, _)| part).collect()
        });
        if root.is_file() {
            root.pop();
        }
        if !root.is_dir() {
            return Ok(None);
        }
        let mut patterns = Vec::new();
        for (exclude, path) in &self.lines {
            let Ok(relative) = path.strip_prefix(&root) else {
                continue;
            };
            let relative = relative.to_string_lossy();
            let pattern = if relative.is_empty() { "**" } else { &relative };
            patterns.push(format!("{}{pattern}", if *exclude { "!" } else { "" }));
        }
        if !hidden {
            patterns.push("!**/.*".to_owned());
        }
        let patterns = Patterns::parse(&patterns)
            .map_err(|error| StepEnd::failure(format!("upload-artifact: {error}")))?;
        Ok(Some((root, patterns)))
    }
}

/// The path without `.` and `..`, by its words alone.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => (),
            Component::ParentDir => drop(out.pop()),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_follow_a_table() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = dir.path();
        for file in ["dist/a.txt", "dist/sub/b.txt", "README", ".hidden"] {
            let path = workspace.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        let check = |paths: &str, root: Option<&str>, chosen: &[&str]| {
            let got = Chosen::parse(paths, workspace, None).root_and_patterns(false).unwrap();
            let want = root.map(|root| normal(&workspace.join(root)));
            assert_eq!(got.as_ref().map(|(root, _)| root.clone()), want, "{paths:?}");
            for path in chosen {
                assert!(got.as_ref().unwrap().1.matches(path), "{path} of {paths:?}");
            }
            if let Some((_, patterns)) = got {
                assert!(!patterns.matches(".hidden") && !patterns.matches("a/.b/c"));
            }
        };
        check("dist", Some("dist"), &["a.txt", "sub/b.txt"]);
        check("./dist/\n", Some("dist"), &["a.txt"]);
        check("dist/*.txt", Some("dist"), &["a.txt"]);
        check("dist/a.txt", Some("dist"), &["a.txt"]);
        check("dist/**/*.txt", Some("dist"), &["a.txt", "sub/b.txt"]);
        check("dist\nREADME", Some("."), &["dist/a.txt", "README"]);
        check("**", Some("."), &["README"]);
        check("nothing", None, &[]);
        check("!dist", None, &[]);
    }
}
