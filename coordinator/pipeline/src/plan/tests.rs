//! The planner's behaviour as stories: a pipeline, how jobs end, what is planned next.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use steading_model::Conclusion;

use super::{Group, Plan, PlannedJob, Submission, Verdict, plan, run_group};
use crate::job::{EndedJob, StepKind};
use crate::parse;

#[test]
fn jobs_without_needs_start_and_others_wait_for_all_of_theirs() {
    check(
        "on: push
jobs:
  a: {runs-on: x, steps: [{run: a}]}
  b: {runs-on: x, steps: [{run: b}]}
  c: {runs-on: x, needs: [a, b], steps: [{run: c}]}
  d: {runs-on: x, needs: c, steps: [{run: d}]}
",
        "           -> run a, run b
         a success  ->
         b success  -> run c
         c success  -> run d; complete",
    );
}

#[test]
fn a_skipped_or_failed_ancestor_skips_what_follows_unless_it_says_otherwise() {
    check(
        "on: push
jobs:
  a: {runs-on: x, if: false, steps: [{run: a}]}
  b: {runs-on: x, needs: a, steps: [{run: b}]}
  c: {runs-on: x, needs: b, steps: [{run: c}]}
  d: {runs-on: x, needs: c, if: always(), steps: [{run: d}]}
  e: {runs-on: x, needs: c, if: '!cancelled()', steps: [{run: e}]}
  f: {runs-on: x, needs: c, if: failure(), steps: [{run: f}]}
",
        " -> skip a, skip b, skip c, run d, run e, skip f; complete",
    );
    check(
        "on: push
jobs:
  a: {runs-on: x, steps: [{run: a}]}
  b: {runs-on: x, needs: a, steps: [{run: b}]}
  c: {runs-on: x, needs: b, if: failure(), steps: [{run: c}]}
  d: {runs-on: x, needs: b, if: 'failure(''b'')', steps: [{run: d}]}
  e: {runs-on: x, needs: [a, b], if: 'always() && needs.a.result == ''failure'' && needs.b.result == ''skipped''', steps: [{run: e}]}
  f: {runs-on: x, needs: e, steps: [{run: f}]}
",
        "            -> run a
         a failure  -> skip b, run c, skip d, run e
         e success  -> skip f; complete",
    );
}

#[test]
fn a_failure_that_may_be_counts_as_success() {
    check(
        "on: push
jobs:
  a: {runs-on: x, continue-on-error: true, steps: [{run: a}]}
  b: {runs-on: x, needs: a, if: needs.a.result == 'success', steps: [{run: b}]}
",
        "              -> run a continue
         a failure continue -> run b; complete",
    );
}

#[test]
fn in_a_cancelled_run_only_what_asks_for_it_starts() {
    check(
        "on: push
jobs:
  a: {runs-on: x, steps: [{run: a}]}
  b: {runs-on: x, needs: a, steps: [{run: b}]}
  c: {runs-on: x, needs: a, if: always(), steps: [{run: c}]}
  d: {runs-on: x, needs: a, if: cancelled(), steps: [{run: d}]}
  e: {runs-on: x, needs: a, if: '!cancelled()', steps: [{run: e}]}
",
        "                    -> run a
         cancel; a cancelled -> skip b, run c, run d, skip e; complete",
    );
}

#[test]
fn an_if_that_cannot_be_evaluated_fails_its_job_and_names_the_place() {
    check(
        "on: push
jobs:
  a: {runs-on: x, if: fromJSON(github.sha), steps: [{run: a}]}
  b: {runs-on: x, needs: a, steps: [{run: b}]}
  c: {runs-on: '${{ fromJSON(''[]'') }}', steps: [{run: c}]}
",
        " -> fail a (ci.yml:3:23: `if`: fromJSON: the text is empty, want JSON), \
            fail c (ci.yml:5:16: `runs-on` comes to no label), skip b; complete",
    );
}

#[test]
fn a_matrix_makes_a_leg_for_each_combination() {
    check(
        "on: push
jobs:
  t:
    runs-on: ${{ matrix.os }}
    strategy:
      max-parallel: 2
      matrix:
        os: [linux, mac]
        version: [1, 1.10, '1.10']
        exclude: [{os: mac, version: 1}]
        include: [{os: linux, version: 1, extra: yes}, {os: bsd}]
    steps: [{run: t}]
",
        " -> run t (linux, 1), run t (linux, 1.1), run t (linux, 1.10), \
            run t (mac, 1.1), run t (mac, 1.10), run t (bsd); complete",
    );
}

