//! Stories of cached steps through the whole program: what hits, what executes,
//! and that nobody can tell a hit from an execution.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

const STEAD: &str = env!("CARGO_BIN_EXE_stead-under-test");

/// Compiles two files, links them, and runs the program; then tells by `if:` what
/// the cached step said.
const PIPELINE: &str = r#"on: push
jobs:
  program:
    runs-on: ubuntu-latest
    env:
      CFLAGS: -O1
    steps:
      - uses: actions/checkout@v4
      - name: compile main
        run: cc $CFLAGS -c main.c -o main.o
        x-steading: {cache: {inputs: [main.c, greet.h], outputs: [main.o]}}
      - name: compile greet
        run: cc $CFLAGS -c greet.c -o greet.o
        x-steading: {cache: {inputs: [greet.c, greet.h, 'words/*.txt'], outputs: [greet.o]}}
      - name: link
        id: link
        run: |
          cc main.o greet.o -o program
          echo "size=$(ls program | wc -l)" >> "$GITHUB_OUTPUT"
          echo "LINKED=yes" >> "$GITHUB_ENV"
          echo linked in $PWD
        x-steading: {cache: {inputs: ['*.o'], outputs: [program]}}
      - name: run it
        run: ./program > said
        x-steading: {cache: {inputs: [program], outputs: [said]}}
      - name: says what the link said
        if: steps.link.outputs.size == '1' && env.LINKED == 'yes'
        run: cat said >> "$SAID"
"#;

const FILES: &[(&str, &str)] = &[
    ("main.c", "#include \"greet.h\"\nint main(void) { return greet(); }\n"),
    (
        "greet.c",
        "#include <stdio.h>\n#include \"greet.h\"\nint greet(void) { return puts(\"hello\") < 0; }\n",
    ),
    ("greet.h", "int greet(void);\n"),
    ("words/a.txt", "a\n"),
    ("words/b.txt", "b\n"),
];

#[test]
fn what_did_not_change_is_not_executed_again() {
    let Some(place) = Place::new() else { return };
    place.check("the first run", 4, 0);
    place.check("the same again", 0, 4);

    for (file, _) in FILES {
        let path = place.project.join(file);
        let text = std::fs::read(&path).expect("read");
        std::fs::remove_file(&path).expect("remove");
        std::fs::write(&path, text).expect("write the same again");
    }
    place.check("every file touched", 0, 4);

    let elsewhere = place.dir.path().join("else/where");
    copy(&place.project, &elsewhere);
    let home = place.dir.path().join("another home");
    std::fs::create_dir(&home).expect("make a home");
    let run = Run { project: &elsewhere, home: Some(&home), path: None };
    place.check_run("another directory and home", &run, 0, 4);
    assert_eq!(place.said(), "hello\n".repeat(4), "the step behind `if` ran every time");
}

#[test]
fn exactly_what_depends_on_a_change_is_executed() {
    let Some(place) = Place::new() else { return };
    place.check("the first run", 4, 0);

    place.write("main.c", "#include \"greet.h\"\nint main(void) { return 0 * greet(); }\n");
    place.check("one source: its object, the link, the run", 3, 1);

    place.write("main.c", "// a comment compiles to the same object\n#include \"greet.h\"\nint main(void) { return 0 * greet(); }\n");
    place.check("a comment: its object alone, for the object is the same", 1, 3);

    place.write("greet.h", "int greet(void); // both use it\n");
    place.check("a header: both objects, which come out the same", 2, 2);

    std::fs::remove_file(place.project.join("words/b.txt")).expect("remove an input");
    place.check("an input deleted: the step whose pattern it met", 1, 3);

    let script = place.project.join("words/a.txt");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    place.check("an executable bit: likewise", 1, 3);

    let pipeline = PIPELINE.replace("-O1", "-O2");
    place.write(".steading/pipelines/main.yml", &pipeline);
    let (executed, _) = place.run("a compiler flag", &place.plain());
    assert!(executed >= 4, "every step sees the job's `env`: {executed}");
}

