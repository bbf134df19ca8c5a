//! Glob patterns that choose parts of a tree.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Most patterns of one list.
const PATTERNS_MAX: usize = 1_000;

/// Why a list of patterns cannot be used. Always the writer's mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("the pattern `{0}` is empty")]
    Empty(String),
    #[error("the pattern `{0}` leaves the workspace: write it relative to its root, without `..`")]
    Outside(String),
    #[error("the pattern `{pattern}` is not a glob: {why}")]
    Glob { pattern: String, why: String },
    #[error("{0} patterns, at most {PATTERNS_MAX} are allowed")]
    TooMany(usize),
}

/// An ordered list of globs over the paths of a tree.
///
/// Every pattern starts at the root: `*.c` chooses C files there, `**/*.c` everywhere.
/// `*` and `?` stay within a name, `**` does not. A pattern that matches a folder
/// chooses everything below it. `!` before a pattern excludes; the last pattern that
/// matches a path, or a folder above it, decides.
#[derive(Clone, Debug)]
pub struct Patterns {
    rows: Vec<Row>,
    globs: GlobSet,
    /// Index of the row of each glob.
    owners: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Row {
    text: String,
    exclude: bool,
}

impl Patterns {
    /// Reads a list of patterns.
    ///
    /// # Errors
    ///
    /// [`PatternError`] says which pattern is wrong, and how.
    pub fn parse<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        if patterns.len() > PATTERNS_MAX {
            return Err(PatternError::TooMany(patterns.len()));
        }
        let (mut rows, mut owners, mut globs) = (Vec::new(), Vec::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let text = pattern.as_ref();
            let (exclude, glob) = match text.strip_prefix('!') {
                Some(glob) => (true, glob),
                None => (false, text),
            };
            let glob = normal(text, glob)?;
            for glob in [glob.clone(), format!("{glob}/**")] {
                let built = GlobBuilder::new(&glob).literal_separator(true).build();
                globs.add(built.map_err(|error| PatternError::Glob {
                    pattern: text.to_owned(),
                    why: error.kind().to_string(),
                })?);
                owners.push(rows.len());
            }
            rows.push(Row { text: text.to_owned(), exclude });
        }
        let globs = globs.build().map_err(|error| PatternError::Glob {
            pattern: error.glob().unwrap_or_default().to_owned(),
            why: error.kind().to_string(),
        })?;
        Ok(Self { rows, globs, owners })
    }

    /// Everything but a `.git` at the root.
    pub fn whole_workspace() -> Self {
        Self::parse(&["**", "!.git"]).expect("both are globs")
    }

    /// Whether the patterns choose this path (`a/b`, no leading `/`).
    pub fn matches(&self, path: &str) -> bool {
        self.deciding(path).is_some_and(|row| !self.rows[row].exclude)
    }

    /// Whether anything below this folder can be chosen.
    pub(crate) fn may_descend(&self, folder: &str) -> bool {
        match self.deciding(folder) {
            // Only what comes after an exclusion can take it back.
            Some(row) if self.rows[row].exclude => {
                self.rows[row + 1..].iter().any(|later| !later.exclude)
            }
            _ => true,
        }
    }

    /// The last pattern that matches the path or a folder above it.
    pub(crate) fn deciding(&self, path: &str) -> Option<usize> {
        self.globs.matches(path).last().map(|&glob| self.owners[glob])
    }

    /// How many patterns there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Chooses nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All patterns that match the path or a folder above it: for the list of those
    /// that never matched.
    pub(crate) fn mark(&self, path: &str, used: &mut [bool]) {
        for glob in self.globs.matches(path) {
            used[self.owners[glob]] = true;
        }
    }

    /// The choosing patterns that are not marked, as written.
    pub(crate) fn unmarked(&self, used: &[bool]) -> Vec<String> {
        (0..self.rows.len())
            .filter(|&row| !used[row] && !self.rows[row].exclude)
            .map(|row| self.rows[row].text.clone())
            .collect()
    }
}

/// `./src/`, `src/**` and `src` say the same.
fn normal(text: &str, glob: &str) -> Result<String, PatternError> {
    let mut glob = glob.trim();
    while let Some(rest) = glob.strip_prefix("./") {
        glob = rest;
    }
    if glob.starts_with('/') || glob.split('/').any(|part| part == "..") {
        return Err(PatternError::Outside(text.to_owned()));
    }
    let glob = glob.trim_end_matches('/');
    let glob = match glob.strip_suffix("/**") {
        Some(folder) if !folder.is_empty() => folder,
        _ => glob,
    };
    match glob {
        "" => Err(PatternError::Empty(text.to_owned())),
        "." => Ok("**".to_owned()),
        _ => Ok(glob.to_owned()),
    }
}
