//! How rows lie in a database, by its age.

use sled::{Batch, Db};

use super::keys::escape;
use crate::schema::TableId;

/// The mark of a database with escaped keys; in the table of the back ends' own rows.
pub(super) const ESCAPED: &[u8] = b"\0escaped";

/// Escapes the keys of a database that was written before they were, all at once.
pub(super) fn escape_all(db: &Db) -> sled::Result<()> {
    if db.contains_key(ESCAPED)? {
        return Ok(());
    }
    let mut batch = Batch::default();
    let mut rows = Vec::new();
    for row in db.iter() {
        let (key, value) = row?;
        if key.contains(&0xFF) {
            batch.remove(key.clone());
            rows.push((key, value));
        }
    }
    for (key, value) in rows {
        batch.insert(escape(&key), value);
    }
    batch.insert(ESCAPED, &[]);
    db.apply_batch(batch)?;
    db.flush()?;
    Ok(())
}

/// The mark of a database with blocks; in the same table.
const BLOCKS: &[u8] = b"\0blocks";

/// How rows lie in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Each has a key of its own, as builds before blocks had it. It works, until the store is rearranged.
    Single,
    /// Those of tables that are packed are in blocks.
    Blocks,
}

impl Form {
    /// That of a database whose keys are escaped; marks a new one.
    pub(super) fn of(db: &Db) -> sled::Result<Self> {
        if db.contains_key(BLOCKS)? {
            return Ok(Self::Blocks);
        }
        for key in db.iter().keys() {
            if key? != ESCAPED {
                return Ok(Self::Single);
            }
        }
        db.insert(BLOCKS, &[])?;
        Ok(Self::Blocks)
    }

    /// Whether a table's rows are in blocks.
    pub(super) fn packs(self, table: TableId) -> bool {
        self == Self::Blocks && table.is_packed()
    }

    /// The name of the journal. Builds before blocks find none in a database that has them: they could not do again what it says.
    pub(super) fn journal(self) -> &'static str {
        match self {
            Self::Single => "journal",
            Self::Blocks => "journal-2",
        }
    }
}
