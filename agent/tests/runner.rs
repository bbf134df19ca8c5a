//! Stories of jobs, run without a coordinator.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails its test")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use steading_agent::cached::platform::Platform;
use steading_agent::logs::JobLogs;
use steading_agent::runner::{CacheHost, Host, JobEnd, Signals, run};
use steading_agent::sandbox::{Support, support};
use steading_agent::supervisor::Supervisor;
use steading_agent::{Agents, Cluster, Workspace};
use steading_cas::client::Actions;
use steading_cas::tree::{Patterns, snapshot_dir};
use steading_cas::{ActionCache, Blobs, Store, StoreOptions};
use steading_model::{Conclusion, FailureClass};
use steading_pipeline::job::{CacheSpec, DIALECT, EnvLayer, JobSpec, StepKind, StepSpec, Text};
use steading_proto::v1;
use tempfile::TempDir;

#[tokio::test]
async fn steps_share_a_workspace_and_stop_at_the_first_failure() {
    let job = job(vec![run_step("echo hello > f"), run_step("cat f; exit 3"), run_step("echo no")]);
    let ended = job.check("success failure skipped").await;
    assert_eq!(ended.log(1), "hello\n");
    assert_eq!(ended.end.class, Some(FailureClass::User));
    assert_eq!(ended.end.result.steps[1].exit_code, Some(3));
    assert!(ended.end.message.contains("exit code 3"), "{}", ended.end.message);
    assert_eq!((ended.end.counts.executed, ended.end.counts.skipped), (2, 1));
}

#[tokio::test]
async fn conditions_and_continue_on_error_follow_a_table() {
    let mut tolerated = run_step("exit 1");
    tolerated.continue_on_error = Some(text("true"));
    let ended = job(vec![tolerated, when("steps.s0.outcome == 'failure'", "echo seen")])
        .check("failure success")
        .await;
    assert_eq!(ended.end.conclusion, Conclusion::Success);
    assert_eq!(ended.end.result.steps[0].conclusion, "success");

    job(vec![
        run_step("exit 1"),
        when("failure()", "true"),
        when("always()", "true"),
        when("success()", "true"),
        when("github.ref == 'x'", "true"),
    ])
    .check("failure success success skipped skipped")
    .await;
    let ended = job(vec![when("nonsense(", "true")]).check("failure").await;
    assert_eq!(ended.end.class, Some(FailureClass::Config));
    assert!(ended.log(0).contains("ci.yml:1:1"), "{}", ended.log(0));
}

#[tokio::test]
async fn environment_comes_in_layers_and_from_earlier_steps() {
    let mut job = job(vec![
        run_step("echo $A $B $C; echo 'B=from file' >> $GITHUB_ENV; echo /added >> $GITHUB_PATH"),
        run_step("echo $A $B $C; echo $PATH | cut -d: -f1"),
        run_step("echo $A; echo $GITHUB_REPOSITORY $RUNNER_OS $CI; pwd"),
    ]);
    job.spec.env = vec![layer(&[("A", "1"), ("B", "2")]), layer(&[("C", "${{ env.A }}-c")])];
    job.spec.steps[1].env = layer(&[("A", "step ${{ env.A }}")]);
    job.spec.steps[2].env = layer(&[("GITHUB_REPOSITORY", "forged")]);
    let ended = job.check("success success success").await;
    assert_eq!(ended.log(0), "1 2 1-c\n");
    assert_eq!(ended.log(1), "step 1 from file 1-c\n/added\n");
    let workspace = ended.dir.path().join("slot/w").canonicalize().unwrap();
    assert_eq!(ended.log(2), format!("1\no/r Linux true\n{}\n", workspace.display()));
}

