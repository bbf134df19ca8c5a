//! The sandbox as a step sees it: real namespaces, the real sub-command.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use steading_agent::sandbox::{
    Bind, HOME, OUTER_ID, SUB_COMMAND, Spec, Support, WORKSPACE, Workspace, support,
};

#[test]
fn the_command_is_runner_and_nobody_else() {
    check("id -u; id -g; id -un; echo $HOME; umask; hostname", |ran| {
        assert_eq!(ran.text, "1000\n1000\nrunner\n/home/runner\n0022\nsteading\n");
    });
}

#[test]
fn it_has_no_capabilities_and_gets_none() {
    check(
        "grep -E '^(CapEff|CapPrm|CapInh|CapAmb|NoNewPrivs)' /proc/self/status | tr -d '\\t'",
        |ran| {
            let none = "0000000000000000";
            assert_eq!(
                ran.text,
                format!(
                    "CapInh:{none}\nCapPrm:{none}\nCapEff:{none}\nCapAmb:{none}\nNoNewPrivs:1\n"
                )
            );
        },
    );
}

#[test]
fn it_sees_its_own_processes_only() {
    check("echo $$; set -- /proc/[0-9]*; echo $*", |ran| {
        assert_eq!(ran.text, "2\n/proc/1 /proc/2\n");
    });
}

#[test]
fn there_is_loopback_and_no_other_network() {
    check(
        "grep -c : /proc/net/dev; grep -c '^ *lo:' /proc/net/dev
         (exec 3<>/dev/udp/127.0.0.1/9) && echo loopback
         (exec 3<>/dev/udp/192.0.2.1/9) 2>/dev/null || echo unreachable",
        |ran| assert_eq!(ran.text, "1\n1\nloopback\nunreachable\n"),
    );
}

#[test]
fn the_machine_is_not_to_be_seen() {
    check("ls -A /root /home /run /var /mnt /srv /work 2>/dev/null; ls -d /etc/shadow", |ran| {
        assert_eq!(ran.text, "/home:\nrunner\n\n/run:\n\n/var:\ntmp\n");
        assert_eq!(ran.code, Some(2));
    });
}

#[test]
fn the_agents_folders_are_not_to_be_seen() {
    let Some(sandbox) = Sandbox::new() else { return };
    let secret = sandbox.dir.path().join("seal.key");
    fs::write(&secret, "key").unwrap();
    let ran =
        sandbox.run(&format!("cat {} ; ls /proc/1/root/ ; cat /proc/1/environ", secret.display()));
    assert!(!ran.text.contains("key\n"), "{}", ran.text);
    assert_eq!(ran.text, "");
}

#[test]
fn writes_go_to_the_upper_layer_only() {
    let Some(sandbox) = Sandbox::new() else { return };
    fs::create_dir(sandbox.lower().join("src")).unwrap();
    fs::write(sandbox.lower().join("src/a"), "a").unwrap();
    sandbox.give_inputs();
    let ran = sandbox.run(
        "echo b >src/b && chmod 700 src/a && echo c >>src/a && rm src/a && echo d >src/a \
         && cat src/a && rm -r src && mkdir src && ls -A src",
    );
    assert_eq!((ran.text.as_str(), ran.code), ("d\n", Some(0)), "{}", ran.errors);
    assert_eq!(fs::read_to_string(sandbox.lower().join("src/a")).unwrap(), "a");
    let mode = fs::metadata(sandbox.lower().join("src/a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    assert!(!sandbox.lower().join("src/b").exists());
}

#[test]
fn tools_cannot_be_changed() {
    check("touch /usr/bin/x /etc/x /x; echo rc $?", |ran| {
        assert_eq!(ran.text, "rc 1\n");
        assert_eq!(ran.errors.matches("Read-only file system").count(), 3, "{}", ran.errors);
    });
}

#[test]
fn exit_codes_and_signals_pass_through() {
    for (script, code, signal) in [
        ("true", Some(0), None),
        ("exit 7", Some(7), None),
        ("exit 255", Some(255), None),
        ("kill -TERM $$", None, Some(15)),
        ("kill -KILL $$", None, Some(9)),
        ("kill -SEGV $$", None, Some(11)),
    ] {
        check(script, |ran| assert_eq!((ran.code, ran.signal), (code, signal), "{script}"));
    }
}

#[test]
fn what_the_command_leaves_running_ends_with_it() {
    let Some(sandbox) = Sandbox::new() else { return };
    let ran = sandbox.run("(trap '' TERM HUP; while :; do sleep 1; done) & echo done");
    // The pipe closes only when the last holder is gone: this returns at all.
    assert_eq!(ran.text, "done\n");
}

#[test]
fn a_program_that_is_not_there_ends_like_in_a_shell() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    sandbox.argv = vec!["no-such-program".into()];
    let ran = sandbox.run("");
    assert_eq!(ran.code, Some(127));
    assert!(ran.errors.contains("cannot start `no-such-program`"), "{}", ran.errors);
    assert!(!sandbox.dir.path().join("error").exists());
}

#[test]
fn a_sandbox_that_cannot_be_made_says_why_in_its_error_file() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    sandbox.binds.push(Bind::same("/no/such/tool"));
    let ran = sandbox.run("true");
    assert_eq!(ran.code, Some(125));
    let why = fs::read_to_string(sandbox.dir.path().join("error")).unwrap();
    assert!(why.contains("cannot find `/no/such/tool`"), "{why}");
}

