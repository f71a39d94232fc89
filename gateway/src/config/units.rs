//! Values with units.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error};

/// A number of bytes, written as in `512 MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A length of time, written as in `30s` or `15 min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// A span of seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// A span of milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// What text like `30s` or `15 min` stands for.
    pub fn parse(text: &str) -> Option<Self> {
        parse(text, &SPANS).map(|ms| Self(Duration::from_millis(ms)))
    }
}

const SIZES: [(&str, u64); 7] = [
    ("B", 1),
    ("kB", 1000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

const SPANS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1000), ("min", 60_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// The number that text like `5 min` stands for, in the smallest unit.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom(format!("{text:?} is not a size like \"512 MiB\""));
        parse(&text, &SIZES).map(Self).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom(format!("{text:?} is not a time like \"30s\" or \"15 min\""));
        Self::parse(&text).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_multiply() {
        for (text, expected) in [
            ("512 MiB", Some(512 << 20)),
            ("1GB", Some(1_000_000_000)),
            ("5", None),
            ("MiB", None),
            ("5 XB", None),
            ("99999999999999999999 B", None),
        ] {
            assert_eq!(parse(text, &SIZES), expected, "{text}");
        }
        for (text, expected) in [("30s", Some(30_000)), ("5 min", Some(300_000)), ("2 weeks", None)] {
            assert_eq!(parse(text, &SPANS), expected, "{text}");
        }
    }
}
