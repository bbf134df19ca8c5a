//! What the parser says of good, bad and strange pipelines.

mod extension;

use proptest::prelude::*;

use super::parse;
use crate::job::{CacheSpec, StepSpec};
use crate::pipeline::{InputKind, Pipeline};

const STEPS: &str = "    steps: [{run: x}]\n";

#[test]
fn every_mistake_has_a_position_and_a_hint() {
    for (text, wanted) in [
        (
            "",
            "ci.yml:1:1: the file is empty (a pipeline has at least `on: push` and `jobs: {NAME: {runs-on: …, steps: […]}}`)",
        ),
        (
            "on: push\n",
            "ci.yml:1:1: `jobs` is missing (a pipeline has at least `on: push` and `jobs: {NAME: {runs-on: …, steps: […]}}`)",
        ),
        (
            "on: push\njobs: {}\n",
            "ci.yml:2:7: `jobs` has no job (a pipeline has at least `on: push` and `jobs: {NAME: {runs-on: …, steps: […]}}`)",
        ),
        ("[]", "ci.yml:1:1: a pipeline is a sequence, want a mapping"),
        (
            "on: {push: [}",
            "ci.yml:1:13: this is not YAML: while parsing a node, did not find expected node content (look for wrong indentation and for an open quote or bracket, here and just before)",
        ),
        (
            "on: push\njob:\n  a: 1\njobs: {a: {runs-on: x, steps: []}}",
            "ci.yml:2:1: unknown key `job` in a pipeline (did you mean `jobs`?)",
        ),
        (
            "on: psuh\njobs: {a: {runs-on: x, steps: []}}",
            "ci.yml:1:5: unknown event `psuh` (did you mean `push`?)",
        ),
        (
            "on: {pull_request: {types: [open]}}\njobs: {a: {runs-on: x, steps: []}}",
            "ci.yml:1:28: `pull_request` has no activity type `open` (did you mean `opened`?)",
        ),
        (
            "on: {schedule: [{cron: '* * *'}]}\njobs: {a: {runs-on: x, steps: []}}",
            "ci.yml:1:24: `* * *` is no cron pattern (want five fields: minute, hour, day of month, month, day of week)",
        ),
        (
            "name: ${{ github.ref }}\non: push\njobs: {a: {runs-on: x, steps: []}}",
            "ci.yml:1:7: an expression is not allowed here (write the value itself)",
        ),
        (
            "on: push\non: push\njobs: {}",
            "ci.yml:2:1: `on` is already defined in this mapping (a key may stand once, in whatever case)",
        ),
        (
            "on: push\njobs: {}\n---\nmore: 1",
            "ci.yml:3:1: a second document begins here, only one is allowed",
        ),
        (
            "on: !!set push\njobs: {}",
            "ci.yml:1:5: the tag `tag:yaml.org,2002:set` is not supported (leave it away, or quote the value)",
        ),
    ] {
        check(text, wanted);
    }
}

