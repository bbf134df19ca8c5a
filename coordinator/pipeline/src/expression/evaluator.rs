//! From a tree to a value, within a bound of memory.

use std::cell::Cell;
use std::cmp::Ordering;
use std::sync::Arc;

use super::error::ExpressionError;
use super::function::{self, Function};
use super::number;
use super::parser::{Comparison, Expr};
use super::value::{Array, Value, fold_case};
use super::{Contexts, World};

/// Bytes that the results of one evaluation may take at once. Counted as .NET
/// counts them, two bytes a character, so that what GitHub refuses is refused here.
#[derive(Debug)]
pub(super) struct Memory {
    max: usize,
    live: Cell<usize>,
}

impl Memory {
    pub(super) fn new(max: usize) -> Self {
        Self { max, live: Cell::new(0) }
    }

    /// Whether a text under construction still has room.
    pub(super) fn check_text(&self, text: &str) -> Result<(), ExpressionError> {
        // Bytes are at most twice too few for what is not ASCII, which a bound may be.
        self.check(text.len().saturating_mul(2))
    }

    fn check(&self, more: usize) -> Result<(), ExpressionError> {
        if self.live.get().saturating_add(more) > self.max {
            return Err(ExpressionError::evaluation(
                "The maximum allowed memory size was exceeded",
            ));
        }
        Ok(())
    }
}

pub(super) struct Evaluator<'a> {
    pub(super) contexts: &'a Contexts,
    pub(super) world: &'a dyn World,
    pub(super) memory: Memory,
}

impl Evaluator<'_> {
    pub(super) fn evaluate(&self, tree: &Expr) -> Result<Value, ExpressionError> {
        let before = self.memory.live.get();
        let value = self.node(tree)?;
        // What the operands took is free again; the result is not.
        self.memory.live.set(before);
        let made_here = matches!(tree, Expr::Call { .. } | Expr::Filter { .. });
        if made_here {
            let size = size(&value);
            self.memory.check(size)?;
            self.memory.live.set(before + size);
        }
        Ok(value)
    }

    fn node(&self, tree: &Expr) -> Result<Value, ExpressionError> {
        match tree {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Context { name, .. } => {
                Ok(self.contexts.get(name).cloned().unwrap_or(Value::Null))
            }
            Expr::Index { of, index } => {
                let index = self.evaluate(index)?;
                Ok(select(&self.evaluate(of)?, &index))
            }
            Expr::Filter { of } => Ok(filter(&self.evaluate(of)?)),
            Expr::Not(operand) => Ok(Value::Bool(!self.evaluate(operand)?.is_truthy())),
            Expr::Compare { comparison, left, right } => {
                let (left, right) = (self.evaluate(left)?, self.evaluate(right)?);
                Ok(Value::Bool(compare(*comparison, &left, &right)))
            }
            Expr::All(operands) => self.first(operands, false),
            Expr::Any(operands) => self.first(operands, true),
            Expr::Call { function: Function::Case, arguments, .. } => self.case(arguments),
            Expr::Call { function, arguments, .. } => {
                let arguments: Result<Vec<_>, _> =
                    arguments.iter().map(|argument| self.evaluate(argument)).collect();
                function::call(*function, &arguments?, self.world, &self.memory)
            }
        }
    }

    /// The first operand that is as truthy as `wanted`, or else the last.
    fn first(&self, operands: &[Expr], wanted: bool) -> Result<Value, ExpressionError> {
        let mut last = Value::Null;
        for operand in operands {
            last = self.evaluate(operand)?;
            if last.is_truthy() == wanted {
                break;
            }
        }
        Ok(last)
    }

    /// Pairs of predicate and value, then a default.
    fn case(&self, arguments: &[Expr]) -> Result<Value, ExpressionError> {
        let mut rest = arguments;
        while let [predicate, value, after @ ..] = rest {
            match self.evaluate(predicate)? {
                Value::Bool(true) => return self.evaluate(value),
                Value::Bool(false) => rest = after,
                _ => {
                    let message = "case predicate must evaluate to a boolean value";
                    return Err(ExpressionError::evaluation(message));
                }
            }
        }
        rest.first().map_or(Ok(Value::Null), |default| self.evaluate(default))
    }
}

