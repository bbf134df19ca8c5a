//! The way of a step's output: commands are taken out, secrets masked, the rest
//! logged. A cached step's kept output goes the very same way.

use steading_pipeline::job::Annotation;

use super::commands::{Command, CommandStream, Piece, is_command_name};
use super::mask::{MaskStream, Secrets};
use crate::logs::JobLogs;
use crate::process::OutputSink;

/// Most annotations of one step; what GitHub shows of one is fewer.
const ANNOTATIONS_MAX: usize = 100;

/// Longest message of an annotation, bytes.
const ANNOTATION_BYTES_MAX: usize = 16 << 10;

/// Most bytes of `::set-output` of one step: as much as a file of outputs may have.
const OUTPUTS_BYTES_MAX: usize = 16 << 20;

/// A stop token longer than this is masked, bytes: it must not be guessed from the log.
const STOP_TOKEN_MASKED_ABOVE: usize = 6;

/// What a step said through its output, besides text.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub(super) annotations: Vec<Annotation>,
    /// `::set-output` of old.
    pub(super) outputs: Vec<(String, String)>,
    /// Why the step fails although its processes did not.
    pub(super) errors: Vec<String>,
    /// `::add-mask::` was used.
    pub(super) masked: bool,
}

/// Takes the output of one step.
#[derive(Debug)]
pub(super) struct StepOutput {
    commands: CommandStream,
    writer: Writer,
    said: Said,
    step: u32,
    /// `ACTIONS_STEP_DEBUG`.
    debug: bool,
    /// `::echo::on`.
    echo: bool,
    /// In `said.outputs`.
    output_bytes: usize,
}

#[derive(Debug)]
struct Writer {
    mask: MaskStream,
    secrets: Secrets,
    logs: JobLogs,
    stream: u32,
    /// What is certain and not written yet.
    ready: Vec<u8>,
}

impl StepOutput {
    pub(super) fn new(logs: JobLogs, stream: u32, secrets: Secrets, debug: bool) -> Self {
        let mask = MaskStream::new(secrets.clone());
        let writer = Writer { mask, secrets, logs, stream, ready: Vec::new() };
        let said = Said::default();
        Self {
            commands: CommandStream::default(),
            writer,
            said,
            step: stream,
            debug,
            echo: false,
            output_bytes: 0,
        }
    }

    /// Writes a line of the runner's own.
    pub(super) fn line(&mut self, text: &str) {
        self.writer.text(text.as_bytes());
        self.writer.text(b"\n");
        self.writer.flush();
    }

    /// Writes an error of the runner's own, which is an annotation too.
    pub(super) fn error(&mut self, text: &str) {
        self.line(&format!("##[error]{text}"));
        let message = self.writer.secrets.mask(text);
        let annotation =
            Annotation { level: "error".into(), message, step: self.step, ..Annotation::default() };
        self.annotate(annotation);
    }

    /// Lets go what waits for more; returns what was said.
    pub(super) fn finish(mut self) -> Said {
        let mut commands = std::mem::take(&mut self.commands);
        commands.finish(|commands, piece| self.take(commands, piece));
        self.writer.mask.finish(&mut self.writer.ready);
        self.writer.flush();
        self.said
    }

    fn take(&mut self, commands: &mut CommandStream, piece: Piece<'_>) {
        match piece {
            Piece::Text(text) => self.writer.text(text),
            Piece::Command(command, line) => {
                if self.echo && command.name != "add-mask" {
                    self.writer.text(line);
                }
                self.obey(commands, command, line);
            }
        }
    }

    fn obey(&mut self, commands: &mut CommandStream, command: Command, line: &[u8]) {
        match command.name.as_str() {
            "error" | "warning" | "notice" => {
                self.line_of(&command.name, &command.data);
                let annotation = self.annotation(&command);
                self.annotate(annotation);
            }
            "debug" if self.debug => self.line_of("debug", &command.data),
            "debug"
            | "add-matcher"
            | "remove-matcher"
            | "save-state"
            | "internal-set-repo-path" => {}
            "group" | "endgroup" => self.line_of(&command.name, &command.data),
            "add-mask" if command.data.trim().is_empty() => {
                self.fail("add-mask: an empty text cannot be masked".to_owned());
            }
            "add-mask" => {
                self.said.masked = true;
                self.mask(&command.data);
            }
            "echo" => match command.data.trim().to_ascii_lowercase().as_str() {
                "on" => self.echo = true,
                "off" => self.echo = false,
                other => self.fail(format!("echo: `{other}` is neither `on` nor `off`")),
            },
            "stop-commands" => {
                self.writer.text(line);
                self.stop_commands(commands, &command.data);
            }
            "set-output" => match command.property("name").map(str::to_owned) {
                Some(name) => self.set_output(name, command.data),
                None => self.fail("set-output: `name` is missing".to_owned()),
            },
            "set-env" | "add-path" => self.fail(format!(
                "`{}` is disabled, because output of others could use it: write to GITHUB_ENV or \
                 GITHUB_PATH",
                command.name
            )),
            _ => self.writer.text(line),
        }
    }

    fn mask(&mut self, value: &str) {
        if let Err(error) = self.writer.secrets.add(value) {
            self.fail(format!("add-mask: {error}"));
        }
    }

    fn set_output(&mut self, name: String, value: String) {
        self.output_bytes += name.len() + value.len();
        if self.output_bytes > OUTPUTS_BYTES_MAX {
            self.fail(format!("set-output: at most {OUTPUTS_BYTES_MAX} bytes in all are taken"));
        } else {
            self.said.outputs.push((name, value));
        }
    }