#[tokio::test]
async fn outputs_of_steps_become_outputs_of_the_job_unless_they_are_secret() {
    let mut job = job(vec![
        run_step("echo 'plain=value' >> $GITHUB_OUTPUT; echo 'many<<E\na\nb\nE' >> $GITHUB_OUTPUT"),
        run_step("echo ${{ steps.s0.outputs.plain }}; echo \"leak=$S\" >> $GITHUB_OUTPUT; echo $S"),
    ]);
    job.secrets.insert("TOKEN".into(), "t0ps3cret".into());
    job.spec.steps[1].env = layer(&[("S", "${{ secrets.TOKEN }}")]);
    job.spec.outputs = [("a", "plain"), ("b", "many")]
        .map(|(name, output)| {
            (name.to_owned(), text(&format!("${{{{ steps.s0.outputs.{output} }}}}")))
        })
        .to_vec();
    job.spec.outputs.push(("c".into(), text("${{ steps.s1.outputs.leak }}")));
    let ended = job.check("success success").await;
    let want = BTreeMap::from([("a".into(), "value".into()), ("b".into(), "a\nb".into())]);
    assert_eq!(ended.end.result.outputs, want);
    assert_eq!(ended.log(1), "value\n***\n");
    assert_eq!(ended.end.result.annotations[0].level, "warning");
}

#[tokio::test]
async fn broken_files_and_disabled_commands_fail_their_step() {
    let ended = job(vec![run_step("echo nonsense >> $GITHUB_ENV")]).check("failure").await;
    assert!(ended.end.message.contains("GITHUB_ENV"), "{}", ended.end.message);
    job(vec![run_step("echo '::set-env name=A::b'")]).check("failure").await;
}

#[tokio::test]
async fn shells_differ_as_on_github() {
    let shell = |script: &str, shell: &str| {
        let mut step = run_step(script);
        if let StepKind::Run { shell: named, .. } = &mut step.kind {
            *named = Some(text(shell));
        }
        step
    };
    job(vec![
        run_step("false | true"),
        shell("false | true", "sh"),
        shell("cat $0 > /dev/null; exit 0", "bash -x {0}"),
        shell("false | true", "bash"),
    ])
    .check("success success success failure")
    .await;
    let ended = job(vec![shell("true", "perl")]).check("failure").await;
    assert!(ended.end.message.contains("{0}"), "{}", ended.end.message);
}

#[tokio::test]
async fn timeouts_of_steps_and_of_the_job_are_told_apart_from_failures() {
    let mut step = run_step("echo before; sleep 1000");
    step.timeout_minutes = Some(text("0.1"));
    let ended = job(vec![step, when("failure()", "true")]).check("failure success").await;
    assert_eq!(ended.end.class, Some(FailureClass::Timeout));
    assert_eq!(ended.log(0), "before\n");

    let mut job = job(vec![run_step("sleep 1000"), run_step("true"), when("always()", "true")]);
    job.spec.timeout_ms = 5_000;
    let ended = job.check("cancelled skipped success").await;
    assert_eq!(ended.end.class, Some(FailureClass::Timeout));
    assert_eq!(ended.end.conclusion, Conclusion::Failure);
}

#[tokio::test]
async fn a_cancelled_job_still_runs_what_always_runs() {
    let mut job = job(vec![
        run_step("touch $RUNNER_TEMP/ready; sleep 1000"),
        run_step("true"),
        when("cancelled()", "echo cleaning"),
        when("always()", "true"),
    ]);
    job.cancel_when = Some("t/ready");
    let ended = job.check("cancelled skipped success success").await;
    assert_eq!(ended.end.conclusion, Conclusion::Cancelled);
    assert_eq!(ended.log(2), "cleaning\n");
}

#[tokio::test]
async fn checkout_puts_writable_copies_of_the_source() {
    let mut steps = vec![uses("actions/checkout@v4", &[("path", "src")])];
    steps.push(run_step("cat src/a.txt; echo more >> src/a.txt; test -x src/run.sh"));
    steps.push(uses("actions/checkout@v4", &[("path", "src")]));
    steps.push(run_step("cat src/a.txt"));
    let ended = job(steps).check("success success success success").await;
    assert_eq!((ended.log(1), ended.log(3)), ("source\n".to_owned(), "source\n".to_owned()));
}

#[tokio::test]
async fn git_takes_no_repository_that_the_agent_s_folder_is_in() {
    let job = job(vec![run_step(
        "git init -q ../.. && ! git rev-parse && git init -q . && git rev-parse --show-toplevel",
    )]);
    let ended = job.check("success").await;
    assert!(ended.log(0).contains("not a git repository"), "{}", ended.log(0));
}

