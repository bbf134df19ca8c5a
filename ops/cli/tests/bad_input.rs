//! Whatever is wrong with what a person wrote: exit code 2, the place, a way out,
//! and never a panic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;

use support::Place;

#[test]
fn a_bad_pipeline_is_refused_with_its_place() {
    let steps = "    runs-on: ubuntu-latest\n    steps:\n      - run: true\n";
    let jobs = |jobs: &str| format!("on: push\njobs:\n{jobs}");
    check(
        jobs(&format!("  a:\n    needs: b\n{steps}  b:\n    needs: a\n{steps}")),
        &["error: p.yml:4:12:", "a → b → a", "hint: "],
    );
    check(jobs(&format!("  a:\n    need: b\n{steps}")), &["error: p.yml:4:5:", "hint: "]);
    check(jobs(&format!("  a:\n    if: 1 <\n{steps}")), &["error: p.yml:4:", "if: 1 <"]);
    check(
        jobs(&format!("  a:\n    services: {{}}\n{steps}")),
        &["p.yml:4:5:", "not supported yet"],
    );
    check(jobs("  a:\n    steps: []\n"), &["error: p.yml:4:5:", "runs-on", "hint: "]);
    check("on: push\njobs:\n  a: [\n", &["error: p.yml:"]);
    check("", &["error: p.yml"]);
    check("\t", &["error: p.yml:1:"]);
    check(b"on: push\njobs:\n  a: \xff\xfe\n", &["error: p.yml:3:", "UTF-8"]);
    check(bomb(), &["error: p.yml:"]);
    check("[".repeat(100_000), &["error: p.yml:1:"]);
}

#[test]
fn a_pipeline_that_is_too_large_or_not_there_is_refused() {
    let place = Place::empty();
    place.write("big.yml", vec![b'#'; 2 << 20]);
    place.run(&["run", "big.yml"]).ended(2).said("big.yml").said("1048576").said("hint: ");
    place.run(&["run", "none.yml"]).ended(2).said("none.yml");
    place.run(&["run"]).ended(2).said(".steading/pipelines").said("hint: ");
    place.run(&["lint", "none.yml"]).ended(2).said("none.yml");
    place.write(".steading/pipelines/a.yml", "");
    place.write(".steading/pipelines/b.yml", "");
    place.run(&["run"]).ended(2).said("a.yml, .steading/pipelines/b.yml");
}

#[test]
fn a_bad_command_line_is_refused() {
    let place = Place::empty();
    place.write("p.yml", GOOD);
    for words in [
        &["run", "p.yml", "--env", "A"][..],
        &["run", "p.yml", "--secret", "NO_SUCH_VARIABLE_HERE"],
        &["run", "p.yml", "--source", "none"],
        &["run", "p.yml", "--event-payload", "none.json"],
        &["run", "p.yml", "--slots", "0"],
        &["submit", "p.yml"],
        &["submit", "p.yml", "--coordinator", "http://example.org:1"],
        &["logs", "seven", "--coordinator", "unix:/nowhere"],
        &["runs"],
        &["coordinator", "--data-dir", "d", "--listen", "127.0.0.1:0"],
        &["coordinator", "--data-dir", "d", "--listen", "0.0.0.0:0", "--insecure-loopback"],
        &["unknown"],
        &[],
    ] {
        place.run(words).ended(2);
    }
}

