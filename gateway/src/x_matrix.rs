//! X-Matrix: what of a request between servers is signed, and the header that says by whom.
//!
//! Spec: server-server API, "Request Authentication".

use engine::{canonical::Json, pdu::SigningKey};
use http::{HeaderMap, header};
use ruma::{
    OwnedServerName, OwnedServerSigningKeyId, ServerName,
    serde::{Base64, base64::Standard},
    signatures::{KeyPair, verify_canonical_json_bytes},
};
use serde::Serialize;

/// The name of the scheme.
const SCHEME: &str = "X-Matrix";

/// What of a request is signed; its fields are in the order of canonical JSON.
#[derive(Serialize)]
pub(crate) struct SignedRequest<'a> {
    /// The body, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<&'a Json<'a>>,
    /// The server that it goes to.
    pub(crate) destination: &'a ServerName,
    /// The method.
    pub(crate) method: &'a str,
    /// The server that it comes from.
    pub(crate) origin: &'a ServerName,
    /// Path and query.
    pub(crate) uri: &'a str,
}

impl SignedRequest<'_> {
    /// The `Authorization` header with a server's signature.
    pub(crate) fn authorization(&self, key: &SigningKey) -> Result<String, serde_json::Error> {
        let signature = key.sign(&serde_json::to_vec(self)?);
        let signature = Base64::<Standard, _>::new(signature.as_bytes()).encode();
        let (origin, destination, key) = (self.origin, self.destination, key.id());
        Ok(format!(
            "{SCHEME} origin=\"{origin}\",destination=\"{destination}\",key=\"{key}\",sig=\"{signature}\""
        ))
    }
}

/// The `Authorization` header of a request.
#[derive(Debug)]
pub(crate) struct XMatrix {
    /// The server that sent it.
    pub(crate) origin: OwnedServerName,
    /// The server that it is for, if it says so: older servers do not.
    pub(crate) destination: Option<OwnedServerName>,
    /// The ID of the key that signed it.
    pub(crate) key: OwnedServerSigningKeyId,
    signature: Base64,
}

/// Why there is no usable header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum XMatrixError {
    /// There is none, or one of another scheme.
    #[error("the Authorization header is missing, or not of this scheme")]
    Missing,
    /// It is not a list of parameters.
    #[error("the header is not a list of parameters")]
    Malformed,
    /// A parameter is there twice.
    #[error("a parameter is there twice")]
    Repeated,
    /// A parameter that must be there is not, or has another form than it may.
    #[error("{0} is missing or malformed")]
    Parameter(&'static str),
}

impl XMatrix {
    /// The header among those of a request.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, XMatrixError> {
        let header = headers.get(header::AUTHORIZATION).and_then(|header| header.to_str().ok());
        Self::parse(header.ok_or(XMatrixError::Missing)?)
    }

    fn parse(header: &str) -> Result<Self, XMatrixError> {
        let (scheme, parameters) = header.trim().split_once([' ', '\t']).ok_or(XMatrixError::Missing)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(XMatrixError::Missing);
        }
        let (mut origin, mut destination, mut key, mut signature) = (None, None, None, None);
        let mut rest = parameters;
        while let Some(parameter) = Parameter::first_of(rest)? {
            rest = parameter.rest;
            let place = match parameter.name.to_ascii_lowercase().as_str() {
                "origin" => &mut origin,
                "destination" => &mut destination,
                "key" => &mut key,
                "sig" => &mut signature,
                _ => continue,
            };
            if place.replace(parameter.value).is_some() {
                return Err(XMatrixError::Repeated);
            }
        }
        let malformed = XMatrixError::Parameter;
        Ok(Self {
            origin: read(origin, OwnedServerName::try_from).ok_or(malformed("origin"))?,
            destination: match destination {
                None => None,
                some => Some(read(some, OwnedServerName::try_from).ok_or(malformed("destination"))?),
            },
            key: read(key, OwnedServerSigningKeyId::try_from).ok_or(malformed("key"))?,
            signature: read(signature, Base64::parse).ok_or(malformed("sig"))?,
        })
    }

    /// Whether a key signed this.
    pub(crate) fn signs(&self, request: &SignedRequest<'_>, key: &Base64) -> bool {
        let Ok(signed) = serde_json::to_vec(request) else { return false };
        let (algorithm, signature) = (self.key.algorithm(), self.signature.as_bytes());
        verify_canonical_json_bytes(&algorithm, key.as_bytes(), signature, &signed).is_ok()
    }
}