#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() {
    for (action, with, want) in [
        ("actions/setup-node@v4", &[][..], "`actions/setup-node@v4` is not supported yet"),
        ("./local", &[], "`./local` is not supported yet"),
        ("actions/checkout@v4", &[("repository", "else/where")], "not supported yet"),
        ("actions/checkout@v4", &[("path", "../up")], "leaves the workspace"),
    ] {
        let ended = job(vec![uses(action, with)]).check("failure").await;
        assert!(ended.end.message.contains(want), "{}", ended.end.message);
        assert!(ended.log(0).contains("##[error]"));
    }
}

#[tokio::test]
async fn hash_files_and_the_event_are_there() {
    let mut job = job(vec![
        run_step("echo x > a.lock"),
        run_step(
            "echo ${{ hashFiles('*.lock') }} ${{ hashFiles('none') }}; cat $GITHUB_EVENT_PATH",
        ),
    ]);
    job.spec.contexts["github"]["event"] = serde_json::json!({"number": 7});
    let ended = job.check("success success").await;
    let log = ended.log(1);
    assert_eq!(log.lines().next().unwrap().trim().len(), 64, "{log}");
    assert!(log.ends_with("{\"number\":7}"), "{log}");
}

#[tokio::test]
async fn a_hit_and_an_execution_cannot_be_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let program = [env!("CARGO_BIN_EXE_steading-agent").to_owned()];
    if let Support::Missing(why) = support(&program, dir.path()) {
        let required = std::env::var("STEADING_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "namespaces"), "no namespaces: {why}");
        println!("skipped: {why}");
        return;
    }
    let mut seen = Vec::new();
    for want_cached in [false, true] {
        let mut cached = run_step(
            "cat in.txt > out.txt; echo \"::warning file=in.txt::look\"; echo K=V >> $GITHUB_ENV\n\
             echo o=made >> $GITHUB_OUTPUT; echo '# sum' >> $GITHUB_STEP_SUMMARY; echo said",
        );
        cached.cache = Some(CacheSpec {
            inputs: vec!["in.txt".into()],
            outputs: vec!["out.txt".into()],
            ..CacheSpec::default()
        });
        let mut job = job(vec![
            run_step("echo data > in.txt"),
            cached,
            when("steps.s1.outputs.o == 'made'", "cat out.txt; echo $K"),
        ]);
        job.home = Some(dir.path().to_owned());
        let ended = job.check("success success success").await;
        assert_eq!(ended.end.result.steps[1].cached, want_cached, "{}", ended.log(1));
        assert_eq!(ended.end.counts.cacheable_executed, u32::from(!want_cached));
        assert_eq!(ended.log(2), "data\nV\n");
        let result = &ended.end.result;
        seen.push((ended.log(1), result.annotations.clone(), result.summary.clone()));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].0, "##[warning]look\nsaid\n");
}

struct Job {
    spec: JobSpec,
    secrets: BTreeMap<String, String>,
    /// Cancelled as soon as this file of the job is there.
    cancel_when: Option<&'static str>,
    /// Where store and action cache are; a folder of its own unless said.
    home: Option<PathBuf>,
}

struct Ended {
    end: JobEnd,
    logs: JobLogs,
    dir: TempDir,
}

impl Ended {
    fn log(&self, stream: u32) -> String {
        std::fs::read_to_string(self.logs.path(stream)).unwrap_or_default()
    }
}

