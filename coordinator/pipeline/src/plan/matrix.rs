//! `strategy.matrix`: the combinations of its vectors, without what `exclude`
//! takes away, and with what `include` adds.

use steading_model::limits::MATRIX_LEGS_MAX;

use crate::expression::{Object, Value};

/// One leg's `matrix` context, and what of it stands in the leg's name.
#[derive(Clone, Debug)]
pub(super) struct Combination {
    entries: Vec<(String, Value)>,
    /// Entries before this one are of vectors, or of the `include` that made the leg.
    named: usize,
}

impl Combination {
    /// The `matrix` context.
    pub(super) fn context(&self) -> Value {
        let mut object = Object::new();
        for (key, value) in &self.entries {
            object.insert(key, value.clone());
        }
        Value::object(object)
    }

    /// `a, b`: the plain values that tell the legs apart. Empty where there are none.
    pub(super) fn suffix(&self) -> String {
        let named = self.entries[..self.named].iter().map(|(_, value)| value);
        let texts: Vec<String> = named.filter(|v| v.is_primitive()).map(Value::to_text).collect();
        texts.join(", ")
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let found = self.entries.iter().find(|(known, _)| known.eq_ignore_ascii_case(key));
        found.map(|(_, value)| value)
    }

    fn set(&mut self, key: &str, value: &Value) {
        match self.entries.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(key)) {
            Some((_, old)) => *old = value.clone(),
            None => self.entries.push((key.to_owned(), value.clone())),
        }
    }
}

/// The legs of an evaluated matrix, in order: the first vector varies slowest.
///
/// # Errors
///
/// A sentence for the author of the matrix.
pub(super) fn combinations(matrix: &Value) -> Result<Vec<Combination>, String> {
    let Value::Object(matrix) = matrix else {
        return Err(format!("the matrix is {}, want an object", describe(matrix)));
    };
    let mut vectors: Vec<(&str, &[Value])> = Vec::new();
    let (mut include, mut exclude) = (Vec::new(), Vec::new());
    for (key, value) in matrix.entries() {
        match key.to_ascii_lowercase().as_str() {
            "include" => include = filters("include", value)?,
            "exclude" => exclude = filters("exclude", value)?,
            _ => {
                let Value::Array(items) = value else {
                    let what = describe(value);
                    return Err(format!("the matrix vector `{key}` is {what}, want an array"));
                };
                if items.items().is_empty() {
                    return Err(format!("the matrix vector `{key}` has no values"));
                }
                vectors.push((key, items.items()));
            }
        }
    }
    if vectors.is_empty() && include.is_empty() {
        return Err("the matrix has neither a vector nor an `include`".to_owned());
    }
    let mut legs = product(&vectors)?;
    for filter in &exclude {
        for (key, _) in filter.entries() {
            if !vectors.iter().any(|(vector, _)| vector.eq_ignore_ascii_case(key)) {
                return Err(format!("`exclude` names `{key}`, which is no vector of the matrix"));
            }
        }
        legs.retain(|leg| !matches(leg, filter));
    }
    add_included(&mut legs, &vectors, &include)?;
    if legs.is_empty() {
        return Err("`exclude` leaves no combination of the matrix".to_owned());
    }
    Ok(legs)
}

fn describe(value: &Value) -> String {
    format!("of the kind {}", value.kind())
}

fn filters(name: &str, value: &Value) -> Result<Vec<Object>, String> {
    let items = match value {
        Value::Array(items) => items.items(),
        Value::Null => &[],
        _ => return Err(format!("`{name}` is {}, want an array", describe(value))),
    };
    items
        .iter()
        .map(|item| match item {
            Value::Object(object) => Ok((**object).clone()),
            _ => Err(format!("an entry of `{name}` is {}, want an object", describe(item))),
        })
        .collect()
}

fn too_many() -> String {
    format!("the matrix has more than {MATRIX_LEGS_MAX} combinations")
}

/// Every combination of the vectors; none where there are no vectors.
fn product(vectors: &[(&str, &[Value])]) -> Result<Vec<Combination>, String> {
    if vectors.is_empty() {
        return Ok(Vec::new());
    }
    let sizes = vectors.iter().map(|(_, values)| values.len());
    let size = sizes.fold(1_usize, usize::saturating_mul);
    // Before anything is built. What `exclude` would take away counts, as it does elsewhere.
    if size > MATRIX_LEGS_MAX {
        return Err(too_many());
    }
    let mut legs = vec![Combination { entries: Vec::new(), named: vectors.len() }];
    for (key, values) in vectors {
        legs = legs
            .iter()
            .flat_map(|leg| {
                values.iter().map(|value| {
                    let mut leg = leg.clone();
                    leg.entries.push(((*key).to_owned(), value.clone()));
                    leg
                })
            })
            .collect();
    }
    Ok(legs)
}

/// An entry's keys that are vectors choose the legs that it joins, its other keys join
/// them. An entry that finds none becomes a leg of its own, which later entries do not join.
fn add_included(
    legs: &mut Vec<Combination>,
    vectors: &[(&str, &[Value])],
    include: &[Object],
) -> Result<(), String> {
    let is_vector = |key: &str| vectors.iter().any(|(vector, _)| vector.eq_ignore_ascii_case(key));
    let of_vectors = legs.len();
    for entry in include {
        let mut filter = Object::new();
        for (key, value) in entry.entries().filter(|(key, _)| is_vector(key)) {
            filter.insert(key, value.clone());
        }
        let mut found = false;
        for leg in legs[..of_vectors].iter_mut().filter(|leg| matches(leg, &filter)) {
            found = true;
            for (key, value) in entry.entries().filter(|(key, _)| !is_vector(key)) {
                leg.set(key, value);
            }
        }
        if !found {
            let entries: Vec<_> =
                entry.entries().map(|(key, value)| (key.to_owned(), value.clone())).collect();
            let named = entries.len();
            legs.push(Combination { entries, named });
        }
        if legs.len() > MATRIX_LEGS_MAX {
            return Err(too_many());
        }
    }
    Ok(())
}

fn matches(leg: &Combination, filter: &Object) -> bool {
    filter.entries().all(|(key, wanted)| leg.get(key).is_some_and(|value| same(value, wanted)))
}

/// Whether a value is what a filter wants; of an object the filter may name a part.
fn same(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(value), Value::Bool(wanted)) => value == wanted,
        (Value::Number(value), Value::Number(wanted)) => value == wanted,
        (Value::String(value), Value::String(wanted)) => value == wanted,
        (Value::Array(value), Value::Array(wanted)) => {
            let (value, wanted) = (value.items(), wanted.items());
            value.len() == wanted.len() && value.iter().zip(wanted).all(|(v, w)| same(v, w))
        }
        (Value::Object(value), Value::Object(wanted)) => {
            wanted.entries().all(|(key, wanted)| value.get(key).is_some_and(|v| same(v, wanted)))
        }
        _ => false,
    }
}
