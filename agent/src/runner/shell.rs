//! How a script becomes a process.

/// What stands for the script's file in a shell's command line.
const SCRIPT: &str = "{0}";

/// A shell that scripts are given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shell {
    /// The program and its arguments; `{0}` stands for the script's file.
    pub(super) template: Vec<String>,
    /// Of the script's file, with its dot; may be empty.
    pub(super) extension: &'static str,
    /// Put around the script.
    before: &'static str,
    after: &'static str,
}

/// Why a `shell:` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ShellError {
    #[error("the shell `{0}` has no `{SCRIPT}` where the script's file would stand")]
    NoScript(String),
    #[error(
        "the shell `{0}` is not on Linux: use bash, sh, python, pwsh or a command with `{SCRIPT}`"
    )]
    NotHere(String),
    #[error("the shell is empty")]
    Empty,
}

impl Shell {
    /// The shell of a step that names none: bash where there is one, sh otherwise.
    pub(super) fn unnamed(has_bash: bool) -> Self {
        let words: &[&str] = if has_bash { &["bash", "-e", SCRIPT] } else { &["sh", "-e", SCRIPT] };
        Self::plain(words, ".sh")
    }

    /// The shell that `shell:` names.
    ///
    /// # Errors
    ///
    /// [`ShellError`]: a person has to change the pipeline.
    pub(super) fn named(name: &str) -> Result<Self, ShellError> {
        let name = name.trim();
        match name.to_ascii_lowercase().as_str() {
            "" => Err(ShellError::Empty),
            // Only a shell that was asked for gets pipefail: so does GitHub.
            "bash" => Ok(Self::plain(
                &["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", SCRIPT],
                ".sh",
            )),
            "sh" => Ok(Self::plain(&["sh", "-e", SCRIPT], ".sh")),
            "python" => Ok(Self::plain(&["python", SCRIPT], ".py")),
            "pwsh" => Ok(Self {
                before: "$ErrorActionPreference = 'stop'\n",
                after: "\nif ((Test-Path -LiteralPath variable:\\LASTEXITCODE)) { exit $LASTEXITCODE }",
                ..Self::plain(&["pwsh", "-command", ". '{0}'"], ".ps1")
            }),
            "cmd" | "powershell" => Err(ShellError::NotHere(name.to_owned())),
            _ => Self::custom(name),
        }
    }

    fn custom(line: &str) -> Result<Self, ShellError> {
        if !line.contains(SCRIPT) {
            return Err(ShellError::NoScript(line.to_owned()));
        }
        let template = words(line);
        let extension = match template.first().map(String::as_str) {
            Some("bash" | "sh") => ".sh",
            Some("python") => ".py",
            Some("pwsh") => ".ps1",
            Some(_) => "",
            None => return Err(ShellError::Empty),
        };
        Ok(Self { template, extension, before: "", after: "" })
    }

    fn plain(words: &[&str], extension: &'static str) -> Self {
        let template = words.iter().map(|word| (*word).to_owned()).collect();
        Self { template, extension, before: "", after: "" }
    }

    /// The script as it is written to its file.
    pub(super) fn script(&self, script: &str) -> String {
        format!("{}{script}{}", self.before, self.after)
    }

    /// The command line with the script's file in it.
    pub(super) fn argv(&self, file: &str) -> Vec<String> {
        self.template.iter().map(|word| word.replace(SCRIPT, file)).collect()
    }
}

/// Splits a command line at spaces; quotes keep words together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in line.chars() {
        match (character, quote) {
            (_, Some(open)) if character == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (' ' | '\t', None) => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_follow_a_table() {
        for (name, want) in [
            ("bash", "bash|--noprofile|--norc|-e|-o|pipefail|F"),
            ("sh", "sh|-e|F"),
            ("python", "python|F"),
            ("pwsh", "pwsh|-command|. 'F'"),
            ("perl {0}", "perl|F"),
            ("bash -x  -c \"source {0} 'a b'\"", "bash|-x|-c|source F 'a b'"),
        ] {
            assert_eq!(Shell::named(name).unwrap().argv("F").join("|"), want);
        }
        assert_eq!(Shell::unnamed(true).argv("F").join("|"), "bash|-e|F");
        assert_eq!(Shell::unnamed(false).argv("F").join("|"), "sh|-e|F");
    }

    #[test]
    fn a_shell_that_cannot_be_used_says_why() {
        assert!(matches!(Shell::named("perl"), Err(ShellError::NoScript(_))));
        assert!(matches!(Shell::named("cmd"), Err(ShellError::NotHere(_))));
        assert_eq!(Shell::named(" "), Err(ShellError::Empty));
    }
}
