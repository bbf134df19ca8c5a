//! The files that a step writes for its job: GITHUB_ENV, GITHUB_OUTPUT,
//! GITHUB_STATE, GITHUB_PATH.

/// Why a file of a step cannot be read. The step fails with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FileError {
    #[error("invalid line `{0}`: want NAME=VALUE or NAME<<DELIMITER")]
    Format(String),
    #[error("invalid line `{0}`: the name must not be empty")]
    Name(String),
    #[error("invalid line `{0}`: neither name nor delimiter may be empty")]
    Heredoc(String),
    #[error("invalid value: no line holds the delimiter `{0}`")]
    Delimiter(String),
    #[error("`{0}` cannot be set through GITHUB_ENV")]
    Refused(String),
}

/// Reads `NAME=VALUE` and `NAME<<DELIMITER` entries, in order. The later of two
/// entries of one name counts.
///
/// # Errors
///
/// Any line that is neither; then nothing of the file counts.
pub(super) fn parse_entries(text: &str) -> Result<Vec<(String, String)>, FileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut entries = Vec::new();
    let mut lines = Lines { text, at: 0 };
    while let Some(line) = lines.next() {
        if line.text.is_empty() {
            continue;
        }
        let equals = line.text.find('=');
        let heredoc = line.text.find("<<");
        let entry = match (equals, heredoc) {
            // Whichever comes first decides.
            (Some(equals), heredoc) if heredoc.is_none_or(|heredoc| equals < heredoc) => {
                let (name, value) = (&line.text[..equals], &line.text[equals + 1..]);
                if name.is_empty() {
                    return Err(FileError::Name(line.text.to_owned()));
                }
                (name.to_owned(), value.to_owned())
            }
            (_, Some(heredoc)) => {
                let (name, delimiter) = (&line.text[..heredoc], &line.text[heredoc + 2..]);
                if name.is_empty() || delimiter.is_empty() {
                    return Err(FileError::Heredoc(line.text.to_owned()));
                }
                (name.to_owned(), lines.until(delimiter)?)
            }
            _ => return Err(FileError::Format(line.text.to_owned())),
        };
        entries.push(entry);
    }
    Ok(entries)
}

/// Reads GITHUB_ENV's entries.
///
/// # Errors
///
/// Those of [`parse_entries`], and a variable that steps may not set.
pub(super) fn parse_env(text: &str) -> Result<Vec<(String, String)>, FileError> {
    let entries = parse_entries(text)?;
    // It would let a step run code inside every later program that uses node.
    match entries.iter().find(|(name, _)| name.eq_ignore_ascii_case("NODE_OPTIONS")) {
        Some((name, _)) => Err(FileError::Refused(name.clone())),
        None => Ok(entries),
    }
}

/// Reads GITHUB_PATH's lines and puts them in front of `path`: the last line comes
/// first, and an entry that is there already moves.
pub(super) fn prepend_path(path: &mut Vec<String>, text: &str) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for line in text.lines().filter(|line| !line.is_empty()) {
        path.retain(|entry| entry != line);
        path.insert(0, line.to_owned());
    }
}

struct Line<'a> {
    text: &'a str,
    /// It ends in a newline, not at the end of the file.
    whole: bool,
}

struct Lines<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lines<'a> {
    /// The next line without its newline. A carriage return stays part of it.
    fn next(&mut self) -> Option<Line<'a>> {
        let rest = &self.text[self.at..];
        if rest.is_empty() {
            return None;
        }
        match rest.split_once('\n') {
            Some((line, _)) => {
                self.at += line.len() + 1;
                Some(Line { text: line, whole: true })
            }
            None => {
                self.at = self.text.len();
                Some(Line { text: rest, whole: false })
            }
        }
    }

    /// All lines before the one that is `delimiter`, without their last newline.
    fn until(&mut self, delimiter: &str) -> Result<String, FileError> {
        let missing = || FileError::Delimiter(delimiter.to_owned());
        let start = self.at;
        let mut end = self.at;
        loop {
            let line = self.next().ok_or_else(missing)?;
            if line.text == delimiter {
                return Ok(self.text[start..end].to_owned());
            }
            if !line.whole {
                return Err(missing());
            }
            end = self.at - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_a_table() {
        check("", &[]);
        check("\n\n", &[]);
        check("a=b", &[("a", "b")]);
        check("\u{feff}a=b\n", &[("a", "b")]);
        check("a=\n", &[("a", "")]);
        check("a=b=c\n", &[("a", "b=c")]);
        check("a=b<<c\n", &[("a", "b<<c")]);
        check(" a = b \r\n", &[(" a ", " b \r")]);
        check("a<<EOF\nEOF\n", &[("a", "")]);
        check("a<<EOF\none\nEOF", &[("a", "one")]);
        check("a<<EOF\none\n\ntwo=2\nEOF\nb=1\n", &[("a", "one\n\ntwo=2"), ("b", "1")]);
        check("a<<EOF\none\r\ntwo\r\nEOF\n", &[("a", "one\r\ntwo\r")]);
        check("a<<=x\n1\n=x\n", &[("a", "1")]);
        check("a<<EOF\n\n\nEOF\n", &[("a", "\n")]);
        check("a=1\na=2\n", &[("a", "1"), ("a", "2")]);
    }

    #[test]
    fn broken_files_are_refused_with_the_line() {
        for (text, want) in [
            ("nothing\n", FileError::Format("nothing".into())),
            ("=x\n", FileError::Name("=x".into())),
            ("<<EOF\nEOF\n", FileError::Heredoc("<<EOF".into())),
            ("a<<\n\n", FileError::Heredoc("a<<".into())),
            ("a<<EOF\none\n", FileError::Delimiter("EOF".into())),
            ("a<<EOF\none", FileError::Delimiter("EOF".into())),
            ("a<<EOF\n EOF\n", FileError::Delimiter("EOF".into())),
        ] {
            assert_eq!(parse_entries(text), Err(want), "{text:?}");
        }
        assert_eq!(parse_env("NODE_OPTIONS=x"), Err(FileError::Refused("NODE_OPTIONS".into())));
    }

    #[test]
    fn the_last_path_entry_comes_first_and_entries_move() {
        let mut path = vec!["/old".to_owned()];
        prepend_path(&mut path, "/a\n\n/b\r\n");
        assert_eq!(path, ["/b", "/a", "/old"]);
        prepend_path(&mut path, "/a\n");
        assert_eq!(path, ["/a", "/b", "/old"]);
    }

    fn check(text: &str, want: &[(&str, &str)]) {
        let entries = parse_entries(text).unwrap();
        let entries: Vec<_> = entries.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(entries, want, "{text:?}");
    }
}
