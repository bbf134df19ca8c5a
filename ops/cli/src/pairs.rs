//! `KEY=VALUE` arguments.

use std::collections::HashMap;
use std::ffi::OsString;

use crate::exit::Failure;

/// Reads arguments of the form `KEY=VALUE`. The last of one key wins.
///
/// # Errors
///
/// [`Failure::Usage`] where there is no `=`, or no key before it.
pub fn read(flag: &str, texts: &[String]) -> Result<HashMap<String, String>, Failure> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Failure::usage(format!(
                "`--{flag} {text}` has no value\n  hint: write --{flag} KEY=VALUE"
            ))),
        })
        .collect()
}

/// Like [`read`]; a key alone takes its value from the environment, so that it shows
/// neither in the shell's history nor in the list of processes. No value is ever
/// part of an error.
///
/// # Errors
///
/// [`Failure::Usage`] where the variable is not set, or is no text.
pub fn secrets(
    texts: &[String],
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<HashMap<String, String>, Failure> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some(("", _)) => {
                Err(Failure::usage("`--secret` has no name\n  hint: write --secret KEY=VALUE"))
            }
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => {
                let value = variable(text).and_then(|value| value.into_string().ok());
                let value = value.ok_or_else(|| {
                    Failure::usage(format!(
                        "`--secret {text}` has no value, and no variable of that name has one\n  \
                         hint: write --secret {text}=VALUE, or set {text}"
                    ))
                })?;
                Ok((text.clone(), value))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_split_at_its_first_sign() {
        let texts = ["A=1", "B=x=y", "C=", "A=2"].map(str::to_owned);
        let pairs = read("env", &texts).unwrap();
        assert_eq!(pairs["A"], "2");
        assert_eq!(pairs["B"], "x=y");
        assert_eq!(pairs["C"], "");
        for bad in ["A", "=1", ""] {
            assert!(read("env", &[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_may_come_from_the_environment() {
        let variable = |name: &str| (name == "TOKEN").then(|| OsString::from("s3cr3t"));
        let pairs = secrets(&["TOKEN".to_owned(), "B=2".to_owned()], variable).unwrap();
        assert_eq!(pairs["TOKEN"], "s3cr3t");
        assert_eq!(pairs["B"], "2");
        assert!(secrets(&["OTHER".to_owned()], variable).is_err());
        let error = secrets(&["=s3cr3t".to_owned()], variable).unwrap_err();
        assert!(!error.to_string().contains("s3cr3t"));
    }
}
