//! Canonical JSON of what need not be an event: the bodies of requests, as servers sign them.
//!
//! Canonical JSON has no number but integers of 53 bits, and events of most room versions with others are refused. The
//! body of a request may hold some all the same, in a to-device message or in an event that is to be refused alone;
//! servers sign it as if they were allowed, as they are written.
//!
//! Spec: appendices, "Canonical JSON" and "Signing JSON".

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;
use serde_json::value::RawValue;

/// Arrays and objects within each other, at most: more than what clients may send (100) has within a transaction, and no
/// danger to the stack.
const DEPTH_MAX: usize = 200;

/// Bytes are no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not JSON, or more than {DEPTH_MAX} arrays and objects within each other")]
pub struct NoJson;

/// JSON that is written in its canonical form, but for its numbers, which stay as they are.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Json<'a> {
    /// An object, its keys in order; the last of equal ones counts.
    Object(BTreeMap<Cow<'a, str>, Json<'a>>),
    /// An array.
    Array(Vec<Json<'a>>),
    /// A string.
    Text(Cow<'a, str>),
    /// A number, `true`, `false` or `null`.
    Word(&'a RawValue),
}

impl<'a> Json<'a> {
    /// Parses JSON.
    pub fn parse(json: &'a [u8]) -> Result<Self, NoJson> {
        let mut rest = Rest(std::str::from_utf8(json).map_err(|_| NoJson)?);
        let value = rest.value(DEPTH_MAX).ok_or(NoJson)?;
        rest.skip_space();
        if rest.0.is_empty() { Ok(value) } else { Err(NoJson) }
    }
}

/// What is still to be parsed.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    /// The value that comes next, with at most `depth` arrays and objects within each other; none if it is no JSON.
    fn value(&mut self, depth: usize) -> Option<Json<'a>> {
        if self.passes('{') {
            self.object(depth.checked_sub(1)?)
        } else if self.passes('[') {
            self.array(depth.checked_sub(1)?)
        } else if self.passes('"') {
            self.text().map(Json::Text)
        } else {
            self.word().map(Json::Word)
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json<'a>> {
        let mut members = BTreeMap::new();
        let mut is_over = self.passes('}');
        while !is_over {
            let key = self.passes('"').then(|| self.text()).flatten()?;
            let value = self.passes(':').then(|| self.value(depth)).flatten()?;
            members.insert(key, value);
            is_over = self.passes('}');
            if !is_over && !self.passes(',') {
                return None;
            }
        }
        Some(Json::Object(members))
    }

    fn array(&mut self, depth: usize) -> Option<Json<'a>> {
        let mut values = Vec::new();
        let mut is_over = self.passes(']');
        while !is_over {
            values.push(self.value(depth)?);
            is_over = self.passes(']');
            if !is_over && !self.passes(',') {
                return None;
            }
        }
        Some(Json::Array(values))
    }

    /// The string of which the opening quotation mark has been passed.
    fn text(&mut self) -> Option<Cow<'a, str>> {
        let (mut bytes, mut is_plain) = (self.0.bytes().enumerate(), true);
        let end = loop {
            match bytes.next()? {
                (end, b'"') => break end,
                (_, 0..0x20) => return None,
                (_, b'\\') => {
                    is_plain = false;
                    bytes.next()?;
                }
                _ => {}
            }
        };
        let (text, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix('"')?;
        if is_plain {
            return Some(Cow::Borrowed(text));
        }
        serde_json::from_str(&format!("\"{text}\"")).ok().map(Cow::Owned)
    }

    fn word(&mut self) -> Option<&'a RawValue> {
        let end = self.0.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        serde_json::from_str(word).ok()
    }

    /// Whether a character comes next, which then has been passed.
    fn passes(&mut self, character: char) -> bool {
        self.skip_space();
        let rest = self.0.strip_prefix(character);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn skip_space(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t', '\n', '\r']);
    }
}

#[cfg(test)]
mod tests {
    use ruma::CanonicalJsonValue;

    use super::*;

    fn canonical(json: &str) -> Result<String, NoJson> {
        Json::parse(json.as_bytes()).map(|json| serde_json::to_string(&json).unwrap())
    }

    #[test]
    fn numbers_stay_as_they_are_written() {
        let numbers = r#"{"b":[1.5,1.0,-0,1e10,1E400,9007199254740992,99999999999999999999999],"a":-1}"#;
        let (b, a) = (&numbers[1..numbers.len() - 8], r#""a":-1"#);
        assert_eq!(canonical(numbers), Ok(format!("{{{a},{b}}}")));
    }

    /// Whatever is canonical JSON has the form that events have.
    #[test]
    fn without_such_numbers_it_is_canonical_json() {
        for json in [
            "{ }",
            " [ ] ",
            "\t{\r\n\"b\" : [ true , false , null ] , \"a\" : { \"c\" : -12 } }",
            r#"{"b":1,"a":2,"b":3,"":{"x":1,"\u0078":2}}"#,
            r#"{"\uff5e":1,"\ud83d\ude00":2,"a":3,"A":4,"本":5,"日":6,"aa":7}"#,
            r#""\u0008\u0009\u000a\u000c\u000d\u0022\u005c\/\u007f\u2028\u0000\u001F\ud83d\ude00 é""#,
            r#"["a\"b","\\",["[","}"],"a,b:c"]"#,
            "0",
        ] {
            let strict: CanonicalJsonValue = serde_json::from_str(json).unwrap();
            assert_eq!(canonical(json), Ok(strict.to_string()), "{json}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[1",
            "{\"a\":1,}",
            "{\"a\",1}",
            "{\"a\"}",
            "{1:2}",
            "{,}",
            "[1,]",
            "[,1]",
            "[1 2]",
            "01",
            "+1",
            ".5",
            "1.",
            "-",
            "NaN",
            "nul",
            "'a'",
            "{a:1}",
            "{\"a\":1} x",
            "{\"a\":1}}",
            "\"a",
            "\"\\",
            "\"\u{1}\"",
            "\"\\x41\"",
            "\"\\é\"",
            "\"\\ud83d\"",
            "// x\n1",
        ] {
            assert_eq!(canonical(text), Err(NoJson), "{text}");
        }
        assert!(Json::parse(b"\"\xff\"").is_err());
    }

    #[test]
    fn depth_is_limited() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(canonical(&nested(DEPTH_MAX)), Ok(nested(DEPTH_MAX)));
        assert_eq!(canonical(&nested(DEPTH_MAX + 1)), Err(NoJson));
        assert_eq!(canonical(&"{\"a\":".repeat(1_000_000)), Err(NoJson));
    }
}
