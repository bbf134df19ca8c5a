//! Names: lists of them for messages, the one that was meant, and whether one is new.

use std::collections::BTreeSet;

use crate::expression::fold_case;

/// Most names that a message lists.
const LISTED_MAX: usize = 30;

/// `a`, `b` and `c`.
pub(super) fn list<'s>(names: impl Iterator<Item = &'s str>) -> String {
    let mut names: Vec<String> =
        names.take(LISTED_MAX + 1).map(|name| format!("`{name}`")).collect();
    if names.len() > LISTED_MAX {
        names.truncate(LISTED_MAX);
        names.push("others".to_owned());
    }
    match names.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, first)) => format!("{} and {last}", first.join(", ")),
    }
}

/// The name among `known` that was probably meant.
pub(super) fn did_you_mean<S: AsRef<str>>(name: &str, known: &[S]) -> Option<String> {
    let wanted = fold_case(name);
    let (distance, best) = known
        .iter()
        .map(|known| (distance(&wanted, &fold_case(known.as_ref())), known.as_ref()))
        .min()?;
    let length = name.chars().count();
    (distance < length && distance <= 1 + length / 4).then(|| format!("did you mean `{best}`?"))
}

/// Letters to insert, delete, replace or swap with the next to get from one to the other.
fn distance(from: &str, to: &str) -> usize {
    /// Longer names are not compared: the cost grows with the product.
    const LENGTH_MAX: usize = 64;
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    if from.len() > LENGTH_MAX || to.len() > LENGTH_MAX {
        return usize::MAX;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=to.len()).collect()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let changed = usize::from(from[i - 1] != to[j - 1]);
            let mut cost =
                (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                cost = cost.min(rows[i - 2][j - 2] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

/// Names that differ only in case are one.
#[derive(Debug, Default)]
pub(super) struct Names {
    seen: BTreeSet<String>,
}

impl Names {
    /// Whether the name is new.
    pub(super) fn insert(&mut self, name: &str) -> bool {
        self.seen.insert(fold_case(name))
    }
}