#[test]
fn every_mistake_in_a_job_has_a_position_and_a_hint() {
    for (job, wanted) in [
        (
            "    steps: [{run: x}]\n",
            "ci.yml:4:5: `runs-on` is missing in this job (as in `runs-on: ubuntu-latest`)",
        ),
        ("    runs-on: []\n    steps: [{run: x}]\n", "ci.yml:4:14: `runs-on` names no label"),
        (
            "    runs-on: x\n    step: []\n",
            "ci.yml:5:5: unknown key `step` in a job (did you mean `steps`?)",
        ),
        (
            "    runs-on: x\n    steps: {run: x}\n",
            "ci.yml:5:12: `steps` is a mapping, want a sequence",
        ),
        (
            "    runs-on: x\n    steps: [{name: x}]\n",
            "ci.yml:5:13: a step has neither `run` nor `uses`",
        ),
        (
            "    runs-on: x\n    steps: [{run: x, uses: actions/checkout@v4}]\n",
            "ci.yml:5:22: a step has both `run` and `uses` (make two steps of it)",
        ),
        (
            "    runs-on: x\n    steps: [{run: x, with: {a: b}}]\n",
            "ci.yml:5:22: `with` does not go with `run`",
        ),
        (
            "    runs-on: x\n    steps: [{run: x, shell: fish}]\n",
            "ci.yml:5:29: unknown shell `fish` (want `bash`, `sh`, `python`, `pwsh`, or a command with `{0}` for the script's file)",
        ),
        (
            "    runs-on: x\n    steps: [{uses: checkout}]\n",
            "ci.yml:5:20: `checkout` names no action (want `{org}/{repo}[/path]@ref`, as in `actions/checkout@v4`)",
        ),
        (
            "    runs-on: x\n    steps: [{id: a, run: x}, {id: A, run: x}]\n",
            "ci.yml:5:35: the step id `A` is already used in this job (ids differ in more than case)",
        ),
        (
            "    runs-on: x\n    steps: [{id: __a, run: x}]\n",
            "ci.yml:5:18: the id `__a` starts with `__` (such ids are for those that the farm makes up)",
        ),
        (
            "    runs-on: x\n    timeout-minutes: soon\n    steps: []\n",
            "ci.yml:5:22: `timeout-minutes` is a string, want a number or an expression",
        ),
        (
            "    runs-on: x\n    continue-on-error: 'yes'\n    steps: []\n",
            "ci.yml:5:24: `continue-on-error` is a string, want `true`, `false` or an expression",
        ),
        (
            "    runs-on: x\n    strategy: {matrix: {os: []}}\n    steps: []\n",
            "ci.yml:5:29: the matrix vector `os` has no values",
        ),
        (
            "    runs-on: x\n    permissions: {contents: all}\n    steps: []\n",
            "ci.yml:5:29: `contents` is `all` (want `read`, `write` and `none`)",
        ),
        (
            "    runs-on: x\n    needs: b\n    steps: []\n",
            "ci.yml:5:12: job `a` needs `b`, which is no job (the jobs are `a`)",
        ),
    ] {
        check(&format!("on: push\njobs:\n  a:\n{job}"), wanted);
    }
}

#[test]
fn bad_expressions_are_pointed_at() {
    let job = |rest: &str| format!("on: push\njobs:\n  a:\n    runs-on: x\n{rest}");
    for (rest, wanted) in [
        (
            "    steps:\n      - run: |\n          ${{ x }}\n          ${{ github }}\n          ${{ github }}\n",
            "ci.yml:7:15: bad expression: Unrecognized named-value: 'x' (here an expression may use `github`, `inputs`, `vars`, `needs`, `strategy`, `matrix`, `secrets`, `steps`, `job`, `runner` and `env`)",
        ),
        (
            "    steps:\n      - run: |\n          ${{ a( }}\n          ${{ github }}\n          ${{ github }}\n",
            "ci.yml:7:16: bad expression: Unexpected end of expression: '(' (something is to follow: a value, or the bracket that closes)",
        ),
        (
            "    if: github.ref = 1\n    steps: []\n",
            "ci.yml:5:20: bad expression: Unexpected symbol: '=' (`stead expr 'EXPRESSION'` tries an expression on its own)",
        ),
        (
            "    if: ${{ matrix.os }}\n    steps: []\n",
            "ci.yml:5:13: bad expression: Unrecognized named-value: 'matrix' (here an expression may use `github`, `inputs`, `vars` and `needs`)",
        ),
        (
            "    steps: [{run: x, if: secrets.a}]\n",
            "ci.yml:5:26: bad expression: Unrecognized named-value: 'secrets' (here an expression may use `github`, `inputs`, `vars`, `needs`, `strategy`, `matrix`, `steps`, `job`, `runner` and `env`)",
        ),
        (
            "    steps: [{run: x, if: \"success('a')\"}]\n",
            "ci.yml:5:27: bad expression: Too many parameters supplied: 'success' (`stead expr 'EXPRESSION'` tries an expression on its own)",
        ),
        (
            "    steps:\n      - run: |\n          first\n          echo ${{ foo.bar }}\n",
            "ci.yml:8:20: bad expression: Unrecognized named-value: 'foo' (here an expression may use `github`, `inputs`, `vars`, `needs`, `strategy`, `matrix`, `secrets`, `steps`, `job`, `runner` and `env`)",
        ),
        (
            "    steps: [{run: 'a ${{ github.sha'}]\n",
            "ci.yml:5:22: bad expression: the expression is not closed: `${{` without `}}` (an expression is written `${{ … }}`)",
        ),
        (
            "    steps: [{run: 'a ${{ }}'}]\n",
            "ci.yml:5:22: bad expression: an expression was expected between `${{` and `}}` (an expression is written `${{ … }}`)",
        ),
        (
            "    steps: [{run: '${{ \"a\" }}'}]\n",
            "ci.yml:5:24: bad expression: Unexpected symbol: '\"a\"' (strings in expressions stand in single quotes)",
        ),
        (
            "    name: ${{ hashFiles('a') }}\n    steps: []\n",
            "ci.yml:5:15: bad expression: Unrecognized function: 'hashFiles' (here an expression may call `case`, `contains`, `endsWith`, `format`, `fromJSON`, `join`, `startsWith` and `toJSON`)",
        ),
    ] {
        check(&job(rest), wanted);
    }
}

