//! Order-preserving key encodings: byte order is logical order, and a prefix of a tuple is a range of bytes.
//!
//! Every component delimits itself, so components are simply written one after the other:
//!
//! - unsigned numbers: big-endian, fixed width; signed ones too, with the sign bit flipped;
//! - text: its bytes with `00` written as `00 FF`, then `00 00`;
//! - byte arrays: as they are; hashed identifiers: the hash; options: one byte (0 none, 1 some), then the value;
//! - tuples: their components.

use std::{marker::PhantomData, ops::Bound};

use bytes::Bytes;
use engine::id::{Position, ShortEventId, ShortRoomId, TimelineIndex};

mod hashed;

pub use hashed::EventIdHash;

/// A key could not be read back; the row was not written by this table's schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key ends inside a component.
    #[error("key is too short")]
    TooShort,
    /// The key goes on after its last component.
    #[error("key has {0} bytes too many")]
    TooLong(usize),
    /// Text that is not UTF-8, a wrong escape, or an identifier that does not parse.
    #[error("key holds an invalid {0}")]
    Invalid(&'static str),
}

/// A type stored in keys: what a table names as its key, or one component of it.
pub trait Key: AsKey<Self> + Sized {
    /// Reads one component off the front of `input`.
    fn decode(input: &mut &[u8]) -> Result<Self, KeyError>;
}

/// Whatever writes the same bytes as the key type `K`: `K` itself, or a borrowed form such as `&UserId`.
pub trait AsKey<K: ?Sized> {
    /// Appends the encoded key to `out`.
    fn encode(&self, out: &mut Vec<u8>);
}

/// The leading components of a tuple key `K`.
pub trait KeyPrefix<K> {
    /// Appends the encoded components to `out`.
    fn encode_prefix(&self, out: &mut Vec<u8>);
}

/// The bytes of a whole key.
pub fn encode<K, Q: AsKey<K> + ?Sized>(key: &Q) -> Bytes {
    let mut out = Vec::with_capacity(32);
    key.encode(&mut out);
    out.into()
}

/// Reads a whole key; bytes left over are an error.
pub fn decode<K: Key>(mut input: &[u8]) -> Result<K, KeyError> {
    let key = K::decode(&mut input)?;
    if input.is_empty() { Ok(key) } else { Err(KeyError::TooLong(input.len())) }
}

/// A range of a table's keys.
///
/// Pages follow each other with [`KeyRange::after`] (ascending) and [`KeyRange::before`] (descending) the last key seen.
#[derive(Debug)]
pub struct KeyRange<K> {
    pub(crate) lower: Bound<Bytes>,
    pub(crate) upper: Bound<Bytes>,
    key: PhantomData<fn() -> K>,
}

impl<K> Clone for KeyRange<K> {
    fn clone(&self) -> Self {
        Self { lower: self.lower.clone(), upper: self.upper.clone(), key: PhantomData }
    }
}

impl<K> KeyRange<K> {
    /// Every key of the table.
    pub fn all() -> Self {
        Self { lower: Bound::Unbounded, upper: Bound::Unbounded, key: PhantomData }
    }

    /// Every key that begins with these components, as in `KeyRange::prefix(&(room,))`.
    pub fn prefix<P: KeyPrefix<K> + ?Sized>(prefix: &P) -> Self {
        let mut lower = Vec::with_capacity(32);
        prefix.encode_prefix(&mut lower);
        let upper = successor(&lower).map_or(Bound::Unbounded, |end| Bound::Excluded(end.into()));
        Self { lower: Bound::Included(lower.into()), upper, key: PhantomData }
    }

    /// Only keys from `key` on.
    #[must_use]
    pub fn from<Q: AsKey<K> + ?Sized>(mut self, key: &Q) -> Self {
        self.raise(Bound::Included(encode(key)));
        self
    }

