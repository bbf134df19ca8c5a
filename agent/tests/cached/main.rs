//! Cached steps from the key to the workspace: real store, real supervisor, real sandbox.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

mod coordinator;
mod farm;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use steading_agent::cached::platform::Platform;
use steading_agent::cached::{CachedError, Isolation};
use steading_pipeline::job::CacheSpec;
use steading_proto::v1::claim_action_response::{Decision, Failed};
use tokio_util::sync::CancellationToken;

use farm::{Farm, Step, open, path_env, text, tree};

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
async fn tools_show_a_job_nothing_that_its_user_cannot_reach() {
    let Some(mut farm) = Farm::new().await else { return };
    let root = farm.dir.path().to_owned();
    // Open itself, in a folder that is not: as what lies in root's home, or in another job's.
    for folder in ["private/closed", "h"] {
        fs::create_dir_all(root.join(folder)).unwrap();
        fs::write(root.join(folder).join("hi"), "#!/bin/sh\necho hi from there\n").unwrap();
        open(&root.join(folder).join("hi"));
    }
    std::os::unix::fs::symlink(root.join("private/closed/hi"), root.join("h/link")).unwrap();
    fs::set_permissions(root.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
    let path = |folder: &str| format!("{}:/usr/bin:/bin", root.join(folder).display());
    let step = |script: &str, folder: &str| {
        Step::new(script).with(|step| {
            step.owner = Some((nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
            step.env("PATH", &path(folder));
        })
    };
    let ran = farm.run(&step("hi >out.txt", "private/closed")).await;
    assert_eq!(ran.ran.exit.code, Some(127), "{ran:?}");
    let ran = farm.run(&step("link >out.txt", "h")).await;
    assert!(!ran.ran.succeeded(), "{ran:?}");
    let ran = farm.run(&step("hi >out.txt", "h")).await;
    assert!(ran.ran.succeeded(), "the job's own home is shown: {ran:?}");

    let tool = step("true >out.txt", "h")
        .with(|step| step.spec.tools = vec![root.join("private/closed").display().to_string()]);
    let error = farm.try_run(&tool).await.unwrap_err();
    assert!(error.to_string().contains("not to be reached"), "{error}");
    // A person's own jobs see what the person sees.
    let ran = farm.run(&tool.with(|step| step.owner = None)).await;
    assert!(ran.ran.succeeded(), "{ran:?}");
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
async fn cancelling_reaches_the_command_in_its_sandbox() {
    let Some(mut farm) = Farm::new().await else { return };
    farm.cancel_on = Some("up");
    let mut coordinator = farm.coordinator(vec![Decision::Build(Default::default())]);
    let step =
        Step::new("trap 'echo tidied; exit 0' TERM; echo up; while :; do sleep 60 & wait; done");
    let done = farm.run(&step).await;
    assert!(done.ran.exit.cancelled, "{done:?}");
    assert_eq!(done.log, "up\ntidied\n");
    assert_eq!(coordinator.resolved().await, "abandoned");
}

#[tokio::test]
async fn a_step_whose_time_is_over_ends_with_all_that_it_started() {
    let Some(mut farm) = Farm::new().await else { return };
    farm.timeout = Some(Duration::from_secs(8));
    let done = farm.run(&Step::new("echo up; (sleep 600 &) ; sleep 600")).await;
    assert!(done.ran.exit.timed_out && !done.ran.succeeded(), "{done:?}");
    assert_eq!(done.log, "up\n");
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
async fn without_namespaces_the_step_runs_and_its_result_stays_here() {
    let Some(mut farm) = Farm::new().await else { return };
    let step =
        Step::new("cat a.txt >out.txt; ls; rm a.txt; echo W=$GITHUB_WORKSPACE >>$GITHUB_ENV")
            .with(|step| step.file("hidden.md", "x"));
    let enforced = farm.run(&step).await;
    // A program that cannot make a sandbox, whatever the kernel could.
    farm.program = vec!["/bin/false".into()];
    farm.platform = Arc::new(Platform::new(farm.dir.path().join("fp"), path_env("/usr/bin:/bin")));
    for cached in [false, true] {
        let done = farm.run(&step).await;
        assert_eq!((done.ran.cached, done.log.as_str()), (cached, "a.txt\nout.txt\n"), "{done:?}");
        assert!(matches!(done.ran.isolation, Isolation::Off(_)));
        assert_ne!(done.ran.action, enforced.ran.action);
        let workspace = done.workspace.display();
        assert_eq!(text(&done.ran.effects.env), format!("W={workspace}\n"));
        assert_eq!(tree(&done.workspace)["out.txt"].1, "a");
        assert_eq!(done.ran.dropped, if cached { vec![] } else { vec!["a.txt"] });
    }
}

#[tokio::test]
async fn who_is_granted_the_claim_says_what_came_of_it() {
    let Some(mut farm) = Farm::new().await else { return };
    for (script, said) in [
        (">out.txt", "published"),
        ("exit 1", "failed"),
        ("true", "failed"),
        (">out.txt; echo a=b >>$GITHUB_STATE", "abandoned"),
    ] {
        let mut coordinator = farm.coordinator(vec![Decision::Build(Default::default())]);
        farm.run(&Step::new(script)).await;
        assert_eq!(coordinator.resolved().await, said, "{script}");
    }
}

#[tokio::test]
async fn who_waited_gets_the_result_or_the_very_failure() {
    let Some(mut farm) = Farm::new().await else { return };
    let failing = Step::new("echo broken; echo k=v >>$GITHUB_OUTPUT; echo r >out.txt; exit 4");
    let mut coordinator = farm.coordinator(vec![Decision::Build(Default::default())]);
    let executed = farm.run(&failing).await;
    let said = coordinator.resolved().await;
    assert_eq!(said, "failed");
    let failed = Failed { detail_digest: coordinator.detail.clone() };
    farm.coordinator(vec![Decision::Failed(failed)]);
    let waited = farm.run(&failing).await;
    assert!(waited.ran.cached, "not executed again");
    assert_eq!(waited.ran.exit.code, Some(4));
    assert_eq!(waited.log, "broken\n");
    assert_eq!(waited.ran.effects.output, executed.ran.effects.output);
    assert_eq!(tree(&waited.workspace), tree(&executed.workspace));

    // Told that it is published, and it is not: looks a few times, then executes.
    let published = || Decision::Published(Default::default());
    farm.coordinator(vec![published(), published(), published()]);
    assert!(farm.run(&Step::new(">out.txt")).await.ran.succeeded());
}

#[tokio::test]
async fn a_coordinator_that_does_not_answer_fails_no_step() {
    let Some(mut farm) = Farm::new().await else { return };
    farm.coordinator(vec![]);
    let done = farm.run(&Step::new(">out.txt")).await;
    assert!(done.ran.succeeded() && !done.ran.cached);
    assert!(farm.run(&Step::new(">out.txt")).await.ran.cached);
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