#[test]
fn another_compiler_executes_what_it_compiles() {
    let Some(place) = Place::new() else { return };
    let tools = place.dir.path().join("tools");
    std::fs::create_dir(&tools).expect("make a folder for tools");
    let compiler = tools.join("cc");
    executable(&compiler, "#!/bin/sh\nexec /usr/bin/cc \"$@\"\n");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("there is a PATH"));
    let run = Run { project: &place.project, home: None, path: Some(&path) };
    place.check_run("the first run", &run, 4, 0);
    place.check_run("the same again", &run, 0, 4);
    executable(&compiler, "#!/bin/sh\n# another version\nexec /usr/bin/cc \"$@\"\n");
    place.check_run("another compiler", &run, 4, 0);
}

#[test]
fn a_cached_step_that_lacks_an_input_names_it() {
    let Some(place) = Place::new() else { return };
    let pipeline = PIPELINE.replace("inputs: [main.c, greet.h]", "inputs: [main.c]");
    place.write(".steading/pipelines/main.yml", &pipeline);
    let out = place.stead(&place.plain());
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("greet.h"), "the undeclared file is named: {text}");
    assert!(text.contains("inputs"), "and where to declare it: {text}");
}

#[test]
fn a_job_cannot_change_what_the_next_one_restores() {
    let Some(place) = Place::new() else { return };
    let vandal = format!(
        "{PIPELINE}      - name: spoil what was restored\n        run: |\n          echo spoilt >> main.o\n          chmod 777 greet.o\n          echo spoilt >> main.c\n          rm program said\n"
    );
    place.write(".steading/pipelines/main.yml", &vandal);
    place.check("the first run", 4, 0);
    place.check("the next restores it unspoilt", 0, 4);
    assert_eq!(place.said(), "hello\nhello\n");
}

/// A project, and one data directory for all its runs.
struct Place {
    dir: tempfile::TempDir,
    project: PathBuf,
}

struct Run<'a> {
    project: &'a Path,
    home: Option<&'a Path>,
    path: Option<&'a str>,
}

impl Place {
    /// None where there is no C compiler, which is said.
    fn new() -> Option<Self> {
        let compiler = Command::new("cc").arg("--version").stdout(Stdio::null()).status();
        if !compiler.is_ok_and(|status| status.success()) {
            println!("skipped: there is no C compiler `cc`");
            return None;
        }
        let dir = tempfile::tempdir().expect("make a folder");
        let project = dir.path().join("project");
        let place = Self { dir, project };
        for (file, text) in FILES {
            place.write(file, text);
        }
        let said = place.dir.path().join("said").display().to_string();
        place.write(".steading/pipelines/main.yml", &PIPELINE.replace("$SAID", &said));
        Some(place)
    }

    fn plain(&self) -> Run<'_> {
        Run { project: &self.project, home: None, path: None }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.project.join(file);
        std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("make it");
        let said = self.dir.path().join("said").display().to_string();
        std::fs::write(path, text.replace("$SAID", &said)).expect("write a file");
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("said")).unwrap_or_default()
    }

    fn check(&self, what: &str, executed: u64, hit: u64) {
        self.check_run(what, &self.plain(), executed, hit);
    }

    fn check_run(&self, what: &str, run: &Run<'_>, executed: u64, hit: u64) {
        assert_eq!(self.run(what, run), (executed, hit), "{what}: executed and hit");
    }

    /// Runs it: how many cacheable steps executed, and how many hit.
    fn run(&self, what: &str, run: &Run<'_>) -> (u64, u64) {
        let out = self.stead(run);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{what}: {text}{}", String::from_utf8_lossy(&out.stderr));
        let summary: Value = serde_json::from_str(&text).expect("one JSON object");
        let count = |name: &str| summary["cacheable"][name].as_u64().expect("a number");
        (count("executed"), count("hit"))
    }

    fn stead(&self, run: &Run<'_>) -> std::process::Output {
        let mut command = Command::new(STEAD);
        command
            .args(["run", "--json", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .arg(run.project)
            .current_dir(self.dir.path())
            .env("GIT_CEILING_DIRECTORIES", self.dir.path())
            .env_remove("STEADING_COORDINATOR")
            .stdin(Stdio::null());
        if let Some(home) = run.home {
            command.env("HOME", home);
        }
        if let Some(path) = run.path {
            command.env("PATH", path);
        }
        command.output().expect("stead runs")
    }
}

fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).expect("write a tool");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("make a folder");
    for entry in std::fs::read_dir(from).expect("read a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy a file");
        }
    }
}