    fn stop_commands(&mut self, commands: &mut CommandStream, token: &str) {
        let token = token.trim();
        if token.is_empty() || is_command_name(token) || token == "pause-logging" {
            self.fail(format!("stop-commands: `{token}` cannot be a token"));
            return;
        }
        if token.len() > STOP_TOKEN_MASKED_ABOVE {
            self.mask(token);
        }
        commands.stop(token.to_owned());
    }

    fn line_of(&mut self, name: &str, data: &str) {
        self.writer.text(format!("##[{name}]{data}\n").as_bytes());
    }

    fn fail(&mut self, error: String) {
        // One is enough to fail the step, and a step may go on making the same mistake.
        if self.said.errors.is_empty() {
            self.error(&error);
            self.said.errors.push(error);
        }
    }

    fn annotate(&mut self, annotation: Annotation) {
        if self.said.annotations.len() < ANNOTATIONS_MAX {
            self.said.annotations.push(annotation);
        }
    }

    fn annotation(&self, command: &Command) -> Annotation {
        let mut message = self.writer.secrets.mask(&command.data);
        cut(&mut message, ANNOTATION_BYTES_MAX);
        let text = |name| command.property(name).map(|value| self.writer.secrets.mask(value));
        let number = |name| command.property(name).and_then(|value| value.parse().ok());
        Annotation {
            level: command.name.clone(),
            message,
            title: text("title"),
            file: text("file"),
            line: number("line"),
            column: number("col"),
            step: self.step,
        }
    }
}

impl OutputSink for StepOutput {
    fn write(&mut self, bytes: &[u8]) {
        let mut commands = std::mem::take(&mut self.commands);
        commands.push(bytes, |commands, piece| self.take(commands, piece));
        self.commands = commands;
        self.writer.flush();
    }
}

impl Writer {
    fn text(&mut self, bytes: &[u8]) {
        if self.secrets.withhold() {
            return;
        }
        self.mask.push(bytes, &mut self.ready);
    }

    fn flush(&mut self) {
        self.logs.append(self.stream, &self.ready);
        self.ready.clear();
    }
}

/// Cuts a text to at most `max` bytes, between two characters.
pub(super) fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let end = (0..=max).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_follows_a_table() {
        check("hello\n", "hello\n", "");
        check("::add-mask::s3cret\nsay s3cret\n", "say ***\n", "");
        check("::error file=a.c,line=3::bad\n", "##[error]bad\n", "error a.c:3 bad");
        check("::debug::quiet\n", "", "");
        check("::echo::on\n::debug::loud\n", "::debug::loud\n", "");
        check("::group::G\nin\n::endgroup::\n", "##[group]G\nin\n##[endgroup]\n", "");
        check("::set-output name=k::v\n", "", "k=v");
        check(
            "::warning::the hidden thing\n",
            "##[warning]the *** thing\n",
            "warning the *** thing",
        );
    }

    #[test]
    fn commands_that_would_be_dangerous_fail_the_step() {
        let said = run("::set-env name=PATH::/evil\n").1;
        assert!(said.errors[0].contains("disabled"), "{said:?}");
        let said = run("::stop-commands::error\n").1;
        assert!(said.errors[0].contains("cannot be a token"), "{said:?}");
    }

    #[test]
    fn a_step_cannot_fill_the_agent_s_memory_or_time() {
        let value = "x".repeat(1 << 20);
        let lines: String = (0..40).map(|n| format!("::set-output name=k{n}::{value}\n")).collect();
        let (_, said) = run_in(&lines, 64 << 10);
        assert!(said.outputs.len() < 16 && said.errors.len() == 1, "{:?}", said.errors);

        let mask = |n| format!("::add-mask::secret-{n}\n{}", if n % 50 == 0 { "x\n" } else { "" });
        let masks: String = (0..20_000).map(mask).collect();
        let (log, said) = run_in(&format!("{masks}secret-19999\n"), 64 << 10);
        assert!(said.errors[0].contains("withheld"), "{:?}", said.errors);
        assert!(!log.contains("secret-19999"), "what is not masked is not shown");
    }

    fn check(input: &str, log: &str, said: &str) {
        let (text, heard) = run(input);
        assert_eq!(text, log, "log of {input:?}");
        let mut words = Vec::new();
        for annotation in heard.annotations {
            let Annotation { level, message, file, line, .. } = annotation;
            let place = file.map(|file| format!(" {file}:{}", line.unwrap_or(0)));
            words.push(format!("{level}{} {message}", place.unwrap_or_default()));
        }
        words.extend(heard.outputs.iter().map(|(name, value)| format!("{name}={value}")));
        assert_eq!(words.join(" "), said, "said by {input:?}");
    }

    fn run(input: &str) -> (String, Said) {
        run_in(input, 5)
    }

    fn run_in(input: &str, piece: usize) -> (String, Said) {
        let dir = tempfile::tempdir().unwrap();
        let logs = JobLogs::new(dir.path().join("logs"));
        let secrets = Secrets::default();
        secrets.add_all(["hidden"]);
        let mut output = StepOutput::new(logs.clone(), 0, secrets, false);
        for bytes in input.as_bytes().chunks(piece) {
            output.write(bytes);
        }
        let said = output.finish();
        (std::fs::read_to_string(logs.path(0)).unwrap_or_default(), said)
    }
}
