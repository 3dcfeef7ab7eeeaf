//! One index on disk: its writer, its reader, and the marks kept with each commit.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use fechatter_core::{ChatId, MessageId};
use serde::{Deserialize, Serialize};
use tantivy::collector::{Count, DocSetCollector};
use tantivy::query::{RangeQuery, TermQuery};
use tantivy::schema::IndexRecordOption;
use tantivy::{DocSet, Index, IndexReader, IndexWriter, ReloadPolicy, TERMINATED, TantivyError, Term};

use super::columns::Snapshot;
use super::schema::{self, Fields, TOKENIZER, chat_mark};
use super::tokenizer::ChatTokenizer;
use crate::engine::{Applied, Change, EngineError, Stored, StreamPosition};

/// What is remembered with each commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marks {
    /// Layout of the documents; another than [`schema::FORMAT`] makes the index be rebuilt.
    pub format: u32,
    /// Whether every message that was there when this index was begun is in it.
    pub complete: bool,
    /// The last message loaded while building.
    pub cursor: i64,
    pub position: Option<StreamPosition>,
}

/// Why an index on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process writes to it.
    #[error("the index folder is in use by another process")]
    Busy,
    /// It is damaged or of another format.
    #[error("the index cannot be read: {0}")]
    Unreadable(String),
    #[error("the index folder cannot be used: {0}")]
    Folder(#[from] std::io::Error),
}

/// Sizes of the writer.
#[derive(Debug, Clone, Copy)]
pub struct WriterOptions {
    /// Memory of the indexing buffer, in bytes.
    pub memory: usize,
}

struct Writer {
    /// Absent after a failure that could not be rolled back; made anew by the next use.
    writer: Option<IndexWriter>,
    marks: Marks,
}

