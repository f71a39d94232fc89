//! Values: versioned records, and a few plain types.
//!
//! A record is one version byte and then `MessagePack` with named fields, so that a field can be added with
//! `#[serde(default)]` without a migration. Decoding answers with an error, whatever the bytes are.

use bytes::Bytes;
use engine::id::{Position, ShortEventId, ShortRoomId, TimelineIndex};
use serde::{Serialize, de::DeserializeOwned};

/// A stored value could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The value is empty or has the wrong length.
    #[error("value has {0} bytes, which is not what its type needs")]
    Length(usize),
    /// The record has a version this build does not know.
    #[error("record has version {found}, this build reads version {expected}")]
    Version {
        /// Version byte in the store.
        found: u8,
        /// [`Record::VERSION`] of the type.
        expected: u8,
    },
    /// The record's body does not fit its type.
    #[error("record does not decode")]
    Body(#[from] rmp_serde::decode::Error),
    /// Text that is not UTF-8 or not an identifier of its kind.
    #[error("value is not a valid {0}")]
    Invalid(&'static str),
}

/// A value could not be written, because its `Serialize` refused.
#[derive(Debug, thiserror::Error)]
#[error("record does not encode")]
pub struct EncodeError(#[from] rmp_serde::encode::Error);

/// A type stored as a table's value.
pub trait Value: Sized {
    /// The bytes to store.
    fn encode(&self) -> Result<Bytes, EncodeError>;

    /// Reads stored bytes.
    fn decode(bytes: Bytes) -> Result<Self, DecodeError>;
}

/// A structured value: `impl Record for Membership { const VERSION: u8 = 1; }` makes it a [`Value`].
pub trait Record: Serialize + DeserializeOwned {
    /// Goes up with every change that older builds cannot read, together with the schema version.
    const VERSION: u8;
}

impl<R: Record> Value for R {
    fn encode(&self) -> Result<Bytes, EncodeError> {
        let mut out = vec![R::VERSION];
        rmp_serde::encode::write_named(&mut out, self)?;
        Ok(out.into())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let (version, mut body) = bytes.split_first().ok_or(DecodeError::Length(0))?;
        if *version != R::VERSION {
            return Err(DecodeError::Version { found: *version, expected: R::VERSION });
        }
        let record = rmp_serde::from_read(&mut body)?;
        if body.is_empty() { Ok(record) } else { Err(DecodeError::Length(bytes.len())) }
    }
}

impl Value for Bytes {
    fn encode(&self) -> Result<Bytes, EncodeError> {
        Ok(self.clone())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(bytes)
    }
}

impl Value for () {
    fn encode(&self) -> Result<Bytes, EncodeError> {
        Ok(Bytes::new())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.is_empty() { Ok(()) } else { Err(DecodeError::Length(bytes.len())) }
    }
}

impl Value for String {
    fn encode(&self) -> Result<Bytes, EncodeError> {
        Ok(Bytes::copy_from_slice(self.as_bytes()))
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        String::from_utf8(bytes.into()).map_err(|_| DecodeError::Invalid("text"))
    }
}

impl Value for u64 {
    fn encode(&self) -> Result<Bytes, EncodeError> {
        Ok(Bytes::copy_from_slice(&self.to_be_bytes()))
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let array = bytes.as_ref().try_into().map_err(|_| DecodeError::Length(bytes.len()))?;
        Ok(u64::from_be_bytes(array))
    }
}

impl Value for i64 {
    fn encode(&self) -> Result<Bytes, EncodeError> {
        self.cast_unsigned().encode()
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        <u64 as Value>::decode(bytes).map(u64::cast_signed)
    }
}

/// Newtypes around numbers: as the number.
macro_rules! newtype_values {
    ($($type:ident($inner:ty)),+) => {$(
        impl Value for $type {
            fn encode(&self) -> Result<Bytes, EncodeError> {
                Value::encode(&self.0)
            }

            fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
                <$inner as Value>::decode(bytes).map(Self)
            }
        }
    )+};
}
newtype_values!(Position(u64), ShortRoomId(u64), ShortEventId(u64), TimelineIndex(i64));

/// Matrix identifiers: their text.
macro_rules! identifier_values {
    ($($owned:ident),+ $(,)?) => {$(
        impl Value for ruma::$owned {
            fn encode(&self) -> Result<Bytes, EncodeError> {
                Ok(Bytes::copy_from_slice(self.as_str().as_bytes()))
            }

            fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
                let text = <String as Value>::decode(bytes)?;
                Self::try_from(text).map_err(|_| DecodeError::Invalid(stringify!($owned)))
            }
        }
    )+};
}
identifier_values! {
    OwnedDeviceId, OwnedEventId, OwnedMxcUri, OwnedRoomAliasId, OwnedRoomId, OwnedServerName, OwnedUserId,
}

#[cfg(test)]
mod tests;
