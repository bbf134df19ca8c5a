//! The language as tables: an expression and its value, or what is wrong with it.
//! The large corpus is in `tests/expression_corpus.rs`.

use proptest::prelude::*;
use serde_json::json;

use super::{Contexts, ErrorKind, Status, Value, World, condition, evaluate, interpolate};

#[test]
fn operators_coerce_as_they_do_elsewhere() {
    check(&[
        ("'ABC' == 'abc'", "true"),
        ("'1' == 1", "true"),
        ("'' == 0", "true"),
        ("null == 0", "true"),
        ("null == ''", "true"),
        ("null > null", "false"),
        ("null >= null", "true"),
        ("NaN == NaN", "false"),
        ("NaN != NaN", "true"),
        ("list == list", "true"),
        ("list >= list", "true"),
        ("fromJSON('[]') == fromJSON('[]')", "false"),
        ("'a' < 'B'", "true"),
        ("'straße' == 'STRASSE'", "false"),
        ("true && 'x' || 'y'", "'x'"),
        ("false && 'x' || 'y'", "'y'"),
        ("0 || ''", "''"),
        ("!0 == true", "true"),
        ("!(1 == 2) && !false", "true"),
        ("1 < 2 == true", "true"),
    ]);
}

#[test]
fn access_finds_properties_indexes_and_filters() {
    check(&[
        ("object.One", "1"),
        ("object['ONE']", "1"),
        ("object.missing.deeper.still", "null"),
        ("list[1]", "'b'"),
        ("list['1']", "'b'"),
        ("list[1.9]", "'b'"),
        ("list[-1]", "null"),
        ("list[9]", "null"),
        ("list.name", "null"),
        ("toJSON(nested.*.a)", "'[\n  1,\n  2\n]'"),
        ("toJSON(nested.*.b.c)", "'[\n  3\n]'"),
        ("toJSON(nested[*]['a'][0])", "'[]'"),
        ("join(nested.*.*)", "'1,2,Object'"),
        ("contains(nested.*.a, '2')", "true"),
        ("(nested.*)[0]", "array"),
        ("env.Path", "'p'"),
        ("env.PATH", "null"),
        ("ENV.Path", "'p'"),
    ]);
}

#[test]
fn functions_work_in_any_case() {
    check(&[
        ("CONTAINS('Hello', 'ELL')", "true"),
        ("startsWith('Hello', 'he') && endsWith('Hello', 'LO')", "true"),
        ("startsWith(123, 12)", "true"),
        ("startsWith(list, 'a')", "false"),
        ("format('{1}{{{0}}}', 'a', 2)", "'2{a}'"),
        ("format('{0}', null)", "''"),
        ("join(list, '')", "'ab'"),
        ("toJSON('a\"b')", "'\"a\\\"b\"'"),
        ("toJSON(1e21)", "'1E+21'"),
        ("fromJSON('{\"a\": [1, {\"b\": null}]}').a[1].b", "null"),
        ("fromJSON('1.50')", "1.5"),
        ("case(false, 1, true, 2, 3)", "2"),
        ("case(false, 1, 3)", "3"),
        ("case(true, 1, fromJSON('bad'))", "1"),
        ("hashFiles('a', 'b')", "'hash of a,b'"),
        ("success() && !failure() && !cancelled() && always()", "true"),
    ]);
}

#[test]
fn mistakes_have_a_kind_and_a_position() {
    for (expression, kind, position, message) in [
        ("1 == ", ErrorKind::Parsing, 2, "Unexpected end of expression: '=='"),
        ("a.b", ErrorKind::Parsing, 0, "Unrecognized named-value: 'a'"),
        ("x(1)", ErrorKind::Parsing, 0, "Unrecognized function: 'x'"),
        ("list[1", ErrorKind::Parsing, 5, "Unexpected end of expression: '1'"),
        ("join(1,)", ErrorKind::Parsing, 7, "Unexpected symbol: ')'"),
        ("list.'a'", ErrorKind::Parsing, 5, "Unexpected symbol: ''a''"),
        ("'a'.b", ErrorKind::Lexing, 3, "Unexpected symbol: '.b'"),
        ("1 + 2", ErrorKind::Lexing, 2, "Unexpected symbol: '+'"),
        ("list ? 1 : 2", ErrorKind::Lexing, 5, "Unexpected symbol: '?'"),
        ("ä", ErrorKind::Lexing, 0, "Unexpected symbol: 'ä'"),
        (
            "format('{1}', 1)",
            ErrorKind::Evaluation,
            0,
            "The following format string references more arguments than were supplied: {1}",
        ),
        (
            "case(1, 2, 3)",
            ErrorKind::Evaluation,
            0,
            "case predicate must evaluate to a boolean value",
        ),
    ] {
        let error = evaluate(expression, &contexts(), &Told(Status::Success)).unwrap_err();
        let found = (error.kind, error.position, error.message.as_str());
        assert_eq!(found, (kind, position, message), "{expression}");
    }
}

#[test]
fn depth_length_and_memory_are_bounded() {
    let nested =
        |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    let depth = "Exceeded max expression depth 50";
    assert_eq!(failure(&nested("(", ")", 60)), depth);
    assert_eq!(failure(&nested("!", "", 60)), depth);
    assert_eq!(failure(&nested("toJSON(", ")", 60)), depth);
    assert_eq!(failure(&format!("list{}", ".a".repeat(60))), depth);
    assert_eq!(failure(&format!("1{}", " == 1".repeat(60))), depth);
    evaluate(&nested("(", ")", 40), &contexts(), &Told(Status::Success)).unwrap();
    evaluate(&format!("1{}", " || 1".repeat(2_000)), &contexts(), &Told(Status::Success)).unwrap();
    assert_eq!(failure(&"1".repeat(21_001)), "Exceeded max expression length 21000");
    let memory = "The maximum allowed memory size was exceeded";
    let tens = |inner: &str| format!("format('{}', {inner})", "{0}".repeat(10));
    let bomb = (0..7).fold("'0123456789'".to_owned(), |inner, _| tens(&inner));
    assert_eq!(failure(&bomb), memory);
}

