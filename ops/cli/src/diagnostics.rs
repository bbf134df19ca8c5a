//! How diagnostics of a pipeline look: the message, the line, a caret, a hint.

use std::fmt::Write as _;

use steading_pipeline::Diagnostic;

use crate::find::Found;
use crate::text::clean;

/// Longest part of a source line that is shown, characters; what does not fit a
/// terminal's width helps nobody.
const SHOWN_MAX: usize = 160;

/// The diagnostic as people read it, with the source line where `text` has it:
///
/// ```text
/// error: main.yml:3:5: unknown key `step`
///   3 |     step:
///     |     ^
///   hint: did you mean `steps`?
/// ```
pub fn render(diagnostic: &Diagnostic, text: &[u8]) -> String {
    let level = if diagnostic.warning { "warning" } else { "error" };
    let Diagnostic { file, line, column, message, hint, .. } = diagnostic;
    // Where the whole file is meant, its beginning is as good a place to look at.
    let (line, column) = (&(*line).max(1), &(*column).max(1));
    let mut out = format!("{level}: {}:{line}:{column}: {}\n", clean(file), clean(message));
    if let Some(source) = line_of(text, *line) {
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let (shown, caret) = window(&source, *column);
        let _ = writeln!(out, "  {number} | {shown}");
        let _ = writeln!(out, "  {margin} | {}^", " ".repeat(caret));
    }
    if let Some(hint) = hint {
        let _ = writeln!(out, "  hint: {}", clean(hint));
    }
    out
}

/// Parses the pipeline, and answers what is to say of it and whether it can run.
pub fn check(found: &Found, pipeline: &[u8], overlay: Option<&[u8]>) -> (String, bool) {
    let (diagnostics, good) = match steading_pipeline::parse(&found.name, pipeline, overlay) {
        Ok(parsed) => (parsed.warnings, true),
        Err(diagnostics) => (diagnostics, false),
    };
    let mut out = String::new();
    for mut one in diagnostics.iter().cloned() {
        let ours = one.file == found.name;
        if ours {
            one.file.clone_from(&found.shown);
        }
        out.push_str(&render(&one, if ours { pipeline } else { overlay.unwrap_or_default() }));
    }
    let errors = diagnostics.iter().filter(|one| !one.warning).count();
    if errors > 1 {
        let _ = writeln!(out, "{errors} errors");
    }
    (out, good)
}

fn line_of(text: &[u8], line: u32) -> Option<String> {
    let index = usize::try_from(line.checked_sub(1)?).ok()?;
    let source = text.split(|byte| *byte == b'\n').nth(index)?;
    Some(String::from_utf8_lossy(source).trim_end().to_owned())
}

/// The part of the line around the column, and how far into it the caret is.
fn window(source: &str, column: u32) -> (String, usize) {
    let at = usize::try_from(column).unwrap_or(usize::MAX).saturating_sub(1);
    // One character of the source is one column, so a tab is shown as one space.
    let chars: Vec<char> =
        source.chars().map(|c| if c == '\t' || c.is_control() { ' ' } else { c }).collect();
    let at = at.min(chars.len());
    let from = if at < SHOWN_MAX { 0 } else { at - SHOWN_MAX / 2 };
    let to = chars.len().min(from + SHOWN_MAX);
    let before = if from > 0 { "…" } else { "" };
    let after = if to < chars.len() { "…" } else { "" };
    let shown: String = chars[from..to].iter().collect();
    (format!("{before}{shown}{after}"), at - from + before.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &[u8] = b"on: push\njobs:\n  a:\n\tstep: []\n  b: {}\xff\n";

    #[test]
    fn an_error_shows_its_line_a_caret_and_the_hint() {
        check(
            (4, 2, Some("did you mean `steps`?"), false),
            "error: main.yml:4:2: unknown key\n  4 |  step: []\n    |  ^\n  \
             hint: did you mean `steps`?\n",
        );
    }

    #[test]
    fn a_position_outside_the_file_is_still_told() {
        check((99, 1, None, true), "warning: main.yml:99:1: unknown key\n");
        check((0, 0, None, false), "error: main.yml:1:1: unknown key\n  1 | on: push\n    | ^\n");
        check(
            (1, 500, None, false),
            "error: main.yml:1:500: unknown key\n  1 | on: push\n    |         ^\n",
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_such() {
        check(
            (5, 8, None, false),
            "error: main.yml:5:8: unknown key\n  5 |   b: {}\u{fffd}\n    |        ^\n",
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_caret() {
        let line = "x".repeat(1_000);
        let (shown, caret) = window(&line, 500);
        assert_eq!(shown.chars().count(), SHOWN_MAX + 2);
        assert_eq!(caret, SHOWN_MAX / 2 + 1);
    }

    fn check((line, column, hint, warning): (u32, u32, Option<&str>, bool), want: &str) {
        let diagnostic = Diagnostic {
            file: "main.yml".to_owned(),
            line,
            column,
            message: "unknown key".to_owned(),
            hint: hint.map(str::to_owned),
            warning,
        };
        assert_eq!(render(&diagnostic, SOURCE), want);
    }
}