#[test]
fn a_circle_of_needs_is_named() {
    check(
        &format!(
            "on: push\njobs:\n  a:\n    needs: c\n    runs-on: x\n{STEPS}  b:\n    needs: [A]\n    runs-on: x\n{STEPS}  c:\n    needs: b\n    runs-on: x\n{STEPS}"
        ),
        "ci.yml:4:12: the jobs need each other in a circle: a → c → b → a (take one of these `needs` away)",
    );
}

#[test]
fn what_is_known_but_not_built_is_refused_by_name() {
    for key in [
        "container: x",
        "services: {}",
        "environment: prod",
        "snapshot: x",
        "cancel-timeout-minutes: 1",
    ] {
        let name = key.split(':').next().unwrap();
        let text = format!("on: push\njobs:\n  a:\n    runs-on: x\n    {key}\n{STEPS}");
        check(&text, &format!("ci.yml:5:5: `{name}` is not supported yet"));
    }
    for (step, what) in [
        ("{run: x, background: true}", "5:22: `background`"),
        ("{wait: x}", "5:14: `wait`"),
        ("{uses: ./x}", "5:20: an action of the repository itself (`./…`)"),
        ("{uses: 'docker://alpine'}", "5:20: a `docker://` action"),
        ("{uses: actions/setup-node@v4}", "5:20: action `actions/setup-node`"),
        ("{run: x, x-steading: {spot: never}}", "5:35: `spot`"),
        ("{run: x, x-steading: {cache: {inputs: [], mounts: []}}}", "5:55: `mounts`"),
        ("{run: x, shell: cmd}", "5:29: shell `cmd`"),
    ] {
        let text = format!("on: push\njobs:\n  a:\n    runs-on: x\n    steps: [{step}]\n");
        check(&text, &format!("ci.yml:{what} is not supported yet"));
    }
    check(
        "on: push\njobs:\n  a: {uses: ./.github/workflows/b.yml}\n  c: {needs: a, runs-on: x, steps: []}\n",
        "ci.yml:3:7: a job that `uses` a reusable workflow is not supported yet",
    );
}

#[test]
fn ten_errors_are_told_and_the_rest_counted() {
    let text = format!(
        "on: push\n{}jobs: {{a: {{runs-on: x, steps: []}}}}\n",
        (0..15).map(|n| format!("k{n}: 1\n")).collect::<String>()
    );
    let errors = parse("ci.yml", text.as_bytes(), None).unwrap_err();
    assert_eq!(errors.len(), 11, "{errors:?}");
    assert_eq!(errors[0].line, 2);
    assert_eq!(errors[10].to_string(), "ci.yml: and 5 more errors");
}

