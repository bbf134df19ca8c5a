//! What GitHub has no key for, and what is only warned of.

use super::*;

#[test]
fn caches_are_read_in_both_forms() {
    let step = |cache: &str| {
        let text = format!(
            "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: x\n        x-steading: {{cache: {cache}}}\n"
        );
        good(&text).jobs[0].steps[0].cache.clone()
    };
    assert_eq!(step("true"), Some(CacheSpec { whole: true, ..CacheSpec::default() }));
    assert_eq!(step("false"), None);
    assert_eq!(
        step(
            "{inputs: [a], outputs: ['b', '?c'], env: GITHUB_SHA, tools: [/opt/x], network: {max-age: 7d}, strict: true}"
        ),
        Some(CacheSpec {
            whole: false,
            inputs: vec!["a".into()],
            outputs: vec!["b".into(), "?c".into()],
            env: vec!["GITHUB_SHA".into()],
            tools: vec!["/opt/x".into()],
            secrets: vec![],
            network_max_age_s: Some(7 * 86_400),
            strict: true,
        })
    );
    assert_eq!(step("{network: true}").unwrap().network_max_age_s, Some(86_400));
}

#[test]
fn mistakes_in_a_cache_are_told() {
    for (step, wanted) in [
        (
            "{run: x, x-steading: {cache: {output: [a]}}}",
            "ci.yml:5:43: unknown key `output` in `cache` (did you mean `outputs`?)",
        ),
        (
            "{run: x, x-steading: {cache: {outputs: [a]}}}",
            "ci.yml:5:42: `cache` has `outputs`, but no `inputs` (`inputs: []` for a step that reads nothing, `inputs: ['**']` for one that reads all)",
        ),
        (
            "{run: x, x-steading: {cache: {inputs: [../a]}}}",
            "ci.yml:5:51: the pattern `../a` in `inputs` leaves the workspace (want a path relative to the workspace)",
        ),
        (
            "{run: x, x-steading: {cache: {tools: [gcc]}}}",
            "ci.yml:5:50: the tool `gcc` is no absolute path",
        ),
        (
            "{run: x, x-steading: {cache: {network: {max-age: 7}}}}",
            "ci.yml:5:62: `max-age` is a time: `30m`, `24h` or `7d`",
        ),
        (
            "{uses: actions/checkout@v4, x-steading: {cache: true}}",
            "ci.yml:5:13: `cache` belongs to a step with `run`, this one `uses` an action",
        ),
        (
            "{run: 'echo ${{ secrets.TOKEN }}', x-steading: {cache: true}}",
            "ci.yml:5:13: this cached step sees `TOKEN` (name the secrets in `cache.secrets`, or keep them out of its `env`)",
        ),
    ] {
        check(&format!("on: push\njobs:\n  a:\n    runs-on: x\n    steps: [{step}]\n"), wanted);
    }
    let named = "on: push\njobs:\n  a:\n    runs-on: x\n    env: {T: '${{ secrets.TOKEN }}'}\n    steps: [{run: x, x-steading: {cache: {secrets: [token]}}}]\n";
    good(named);
}