    /// Only keys above `key`.
    #[must_use]
    pub fn after<Q: AsKey<K> + ?Sized>(mut self, key: &Q) -> Self {
        self.raise(Bound::Excluded(encode(key)));
        self
    }

    /// Only keys up to and with `key`.
    #[must_use]
    pub fn up_to<Q: AsKey<K> + ?Sized>(mut self, key: &Q) -> Self {
        self.reduce(Bound::Included(encode(key)));
        self
    }

    /// Only keys below `key`.
    #[must_use]
    pub fn before<Q: AsKey<K> + ?Sized>(mut self, key: &Q) -> Self {
        self.reduce(Bound::Excluded(encode(key)));
        self
    }

    fn raise(&mut self, bound: Bound<Bytes>) {
        if lower_rank(&bound) > lower_rank(&self.lower) {
            self.lower = bound;
        }
    }

    fn reduce(&mut self, bound: Bound<Bytes>) {
        let tighter = match (upper_rank(&bound), upper_rank(&self.upper)) {
            (Some(new), Some(old)) => new < old,
            (new, old) => new.is_some() && old.is_none(),
        };
        if tighter {
            self.upper = bound;
        }
    }
}

/// Sorts lower bounds: none first, and "above k" after "from k".
fn lower_rank(bound: &Bound<Bytes>) -> Option<(&Bytes, bool)> {
    match bound {
        Bound::Included(key) => Some((key, false)),
        Bound::Excluded(key) => Some((key, true)),
        Bound::Unbounded => None,
    }
}

/// Sorts upper bounds: "below k" before "up to k"; none is the widest.
fn upper_rank(bound: &Bound<Bytes>) -> Option<(&Bytes, bool)> {
    match bound {
        Bound::Included(key) => Some((key, true)),
        Bound::Excluded(key) => Some((key, false)),
        Bound::Unbounded => None,
    }
}

/// The smallest bytes above everything that begins with `prefix`; none if nothing is above.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8], KeyError> {
    let (head, rest) = input.split_at_checked(count).ok_or(KeyError::TooShort)?;
    *input = rest;
    Ok(head)
}

fn take_array<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], KeyError> {
    take(input, N)?.try_into().map_err(|_| KeyError::TooShort)
}

impl<K: ?Sized, Q: AsKey<K> + ?Sized> AsKey<K> for &Q {
    fn encode(&self, out: &mut Vec<u8>) {
        (**self).encode(out);
    }
}

/// Unsigned numbers: big-endian.
macro_rules! unsigned_keys {
    ($($type:ty),+) => {$(
        impl AsKey<$type> for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
        }
        impl Key for $type {
            fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
                Ok(Self::from_be_bytes(take_array(input)?))
            }
        }
    )+};
}
unsigned_keys!(u8, u16, u32, u64);

impl AsKey<i64> for i64 {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.cast_unsigned() ^ SIGN_BIT).encode(out);
    }
}

impl Key for i64 {
    fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
        Ok((u64::decode(input)? ^ SIGN_BIT).cast_signed())
    }
}

/// Flipped in signed numbers so that negative ones sort first.
const SIGN_BIT: u64 = 1 << 63;

/// Newtypes around numbers: as the number.
macro_rules! newtype_keys {
    ($($type:ident($inner:ty)),+) => {$(
        impl AsKey<$type> for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }
        impl Key for $type {
            fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
                Ok(Self(<$inner>::decode(input)?))
            }
        }
    )+};
}
newtype_keys!(Position(u64), ShortRoomId(u64), ShortEventId(u64), TimelineIndex(i64));

impl<const N: usize> AsKey<[u8; N]> for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

impl<const N: usize> Key for [u8; N] {
    fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
        take_array(input)
    }
}

impl<K, Q: AsKey<K>> AsKey<Option<K>> for Option<Q> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(value) = self {
            value.encode(out);
        }
    }
}

impl<K: Key> Key for Option<K> {
    fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
        match u8::decode(input)? {
            0 => Ok(None),
            1 => K::decode(input).map(Some),
            _ => Err(KeyError::Invalid("option")),
        }
    }
}

