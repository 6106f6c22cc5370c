//! The customer's rows, in the customer's own file.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Row, params};

/// Notes a page shows, newest first.
const LISTED_MAX: u32 = 200;
/// Notes the file may hold.
const NOTES_MAX: u32 = 10_000;
/// How long a write waits for a lock, as while somebody looks into the file with a tool.
const BUSY_MS_MAX: Duration = Duration::from_millis(5_000);

/// One note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub id: i64,
    pub text: String,
    pub created_at: String,
}

/// Why the store did not do it.
#[derive(Debug)]
pub enum StoreError {
    /// As many notes as there may be.
    Full,
    /// SQLite's own word.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "there are {NOTES_MAX} notes already"),
            Self::Sqlite(error) => error.fmt(f),
        }
    }
}

/// The open file.
pub struct Store(Connection);

impl Store {
    /// Opens the file, or makes it. With a write-ahead log a snapshot of the running container is a good database.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY_MS_MAX)?;
        db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        db.execute_batch(
            "PRAGMA synchronous = NORMAL;
             CREATE TABLE IF NOT EXISTS notes (
                 id INTEGER PRIMARY KEY,
                 text TEXT NOT NULL,
                 created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
             ) STRICT;",
        )?;
        Ok(Self(db))
    }

    pub fn add(&mut self, text: &str) -> Result<Note, StoreError> {
        let sql = "INSERT INTO notes (text) SELECT ?1 WHERE (SELECT count(*) FROM notes) < ?2
                   RETURNING id, text, created_at";
        let note = self.0.prepare(sql)?.query_row(params![text, NOTES_MAX], note_of);
        note.map_err(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => StoreError::Full,
            other => StoreError::Sqlite(other),
        })
    }

    pub fn list(&self) -> Result<Vec<Note>, StoreError> {
        let mut select = self.0.prepare("SELECT id, text, created_at FROM notes ORDER BY id DESC LIMIT ?1")?;
        let notes = select.query_map([LISTED_MAX], note_of)?.collect::<Result<_, _>>()?;
        Ok(notes)
    }

    /// Whether there was such a note.
    pub fn delete(&mut self, id: i64) -> Result<bool, StoreError> {
        Ok(self.0.prepare("DELETE FROM notes WHERE id = ?1")?.execute([id])? == 1)
    }

    /// Whether the file can be read.
    pub fn ping(&self) -> Result<(), StoreError> {
        Ok(self.0.query_row("SELECT count(*) FROM (SELECT 1 FROM notes LIMIT 1)", [], |_| Ok(()))?)
    }

    /// What SQLite finds wrong with the file; `ok` where nothing is.
    pub fn check(&self) -> Result<String, StoreError> {
        Ok(self.0.query_row("PRAGMA integrity_check", [], |row| row.get(0))?)
    }

    /// How many notes there are.
    pub fn count(&self) -> Result<i64, StoreError> {
        Ok(self.0.query_row("SELECT count(*) FROM notes", [], |row| row.get(0))?)
    }

    /// Writes the log back into the file.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        Ok(self.0.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
    }
}

fn note_of(row: &Row<'_>) -> rusqlite::Result<Note> {
    Ok(Note { id: row.get(0)?, text: row.get(1)?, created_at: row.get(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_listed_newest_first_and_bounded() {
        let mut store = Store::open(":memory:".as_ref()).unwrap();
        for n in 0..LISTED_MAX + 5 {
            store.add(&n.to_string()).unwrap();
        }
        let listed = store.list().unwrap();
        assert_eq!(listed.len(), LISTED_MAX as usize);
        assert_eq!(listed[0].text, (LISTED_MAX + 4).to_string());
        assert_eq!((store.check().unwrap().as_str(), store.count().unwrap()), ("ok", i64::from(LISTED_MAX) + 5));
    }

    #[test]
    fn a_full_store_takes_no_more_until_one_is_deleted() {
        let mut store = Store::open(":memory:".as_ref()).unwrap();
        store
            .0
            .execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                 INSERT INTO notes (text) SELECT 'x' FROM n",
                [NOTES_MAX],
            )
            .unwrap();
        assert!(matches!(store.add("one more"), Err(StoreError::Full)));
        assert!(store.delete(1).unwrap());
        assert!(store.add("one more").is_ok());
    }
}
