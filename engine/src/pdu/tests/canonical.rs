//! The specification's examples of canonical JSON, and what is refused.
//!
//! Spec: appendices, "Canonical JSON".

use ruma::CanonicalJsonValue;

fn canonical(json: &str) -> Result<String, serde_json::Error> {
    let value: CanonicalJsonValue = serde_json::from_str(json)?;
    serde_json::to_string(&value)
}

#[test]
fn the_examples_of_the_specification() {
    let long = r#"{ "auth": { "success": true, "mxid": "@john.doe:example.com", "profile": {
        "display_name": "John Doe", "three_pids": [
            { "medium": "email", "address": "john.doe@example.org" },
            { "medium": "msisdn", "address": "123456789" } ] } } }"#;
    let long_canonical = concat!(
        r#"{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":["#,
        r#"{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"#,
        r#""success":true}}"#
    );
    for (given, expected) in [
        ("{ }", "{}"),
        (r#"{ "one": 1, "two": "Two" }"#, r#"{"one":1,"two":"Two"}"#),
        (r#"{ "b": "2", "a": "1" }"#, r#"{"a":"1","b":"2"}"#),
        (r#"{"b":"2","a":"1"}"#, r#"{"a":"1","b":"2"}"#),
        (long, long_canonical),
        (r#"{ "a": "日本語" }"#, r#"{"a":"日本語"}"#),
        (r#"{ "本": 2, "日": 1 }"#, r#"{"日":1,"本":2}"#),
        (r#"{ "a": "\u65E5" }"#, r#"{"a":"日"}"#),
        (r#"{ "a": null }"#, r#"{"a":null}"#),
    ] {
        assert_eq!(canonical(given).unwrap(), expected);
    }
}

#[test]
fn strings_are_escaped_only_where_the_grammar_says_so() {
    for (given, expected) in [
        (r#""\u0008\u0009\u000a\u000c\u000d\u0022\u005c""#, r#""\b\t\n\f\r\"\\""#),
        (r#""\u0000\u0001\u000B\u001F""#, "\"\\u0000\\u0001\\u000b\\u001f\""),
        (r#""\/\u007f\u2028""#, "\"/\u{7f}\u{2028}\""),
        (r#""\ud83d\ude00""#, "\"\u{1F600}\""),
    ] {
        assert_eq!(canonical(given).unwrap(), expected, "{given}");
    }
}

#[test]
fn keys_are_in_the_order_of_their_code_points() {
    // In UTF-16, the surrogates of U+1F600 would come before U+FF5E.
    let given = r#"{"\uff5e":1,"\ud83d\ude00":2,"a":3,"A":4,"":5,"aa":6}"#;
    assert_eq!(canonical(given).unwrap(), "{\"\":5,\"A\":4,\"a\":3,\"aa\":6,\"\u{ff5e}\":1,\"\u{1F600}\":2}");
}

#[test]
fn only_integers_that_doubles_hold_exactly_are_numbers() {
    for number in ["0", "-1", "9007199254740991", "-9007199254740991"] {
        assert_eq!(canonical(number).unwrap(), number);
    }
    // The specification normalises -0 and 1e10 where JSON is not enforced; as events they are refused.
    for number in [
        "9007199254740992",
        "-9007199254740992",
        "18446744073709551615",
        "99999999999999999999999",
        "1.0",
        "1.5",
        "-0",
        "-0.0",
        "1e10",
        "1E400",
    ] {
        assert!(canonical(&format!("{{\"a\":[{number}]}}")).is_err(), "{number}");
    }
}

#[test]
fn the_last_of_duplicate_keys_counts() {
    assert_eq!(canonical(r#"{"a":1,"b":2,"a":3}"#).unwrap(), r#"{"a":3,"b":2}"#);
    assert_eq!(canonical(r#"{"a":{"x":1,"\u0078":2}}"#).unwrap(), r#"{"a":{"x":2}}"#);
}

#[test]
fn what_is_no_json_is_refused() {
    for text in [
        "",
        "{",
        "{\"a\":1,}",
        "[1,]",
        "01",
        "+1",
        ".5",
        "1.",
        "NaN",
        "Infinity",
        "'a'",
        "{a:1}",
        "{\"a\":1} x",
        "\"\u{1}\"",
        "\"\\x41\"",
        "\"\\ud83d\"",
        "// x\n1",
    ] {
        assert!(canonical(text).is_err(), "{text}");
    }
    assert!(serde_json::from_slice::<CanonicalJsonValue>(b"\"\xff\"").is_err());
    let deep = "[".repeat(5000) + &"]".repeat(5000);
    assert!(canonical(&deep).is_err());
}