impl Job {
    /// Runs the job and compares the outcomes of its steps.
    async fn check(mut self, outcomes: &str) -> Ended {
        let dir = tempfile::tempdir().unwrap();
        let home = self.home.clone().unwrap_or_else(|| dir.path().to_owned());
        let store =
            Store::open(&home.join("cas"), StoreOptions { bytes_max: 1 << 30, durable: false })
                .unwrap();
        self.spec.source = source(&store, dir.path().join("source"));
        let slot = dir.path().join("slot");
        let workspace = Workspace::create(slot.clone(), None).unwrap();
        let logs = JobLogs::new(dir.path().join("logs"));
        let program = [env!("CARGO_BIN_EXE_steading-agent").to_owned()];
        let mut supervisor = Supervisor::start(&program, &[], &Default::default()).unwrap();
        let channel = tonic::transport::Endpoint::from_static("http://[::1]:1").connect_lazy();
        let actions = Actions::Local(ActionCache::open(&store).unwrap());
        let blobs = Blobs::Local(store);
        let path = ("PATH".to_owned(), "/usr/bin:/bin".to_owned());
        let platform = Arc::new(Platform::new(home.join("memo"), BTreeMap::from([path])));
        let host = Host {
            supervisor: &mut supervisor,
            blobs: &blobs,
            agents: Agents::new(Cluster::single(channel)),
            lease: v1::Lease::default(),
            environment: [("PATH", "/usr/local/bin:/usr/bin:/bin")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            runner: runner_context(&workspace),
            has_bash: true,
            cache: CacheHost {
                actions: &actions,
                claims: None,
                platform: &platform,
                program: &program,
                scratch: dir.path().join("scratch"),
                agent: "agent",
                scope: String::new(),
                secrets: &self.secrets,
                isolation_told: false,
            },
        };
        let signals = Signals::default();
        let work = run(&self.spec, &self.secrets, &workspace, host, &logs, &signals, &|_| ());
        let wish = async {
            let Some(file) = self.cancel_when else {
                return;
            };
            let mut ticks = tokio::time::interval(std::time::Duration::from_millis(5));
            while !slot.join(file).exists() {
                ticks.tick().await;
            }
            signals.cancel.cancel();
        };
        let (end, ()) = Box::pin(async { tokio::join!(work, wish) }).await;
        logs.close();
        let seen: Vec<&str> = end.result.steps.iter().map(|step| step.outcome.as_str()).collect();
        let seen = seen.join(" ");
        let ended = Ended { end, logs, dir };
        assert_eq!(seen, outcomes, "{:#?}\n{}", ended.end.result, ended.log(0));
        ended
    }
}

fn job(steps: Vec<StepSpec>) -> Job {
    let steps = steps.into_iter().enumerate();
    let steps = steps.map(|(index, step)| StepSpec { id: format!("s{index}"), ..step }).collect();
    let contexts = serde_json::json!({
        "github": {"repository": "o/r", "ref": "refs/heads/main", "event": {}},
    });
    let spec = JobSpec {
        dialect: DIALECT.to_owned(),
        file: "ci.yml".to_owned(),
        key: "job".to_owned(),
        name: "job".to_owned(),
        source: String::new(),
        contexts,
        env: Vec::new(),
        steps,
        outputs: Vec::new(),
        default_shell: None,
        default_working_directory: None,
        timeout_ms: 60_000,
        cpu_milli: 0,
        memory_mib: 0,
    };
    Job { spec, secrets: BTreeMap::new(), cancel_when: None, home: None }
}

fn run_step(script: &str) -> StepSpec {
    step(StepKind::Run { script: text(script), shell: None, working_directory: None })
}

fn uses(action: &str, with: &[(&str, &str)]) -> StepSpec {
    step(StepKind::Uses { action: action.to_owned(), with: layer(with) })
}

fn when(condition: &str, script: &str) -> StepSpec {
    StepSpec { condition: Some(text(condition)), ..run_step(script) }
}

fn step(kind: StepKind) -> StepSpec {
    StepSpec {
        id: String::new(),
        name: None,
        condition: None,
        kind,
        env: Vec::new(),
        continue_on_error: None,
        timeout_minutes: None,
        cache: None,
        line: 0,
    }
}

fn text(value: &str) -> Text {
    Text { value: value.to_owned(), line: 1, column: 1 }
}

fn layer(pairs: &[(&str, &str)]) -> EnvLayer {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect()
}

fn source(store: &Store, dir: PathBuf) -> String {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("a.txt"), "source\n").unwrap();
    std::fs::write(dir.join("run.sh"), "true\n").unwrap();
    std::fs::set_permissions(dir.join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    snapshot_dir(store, &dir, &Patterns::whole_workspace(), None).unwrap().root.to_string()
}

fn runner_context(workspace: &Workspace) -> BTreeMap<String, String> {
    let temp = workspace.temp().to_string_lossy().into_owned();
    [("os", "Linux".to_owned()), ("temp", temp)].map(|(k, v)| (k.to_owned(), v)).into()
}