#[test]
fn what_is_said_of_a_farm_is_looked_at_first() {
    let place = Place::empty();
    place.write("empty.json", r#"{"coordinators": []}"#);
    place.write("broken.json", "{");
    place.write("nobody.json", r#"{"coordinators": ["https://127.0.0.1:1"]}"#);
    let lost = r#"{"coordinators": ["https://127.0.0.1:1"], "identity": "lost"}"#;
    place.write("lost.json", lost);
    let token = format!("ab.secret.{}", "ab".repeat(32));
    let cut_off = &token[..token.len() - 1];
    let agent = ["agent", "--data-dir", "d", "--coordinator", "https://127.0.0.1:1"];
    let coordinator = ["coordinator", "--data-dir", "d", "--listen"];
    for (words, more, want) in [
        (&["runs", "--context"][..], &["none.json"][..], "none.json"),
        (&["runs", "--context"], &["broken.json"], "broken.json"),
        (&["runs", "--context"], &["empty.json"], "no endpoint"),
        (&["runs", "--context"], &["nobody.json"], "wants to know who asks"),
        (&["runs", "--context"], &["lost.json"], "lost/key.pem"),
        (&["login", "--coordinator"], &["unix:/s", "--token", &token], "https://HOST:PORT"),
        (&["login", "--coordinator"], &["https://h:1", "--token", cut_off], "stead token create"),
        (&["token", "create"], &[], "--coordinator"),
        (&["token", "create", "--coordinator", "unix:/s"], &["--ttl", "1w"], "15m"),
        (&["token", "create", "--coordinator", "unix:/s"], &["--uses", "0"], "1..=500"),
        (&agent, &["--join", cut_off], "stead token create"),
        (&coordinator, &["https://0.0.0.0:0"], "--advertise"),
        (&coordinator, &["https://[::]:0"], "--advertise"),
        (&coordinator, &["https://127.0.0.1:0", "--advertise", "here"], "`here`"),
        (&coordinator, &["https://127.0.0.1:0", "--join", "there"], "`there`"),
        (
            &coordinator,
            &["https://127.0.0.1:0", "--join", "https://h:1", "--token", cut_off],
            "stead token create",
        ),
    ] {
        let said = place.run(&[words, more].concat()).ended(2).said(want);
        assert!(!format!("{}{}", said.out, said.err).contains("secret"), "{more:?}");
    }
    assert!(!place.path().join("d").exists(), "what is wrong leaves nothing behind");
}

#[test]
fn a_good_pipeline_has_nothing_said_of_it() {
    let place = Place::empty();
    place.write(".github/workflows/ci.yml", GOOD);
    let said = place.run(&["lint"]).ended(0);
    assert_eq!(said.out, "");
    for example in ["hello", "failing", "c-program", "real-project"] {
        Place::example(example).run(&["lint"]).ended(0);
    }
}

#[test]
fn an_expression_has_a_kind_and_a_value_or_is_refused() {
    let place = Place::empty();
    place.write("c.json", r#"{"github": {"ref": "main", "n": [1, 2]}}"#);
    let said = place.run(&["expr", "--contexts", "c.json", "github.ref == 'MAIN'"]).ended(0);
    assert_eq!(said.out, "{\"kind\":\"Boolean\",\"value\":true}\n");
    let said = place.run(&["expr", "--contexts", "c.json", "github.n[1]"]).ended(0);
    assert_eq!(said.json(), serde_json::json!({"kind": "Number", "value": 2}));
    for bad in ["1 <", "unknown.name", "'", "toJSON("] {
        place.run(&["expr", "--contexts", "c.json", bad]).ended(2).said("error: ");
    }
    place.write("bad.json", "[]");
    place.run(&["expr", "--contexts", "bad.json", "1"]).ended(2).said("bad.json");
}

const GOOD: &str =
    "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: true\n";

fn check(pipeline: impl AsRef<[u8]>, want: &[&str]) {
    let place = Place::empty();
    place.write("p.yml", pipeline);
    for verb in ["run", "lint"] {
        let mut said = place.run(&[verb, "p.yml"]).ended(2);
        for text in want {
            said = said.said(text);
        }
    }
    assert!(!place.path().join(".steading").exists(), "a bad pipeline leaves no state");
}

/// Nine anchors, each naming the one before nine times: some 400 million nodes.
fn bomb() -> String {
    let mut text = "on: push\na0: &a0 [x]\n".to_owned();
    for at in 1..10 {
        let names = vec![format!("*a{}", at - 1); 9].join(", ");
        text.push_str(&format!("a{at}: &a{at} [{names}]\n"));
    }
    text
}
