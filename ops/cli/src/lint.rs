//! `stead lint`: checks pipelines without running them.

use std::path::Path;

use crate::args;
use crate::diagnostics;
use crate::exit::{Ended, Failure};
use crate::find;
use crate::out;

/// Checks the files named, or all that are found here, and prints what is wrong.
///
/// # Errors
///
/// [`Failure::Printed`] where one of them has an error; warnings are none.
pub fn run(args: &args::Lint) -> Result<Ended, Failure> {
    let here = std::env::current_dir().map_err(anyhow::Error::from)?;
    let files = match args.files.as_slice() {
        [] => find::all(&here).map_err(|error| Failure::Usage(error.into()))?,
        files => files.to_vec(),
    };
    if files.is_empty() {
        return Err(Failure::Usage(find::FindError::None(here).into()));
    }
    let mut bad = 0;
    for file in &files {
        match check(file, &here) {
            Ok((text, good)) => {
                out::print(text)?;
                bad += u32::from(!good);
            }
            Err(error) => {
                out::line(format_args!("error: {:#}", anyhow::Error::from(error)))?;
                bad += 1;
            }
        }
    }
    if bad > 0 { Err(Failure::Printed) } else { Ok(Ended::Success) }
}

/// What is to say of the file, and whether it can run.
fn check(file: &Path, here: &Path) -> Result<(String, bool), find::FindError> {
    let found = find::pipeline(Some(file), None, here)?;
    let pipeline = find::read(&found.file)?;
    // Under the name that the overlay knows it by.
    Ok(diagnostics::check(&found, &pipeline, find::overlay(&found.source)?.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_pipeline_is_quiet_and_a_bad_one_is_told_with_its_position() {
        let dir = tempfile::tempdir().unwrap();
        let good =
            "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: true\n";
        for (text, want) in [(good, ""), ("on: push\njobz: {}\n", "error: p.yml:2:1: ")] {
            let file = dir.path().join("p.yml");
            std::fs::write(&file, text).unwrap();
            let (told, is_good) = check(&file, dir.path()).unwrap();
            assert_eq!(is_good, want.is_empty());
            assert!(told.contains(want), "{told}");
        }
    }
}