#[test]
fn warnings_are_told_after_the_errors() {
    let text = "on: push
jobs:
  a:
    runs-on: x
    steps:
      - run: echo ${{ github.head_ref }}
      - uses: some/action@main
      - uses: some/action@0123456789abcdef0123456789abcdef01234567
";
    let told = parse("ci.yml", text.as_bytes(), None).unwrap_err();
    let told: Vec<_> = told.iter().map(|one| (one.warning, one.line, &one.message[..])).collect();
    let stranger = "`github.head_ref` is written by strangers, and becomes part of this script";
    assert_eq!(
        told,
        [
            (false, 7, "action `some/action` is not supported yet"),
            (false, 8, "action `some/action` is not supported yet"),
            (true, 6, stranger),
            (true, 7, "`some/action@main` can change without this file changing"),
        ]
    );
}

#[test]
fn files_made_to_be_slow_are_read_in_time() {
    let head = "on: push\njobs:\n  a:\n    runs-on: x\n";
    let script = |line: &str| format!("{head}    steps:\n      - run: |\n{}", line.repeat(15_000));
    let keys: String = (0..60_000).map(|n| format!("    k{n}: 1\n")).collect();
    let jobs: String =
        (0..9_000).map(|n| format!("  a{n}: {{runs-on: x, needs: b{n}, steps: []}}\n")).collect();
    for text in [
        script("          ${{ github.head_ref }} ${{ github.ref }}\n"),
        script("          ${{ foo }} ${{ bar }}\n"),
        format!("{head}{keys}"),
        format!("on: push\njobs:\n{jobs}"),
    ] {
        assert!(text.len() < 1 << 20);
        let told = parse("ci.yml", text.as_bytes(), None);
        let told = told.map_or_else(|errors| errors, |parsed| parsed.warnings);
        assert!((10..=120).contains(&told.len()), "{}", told.len());
    }
}

#[test]
fn files_that_are_no_text_or_too_large_are_refused() {
    let text = b"on: push\nname: \xc3\xa4\xff\n";
    let errors = parse("ci.yml", text, None).unwrap_err();
    assert_eq!(errors[0].to_string(), "ci.yml:2:8: this is not UTF-8 (save the file as UTF-8)");
    let errors = parse("ci.yml", &vec![b'#'; 2 << 20], None).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "ci.yml: the file has 2097152 bytes, at most 1048576 are allowed"
    );
}

#[test]
fn yaml_bombs_are_refused_in_time() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..30 {
        let alias = format!("*a{}", n - 1);
        laughs.push_str(&format!("a{n}: &a{n} [{}]\n", vec![alias; 10].join(", ")));
    }
    let message = &parse("ci.yml", laughs.as_bytes(), None).unwrap_err()[0].message;
    assert!(message.starts_with("too large"), "{message}");
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), vec!["*a"; 100].join(", "));
    let message = &parse("ci.yml", long.as_bytes(), None).unwrap_err()[0].message;
    assert!(message.starts_with("too large"), "{message}");
    for open in ["[", "{a: ", "- "] {
        let deep = open.repeat(100_000);
        assert!(parse("ci.yml", deep.as_bytes(), None).is_err());
    }
    let deep = format!("{}x{}", "[".repeat(51), "]".repeat(51));
    check(&deep, "ci.yml:1:51: nested deeper than 50 levels");
    check(
        "a: &a [*a]",
        "ci.yml:1:8: the alias stands inside what it names (an alias can only repeat what ends before it)",
    );
}

#[test]
fn aliases_repeat_values() {
    let text = "on: push\njobs:\n  a: &a\n    runs-on: x\n    steps: [{run: one}]\n  b: *a\n";
    let pipeline = good(text);
    assert_eq!(pipeline.jobs[0].steps, pipeline.jobs[1].steps);
}