/// One index on disk.
pub struct Generation {
    folder: PathBuf,
    index: Index,
    reader: IndexReader,
    /// The committed state as of the last reload.
    snapshot: RwLock<Snapshot>,
    fields: Fields,
    writer: Mutex<Writer>,
    options: WriterOptions,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Generation {
    /// Makes an empty index in a new folder.
    pub fn create(folder: PathBuf, options: WriterOptions) -> Result<Self, OpenError> {
        std::fs::create_dir_all(&folder)?;
        let (schema, _) = schema::build();
        let index = Index::create_in_dir(&folder, schema).map_err(|error| OpenError::Unreadable(error.to_string()))?;
        let marks = Marks {
            format: schema::FORMAT,
            ..Marks::default()
        };
        let generation = Self::from_index(folder, index, marks, options)?;
        // An index without a commit would read as one of an unknown format.
        generation
            .commit(&mut generation.lock())
            .map_err(|error| OpenError::Unreadable(error.to_string()))?;
        Ok(generation)
    }

    /// Opens the index of a folder.
    pub fn open(folder: PathBuf, options: WriterOptions) -> Result<Self, OpenError> {
        let unreadable = |error: TantivyError| OpenError::Unreadable(error.to_string());
        let index = Index::open_in_dir(&folder).map_err(unreadable)?;
        let payload = index.load_metas().map_err(unreadable)?.payload.unwrap_or_default();
        let marks: Marks = serde_json::from_str(&payload)
            .map_err(|_| OpenError::Unreadable("the last commit carries no marks of ours".to_owned()))?;
        if marks.format != schema::FORMAT || index.schema() != schema::build().0 {
            return Err(OpenError::Unreadable(format!(
                "it has format {}, this build reads {}",
                marks.format,
                schema::FORMAT
            )));
        }
        Self::from_index(folder, index, marks, options)
    }

    fn from_index(folder: PathBuf, index: Index, marks: Marks, options: WriterOptions) -> Result<Self, OpenError> {
        let unreadable = |error: TantivyError| OpenError::Unreadable(error.to_string());
        index.tokenizers().register(TOKENIZER, ChatTokenizer);
        let reader = index
            .reader_builder()
            .reload_policy(ReloadPolicy::Manual)
            .try_into()
            .map_err(unreadable)?;
        let writer = new_writer(&index, options).map_err(|error| match error {
            TantivyError::LockFailure(..) => OpenError::Busy,
            other => unreadable(other),
        })?;
        let (_, fields) = schema::build();
        let snapshot = Snapshot::of(reader.searcher(), None).map_err(unreadable)?;
        Ok(Self {
            folder,
            index,
            reader,
            snapshot: RwLock::new(snapshot),
            fields,
            writer: Mutex::new(Writer {
                writer: Some(writer),
                marks,
            }),
            options,
        })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Handles of its fields.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The committed state.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes what was committed visible.
    fn reload(&self) -> tantivy::Result<()> {
        self.reader.reload()?;
        let next = Snapshot::of(self.reader.searcher(), Some(&self.snapshot()))?;
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// The marks of the last commit.
    pub fn marks(&self) -> Marks {
        self.lock().marks
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        // Whoever panicked left at most uncommitted operations, which the next failure or commit settles.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies changes and commits; nothing of them remains when it fails.
    pub fn apply(&self, changes: &[Change], mark: impl FnOnce(&mut Marks)) -> Result<Applied, EngineError> {
        let mut state = self.lock();
        let before = state.marks;
        mark(&mut state.marks);
        if changes.is_empty() && state.marks == before {
            return Ok(Applied::default());
        }
        let result = self
            .write(&mut state, changes)
            .and_then(|applied| self.commit(&mut state).map(|()| applied));
        result.map_err(|error| {
            state.marks = before;
            let undone = state.writer.as_mut().map(IndexWriter::rollback);
            if !matches!(undone, Some(Ok(_))) {
                tracing::warn!("the index writer could not roll back; a new one is made");
                state.writer = None;
            }
            super::engine_error(&error)
        })
    }

    fn write(&self, state: &mut Writer, changes: &[Change]) -> tantivy::Result<Applied> {
        if state.writer.is_none() {
            state.writer = Some(new_writer(&self.index, self.options)?);
        }
        let Some(writer) = state.writer.as_mut() else {
            return Err(TantivyError::SystemError("the index has no writer".to_owned()));
        };
        let snapshot = self.snapshot();
        // What this very batch did; the snapshot does not show it yet.
        let mut written: HashMap<i64, i64> = HashMap::new();
        let mut forgotten: HashMap<ChatId, bool> = HashMap::new();
        let mut applied = Applied::default();
        for change in changes {
            let (id, version) = match change {
                Change::Upsert(message) => (message.id.0, message.version),
                Change::Delete { id, version } => (id.0, *version),
                Change::DeleteChat(chat) => {
                    writer.delete_term(Term::from_field_i64(self.fields.chat_id, chat.0));
                    writer.delete_term(self.fields.id_term(chat_mark(*chat)));
                    writer.add_document(self.fields.tombstone(chat_mark(*chat), i64::MAX))?;
                    forgotten.insert(*chat, true);
                    applied.deleted += 1;
                    continue;
                }
            };
            if let Change::Upsert(message) = change {
                let chat = message.chat_id;
                let is_forgotten = match forgotten.get(&chat) {
                    Some(&known) => known,
                    None => self.indexed_version(&snapshot, chat_mark(chat))?.is_some(),
                };
                forgotten.insert(chat, is_forgotten);
                if is_forgotten {
                    applied.stale += 1;
                    continue;
                }
            }
            let known = match written.get(&id) {
                Some(&version) => Some(version),
                None => self.indexed_version(&snapshot, id)?,
            };
            if known.is_some_and(|known| known >= version) {
                applied.stale += 1;
                continue;
            }
            if known.is_some() {
                writer.delete_term(self.fields.id_term(id));
            }
            if let Change::Upsert(message) = change {
                writer.add_document(self.fields.document(message))?;
                applied.written += 1;
            } else {
                writer.add_document(self.fields.tombstone(id, version))?;
                applied.deleted += 1;
            }
            written.insert(id, version);
        }
        Ok(applied)
    }

    fn commit(&self, state: &mut Writer) -> tantivy::Result<()> {
        let marks = serde_json::to_string(&state.marks)
            .map_err(|error| TantivyError::InternalError(format!("marks: {error}")))?;
        let Some(writer) = state.writer.as_mut() else {
            return Err(TantivyError::SystemError("the index has no writer".to_owned()));
        };
        let mut commit = writer.prepare_commit()?;
        commit.set_payload(&marks);
        commit.commit()?;
        self.reload()
    }

    /// The version of a message, or of the mark of a deletion.
    fn indexed_version(&self, snapshot: &Snapshot, id: i64) -> tantivy::Result<Option<i64>> {
        let term = self.fields.id_term(id);
        for (segment, columns) in snapshot.searcher.segment_readers().iter().zip(snapshot.columns.iter()) {
            // Most messages are new, and newer than all of a segment.
            if !(columns.id.min_value()..=columns.id.max_value()).contains(&id) {
                continue;
            }
            let inverted = segment.inverted_index(self.fields.id)?;
            let Some(mut postings) = inverted.read_postings(&term, IndexRecordOption::Basic)? else {
                continue;
            };
            let mut doc = postings.doc();
            while doc != TERMINATED {
                if !segment.is_deleted(doc) {
                    return Ok(columns.version.first(doc));
                }
                doc = postings.advance();
            }
        }
        Ok(None)
    }

    /// What it has of the messages after `after` up to `until`, by id.
    pub fn stored(&self, after: MessageId, until: MessageId) -> tantivy::Result<Vec<Stored>> {
        let snapshot = self.snapshot();
        let range = RangeQuery::new(
            Bound::Excluded(self.fields.id_term(after.0)),
            Bound::Included(self.fields.id_term(until.0)),
        );
        let mut stored = Vec::new();
        for address in snapshot.searcher.search(&range, &DocSetCollector)? {
            let columns = &snapshot.columns[address.segment_ord as usize];
            let (Some(id), Some(version)) = (columns.id.first(address.doc_id), columns.version.first(address.doc_id))
            else {
                continue;
            };
            stored.push(Stored {
                id: id.into(),
                version,
                is_findable: columns
                    .workspace
                    .first(address.doc_id)
                    .is_some_and(|workspace| workspace != 0),
            });
        }
        stored.sort_unstable_by_key(|stored| stored.id);
        Ok(stored)
    }

    /// Findable messages: all documents less the marks of what was deleted.
    pub fn documents(&self) -> tantivy::Result<u64> {
        let searcher = self.snapshot().searcher;
        let term = Term::from_field_i64(self.fields.tombstone, 1);
        let tombstones = searcher.search(&TermQuery::new(term, IndexRecordOption::Basic), &Count)?;
        Ok(searcher.num_docs().saturating_sub(tombstones as u64))
    }
}

fn new_writer(index: &Index, options: WriterOptions) -> tantivy::Result<IndexWriter> {
    // One thread: a batch is small, and one segment per commit keeps their number low.
    index.writer_with_num_threads(1, options.memory)
}