#[test]
fn includes_join_what_they_match_and_never_each_other() {
    let plan = first_plan(
        "on: push
jobs:
  t:
    runs-on: x
    strategy:
      matrix:
        fruit: [apple, pear]
        animal: [cat, dog]
        include:
          - color: green
          - {color: pink, animal: cat}
          - {fruit: apple, shape: circle}
          - {fruit: banana}
          - {fruit: banana, animal: cat}
    steps: [{run: t}]
",
    );
    let matrices: Vec<_> = specs(&plan).map(|spec| spec.contexts["matrix"].clone()).collect();
    assert_eq!(
        matrices,
        [
            json!({"fruit": "apple", "animal": "cat", "color": "pink", "shape": "circle"}),
            json!({"fruit": "apple", "animal": "dog", "color": "green", "shape": "circle"}),
            json!({"fruit": "pear", "animal": "cat", "color": "pink"}),
            json!({"fruit": "pear", "animal": "dog", "color": "green"}),
            json!({"fruit": "banana"}),
            json!({"fruit": "banana", "animal": "cat"}),
        ]
    );
    let strategy = &specs(&plan).nth(1).unwrap().contexts["strategy"];
    let wanted = json!({"fail-fast": true, "job-index": 1, "job-total": 6, "max-parallel": 6});
    assert_eq!(strategy, &wanted);
}