#[test]
fn the_overlay_says_what_github_has_no_key_for() {
    let text = "on: push
jobs:
  a:
    runs-on: x
    steps:
      - {id: one, run: x}
      - {name: two words, run: x}
      - {name: same, run: x}
      - {name: same, run: x}
";
    let apply = |overlay: &str| {
        parse("/src/.github/workflows/ci.yml", text.as_bytes(), Some(overlay.as_bytes()))
    };
    let parsed = apply(
        ".github/workflows/ci.yml:
  jobs: {A: {priority: 3, steps: {ONE: {cache: true}, two words: {cache: {inputs: [a]}}}}}
other.yml: {jobs: {zzz: {}}}
",
    );
    let job = &parsed.unwrap().pipeline.jobs[0];
    let cached = |step: &StepSpec| step.cache.is_some();
    assert_eq!(job.steps.iter().map(cached).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!(job.priority, Some(3));
    for (section, wanted) in [
        ("jobs: {b: {}}", "2:16: the overlay's job `b` is not in the pipeline"),
        (
            "jobs: {a: {steps: {x: {cache: true}}}}",
            "2:28: no step of job `a` has the id or name `x`",
        ),
        (
            "jobs: {a: {steps: {same: {cache: true}}}}",
            "2:28: several steps of job `a` are named `same` (give one an `id`; they are on lines 8, 9)",
        ),
        (
            "jobs: {a: {steps: {one: {run: x}}}}",
            "2:34: unknown key `run` in `x-steading` (`x-steading` knows `cache`)",
        ),
    ] {
        let errors = apply(&format!("ci.yml:\n        {section}\n")).unwrap_err();
        assert_eq!(errors[0].to_string(), format!(".steading/overlay.yml:{wanted}"));
    }
    apply("").unwrap();
    apply("# nothing yet\n").unwrap();
}

#[test]
fn dubious_things_are_warned_of() {
    for (job, wanted) in [
        (
            "    steps: [{run: 'echo ${{ github.event.issue.title }}'}]\n",
            "ci.yml:5:29: warning: `github.event.issue.title` is written by strangers, and becomes part of this script (put it into `env` and use the variable: `env: {TEXT: ${{ github.event.issue.title }}}`)",
        ),
        (
            "    steps: [{run: \"echo ${{ join(github.event.commits.*.message) }}\"}]\n",
            "ci.yml:5:34: warning: `github.event.commits.*.message` is written by strangers, and becomes part of this script (put it into `env` and use the variable: `env: {TEXT: ${{ github.event.commits.*.message }}}`)",
        ),
        (
            "    steps: [{run: x, if: '${{ github.ref }} == 1'}]\n",
            "ci.yml:5:26: warning: `if` mixes text with `${{ }}`: that is a string, and so always true (put the whole condition inside one `${{ }}`, or use none)",
        ),
        (
            "    steps: [{run: x, if: needs.b.result}]\n",
            "ci.yml:5:26: warning: `needs.b` is always empty: the job does not need `b` (add it to `needs`, which has nothing)",
        ),
        (
            "    steps: [{run: x, if: steps.b.outcome}]\n",
            "ci.yml:5:26: warning: `steps.b` is always empty: no step has the id `b` (give the step that is meant an `id`)",
        ),
    ] {
        let text = format!("on: push\njobs:\n  a:\n    runs-on: x\n{job}");
        let warnings = parse("ci.yml", text.as_bytes(), None).unwrap().warnings;
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings, [wanted]);
    }
    let safe = "on: push\njobs:\n  a:\n    runs-on: x\n    steps: [{run: x, env: {T: '${{ github.head_ref }}'}}]\n";
    assert_eq!(parse("ci.yml", safe.as_bytes(), None).unwrap().warnings, []);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        drop(parse("ci.yml", &bytes, Some(&bytes)));
    }

    #[test]
    fn no_damaged_pipeline_makes_the_parser_panic(
        cuts in prop::collection::vec((0..WHOLE.len(), 0..20_usize, "[a-z:{}\\[\\]$'\"&*!|>\\- \n]{0,4}"), 1..6),
    ) {
        let mut text = WHOLE.to_owned();
        for (at, length, instead) in cuts {
            let from = at.min(text.len());
            let to = (from + length).min(text.len());
            text.replace_range(from..to, &instead);
        }
        drop(parse("ci.yml", text.as_bytes(), None));
    }
}

#[test]
fn concurrency_and_scheduling_are_read_or_refused_with_their_place() {
    let text =
        |job: &str| format!("on: push\njobs:\n  a:\n    runs-on: x\n    {job}\n    steps: []\n");
    for (job, wanted) in [
        ("concurrency: ''", "5:18: `concurrency` is empty"),
        (
            "concurrency: {}",
            "5:18: `group` is missing in `concurrency` (`group: NAME` says who waits for whom)",
        ),
        (
            "concurrency: {group: g, queue: two}",
            "5:36: `queue` is a string, want `single` or `max`",
        ),
        (
            "concurrency: {group: g, queue: max, cancel-in-progress: true}",
            "5:36: `queue: max` contradicts `cancel-in-progress: true` (where everybody goes on in turn, nobody is cancelled)",
        ),
        ("x-steading: {spot: yes}", "5:24: `spot` is a string, want `prefer`, `only` or `never`"),
        ("x-steading: {deadline: soon}", "5:28: `deadline` is a time: `30m`, `24h` or `7d`"),
        ("x-steading: {retry: 11}", "5:25: `retry` is a whole number from 0 to 10"),
    ] {
        let errors = parse("ci.yml", text(job).as_bytes(), None).unwrap_err();
        assert_eq!(errors[0].to_string(), format!("ci.yml:{wanted}"), "{job}");
    }
    let text =
        text("x-steading: {spot: never, retry: 2}") + "x-steading: {spot: prefer, deadline: 2h}\n";
    let parsed = parse("ci.yml", text.as_bytes(), None).unwrap();
    let job = &parsed.pipeline.jobs[0];
    let never = Some(steading_model::Spot::Never);
    assert_eq!((job.spot, job.deadline_ms, job.retries), (never, Some(7_200_000), Some(2)));
}
