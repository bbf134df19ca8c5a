//! What is printed, and the statistics behind it.

use std::time::Duration;

use serde_json::{Value, json};

/// Prints one measure as a JSON line.
pub(crate) fn print(measure: &str, figures: &Value) {
    let mut line = json!({ "measure": measure });
    if let (Some(line), Some(figures)) = (line.as_object_mut(), figures.as_object()) {
        line.extend(figures.clone());
    }
    println!("{line}");
}

/// The sample at `share` (0 to 1) of the sorted `samples`; zero of none.
pub(crate) fn percentile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    samples.get(at).copied().unwrap_or_default()
}

/// Milliseconds with microseconds behind the point.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Two digits behind the point.
pub(crate) fn rounded(ratio: f64) -> f64 {
    (ratio * 100.0).round() / 100.0
}