#[test]
fn a_matrix_may_come_from_an_output() {
    check(
        "on: push
jobs:
  a: {runs-on: x, steps: [{run: a}]}
  b:
    needs: a
    runs-on: x
    name: on ${{ matrix.os }}
    strategy: {fail-fast: false, matrix: '${{ fromJSON(needs.a.outputs.matrix) }}'}
    steps: [{run: b}]
",
        "                                             -> run a
         a success matrix={\"os\":[\"l\",\"m\"]}    -> run on l, run on m; complete",
    );
    for (matrix, why) in [
        (r#"{"os":[]}"#, "the matrix vector `os` has no values"),
        (r#"{"os":1}"#, "the matrix vector `os` is of the kind Number, want an array"),
        ("[]", "the matrix is of the kind Array, want an object"),
        ("{}", "the matrix has neither a vector nor an `include`"),
        (r#"{"os":[1],"exclude":[{"os":1}]}"#, "`exclude` leaves no combination of the matrix"),
        (
            r#"{"os":[1],"exclude":[{"a":1}]}"#,
            "`exclude` names `a`, which is no vector of the matrix",
        ),
    ] {
        check(
            "on: push
jobs:
  a: {runs-on: x, steps: [{run: a}]}
  b:
    needs: a
    runs-on: x
    strategy: {matrix: '${{ fromJSON(needs.a.outputs.m) }}'}
    steps: [{run: b}]
",
            &format!(" -> run a\n a success m={matrix} -> fail b (ci.yml:7:24: {why}); complete"),
        );
    }
}

#[test]
fn a_matrix_of_too_many_legs_fails_before_it_is_built() {
    let vector = |name: &str| format!("        {name}: [{}]\n", vec!["1"; 200].join(", "));
    let vectors: String = ["a", "b", "c", "d", "e"].map(vector).concat();
    let plan = first_plan(&format!(
        "on: push\njobs:\n  t:\n    runs-on: x\n    strategy:\n      matrix:\n{vectors}    steps: [{{run: t}}]\n"
    ));
    assert!(matches!(&plan.jobs[..], [PlannedJob { verdict: Verdict::Fail(why), .. }]
        if why.ends_with("the matrix has more than 256 combinations")));
}

#[test]
fn legs_have_one_result_and_the_last_written_output() {
    let pipeline = "on: push
jobs:
  a:
    runs-on: x
    strategy: {matrix: {n: [1, 2]}}
    steps: [{run: a}]
  b: {runs-on: x, needs: a, if: always(), steps: [{run: b}]}
";
    let mut story = Story::new(pipeline);
    story.plan();
    let leg = |leg, conclusion, value: &str| EndedJob {
        leg,
        conclusion,
        class: None,
        continue_on_error: false,
        outputs: BTreeMap::from([("o".to_owned(), value.to_owned())]),
    };
    // In the order in which they ended, which is not theirs.
    let legs = vec![leg(1, Conclusion::Cancelled, ""), leg(0, Conclusion::Failure, "zero")];
    story.ended.insert("a".to_owned(), legs);
    let plan = story.plan();
    let needs = &specs(&plan).next().unwrap().contexts["needs"];
    assert_eq!(needs, &json!({"a": {"result": "failure", "outputs": {"o": "zero"}}}));
}

#[test]
fn groups_are_named_by_expressions() {
    for (concurrency, wanted) in [
        ("Deploy", Ok(("deploy", false, false))),
        (
            "{group: 'x-${{ github.ref }}', cancel-in-progress: true}",
            Ok(("x-refs/heads/main", true, false)),
        ),
        ("{group: g, cancel-in-progress: \"${{ github.ref == 'x' }}\"}", Ok(("g", false, false))),
        ("{group: g, queue: max}", Ok(("g", false, true))),
        (
            "\"${{ fromJSON('{\\\"group\\\": 7, \\\"cancel-in-progress\\\": true}') }}\"",
            Ok(("7", true, false)),
        ),
        ("'${{ github.nothing }}'", Ok(("", false, false))),
        (
            "{group: g, cancel-in-progress: '${{ github.ref }}'}",
            Err("ci.yml:2:45: `cancel-in-progress` is `refs/heads/main`, want `true` or `false`"),
        ),
    ] {
        let text = format!(
            "on: push\nconcurrency: {concurrency}\njobs: {{a: {{runs-on: x, steps: []}}}}\n"
        );
        let mut story = Story::new(&text);
        let group = story.with_submission(run_group);
        let group = group.as_ref().map(|group| match group {
            Some(Group { name, cancel_in_progress, queue_all }) => {
                (name.as_str(), *cancel_in_progress, *queue_all)
            }
            None => ("", false, false),
        });
        assert_eq!(group.map_err(String::as_str), wanted, "{concurrency}");
    }
}

#[test]
fn a_jobs_group_may_name_its_matrix() {
    let plan = first_plan(
        "on: push
jobs:
  a:
    runs-on: x
    strategy: {matrix: {on: [A, B]}}
    concurrency: 'g-${{ matrix.on }}'
    steps: []
",
    );
    let groups = plan.jobs.iter().map(|job| job.concurrency.as_ref().map(|group| &*group.name));
    assert_eq!(groups.collect::<Vec<_>>(), [Some("g-a"), Some("g-b")]);
}

#[test]
fn a_spec_holds_what_the_agent_needs() {
    let plan = first_plan(
        "on: push
env: {A: workflow}
defaults: {run: {shell: sh, working-directory: top}}
jobs:
  build:
    runs-on: [self-hosted, Linux, linux]
    timeout-minutes: 1.5
    env: {B: '${{ matrix.x }}'}
    defaults: {run: {working-directory: sub}}
    outputs: {o: '${{ steps.s.outputs.o }}'}
    x-steading: {priority: 7, resources: {cpu: 2, memory: 1GiB}}
    steps:
      - {id: s, run: echo, env: {C: c}, x-steading: {cache: {inputs: [src/**], outputs: ['?out']}}}
      - uses: actions/checkout@v4
        with: {fetch-depth: 0}
",
    );
    let job = &plan.jobs[0];
    assert_eq!(job.labels, ["self-hosted", "linux"]);
    assert_eq!((job.priority, job.resources.cpu_milli, job.resources.memory_mib), (7, 2000, 1024));
    assert!(!job.fail_fast && !job.needed && job.max_parallel == 0);
    let spec = specs(&plan).next().unwrap();
    assert_eq!(spec.timeout_ms, 90_000);
    assert_eq!(spec.contexts["github"], json!({"ref": "refs/heads/main", "job": "build"}));
    let env: Vec<Vec<(&str, &str)>> = spec
        .env
        .iter()
        .map(|layer| layer.iter().map(|(name, text)| (&**name, &*text.value)).collect())
        .collect();
    let given = "${{ '${{ it''s }}' }}";
    assert_eq!(env, [vec![("A", "workflow")], vec![("G", given)], vec![("B", "${{ matrix.x }}")]]);
    assert_eq!(spec.default_shell.as_ref().unwrap().value, "sh");
    assert_eq!(spec.default_working_directory.as_ref().unwrap().value, "sub");
    assert_eq!(spec.outputs[0].1.value, "${{ steps.s.outputs.o }}");
    let cache = spec.steps[0].cache.as_ref().unwrap();
    assert_eq!(
        (&cache.inputs[..], &cache.outputs[..]),
        (&["src/**".to_owned()][..], &["?out".to_owned()][..])
    );
    let StepKind::Uses { with, .. } = &spec.steps[1].kind else { panic!("want `uses`") };
    assert_eq!((&*with[0].0, &*with[0].1.value), ("fetch-depth", "0"));
    let ids: Vec<&str> = spec.steps.iter().map(|step| step.id.as_str()).collect();
    assert_eq!(ids, ["s", "__actions_checkout"]);
}

#[test]
fn the_same_arguments_give_the_same_plan() {
    let pipeline = "on: push
jobs:
  a: {runs-on: x, strategy: {matrix: {n: [1, 2, 3]}}, steps: [{run: a}]}
  b: {runs-on: x, needs: a, steps: [{run: b}]}
";
    assert_eq!(first_plan(pipeline), first_plan(pipeline));
}

/// Runs a story: each line is what happens, an arrow, and what is planned then.
/// `JOB CONCLUSION [continue] [OUTPUT=VALUE]…` ends every leg of a job.
fn check(pipeline: &str, story: &str) {
    let mut run = Story::new(pipeline);
    for line in story.lines().filter(|line| !line.trim().is_empty()) {
        let (happens, wanted) = line.split_once("->").expect("a story line has an arrow");
        for event in happens.split(';').map(str::trim).filter(|event| !event.is_empty()) {
            run.happens(event);
        }
        assert_eq!(describe(&run.plan()), wanted.trim(), "after {:?}", happens.trim());
    }
}

fn first_plan(pipeline: &str) -> Plan {
    Story::new(pipeline).plan()
}

fn specs(plan: &Plan) -> impl Iterator<Item = &crate::job::JobSpec> {
    plan.jobs.iter().filter_map(|job| match &job.verdict {
        Verdict::Run(spec) => Some(&**spec),
        Verdict::Skip | Verdict::Fail(_) => None,
    })
}

fn describe(plan: &Plan) -> String {
    let jobs: Vec<String> = plan
        .jobs
        .iter()
        .map(|job| {
            let more = if job.continue_on_error { " continue" } else { "" };
            match &job.verdict {
                Verdict::Run(_) => format!("run {}{more}", job.name),
                Verdict::Skip => format!("skip {}", job.name),
                Verdict::Fail(why) => format!("fail {} ({why})", job.name),
            }
        })
        .collect();
    format!("{}{}", jobs.join(", "), if plan.complete { "; complete" } else { "" })
}

struct Story {
    pipeline: crate::Pipeline,
    ended: BTreeMap<String, Vec<EndedJob>>,
    created: BTreeSet<String>,
    cancelled: bool,
}

impl Story {
    fn new(text: &str) -> Self {
        let parsed = parse("ci.yml", text.as_bytes(), None);
        let pipeline = parsed.unwrap_or_else(|errors| panic!("{}", errors[0])).pipeline;
        Self { pipeline, ended: BTreeMap::new(), created: BTreeSet::new(), cancelled: false }
    }

    fn happens(&mut self, event: &str) {
        if event == "cancel" {
            self.cancelled = true;
            return;
        }
        let mut words = event.split_whitespace();
        let key = words.next().expect("an event names a job");
        let conclusion = words.next().expect("a job ends somehow").parse().unwrap();
        let (mut continue_on_error, mut outputs) = (false, BTreeMap::new());
        for word in words {
            match word.split_once('=') {
                Some((name, value)) => drop(outputs.insert(name.to_owned(), value.to_owned())),
                None => continue_on_error = word == "continue",
            }
        }
        let ended = EndedJob { leg: 0, conclusion, class: None, continue_on_error, outputs };
        self.ended.insert(key.to_owned(), vec![ended]);
    }

    fn with_submission<T>(&mut self, then: impl FnOnce(&Submission<'_>) -> T) -> T {
        then(&Submission {
            pipeline: &self.pipeline,
            source: "00/0",
            github: &json!({"ref": "refs/heads/main"}),
            inputs: &json!({}),
            vars: &json!({}),
            env: &[("G".to_owned(), "${{ it's }}".to_owned())],
            cancelled: self.cancelled,
        })
    }

    fn plan(&mut self) -> Plan {
        let (ended, created) = (self.ended.clone(), self.created.clone());
        let plan = self.with_submission(|submission| plan(submission, &ended, &created));
        for job in &plan.jobs {
            self.created.insert(job.key.clone());
            // As the core has it: what never runs has ended.
            let conclusion = match job.verdict {
                Verdict::Run(_) => continue,
                Verdict::Skip => Conclusion::Skipped,
                Verdict::Fail(_) => Conclusion::Failure,
            };
            let ended = EndedJob {
                leg: job.leg,
                conclusion,
                class: None,
                continue_on_error: false,
                outputs: BTreeMap::new(),
            };
            self.ended.insert(job.key.clone(), vec![ended]);
        }
        plan
    }
}