#[test]
fn a_text_that_is_one_expression_keeps_its_type() {
    for (text, wanted) in [
        ("plain", "'plain'"),
        ("${{ 1 }}", "1"),
        ("${{ list }}", "array"),
        (" ${{ 1 }}", "' 1'"),
        ("a ${{ 1 }} b ${{ null }}${{ true }}", "'a 1 b true'"),
        ("${{ 'a }} b' }}", "'a }} b'"),
        ("${{ 'it''s' }}!", "'it''s!'"),
        ("$ {{ 1 }} }}", "'$ {{ 1 }} }}'"),
    ] {
        let value = interpolate(text, &contexts(), &Told(Status::Success)).unwrap();
        assert_eq!(describe(&value), wanted, "{text}");
    }
    let error = interpolate("ä ${{ oh }}", &contexts(), &Told(Status::Success)).unwrap_err();
    assert_eq!((error.offset, error.position), (6, 1));
}

#[test]
fn a_condition_without_a_status_function_asks_for_success_first() {
    for (text, success, failure, cancelled) in [
        ("", true, false, false),
        ("true", true, false, false),
        ("${{ true }}", true, false, false),
        ("always()", true, true, true),
        ("failure()", false, true, false),
        ("cancelled()", false, false, true),
        ("!cancelled()", true, true, false),
        ("true || 'always()'", true, false, false),
        ("fromJSON(toJSON(always()))", true, true, true),
        ("list.x || success()", true, false, false),
        ("false && always()", false, false, false),
        ("${{ always() }} and more", true, true, true),
        ("${{ false }} and more", true, false, false),
    ] {
        let outcome = |status| condition(text, &contexts(), &Told(status)).unwrap();
        let found =
            (outcome(Status::Success), outcome(Status::Failure), outcome(Status::Cancelled));
        assert_eq!(found, (success, failure, cancelled), "{text}");
    }
    // What is not asked for is not evaluated.
    assert!(!condition("fromJSON('bad')", &contexts(), &Told(Status::Failure)).unwrap());
    condition("fromJSON('bad')", &contexts(), &Told(Status::Success)).unwrap_err();
}

proptest! {
    #[test]
    fn no_text_makes_the_evaluator_panic(text in ".{0,60}") {
        drop(evaluate(&text, &contexts(), &Told(Status::Success)));
        drop(interpolate(&format!("{text}${{{{{text}}}}}"), &contexts(), &Told(Status::Success)));
        drop(condition(&text, &contexts(), &Told(Status::Failure)));
    }

    #[test]
    fn no_row_of_tokens_makes_the_evaluator_panic(
        tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..25),
    ) {
        drop(evaluate(&tokens.join(" "), &contexts(), &Told(Status::Success)));
        drop(evaluate(&tokens.concat(), &contexts(), &Told(Status::Success)));
    }

    #[test]
    fn a_number_keeps_fifteen_digits_as_text(number in any::<f64>()) {
        let text = Value::Number(number).to_text();
        let again = Value::string(text.clone()).to_number();
        prop_assert_eq!(Value::Number(again).to_text(), text);
        if number.is_finite() && number != 0.0 && again.is_finite() {
            prop_assert!((again / number - 1.0).abs() < 1e-14 || number.abs() < 1e-300);
        }
    }

    #[test]
    fn json_survives_the_way_through_a_value(items in prop::collection::vec(".{0,8}", 0..6)) {
        let json = json!({"items": items, "n": 1, "deep": {"b": [true, null, 1.5]}});
        let value = Value::from_json(&json);
        prop_assert_eq!(&value.to_json(), &json);
        let parsed: serde_json::Value = serde_json::from_str(&value.to_pretty_json()).unwrap();
        prop_assert_eq!(parsed, json);
    }
}

const TOKENS: &[&str] = &[
    "(", ")", "[", "]", ",", ".", "*", "!", "==", "!=", "<", ">=", "&&", "||", "1", "-0", "0x1f",
    "'a'", "''", "null", "true", "NaN", "list", "object", "nested", "one", "join", "format",
    "toJSON", "fromJSON", "contains", "case", "success", "'{0}'", "'['",
];

/// Each expression and its value: strings in quotes, arrays and objects by kind.
fn check(table: &[(&str, &str)]) {
    for (expression, wanted) in table {
        match evaluate(expression, &contexts(), &Told(Status::Success)) {
            Ok(value) => assert_eq!(describe(&value), *wanted, "{expression}"),
            Err(error) => panic!("{expression}: {error}"),
        }
    }
}

fn failure(expression: &str) -> String {
    evaluate(expression, &contexts(), &Told(Status::Success)).unwrap_err().message
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_text(),
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Array(_) | Value::Object(_) => value.kind().to_lowercase(),
    }
}

fn contexts() -> Contexts {
    Contexts::from_json(&json!({
        "list": ["a", "b"],
        "object": {"one": 1},
        "nested": [{"a": 1}, {"a": 2, "b": {"c": 3}}],
        "env": {"Path": "p"},
    }))
}

/// A world of this status, whose files hash to their patterns.
struct Told(Status);

impl World for Told {
    fn status(&self) -> Status {
        self.0
    }

    fn hash_files(&self, patterns: &[String]) -> Result<String, String> {
        Ok(format!("hash of {}", patterns.join(",")))
    }
}
