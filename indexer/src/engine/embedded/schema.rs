//! The fields of the embedded index.

use fechatter_core::ChatId;
use tantivy::schema::{FAST, Field, INDEXED, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::{TantivyDocument, Term};
use time::OffsetDateTime;

use crate::engine::MessageDocument;
use crate::text;

/// Changes whenever an index written before can no longer be read as intended: it is then rebuilt.
pub const FORMAT: u32 = 2;

/// Name of our tokenizer in the index.
pub const TOKENIZER: &str = "fechatter";

/// Names of fields that are read as columns.
pub mod column {
    pub const ID: &str = "id";
    pub const VERSION: &str = "version";
    pub const WORKSPACE: &str = "workspace_id";
    pub const CHAT: &str = "chat_id";
    pub const SENDER: &str = "sender_id";
    pub const CREATED: &str = "created_micros";
    pub const HAS_LINK: &str = "has_link";
}

/// Handles of the fields. The text itself is not stored: hits are read again from PostgreSQL anyway.
#[derive(Debug, Clone, Copy)]
pub struct Fields {
    pub id: Field,
    pub version: Field,
    /// 0 in a mark, and so is the rest: no search, which names a workspace and chats, can match it.
    pub workspace_id: Field,
    pub chat_id: Field,
    pub sender_id: Field,
    pub created_micros: Field,
    pub has_link: Field,
    pub content: Field,
    /// Present (1) in a mark.
    pub tombstone: Field,
}

/// The schema and its fields.
pub fn build() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let text = TextOptions::default().set_indexing_options(
        TextFieldIndexing::default()
            .set_tokenizer(TOKENIZER)
            .set_fieldnorms(false)
            .set_index_option(IndexRecordOption::WithFreqsAndPositions),
    );
    let fields = Fields {
        id: schema.add_i64_field(column::ID, INDEXED | FAST),
        version: schema.add_i64_field(column::VERSION, FAST),
        workspace_id: schema.add_i64_field(column::WORKSPACE, INDEXED | FAST),
        chat_id: schema.add_i64_field(column::CHAT, INDEXED | FAST),
        sender_id: schema.add_i64_field(column::SENDER, INDEXED | FAST),
        created_micros: schema.add_i64_field(column::CREATED, FAST),
        has_link: schema.add_bool_field(column::HAS_LINK, FAST),
        content: schema.add_text_field("content", text),
        tombstone: schema.add_i64_field("tombstone", INDEXED),
    };
    (schema.build(), fields)
}

impl Fields {
    /// A message as a tantivy document.
    pub fn document(&self, message: &MessageDocument) -> TantivyDocument {
        let mut document = TantivyDocument::default();
        document.add_i64(self.id, message.id.0);
        document.add_i64(self.version, message.version);
        document.add_i64(self.workspace_id, message.workspace_id.0);
        document.add_i64(self.chat_id, message.chat_id.0);
        document.add_i64(self.sender_id, message.sender_id.0);
        document.add_i64(self.created_micros, micros(message.created_at));
        document.add_bool(self.has_link, text::has_link(&message.content));
        document.add_text(self.content, &message.content);
        document
    }

    /// The mark that a message, or with the id of [`chat_mark`] a chat, was deleted.
    pub fn tombstone(&self, id: i64, version: i64) -> TantivyDocument {
        let mut document = TantivyDocument::default();
        document.add_i64(self.id, id);
        document.add_i64(self.version, version);
        document.add_i64(self.tombstone, 1);
        // Columns in which each document has a value are the quickest to read.
        for field in [self.workspace_id, self.chat_id, self.sender_id, self.created_micros] {
            document.add_i64(field, 0);
        }
        document.add_bool(self.has_link, false);
        document
    }

    /// Matches the document or mark of a message.
    pub fn id_term(&self, id: i64) -> Term {
        Term::from_field_i64(self.id, id)
    }
}

/// Id of the mark of a deleted chat: no message has a negative one.
pub const fn chat_mark(chat: ChatId) -> i64 {
    -chat.0
}

/// Microseconds since the epoch, as PostgreSQL keeps time.
#[expect(
    clippy::cast_possible_truncation,
    reason = "i64 microseconds reach beyond any representable date"
)]
pub const fn micros(at: OffsetDateTime) -> i64 {
    (at.unix_timestamp_nanos() / 1_000) as i64
}
