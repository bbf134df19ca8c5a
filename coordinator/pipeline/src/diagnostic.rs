//! What a person reads about a pipeline that is wrong, or that could be better.

use std::fmt;

/// One thing to say about one place of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub file: String,
    /// From 1; 0 where the file as a whole is meant.
    pub line: u32,
    /// From 1, counted in characters; 0 where the file as a whole is meant.
    pub column: u32,
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The pipeline is accepted all the same.
    pub warning: bool,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        f.write_str(if self.warning { ": warning: " } else { ": " })?;
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl Diagnostic {
    /// The line of `text` that is meant, and below it a caret; for terminals.
    /// `None` where no such line is.
    pub fn excerpt(&self, text: &str) -> Option<String> {
        let index = usize::try_from(self.line).ok()?.checked_sub(1)?;
        let line = text.lines().nth(index)?;
        let before = usize::try_from(self.column).ok()?.saturating_sub(1);
        // A tab stays a tab, so that the caret stands where the terminal puts the character.
        let indent: String =
            line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        Some(format!("{line}\n{indent}^"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_names_its_place_and_points_at_it() {
        let diagnostic = Diagnostic {
            file: "ci.yml".into(),
            line: 2,
            column: 3,
            message: "unknown key `step`".into(),
            hint: Some("did you mean `steps`?".into()),
            warning: false,
        };
        assert_eq!(
            diagnostic.to_string(),
            "ci.yml:2:3: unknown key `step` (did you mean `steps`?)"
        );
        assert_eq!(diagnostic.excerpt("a:\n\tästep:\n").unwrap(), "\tästep:\n\t ^");
        assert_eq!(diagnostic.excerpt("a:\n"), None);
    }
}