/// `of.*`: the members, as an array in which an index selects in every item.
fn filter(of: &Value) -> Value {
    let items = match of {
        Value::Array(array) if array.filtered => array.items.iter().flat_map(members).collect(),
        _ => members(of),
    };
    Value::Array(Arc::new(Array { items, filtered: true }))
}

fn members(of: &Value) -> Vec<Value> {
    match of {
        Value::Array(array) => array.items.clone(),
        Value::Object(object) => object.entries().map(|(_, value)| value.clone()).collect(),
        _ => Vec::new(),
    }
}

/// `of[index]`. What is not there is null, and in a filtered array nothing at all.
fn select(of: &Value, index: &Value) -> Value {
    match of {
        Value::Array(array) if array.filtered => {
            let items = array.items.iter().filter_map(|item| member(item, index)).collect();
            Value::Array(Arc::new(Array { items, filtered: true }))
        }
        _ => member(of, index).unwrap_or(Value::Null),
    }
}

fn member(of: &Value, index: &Value) -> Option<Value> {
    match of {
        Value::Object(object) if index.is_primitive() => object.get(&index.to_text()).cloned(),
        Value::Array(array) => {
            let at = index.to_number();
            // Also false for NaN.
            #[allow(clippy::cast_precision_loss, reason = "no array is that long")]
            let within = at >= 0.0 && at < array.items.len() as f64;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within")]
            within.then(|| array.items[at as usize].clone())
        }
        _ => None,
    }
}

fn compare(comparison: Comparison, left: &Value, right: &Value) -> bool {
    let is = |wanted| order(left, right) == Some(wanted);
    match comparison {
        Comparison::Equal => loosely_equal(left, right),
        Comparison::NotEqual => !loosely_equal(left, right),
        Comparison::Less => is(Ordering::Less),
        Comparison::LessOrEqual => is(Ordering::Less) || loosely_equal(left, right),
        Comparison::Greater => is(Ordering::Greater),
        Comparison::GreaterOrEqual => is(Ordering::Greater) || loosely_equal(left, right),
    }
}

/// `==`: like kinds compare, others as numbers; strings in any case; arrays and
/// objects are equal only to themselves.
pub(super) fn loosely_equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::Array(left), Value::Array(right)) => Arc::ptr_eq(left, right),
        (Value::Object(left), Value::Object(right)) => Arc::ptr_eq(left, right),
        _ => order(left, right) == Some(Ordering::Equal),
    }
}

/// How two primitives are ordered; none for NaN, null and null, arrays and objects.
fn order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Null, Value::Null) => None,
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::String(left), Value::String(right)) => Some(order_text(left, right)),
        _ if left.is_primitive() && right.is_primitive() => {
            left.to_number().partial_cmp(&right.to_number())
        }
        _ => None,
    }
}

/// By UTF-16 units in upper case, as .NET's `OrdinalIgnoreCase`.
fn order_text(left: &str, right: &str) -> Ordering {
    fold_case(left).encode_utf16().cmp(fold_case(right).encode_utf16())
}

/// About what a value takes, bytes. Members of contexts are shared and count only once, here as nothing.
fn size(value: &Value) -> usize {
    /// Of any object in .NET.
    const OBJECT: usize = 24;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => OBJECT,
        Value::String(string) => OBJECT + 2 * string.chars().count(),
        Value::Array(array) => OBJECT + array.items.len() * size_of::<Value>(),
        Value::Object(object) => OBJECT + object.len() * 4 * size_of::<Value>(),
    }
}

impl Value {
    /// Not an array or object.
    pub(crate) const fn is_primitive(&self) -> bool {
        !matches!(self, Self::Array(_) | Self::Object(_))
    }

    /// The value as a number, NaN where it is none.
    pub(crate) fn to_number(&self) -> f64 {
        match self {
            Self::Null => 0.0,
            Self::Bool(bool) => f64::from(u8::from(*bool)),
            Self::Number(number) => *number,
            Self::String(string) => number::from_text(string),
            Self::Array(_) | Self::Object(_) => f64::NAN,
        }
    }
}