#[test]
fn scalars_are_read_as_the_core_schema_says() {
    let text = "on: push\nenv: {A: 3.10, B: 0o14, C: 12_345, D: yes, E: True, F: ~, G: '1.0', H: 0x1F, I: 1e3, J: .5}\njobs: {a: {runs-on: x, steps: []}}\n";
    let env = good(text).env;
    let values: Vec<&str> = env.iter().map(|(_, text)| text.value.as_str()).collect();
    assert_eq!(values, ["3.1", "12", "12_345", "yes", "true", "", "1.0", "31", "1000", "0.5"]);
}

#[test]
fn triggers_and_inputs_are_kept() {
    let text = "on:
  push: {branches: [main, '!x'], paths: src/**}
  workflow_dispatch:
    inputs:
      level: {type: choice, options: [a, b], default: a, required: true}
      dry: {type: boolean, default: true}
      count: {type: number, default: 3}
      plain:
jobs: {a: {runs-on: x, steps: []}}
";
    let pipeline = good(text);
    assert!(pipeline.listens_to("push") && !pipeline.listens_to("pull_request"));
    assert_eq!(pipeline.on[0].filters[1].patterns, ["src/**"]);
    let inputs = pipeline.inputs("workflow_dispatch");
    assert_eq!(inputs[0].kind, InputKind::Choice);
    assert!(inputs[0].required);
    let defaults: Vec<_> = inputs.iter().map(|input| input.default.clone()).collect();
    assert_eq!(defaults, [Some("a".into()), Some(true.into()), Some(3.into()), None]);
    check(
        "on: {workflow_dispatch: {inputs: {a: {type: choice, options: [x], default: y}}}}\njobs: {a: {runs-on: x, steps: []}}",
        "ci.yml:1:76: the default is `y`, want one of `x`",
    );
}

/// A bit of everything. ASCII, so that it can be cut anywhere.
const WHOLE: &str = "name: all
on:
  push: {branches: [main]}
  workflow_dispatch: {inputs: {a: {type: boolean, default: true}}}
  schedule: [{cron: '1 2 * * *'}]
env: {A: '${{ github.ref }}'}
defaults: {run: {shell: bash}}
permissions: {contents: read}
x-steading: {priority: 3}
jobs:
  one: &one
    runs-on: [self-hosted, '${{ matrix.os }}']
    strategy: {fail-fast: false, max-parallel: 2, matrix: {os: [a, b], include: [{os: c, x: 1}]}}
    outputs: {o: '${{ steps.s.outputs.o }}'}
    timeout-minutes: 5
    steps:
      - uses: actions/checkout@v4
        with: {fetch-depth: 0}
      - id: s
        if: ${{ always() && !cancelled() }}
        run: |
          echo ${{ matrix.os }}
          echo done
        x-steading: {cache: {inputs: [src/**], outputs: [out], network: {max-age: 1h}}}
  two: *one
  three:
    needs: [one, two]
    if: contains(needs.*.result, 'failure')
    runs-on: {group: g, labels: [x]}
    steps: [{run: x, env: {B: 'x ${{ env.A }} y'}}]
";

#[test]
fn the_whole_pipeline_is_good() {
    good(WHOLE);
}

/// Wants exactly one error.
fn check(text: &str, wanted: &str) {
    match parse("ci.yml", text.as_bytes(), None) {
        Ok(_) => panic!("accepted, want: {wanted}\n{text}"),
        Err(errors) => {
            let errors = errors.iter().filter(|error| !error.warning);
            let errors: Vec<String> = errors.map(ToString::to_string).collect();
            assert_eq!(errors, [wanted], "\n{text}");
        }
    }
}

fn good(text: &str) -> Pipeline {
    let errors = |errors: Vec<crate::Diagnostic>| -> Pipeline { panic!("{}\n{text}", errors[0]) };
    parse("ci.yml", text.as_bytes(), None).map_or_else(errors, |parsed| parsed.pipeline)
}
