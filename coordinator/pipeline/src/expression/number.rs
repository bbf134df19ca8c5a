//! Numbers from text and to text.

/// Significant digits of a number as text: what .NET calls `G15`, which is what
/// GitHub's runner prints.
const SIGNIFICANT_DIGITS: i32 = 15;

/// Powers of ten below this are written with an exponent.
const FIXED_EXPONENT_MIN: i32 = -4;

/// The number as text: at most 15 significant digits, no trailing zeros, an
/// exponent from 1E+15 and below 0.0001. Negative zero is `0`.
pub(super) fn to_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    if number == 0.0 {
        return "0".to_owned();
    }
    // `d.dddde±x`, correctly rounded to the digits that are kept.
    let scientific = format!("{:.14e}", number.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_end_matches('0');
    let sign = if number < 0.0 { "-" } else { "" };
    if (FIXED_EXPONENT_MIN..SIGNIFICANT_DIGITS).contains(&exponent) {
        format!("{sign}{}", fixed(digits, exponent))
    } else {
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        let exponent_sign = if exponent < 0 { '-' } else { '+' };
        format!("{sign}{first}{point}{rest}E{exponent_sign}{:02}", exponent.abs())
    }
}

/// `digits`, the first of which stands for 10^`exponent`, without an exponent.
fn fixed(digits: &str, exponent: i32) -> String {
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    if exponent < 0 {
        return format!("0.{}{digits}", zeros(-exponent - 1));
    }
    let whole = usize::try_from(exponent).unwrap_or(0) + 1;
    if digits.len() <= whole {
        return format!("{digits}{}", "0".repeat(whole - digits.len()));
    }
    let (whole, fraction) = digits.split_at(whole);
    format!("{whole}.{fraction}")
}

/// The number that a text stands for, as JavaScript's `Number` reads it: space
/// around it is ignored, empty is 0, `0x` and `0o` (without a sign) are understood,
/// anything else is NaN.
pub(super) fn from_text(text: &str) -> f64 {
    let text = text.trim();
    match text {
        "" => return 0.0,
        "Infinity" | "+Infinity" => return f64::INFINITY,
        "-Infinity" => return f64::NEG_INFINITY,
        _ => (),
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    if is_decimal(text) { text.parse().unwrap_or(f64::NAN) } else { f64::NAN }
}

fn radix(digits: &str, radix: u32) -> f64 {
    if digits.is_empty() {
        return f64::NAN;
    }
    digits
        .chars()
        .try_fold(0.0, |number, c| Some(number * f64::from(radix) + f64::from(c.to_digit(radix)?)))
        .unwrap_or(f64::NAN)
}

/// `[+-] digits [. digits] [e [+-] digits]`, digits on at least one side of the point.
/// Rust's own parser also takes `inf` and `nan`.
fn is_decimal(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa_good =
        all_digits(whole) && all_digits(fraction) && whole.len() + fraction.len() > 0;
    let exponent_good = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && all_digits(digits)
    });
    mantissa_good && exponent_good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_as_the_runner_prints_them() {
        let table: &[(f64, &str)] = &[
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (100.0, "100"),
            (123_456.789, "123456.789"),
            (0.845_512_408_225_57, "0.84551240822557"),
            (0.1 + 0.2, "0.3"),
            (0.0001, "0.0001"),
            (0.00012, "0.00012"),
            (0.00001, "1E-05"),
            (-0.000_012_5, "-1.25E-05"),
            (123_456_789_012_345.0, "123456789012345"),
            (1e14, "100000000000000"),
            (1e15, "1E+15"),
            (999_999_999_999_999.9, "1E+15"),
            (1_234_567_890_123_456_789.0, "1.23456789012346E+18"),
            (1e100, "1E+100"),
            (5e-324, "4.94065645841247E-324"),
            (f64::MAX, "1.79769313486232E+308"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (number, text) in table {
            assert_eq!(to_text(*number), *text, "{number:e}");
        }
    }

    #[test]
    fn texts_read_as_javascript_reads_them() {
        let table: &[(&str, f64)] = &[
            ("", 0.0),
            ("  ", 0.0),
            (" 12 ", 12.0),
            ("+1.5", 1.5),
            (".5", 0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
            ("-1.25E-2", -0.0125),
            ("0xff", 255.0),
            ("0xFFFFFFFFFF", 1_099_511_627_775.0),
            ("0o17", 15.0),
            ("1e999", f64::INFINITY),
            ("Infinity", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
        ];
        for (text, number) in table {
            assert_eq!(from_text(text), *number, "{text:?}");
        }
        for text in ["abc", ".", "e5", "1e", "1 2", "0x", "0xg", "-0x1", "0o8", "inf", "nan", "1_0"]
        {
            assert!(from_text(text).is_nan(), "{text:?} is no number");
        }
    }
}