/// A parameter as what it is.
fn read<T, E>(value: Option<String>, parse: impl FnOnce(String) -> Result<T, E>) -> Option<T> {
    parse(value?).ok()
}

/// A parameter of the header.
struct Parameter<'a> {
    name: &'a str,
    value: String,
    /// What comes after it.
    rest: &'a str,
}

impl<'a> Parameter<'a> {
    /// The first parameter of a list; none if the list is empty.
    fn first_of(list: &'a str) -> Result<Option<Self>, XMatrixError> {
        let list = list.trim_start_matches([' ', '\t', ',']);
        if list.is_empty() {
            return Ok(None);
        }
        let (name, rest) = list.split_once('=').ok_or(XMatrixError::Malformed)?;
        let (value, rest) = value(rest.trim_start()).ok_or(XMatrixError::Malformed)?;
        let rest = rest.trim_start();
        if rest.is_empty() || rest.starts_with(',') {
            Ok(Some(Self { name: name.trim_end(), value, rest }))
        } else {
            Err(XMatrixError::Malformed)
        }
    }
}

/// The value at the start of a text, and what comes after it.
///
/// Without quotation marks, it may have colons and whatever else older servers put there.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return Some((value.to_owned(), rest));
    };
    let (mut value, mut characters) = (String::new(), quoted.chars());
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(characters.next()?),
            character => value.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_in_all_its_forms() {
        for header in [
            r#"X-Matrix origin="one.org:8448",destination="two.org:443",key="ed25519:a_1",sig="QUJD""#,
            "X-Matrix origin=one.org:8448,destination=two.org:443,key=ed25519:a_1,sig=QUJD",
            r#"X-Matrix   origin=one.org:8448,destination="two.org:443",key="ed25519:a_1",sig="QUJD""#,
            "x-matrix\tSIG=QUJD , Key=\"ed25519:a_1\"\t,\tDestination=two.org:443 ,Origin=one.org:8448 ",
            r#"X-Matrix origin="one\.org\:8448",destination="two.org:443",key="ed25519:\a_1",sig="QUJD""#,
            r#"X-Matrix origin=one.org:8448,new="a, \"b\"=c",destination=two.org:443,x=,key=ed25519:a_1,sig=QUJD,"#,
        ] {
            let read = XMatrix::parse(header).unwrap_or_else(|error| panic!("{header}: {error}"));
            assert_eq!(
                (read.origin.as_str(), read.key.as_str()),
                ("one.org:8448", "ed25519:a_1"),
                "{header}"
            );
            assert_eq!(read.destination.unwrap().as_str(), "two.org:443", "{header}");
            assert_eq!(read.signature.as_bytes(), b"ABC", "{header}");
        }
        let old = XMatrix::parse("X-Matrix origin=one.org,key=ed25519:a,sig=a+/A").unwrap();
        assert_eq!((old.destination, old.signature.as_bytes().len()), (None, 3));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        use XMatrixError::{Malformed, Missing, Parameter, Repeated};
        for (header, expected) in [
            ("", Missing),
            ("X-Matrix", Missing),
            ("Bearer origin=one.org,key=ed25519:a,sig=QUJD", Missing),
            ("X-Matrix one.org", Malformed),
            ("X-Matrix origin=\"one.org,key=ed25519:a,sig=QUJD", Malformed),
            ("X-Matrix origin=one.org key=ed25519:a,sig=QUJD", Malformed),
            ("X-Matrix origin=\"one.org\"x,key=ed25519:a,sig=QUJD", Malformed),
            ("X-Matrix origin=one.org,Origin=two.org,key=ed25519:a,sig=QUJD", Repeated),
            ("X-Matrix key=ed25519:a,sig=QUJD", Parameter("origin")),
            ("X-Matrix origin=one.org,destination=,key=ed25519:a,sig=QUJD", Parameter("destination")),
            ("X-Matrix origin=one.org,key=a,sig=QUJD", Parameter("key")),
            ("X-Matrix origin=one.org,key=ed25519:a,sig=?", Parameter("sig")),
        ] {
            assert_eq!(XMatrix::parse(header).unwrap_err(), expected, "{header}");
        }
    }
}
