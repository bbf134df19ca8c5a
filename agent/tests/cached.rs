//! Cached steps from the key to the workspace: real store, real supervisor, real sandbox.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use steading_agent::cached::platform::Platform;
use steading_agent::cached::{CachedError, Context, Isolation, Ran, Request, run};
use steading_agent::supervisor::Supervisor;
use steading_cas::client::Actions;
use steading_cas::{ActionCache, Blobs, Store, StoreOptions};
use steading_pipeline::job::CacheSpec;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn the_second_time_is_a_hit_and_looks_the_same() {
    let Some(mut farm) = Farm::new().await else { return };
    let step = Step::new("cat a.txt >out.txt; chmod 750 out.txt; echo said; echo k=v >>$GITHUB_OUTPUT
        echo X=$GITHUB_WORKSPACE/x >>$GITHUB_ENV; echo $PWD/bin >>$GITHUB_PATH; echo sum >>$GITHUB_STEP_SUMMARY");
    let first = farm.run(&step).await;
    assert!(!first.ran.cached && first.ran.succeeded(), "{first:?}");
    assert_eq!(first.log, "said\n");
    let made = tree(&first.workspace);
    assert_eq!(made["out.txt"], (0o750, "a".to_owned()));

    let second = farm.run(&step).await;
    assert!(second.ran.cached, "{second:?}");
    assert_eq!(second.log, first.log);
    assert_eq!(tree(&second.workspace), made);
    assert_eq!(second.ran.effects.output, b"k=v\n");
    assert_eq!(second.ran.effects.summary, first.ran.effects.summary);
    for farm_run in [&first, &second] {
        let workspace = farm_run.workspace.display();
        assert_eq!(text(&farm_run.ran.effects.env), format!("X={workspace}/x\n"));
        assert_eq!(text(&farm_run.ran.effects.path), format!("{workspace}/bin\n"));
    }
    assert_eq!(second.ran.isolation, Isolation::Enforced);
}

#[tokio::test]
async fn the_key_depends_on_what_the_step_sees_and_on_nothing_else() {
    let Some(mut farm) = Farm::new().await else { return };
    let base = Step::new("true >out.txt").with(|step| {
        step.env("FLAGS", "-O1");
        step.env("GITHUB_SHA", "1");
    });
    let key = farm.run(&base).await.ran.action;
    type Change = (&'static str, fn(&mut Step), bool);
    let changes: [Change; 16] = [
        ("a time", |_| (), true),
        ("another agent's home", |step| step.env("RUNNER_NAME", "other"), true),
        ("an undeclared variable of the run", |step| step.env("GITHUB_SHA", "2"), true),
        ("a file outside of the inputs", |step| step.file("other.md", "x"), true),
        ("a secret that it does not use", |step| step.secret("TOKEN", "hunter22"), true),
        ("how long it is believed", |step| step.spec.network_max_age_s = None, true),
        ("an input", |step| step.file("a.txt", "b"), false),
        ("one more input", |step| step.file("b.txt", "b"), false),
        ("no input", |step| drop(step.files.remove("a.txt")), false),
        ("an executable bit", |step| step.executable.push("a.txt"), false),
        ("a variable", |step| step.env("FLAGS", "-O2"), false),
        ("the script", |step| step.script.push_str("\n#"), false),
        ("the shell", |step| step.shell.insert(1, "-x".into()), false),
        ("an output pattern", |step| step.spec.outputs.push("?more".into()), false),
        (
            "the working directory",
            |step| {
                step.file("d/x.txt", "");
                step.script = "true >out.txt".into();
                step.working_directory = "d".into();
            },
            false,
        ),
        ("the network", |step| step.spec.network_max_age_s = Some(60), false),
    ];
    for (what, change, same) in changes {
        let mut step = base.clone();
        change(&mut step);
        let other = farm.run(&step).await.ran;
        assert_eq!(other.action == key, same, "{what}");
        assert_eq!(other.cached, same, "{what}");
    }
    let mut declared = base.clone();
    declared.spec.env.push("GITHUB_SHA".into());
    let one = farm.run(&declared).await.ran.action;
    declared.env("GITHUB_SHA", "2");
    assert_ne!(farm.run(&declared).await.ran.action, one, "a declared variable of the run");
}

#[tokio::test]
async fn a_step_sees_its_inputs_and_nothing_else_of_the_workspace() {
    let Some(mut farm) = Farm::new().await else { return };
    let step = Step::new("find . -type f | sort; stat -c '%Y %U %a' a.txt; pwd; id -un; >out.txt")
        .with(|step| step.file("secret.md", "x"));
    let done = farm.run(&step).await;
    assert_eq!(done.log, "./a.txt\n946684800 runner 644\n/workspace\nrunner\n");
}

#[tokio::test]
async fn a_step_may_append_to_its_inputs_and_changes_nobodys_but_its_own() {
    let Some(mut farm) = Farm::new().await else { return };
    let step = Step::new("echo more >>a.txt; rm -f a.txt.bak; cp a.txt out.txt; chmod 600 a.txt");
    let first = farm.run(&step).await;
    assert!(first.ran.succeeded(), "{first:?}");
    assert_eq!(first.ran.dropped, ["a.txt"]);
    assert_eq!(tree(&first.workspace)["a.txt"], (0o644, "a".to_owned()));
    assert_eq!(tree(&first.workspace)["out.txt"].1, "amore\n");
    let again = farm.run(&Step::new("cat a.txt >out.txt")).await;
    assert_eq!(tree(&again.workspace)["out.txt"].1, "a");
}

#[tokio::test]
async fn outputs_replace_what_stood_there() {
    let Some(mut farm) = Farm::new().await else { return };
    let step = Step::new("mkdir build; echo new >build/new").with(|step| {
        step.spec.outputs = vec!["build".into()];
        step.file("build/old", "old");
        step.file("kept", "kept");
    });
    for cached in [false, true] {
        let done = farm.run(&step).await;
        assert_eq!(done.ran.cached, cached);
        let names: Vec<_> = tree(&done.workspace).into_keys().collect();
        assert_eq!(names, ["a.txt", "build/new", "kept"]);
    }
}

#[tokio::test]
async fn the_whole_workspace_is_input_and_output() {
    let Some(mut farm) = Farm::new().await else { return };
    let step = Step::new("rm a.txt; rm -r d; mkdir d; echo n >d/n; ls -a >list").with(|step| {
        step.spec = CacheSpec { whole: true, ..CacheSpec::default() };
        step.file("d/o", "o");
        step.file(".git/HEAD", "ref");
        step.file("e/kept", "kept");
    });
    for cached in [false, true] {
        let done = farm.run(&step).await;
        assert_eq!(done.ran.cached, cached, "{done:?}");
        let names: Vec<_> = tree(&done.workspace).into_keys().collect();
        assert_eq!(names, [".git/HEAD", "d/n", "e/kept", "list"]);
        assert_eq!(tree(&done.workspace)["list"].1, ".\n..\nd\ne\nlist\n");
    }
}

#[tokio::test]
async fn a_missing_output_fails_the_step_unless_it_may_be_missing() {
    let Some(mut farm) = Farm::new().await else { return };
    let mut step = Step::new("true");
    let done = farm.run(&step).await;
    assert!(!done.ran.succeeded());
    assert!(done.ran.failure.as_ref().unwrap().contains("out.txt`"), "{done:?}");
    assert!(!farm.run(&step).await.ran.cached);

    step.spec.outputs = vec!["?out.txt".into()];
    assert!(farm.run(&step).await.ran.succeeded());
    assert!(farm.run(&step).await.ran.cached);
}

#[tokio::test]
async fn writes_outside_of_the_outputs_are_dropped_and_told() {
    let Some(mut farm) = Farm::new().await else { return };
    let mut step = Step::new(">out.txt; mkdir d; >d/stray; rm a.txt");
    let done = farm.run(&step).await;
    assert!(done.ran.succeeded());
    assert_eq!(done.ran.dropped, ["a.txt", "d/stray"]);
    assert_eq!(tree(&done.workspace).into_keys().collect::<Vec<_>>(), ["a.txt", "out.txt"]);

    step.spec.strict = true;
    let strict = farm.run(&step).await;
    assert!(strict.ran.failure.unwrap().contains("`a.txt`, `d/stray`"));
}

#[tokio::test]
async fn a_failure_is_not_kept_and_tells_what_was_not_declared() {
    let Some(mut farm) = Farm::new().await else { return };
    let step = Step::new("cat include/b.h || exit 3").with(|step| step.file("include/b.h", "b"));
    for _ in 0..2 {
        let done = farm.run(&step).await;
        assert!(!done.ran.cached);
        assert_eq!(done.ran.exit.code, Some(3));
        assert_eq!(done.ran.undeclared, ["include/b.h"]);
    }
}

#[tokio::test]
async fn state_and_masked_values_are_used_but_not_kept() {
    let Some(mut farm) = Farm::new().await else { return };
    for script in [">out.txt; echo a=b >>$GITHUB_STATE", ">out.txt; echo ::add-mask::abc"] {
        for _ in 0..2 {
            let done = farm.run(&Step::new(script)).await;
            assert!(!done.ran.cached && done.ran.succeeded(), "{done:?}");
            assert!(done.ran.notes[0].starts_with("the result is not kept"), "{done:?}");
        }
    }
}

#[tokio::test]
async fn secrets_are_refused_unless_they_are_named() {
    let Some(mut farm) = Farm::new().await else { return };
    let mut step = Step::new("test \"$T\" = hunter22 && wc -c <<<\"$T\" >out.txt").with(|step| {
        step.secret("TOKEN", "hunter22");
        step.env("T", "hunter22");
        step.script = "wc -c <<<\"$T\" >out.txt".into();
    });
    let error = farm.try_run(&step).await.unwrap_err();
    assert!(matches!(error, CachedError::Secret { .. }), "{error}");

    step.spec.secrets = vec!["TOKEN".into()];
    let first = farm.run(&step).await;
    assert!(first.ran.succeeded(), "{first:?}");
    assert_eq!(tree(&first.workspace)["out.txt"].1, "9\n");
    assert!(farm.run(&step).await.ran.cached);
    step.secret("TOKEN", "hunter23");
    step.env("T", "hunter23");
    assert!(!farm.run(&step).await.ran.cached, "another value is another key");

    for leak in
        ["echo $T; >out.txt", "echo \"x${T}x\" >out.txt", ">out.txt; echo t=$T >>$GITHUB_OUTPUT"]
    {
        step.script = leak.into();
        let leaked = farm.run(&step).await;
        assert!(leaked.ran.failure.unwrap().contains("`TOKEN`"), "{leak}");
    }
    step.script = "echo hunter23".into();
    assert!(farm.try_run(&step).await.unwrap_err().to_string().contains("script"));
}

#[tokio::test]
async fn a_result_from_the_network_is_believed_for_a_time() {
    let Some(mut farm) = Farm::new().await else { return };
    let mut step = Step::new(">out.txt");
    step.spec.network_max_age_s = Some(3600);
    assert!(!farm.run(&step).await.ran.cached);
    assert!(farm.run(&step).await.ran.cached);
    step.spec.network_max_age_s = Some(0);
    assert!(!farm.run(&step).await.ran.cached);
}

#[tokio::test]
async fn a_lost_blob_is_a_slower_step_and_never_a_failed_one() {
    let Some(mut farm) = Farm::new().await else { return };
    let step = Step::new("echo unique-content-of-this-test >out.txt");
    farm.run(&step).await;
    farm.lose_blob(b"unique-content-of-this-test\n");
    let again = farm.run(&step).await;
    assert!(!again.ran.cached && again.ran.succeeded(), "{again:?}");
    assert!(farm.run(&step).await.ran.cached);
}

#[tokio::test]
async fn a_cancelled_step_leaves_nothing() {
    let Some(mut farm) = Farm::new().await else { return };
    farm.cancel.cancel();
    let done = farm.run(&Step::new(">out.txt")).await;
    assert!(done.ran.exit.cancelled);
    farm.cancel = CancellationToken::new();
    assert!(!farm.run(&Step::new(">out.txt")).await.ran.cached);
}

#[tokio::test]
async fn a_tool_that_a_step_does_not_see_is_named() {
    let Some(mut farm) = Farm::new().await else { return };
    let home = farm.dir.path().join("home/.cargo/bin");
    fs::create_dir_all(&home).unwrap();
    open(farm.dir.path());
    for program in ["cargo", "tool"] {
        fs::write(home.join(program), format!("#!/bin/sh\necho {program} ran\n")).unwrap();
        fs::set_permissions(home.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    farm.platform(&format!("{}:/usr/bin:/bin", home.display()));
    // Assembled, so that the step does not name it.
    let mut step = Step::new(">out.txt; t=to; ${t}ol");
    let done = farm.run(&step).await;
    assert_eq!(done.ran.exit.code, Some(127));
    assert!(done.ran.notes[0].contains("`tool` belongs to rustup"), "{done:?}");
    step.spec.tools = vec!["rustup".into()];
    let done = farm.run(&step).await;
    assert_eq!(done.log, "tool ran\n");

    let plain = Step::new("cc --version >out.txt || true");
    let before = farm.run(&plain).await.ran.action;
    let named = farm.run(&Step::new("tool; >out.txt")).await;
    assert_eq!(named.log, "tool ran\n");
    fs::write(home.join("tool"), "#!/bin/sh\necho other\n").unwrap();
    farm.platform.distrust();
    assert_eq!(farm.run(&plain).await.ran.action, before, "whose home it is does not matter");
    let changed = farm.run(&Step::new("tool; >out.txt")).await;
    assert_eq!((changed.ran.cached, changed.log.as_str()), (false, "other\n"));
}

#[tokio::test]
async fn another_compiler_is_another_key() {
    let Some(mut farm) = Farm::new().await else { return };
    let bin = farm.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    open(farm.dir.path());
    let compiler = |says: &str| {
        fs::write(bin.join("cc"), format!("#!/bin/sh\necho {says}\n")).unwrap();
        fs::set_permissions(bin.join("cc"), fs::Permissions::from_mode(0o755)).unwrap();
    };
    compiler("one");
    farm.platform(&format!("{}:/usr/bin:/bin", bin.display()));
    let step = Step::new("cc >out.txt");
    assert_eq!(tree(&farm.run(&step).await.workspace)["out.txt"].1, "one\n");
    compiler("two");
    farm.platform.distrust();
    let done = farm.run(&step).await;
    assert!(!done.ran.cached);
    assert_eq!(tree(&done.workspace)["out.txt"].1, "two\n");
}

#[derive(Clone)]
struct Step {
    script: String,
    shell: Vec<String>,
    env: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
    spec: CacheSpec,
    files: BTreeMap<String, String>,
    executable: Vec<&'static str>,
    working_directory: String,
}

impl Step {
    /// Reads `*.txt`, makes `out.txt`.
    fn new(script: &str) -> Self {
        Self {
            script: script.to_owned(),
            shell: ["bash", "-e", "{0}"].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            spec: CacheSpec {
                inputs: vec!["**/*.txt".into(), "!out.txt".into()],
                outputs: vec!["**/out.txt".into()],
                ..CacheSpec::default()
            },
            files: BTreeMap::from([("a.txt".to_owned(), "a".to_owned())]),
            executable: Vec::new(),
            working_directory: String::new(),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn env(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    fn secret(&mut self, name: &str, value: &str) {
        self.secrets.insert(name.to_owned(), value.to_owned());
    }

    fn file(&mut self, path: &str, content: &str) {
        self.files.insert(path.to_owned(), content.to_owned());
    }
}

#[derive(Debug)]
struct Done {
    ran: Ran,
    log: String,
    workspace: PathBuf,
}

struct Farm {
    dir: tempfile::TempDir,
    blobs: Blobs,
    actions: Actions,
    supervisor: Supervisor,
    platform: Arc<Platform>,
    program: Vec<String>,
    cancel: CancellationToken,
    runs: u32,
}

impl Farm {
    /// None, and a word about it, where the machine has no namespaces.
    async fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let program = vec![env!("CARGO_BIN_EXE_steading-agent").to_owned()];
        if let steading_agent::sandbox::Support::Missing(why) =
            steading_agent::sandbox::support(&program, dir.path())
        {
            let required = std::env::var("STEADING_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "namespaces"), "no namespaces: {why}");
            println!("skipped: {why}");
            return None;
        }
        let options = StoreOptions { bytes_max: 1 << 30, durable: false };
        let store = Store::open(&dir.path().join("cas"), options).unwrap();
        let mut farm = Self {
            blobs: Blobs::Local(store.clone()),
            actions: Actions::Local(ActionCache::open(&store).unwrap()),
            supervisor: Supervisor::start(&program, &[], false).unwrap(),
            platform: Arc::new(Platform::new(PathBuf::new(), BTreeMap::new())),
            program,
            cancel: CancellationToken::new(),
            runs: 0,
            dir,
        };
        farm.platform("/usr/bin:/bin");
        Some(farm)
    }

    fn platform(&mut self, path: &str) {
        let env = BTreeMap::from([("PATH".to_owned(), path.to_owned())]);
        // Shared, because what it remembers of the machine is the same for all tests.
        let memos =
            std::env::temp_dir().join(format!("steading-fingerprints-{}", nix::unistd::geteuid()));
        self.platform = Arc::new(Platform::new(memos, env));
    }

    async fn run(&mut self, step: &Step) -> Done {
        self.try_run(step).await.unwrap()
    }

    /// Every run has a workspace of its own.
    async fn try_run(&mut self, step: &Step) -> Result<Done, CachedError> {
        self.runs += 1;
        let workspace = self.dir.path().join(format!("w{}", self.runs));
        fs::create_dir(&workspace).unwrap();
        for (path, content) in &step.files {
            let file = workspace.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, content).unwrap();
            let mode = if step.executable.contains(&path.as_str()) { 0o755 } else { 0o644 };
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let scratch = self.dir.path().join("scratch");
        let context = Context {
            blobs: &self.blobs,
            actions: &self.actions,
            claims: None,
            supervisor: &mut self.supervisor,
            platform: &self.platform,
            program: &self.program,
            scratch: &scratch,
            agent: "test",
        };
        let request = Request {
            spec: &step.spec,
            script: &step.script,
            shell: &step.shell,
            env: &step.env,
            path_prefix: &[],
            working_directory: &step.working_directory,
            workspace: &workspace,
            owner: None,
            secrets: &step.secrets,
            scope: "test",
            timeout: None,
        };
        let mut log = Vec::new();
        let ran = run(context, request, &mut log, &self.cancel).await?;
        assert!(!scratch.exists(), "nothing is left behind");
        Ok(Done { ran, log: String::from_utf8(log).unwrap(), workspace })
    }

    fn lose_blob(&self, content: &[u8]) {
        let name = blake3::hash(content).to_hex().to_string();
        let mut open = vec![self.dir.path().join("cas")];
        let mut lost = 0;
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.path().is_dir() {
                    open.push(entry.path());
                } else if entry.file_name().to_string_lossy().starts_with(&name) {
                    fs::remove_file(entry.path()).unwrap();
                    lost += 1;
                }
            }
        }
        assert!(lost > 0);
    }
}

/// Every file of a folder with mode and content.
fn tree(dir: &Path) -> BTreeMap<String, (u32, String)> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            found.insert(name, (mode, fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Temporary folders are private; what tests put there as tools must be reachable.
fn open(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
