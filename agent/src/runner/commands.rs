//! Workflow commands: lines of a step's output that speak to the runner,
//! `::NAME KEY=VALUE,…::DATA` and the older `##[NAME KEY=VALUE;…]DATA`.

/// Longest line that is looked at as a command, bytes; a longer one is text. Above
/// the largest output that a job may set.
const COMMAND_BYTES_MAX: usize = 2 << 20;

/// Names that are commands. A line with any other name is text.
const NAMES: [&str; 16] = [
    "add-mask",
    "add-matcher",
    "add-path",
    "debug",
    "echo",
    "endgroup",
    "error",
    "group",
    "notice",
    "remove-matcher",
    "save-state",
    "set-env",
    "set-output",
    "stop-commands",
    "warning",
    "internal-set-repo-path",
];

/// One command as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// In lower case.
    pub(super) name: String,
    pub(super) properties: Vec<(String, String)>,
    pub(super) data: String,
}

impl Command {
    /// The value of a property, by its name in any case.
    pub(super) fn property(&self, name: &str) -> Option<&str> {
        let found = self.properties.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// What a stretch of output is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Text(&'a [u8]),
    /// A whole line that is a command, and that line with its newline.
    Command(Command, &'a [u8]),
}

/// Parts a stream of bytes into text and commands. Text passes at once; only a line
/// that begins like a command waits for its end.
#[derive(Debug, Default)]
pub(super) struct CommandStream {
    /// A line that may become a command; empty while text passes.
    line: Vec<u8>,
    /// The current line has been found to be text.
    in_text: bool,
    /// Resumes after `::stop-commands::`.
    stop_token: Option<String>,
}

impl CommandStream {
    /// Until `::TOKEN::`, everything is text.
    pub(super) fn stop(&mut self, token: String) {
        self.stop_token = Some(token);
    }

    /// Takes bytes and hands out the pieces that are certain.
    pub(super) fn push<'a>(&mut self, bytes: &'a [u8], mut each: impl FnMut(&mut Self, Piece<'_>)) {
        let mut rest: &'a [u8] = bytes;
        while !rest.is_empty() {
            if self.in_text {
                let end = line_end(rest);
                self.in_text = !rest[..end].ends_with(b"\n");
                each(self, Piece::Text(&rest[..end]));
                rest = &rest[end..];
                continue;
            }
            let end = line_end(rest);
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
            let whole = self.line.ends_with(b"\n");
            if whole || !may_be_command(&self.line) || self.line.len() > COMMAND_BYTES_MAX {
                let line = std::mem::take(&mut self.line);
                self.in_text = !whole;
                self.hand_out(&line, whole, &mut each);
            }
        }
    }

    /// Hands out what waits: nothing follows.
    pub(super) fn finish(&mut self, mut each: impl FnMut(&mut Self, Piece<'_>)) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            self.hand_out(&line, true, &mut each);
        }
        self.in_text = false;
    }

    fn hand_out(&mut self, line: &[u8], whole: bool, each: &mut impl FnMut(&mut Self, Piece<'_>)) {
        let text = if whole { std::str::from_utf8(line).ok() } else { None };
        let text = text.map(|text| text.trim_end_matches(['\r', '\n']));
        if let (Some(token), Some(text)) = (&self.stop_token, text) {
            if text.trim_start().strip_prefix("::").and_then(|rest| rest.strip_suffix("::"))
                == Some(token)
            {
                self.stop_token = None;
            }
            each(self, Piece::Text(line));
            return;
        }
        match text.filter(|_| self.stop_token.is_none()).and_then(parse) {
            Some(command) => each(self, Piece::Command(command, line)),
            None => each(self, Piece::Text(line)),
        }
    }
}

/// Whether `name` is one that [`CommandStream`] takes for a command.
pub(super) fn is_command_name(name: &str) -> bool {
    NAMES.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn line_end(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1)
}

fn may_be_command(line: &[u8]) -> bool {
    let text = line.trim_ascii_start();
    [b"::".as_slice(), b"##["]
        .iter()
        .any(|prefix| text.starts_with(prefix) || prefix.starts_with(text))
}

fn parse(line: &str) -> Option<Command> {
    let line = line.trim_start();
    if let Some(rest) = line.strip_prefix("::") {
        let (head, data) = rest.split_once("::")?;
        return command(head, ',', unescape(data, &[]), |value| {
            unescape(value, &[("%3A", ":"), ("%2C", ",")])
        });
    }
    let (head, data) = line.strip_prefix("##[")?.split_once(']')?;
    let escapes = [("%3B", ";"), ("%5D", "]")];
    command(head, ';', unescape(data, &escapes), |value| unescape(value, &escapes))
}

fn command(
    head: &str,
    separator: char,
    data: String,
    unescape: impl Fn(&str) -> String,
) -> Option<Command> {
    let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
    if !is_command_name(name) {
        return None;
    }
    let properties = properties
        .split(separator)
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(key, value)| (key.to_owned(), unescape(value)))
        .collect();
    Some(Command { name: name.to_ascii_lowercase(), properties, data })
}

/// Undoes the escapes; `%25` last, or an escaped escape would be undone twice.
fn unescape(value: &str, more: &[(&str, &str)]) -> String {
    let mut value = value.replace("%0D", "\r").replace("%0A", "\n");
    for (escaped, plain) in more {
        value = value.replace(escaped, plain);
    }
    value.replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_follow_a_table() {
        check("plain\n", "text plain\n");
        check("::debug::hello\n", "debug [] hello");
        check("  ::debug::hello\r\n", "debug [] hello");
        check(
            "::ERROR file=a.c,line=3,title=a%2Cb::one%0Atwo%25\n",
            "error [file=a.c line=3 title=a,b] one\ntwo%",
        );
        check("##[error code=1;b=x%3By]data%5D\n", "error [code=1 b=x;y] data]");
        check("::unknown::x\n", "text ::unknown::x\n");
        check("::notice\n", "text ::notice\n");
        check("say ::notice::x\n", "text say ::notice::x\n");
        check("::set-output name=a::b::c\n", "set-output [name=a] b::c");
        check("::group::no newline at the end", "group [] no newline at the end");
        check(":: ::\n", "text :: ::\n");
    }

    #[test]
    fn nothing_is_a_command_between_a_stop_and_its_token() {
        let mut seen = Vec::new();
        let mut stream = CommandStream::default();
        let text = "::stop-commands::T0\n::error::no\n::T1::\n::T0::\n::error::yes\n";
        stream.push(text.as_bytes(), |stream, piece| {
            if let Piece::Command(command, _) = &piece {
                if command.name == "stop-commands" {
                    stream.stop(command.data.clone());
                }
                seen.push(command.data.clone());
            }
        });
        assert_eq!(seen, ["T0", "yes"]);
    }

    #[test]
    fn text_does_not_wait_for_its_newline() {
        let mut stream = CommandStream::default();
        let mut passed = Vec::new();
        stream.push(b"progress 10%", |_, piece| match piece {
            Piece::Text(text) => passed.extend_from_slice(text),
            Piece::Command(..) => panic!("not a command"),
        });
        assert_eq!(passed, b"progress 10%");
    }

    /// However the bytes are cut, the same pieces come out.
    fn check(input: &str, want: &str) {
        for size in 1..=input.len() {
            let mut stream = CommandStream::default();
            let (mut text, mut commands) = (Vec::new(), Vec::new());
            let mut each = |piece: Piece<'_>| match piece {
                Piece::Text(bytes) => text.extend_from_slice(bytes),
                Piece::Command(command, _) => {
                    let properties: Vec<String> =
                        command.properties.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    let properties = properties.join(" ");
                    commands.push(format!("{} [{properties}] {}", command.name, command.data));
                }
            };
            for bytes in input.as_bytes().chunks(size) {
                stream.push(bytes, |_, piece| each(piece));
            }
            stream.finish(|_, piece| each(piece));
            if !text.is_empty() {
                commands.push(format!("text {}", String::from_utf8_lossy(&text)));
            }
            assert_eq!(commands, [want], "{input:?} in pieces of {size}");
        }
    }
}
