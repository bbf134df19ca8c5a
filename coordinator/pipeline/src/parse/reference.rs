//! What the expressions of a file refer to.

use super::yaml::Place;
use crate::expression::Value;
use crate::expression::parser::Expr;

/// A context and the properties behind it, as an expression names them:
/// `github.event.head_commit.message`. `*` stands for a filter or a computed index.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) path: Vec<String>,
    pub(super) place: Place,
}

/// The references of a tree, with their positions: the longest of each chain.
pub(super) fn collect_references(tree: &Expr, found: &mut Vec<(Vec<String>, usize)>) {
    collect(tree, false, found);
}

fn collect(tree: &Expr, within_longer: bool, found: &mut Vec<(Vec<String>, usize)>) {
    let reference = reference(tree);
    let is_reference = reference.is_some();
    if !within_longer {
        found.extend(reference);
    }
    match tree {
        Expr::Literal(_) | Expr::Context { .. } => (),
        Expr::Index { of, index } => {
            collect(of, is_reference, found);
            collect(index, false, found);
        }
        Expr::Filter { of } => collect(of, is_reference, found),
        Expr::Not(of) => collect(of, false, found),
        Expr::Compare { left, right, .. } => {
            collect(left, false, found);
            collect(right, false, found);
        }
        Expr::All(nodes) | Expr::Any(nodes) | Expr::Call { arguments: nodes, .. } => {
            nodes.iter().for_each(|node| collect(node, false, found));
        }
    }
}

fn reference(tree: &Expr) -> Option<(Vec<String>, usize)> {
    match tree {
        Expr::Context { name, position } => Some((vec![name.to_ascii_lowercase()], *position)),
        Expr::Index { of, index } => {
            let (mut path, position) = reference(of)?;
            path.push(match &**index {
                Expr::Literal(Value::String(name)) => name.to_string(),
                _ => "*".to_owned(),
            });
            Some((path, position))
        }
        Expr::Filter { of } => {
            let (mut path, position) = reference(of)?;
            path.push("*".to_owned());
            Some((path, position))
        }
        _ => None,
    }
}