#[test]
fn the_description_is_gone_once_it_is_read() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.run("true");
    assert!(!sandbox.dir.path().join("spec").exists());
}

#[test]
fn devices_and_temporary_folders_work() {
    check(
        "echo x >/dev/null && head -c4 /dev/zero | wc -c && head -c4 /dev/urandom | wc -c \
         && echo t >/tmp/t && echo t >/var/tmp/t && echo t >/dev/shm/t && echo t >$HOME/t \
         && cat /dev/fd/0 <<<stdin && cat </dev/stdin",
        |ran| {
            assert_eq!((ran.text.as_str(), ran.code), ("4\n4\nstdin\n", Some(0)), "{}", ran.errors)
        },
    );
}

/// Runs a script in a sandbox, where there are sandboxes.
fn check(script: &str, then: impl FnOnce(&Ran)) {
    if let Some(sandbox) = Sandbox::new() {
        then(&sandbox.run(script));
    }
}

struct Ran {
    text: String,
    errors: String,
    code: Option<i32>,
    signal: Option<i32>,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            text: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code(),
            signal: output.status.signal(),
        }
    }
}

struct Sandbox {
    dir: tempfile::TempDir,
    argv: Vec<String>,
    binds: Vec<Bind>,
}

impl Sandbox {
    /// None, and a word about it, where the machine has no namespaces.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        if let Support::Missing(why) = support(&program(), dir.path()) {
            let required = std::env::var("STEADING_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "namespaces"), "no namespaces: {why}");
            println!("skipped: {why}");
            return None;
        }
        for name in ["root", "lower", "upper", "work", "home", "tmp"] {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            give(&path);
        }
        Some(Self { dir, argv: Vec::new(), binds: Vec::new() })
    }

    fn lower(&self) -> PathBuf {
        self.dir.path().join("lower")
    }

    fn give_inputs(&self) {
        let mut open = vec![self.lower()];
        while let Some(path) = open.pop() {
            give(&path);
            if path.is_dir() {
                open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
    }

    fn run(&self, script: &str) -> Ran {
        let path = |name: &str| self.dir.path().join(name);
        let mut binds =
            vec![Bind::writable(path("home"), HOME), Bind::writable(path("tmp"), "/tmp")];
        binds.extend(self.binds.iter().cloned());
        let spec = Spec {
            root: path("root"),
            workspace: Workspace::Overlay {
                lower: path("lower"),
                upper: path("upper"),
                work: path("work"),
            },
            binds,
            argv: if self.argv.is_empty() {
                ["bash", "-c", script].map(str::to_owned).to_vec()
            } else {
                self.argv.clone()
            },
            env: [("PATH", "/usr/bin:/bin"), ("HOME", HOME)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .to_vec(),
            cwd: WORKSPACE.into(),
            error_file: path("error"),
            ..Spec::default()
        };
        let file = path("spec");
        fs::write(&file, serde_json::to_vec(&spec.with_system()).unwrap()).unwrap();
        let program = program();
        Command::new(&program[0])
            .arg(SUB_COMMAND)
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .unwrap()
            .into()
    }
}

/// To the user that a sandbox made by root is.
fn give(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        chown(path, Some(OUTER_ID), Some(OUTER_ID)).unwrap();
    }
}

fn program() -> Vec<String> {
    vec![env!("CARGO_BIN_EXE_steading-agent").to_owned()]
}
