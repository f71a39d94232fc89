//! From bytes to text, whatever the page's encoding is.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

/// How far a page is searched for its own word on its encoding, in bytes.
///
/// Spec: HTML, "Determining the character encoding".
const SEARCHED: usize = 1024;

/// The text of a page.
///
/// A byte order mark decides, then the header, then what the page says; then it is UTF-8, or what browsers guess.
pub(super) fn decode(bytes: &[u8], content_type: &str) -> String {
    if let Some((encoding, _)) = Encoding::for_bom(bytes) {
        return encoding.decode(bytes).0.into_owned();
    }
    let encoding = label(content_type.as_bytes()).or_else(|| {
        let said = label(&bytes[..bytes.len().min(SEARCHED)])?;
        // Whoever could read it so far did not read UTF-16.
        Some(if [UTF_16BE, UTF_16LE].contains(&said) { UTF_8 } else { said })
    });
    let encoding = encoding.unwrap_or_else(|| match std::str::from_utf8(bytes) {
        // Cut off in the middle of a character.
        Err(error) if error.error_len().is_some() => WINDOWS_1252,
        _ => UTF_8,
    });
    encoding.decode_without_bom_handling(bytes).0.into_owned()
}

/// The encoding that is named by `charset=`, or by `encoding=` as XML has it.
fn label(bytes: &[u8]) -> Option<&'static Encoding> {
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    ["charset=", "encoding="].iter().find_map(|name| {
        let (_, value) = text.split_once(name)?;
        let value = value.trim_start_matches(['"', '\'', ' ']);
        let end = value.find(|letter: char| !letter.is_ascii_alphanumeric() && !"-_:.+".contains(letter));
        Encoding::for_label(&value.as_bytes()[..end.unwrap_or(value.len())])
    })
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn the_encoding_is_found_where_it_may_be_said() {
        for (bytes, content_type, expected) in [
            ("Straße".as_bytes(), "text/html", "Straße"),
            (b"Stra\xdfe", "text/html", "Straße"),
            (b"Stra\xdfe", "text/html; charset=ISO-8859-1", "Straße"),
            (b"<meta charset='windows-1251'>\xcf", "text/html", "<meta charset='windows-1251'>П"),
            (
                b"<meta http-equiv=content-type content=\"text/html; charset=shift_jis\">\x82\xa0",
                "text/html",
                "<meta http-equiv=content-type content=\"text/html; charset=shift_jis\">あ",
            ),
            (
                b"<?xml version='1.0' encoding='koi8-r'?>\xf0",
                "application/xhtml+xml",
                "<?xml version='1.0' encoding='koi8-r'?>П",
            ),
            (b"\xef\xbb\xbftea", "text/html; charset=latin1", "tea"),
            (b"\xff\xfet\0e\0a\0", "text/html", "tea"),
            (b"<meta charset=utf-16>t\xc3\xa9", "text/html", "<meta charset=utf-16>té"),
            (b"t\xc3\xa9a\xe2\x98", "text/html", "téa\u{fffd}"),
            (b"", "text/html; charset=nonsense", ""),
        ] {
            assert_eq!(decode(bytes, content_type), expected, "{content_type}");
        }
    }
}
