//! The rules of the room versions 1 to 12, in one table.
//!
//! Versions differ by fields of [`RoomVersion`], never by comparisons of version numbers.
//! Spec: "Room versions".

use std::ops::Deref;

use ruma::{RoomVersionId, room_version_rules::RoomVersionRules};

/// One room version and its rules.
#[derive(Debug)]
pub struct RoomVersion {
    /// The version's identifier.
    pub id: RoomVersionId,
    /// ruma's table of what differs between versions.
    pub rules: RoomVersionRules,
    /// Whether the `auth_events` and `prev_events` carry a hash beside each event ID.
    pub references_have_hashes: bool,
}

impl Deref for RoomVersion {
    type Target = RoomVersionRules;

    fn deref(&self) -> &RoomVersionRules {
        &self.rules
    }
}

/// The supported versions, oldest first.
pub const SUPPORTED: [RoomVersionId; 12] = [
    RoomVersionId::V1,
    RoomVersionId::V2,
    RoomVersionId::V3,
    RoomVersionId::V4,
    RoomVersionId::V5,
    RoomVersionId::V6,
    RoomVersionId::V7,
    RoomVersionId::V8,
    RoomVersionId::V9,
    RoomVersionId::V10,
    RoomVersionId::V11,
    RoomVersionId::V12,
];

/// The version of new rooms, as the specification recommends.
pub const DEFAULT: RoomVersionId = RoomVersionId::V12;

macro_rules! versions {
    ($($id:ident $references_have_hashes:literal),+ $(,)?) => {
        static VERSIONS: &[RoomVersion] = &[$(RoomVersion {
            id: RoomVersionId::$id,
            rules: RoomVersionRules::$id,
            references_have_hashes: $references_have_hashes,
        }),+];
    };
}
versions! {
    V1 true, V2 true, V3 false, V4 false, V5 false, V6 false,
    V7 false, V8 false, V9 false, V10 false, V11 false, V12 false,
}

/// The rules of a version; none if it is not supported.
pub fn rules(version: &RoomVersionId) -> Option<&'static RoomVersion> {
    VERSIONS.iter().find(|known| known.id == *version)
}

#[cfg(test)]
mod tests {
    use super::{SUPPORTED, rules};

    #[test]
    fn every_supported_version_has_rules() {
        for version in &SUPPORTED {
            assert_eq!(rules(version).map(|rules| &rules.id), Some(version));
        }
        assert!(rules(&"org.example.unknown".try_into().unwrap()).is_none());
    }
}