/// Text: `00` becomes `00 FF`; `00 00`, which sorts below both, ends it.
fn encode_text(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        out.push(byte);
        if byte == 0 {
            out.push(u8::MAX);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

fn decode_text(input: &mut &[u8]) -> Result<String, KeyError> {
    let mut text = Vec::new();
    loop {
        let plain = input.iter().position(|byte| *byte == 0).ok_or(KeyError::TooShort)?;
        text.extend_from_slice(take(input, plain)?);
        match take_array(input)? {
            [_, 0] => return String::from_utf8(text).map_err(|_| KeyError::Invalid("text")),
            [_, u8::MAX] => text.push(0),
            _ => return Err(KeyError::Invalid("escape")),
        }
    }
}

impl AsKey<String> for String {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_text(self, out);
    }
}

impl AsKey<String> for str {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_text(self, out);
    }
}

impl Key for String {
    fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
        decode_text(input)
    }
}

/// Matrix identifiers: as text; the borrowed form writes the same key.
macro_rules! identifier_keys {
    ($($owned:ident / $borrowed:ident),+ $(,)?) => {$(
        impl AsKey<ruma::$owned> for ruma::$owned {
            fn encode(&self, out: &mut Vec<u8>) {
                encode_text(self.as_str(), out);
            }
        }
        impl AsKey<ruma::$owned> for ruma::$borrowed {
            fn encode(&self, out: &mut Vec<u8>) {
                encode_text(self.as_str(), out);
            }
        }
        impl Key for ruma::$owned {
            fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
                Self::try_from(decode_text(input)?).map_err(|_| KeyError::Invalid(stringify!($borrowed)))
            }
        }
    )+};
}
identifier_keys! {
    OwnedDeviceId / DeviceId,
    OwnedEventId / EventId,
    OwnedMxcUri / MxcUri,
    OwnedRoomAliasId / RoomAliasId,
    OwnedRoomId / RoomId,
    OwnedServerName / ServerName,
    OwnedTransactionId / TransactionId,
    OwnedUserId / UserId,
}

/// The key of a table with one row.
impl AsKey<()> for () {
    fn encode(&self, _: &mut Vec<u8>) {}
}

impl Key for () {
    fn decode(_: &mut &[u8]) -> Result<Self, KeyError> {
        Ok(())
    }
}

/// Tuples and their prefixes.
macro_rules! tuple_keys {
    ($($key:ident $like:ident $field:tt),+) => {
        impl<$($key, $like: AsKey<$key>),+> AsKey<($($key,)+)> for ($($like,)+) {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$field.encode(out);)+
            }
        }
        impl<$($key: Key),+> Key for ($($key,)+) {
            fn decode(input: &mut &[u8]) -> Result<Self, KeyError> {
                Ok(($($key::decode(input)?,)+))
            }
        }
    };
}
tuple_keys!(A P 0, B Q 1);
tuple_keys!(A P 0, B Q 1, C R 2);
tuple_keys!(A P 0, B Q 1, C R 2, D S 3);

macro_rules! tuple_prefixes {
    (($($rest:ident),+) $($key:ident $like:ident $field:tt),+) => {
        impl<$($key, $like: AsKey<$key>,)+ $($rest),+> KeyPrefix<($($key,)+ $($rest,)+)> for ($($like,)+) {
            fn encode_prefix(&self, out: &mut Vec<u8>) {
                $(self.$field.encode(out);)+
            }
        }
    };
}
tuple_prefixes!((B) A P 0);
tuple_prefixes!((B, C) A P 0);
tuple_prefixes!((C) A P 0, B Q 1);
tuple_prefixes!((B, C, D) A P 0);
tuple_prefixes!((C, D) A P 0, B Q 1);
tuple_prefixes!((D) A P 0, B Q 1, C R 2);

#[cfg(test)]
mod tests;
