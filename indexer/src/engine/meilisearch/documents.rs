//! What Meilisearch is given: documents, settings, query texts and filters.

use std::collections::{BTreeMap, HashSet};

use fechatter_core::ChatId;
use fechatter_core::ids::MAX_SAFE_INTEGER;
use meilisearch_sdk::search::SearchQuery;
use meilisearch_sdk::settings::{
    FacetSortValue, FacetingSettings, LocalizedAttributes, MinWordSizeForTypos, PaginationSetting, Settings,
    TypoToleranceSettings,
};
use serde::{Deserialize, Serialize};
use time::macros::format_description;
use uuid::Uuid;

use super::http::Http;
use crate::engine::embedded::schema::micros;
use crate::engine::embedded::{ONE_TYPO_CHARS, TWO_TYPOS_CHARS};
use crate::engine::{Change, EngineQuery, MessageDocument};
use crate::query::TextClause;
use crate::text::{self, Kind};

/// The language that Meilisearch takes every text for, so that messages and queries are divided and folded alike: left to
/// itself it guesses by what is around a word, and a Japanese message is not found by two of its ideographs, which are
/// taken for Chinese. What is to be divided or folded otherwise than in English our own tokenizer has done.
pub(super) const LOCALES: &[&str] = &["eng"];

/// Newest first; of the same moment what was written later.
pub(super) const NEWEST_FIRST: [&str; 2] = ["created_micros:desc", "number:desc"];

/// The first word of every message, which no query can hold, and the end of a sentence: `exactness` prefers a message
/// that begins with the query, which in a chat says nothing.
const BEFORE_THE_FIRST_WORD: &str = "\u{E000}. ";

/// Pages reach this far.
const TOTAL_HITS_MAX: usize = 10_100;
/// Ids in one part of a filter: Meilisearch copies the rest of a part for each id that it reads.
const IDS_AT_ONCE: usize = 50;
/// Enough to sum kinds from the counts of all of a searcher's chats.
const FACET_CHATS_MAX: usize = 10_000;

#[derive(Debug, Serialize)]
pub(super) struct StoredMessage {
    pub(super) id: String,
    /// The id again: Meilisearch compares numbers, not texts, and a comparison walks over ranges of ids.
    pub(super) number: i64,
    pub(super) version: i64,
    #[serde(flatten)]
    pub(super) message: Option<StoredContent>,
}

impl StoredMessage {
    /// A message, or the mark that it was deleted.
    pub(super) fn of(id: i64, version: i64, message: Option<&MessageDocument>) -> Self {
        Self {
            id: id.to_string(),
            number: id,
            version,
            message: message.map(StoredContent::of),
        }
    }

    /// The mark that a chat was deleted; no message has its number.
    pub(super) fn of_deleted_chat(chat: ChatId) -> Self {
        Self {
            id: chat_mark(chat),
            number: -chat.0,
            version: MAX_SAFE_INTEGER,
            message: None,
        }
    }
}

/// Id of the mark of a deleted chat.
pub(super) fn chat_mark(chat: ChatId) -> String {
    format!("chat-{chat}")
}

/// Absent in a mark, so that no search, which names a workspace, can match it.
#[derive(Debug, Serialize)]
pub(super) struct StoredContent {
    pub(super) workspace_id: String,
    pub(super) chat_id: String,
    pub(super) sender_id: String,
    pub(super) content: String,
    pub(super) created_micros: i64,
    pub(super) day: String,
    pub(super) has_link: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct StoredVersion {
    pub(super) id: String,
    pub(super) version: i64,
}

/// What a comparison with PostgreSQL needs of a document.
#[derive(Debug, Deserialize)]
pub(super) struct StoredState {
    pub(super) number: i64,
    pub(super) version: i64,
    /// Absent in the mark of a deleted message.
    pub(super) workspace_id: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StoredId {
    pub(super) id: String,
}

/// Says, in an index of messages, that they are complete and in which format: it changes places with its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Complete {
    pub(super) format: u32,
    /// The rebuild that made the index.
    pub(super) build: Uuid,
}

impl Complete {
    pub(super) const ID: &str = "complete";
}

/// A thing that is kept by a name of its own.
#[derive(Debug, Serialize)]
pub(super) struct Kept<T> {
    pub(super) id: &'static str,
    #[serde(flatten)]
    pub(super) what: T,
}

/// Name of how far the stream's effects are in the index.
pub(super) const POSITION: &str = "position";

/// A rebuild under way: the last message in the fresh index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rebuild {
    pub(super) format: u32,
    pub(super) build: Uuid,
    pub(super) cursor: i64,
}

impl Rebuild {
    pub(super) const ID: &str = "rebuild";
}

impl StoredContent {
    pub(super) fn of(message: &MessageDocument) -> Self {
        Self {
            workspace_id: message.workspace_id.to_string(),
            chat_id: message.chat_id.to_string(),
            sender_id: message.sender_id.to_string(),
            content: format!("{BEFORE_THE_FIRST_WORD}{}", text::spaced(&message.content)),
            created_micros: micros(message.created_at),
            day: message
                .created_at
                .to_offset(time::UtcOffset::UTC)
                .date()
                .format(format_description!("[year]-[month]-[day]"))
                .unwrap_or_default(),
            has_link: text::has_link(&message.content),
        }
    }
}

pub(super) type Latest<'a> = BTreeMap<i64, (i64, Option<&'a MessageDocument>)>;

/// The last state of each message and the chats to forget, whose messages are left out: a chat never comes back.
pub(super) fn collapse(changes: &[Change]) -> (Latest<'_>, HashSet<ChatId>) {
    let chats: HashSet<ChatId> = changes
        .iter()
        .filter_map(|change| match change {
            Change::DeleteChat(chat) => Some(*chat),
            _ => None,
        })
        .collect();
    let mut latest = Latest::new();
    for change in changes {
        let (id, version, message) = match change {
            Change::Upsert(message) if chats.contains(&message.chat_id) => continue,
            Change::Upsert(message) => (message.id.0, message.version, Some(message)),
            Change::Delete { id, version } => (id.0, *version, None),
            Change::DeleteChat(_) => continue,
        };
        if latest.get(&id).is_none_or(|(known, _)| *known < version) {
            latest.insert(id, (version, message));
        }
    }
    (latest, chats)
}

/// Ids as a list of a filter: numbers and our own marks, never anything of a request.
pub(super) fn quoted(ids: impl Iterator<Item = impl std::fmt::Display>) -> String {
    ids.map(|id| format!("\"{id}\"")).collect::<Vec<_>>().join(",")
}

pub(super) fn settings() -> Settings {
    let mut settings = Settings::new()
        .with_searchable_attributes(["content"])
        .with_displayed_attributes(["id", "number", "version", "workspace_id", "format", "build"])
        .with_filterable_attributes([
            "id",
            "number",
            "workspace_id",
            "chat_id",
            "sender_id",
            "created_micros",
            "day",
            "has_link",
        ])
        .with_sortable_attributes(NEWEST_FIRST.map(|rule| rule.trim_end_matches(":desc")))
        .with_localized_attributes([LocalizedAttributes {
            locales: LOCALES.iter().map(ToString::to_string).collect(),
            attribute_patterns: vec!["*".to_owned()],
        }])
        // `sort` first: "newest" means newest. Without it the rest decides and recency breaks ties. Where in a message a
        // word is says nothing, and there is one attribute, so its rules are left out.
        .with_ranking_rules(
            ["sort", "words", "typo", "exactness", "proximity"]
                .into_iter()
                .chain(NEWEST_FIRST),
        )
        .with_pagination(PaginationSetting {
            max_total_hits: TOTAL_HITS_MAX,
        })
        .with_faceting(FacetingSettings {
            max_values_per_facet: FACET_CHATS_MAX,
            sort_facet_values_by: Some(BTreeMap::from([("*".to_owned(), FacetSortValue::Count)])),
        });
    settings.typo_tolerance = Some(TypoToleranceSettings {
        enabled: Some(true),
        min_word_size_for_typos: Some(MinWordSizeForTypos {
            one_typo: u8::try_from(ONE_TYPO_CHARS).ok(),
            two_typos: u8::try_from(TWO_TYPOS_CHARS).ok(),
        }),
        disable_on_numbers: Some(true),
        ..TypoToleranceSettings::default()
    });
    settings
}

/// The query text: words, and in quotes what must be found exactly: phrases, runs of unspaced scripts, whole words with
/// digits. Whatever else Meilisearch would read as syntax is no part of a word.
pub(super) fn query_text(clauses: &[TextClause]) -> String {
    let mut parts = Vec::new();
    for clause in clauses {
        let units = text::units(clause.text());
        let last = units.len().saturating_sub(1);
        match clause {
            TextClause::Phrase(phrase) => parts.push(format!("\"{}\"", text::spaced(phrase))),
            TextClause::Word(_) | TextClause::Prefix(_) => {
                let is_prefix = matches!(clause, TextClause::Prefix(_));
                for (i, text::Unit { text, kind }) in units.into_iter().enumerate() {
                    let is_exact = kind != Kind::Word
                        || (text.contains(|c: char| c.is_ascii_digit()) && !(is_prefix && i == last));
                    parts.push(if is_exact { format!("\"{text}\"") } else { text });
                }
            }
        }
    }
    parts.join(" ")
}

/// Conditions that must all be true; of a list any.
#[derive(Debug, Serialize)]
pub(super) struct Filter(Vec<Condition>);

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Condition {
    One(String),
    AnyOf(Vec<String>),
}

impl Condition {
    fn among(attribute: &str, ids: &[i64]) -> Self {
        if ids.is_empty() {
            // No alternatives at all would be no condition.
            return Self::One(format!("{attribute} IN []"));
        }
        let parts = ids.chunks(IDS_AT_ONCE);
        Self::AnyOf(
            parts
                .map(|ids| format!("{attribute} IN [{}]", quoted(ids.iter())))
                .collect(),
        )
    }
}

impl Filter {
    pub(super) fn of(query: &EngineQuery) -> Self {
        let ids: Vec<i64> = query.chats.iter().map(|chat| chat.0).collect();
        let mut all = vec![
            Condition::One(format!("workspace_id = \"{}\"", query.workspace_id)),
            Condition::among("chat_id", &ids),
        ];
        if let Some(senders) = &query.senders {
            let ids: Vec<i64> = senders.iter().map(|sender| sender.0).collect();
            all.push(Condition::among("sender_id", &ids));
        }
        if let Some(from) = query.created.from {
            all.push(Condition::One(format!("created_micros >= {}", micros(from))));
        }
        if let Some(until) = query.created.until {
            all.push(Condition::One(format!("created_micros < {}", micros(until))));
        }
        if query.has_link {
            all.push(Condition::One("has_link = true".to_owned()));
        }
        Self(all)
    }
}

/// A query and its filter, as the body of a request.
#[derive(Serialize)]
pub(super) struct Filtered<'a> {
    #[serde(flatten)]
    pub(super) query: &'a SearchQuery<'a, Http>,
    pub(super) filter: Filter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_beside_the_messages_is_flat_and_read_back() {
        let position = crate::engine::StreamPosition {
            epoch: Uuid::from_u128(7),
            sequence: 41,
        };
        let kept = Kept {
            id: POSITION,
            what: position,
        };
        let json = serde_json::to_value(kept).unwrap();
        let expected = serde_json::json!({
            "id": "position", "epoch": "00000000-0000-0000-0000-000000000007", "sequence": 41
        });
        assert_eq!(json, expected);
        let back: crate::engine::StreamPosition = serde_json::from_value(json).unwrap();
        assert_eq!(back, position);
        let mark: StoredState = serde_json::from_str(r#"{"id": "5", "number": 5, "version": 2}"#).unwrap();
        assert!(mark.workspace_id.is_none());
    }

    #[test]
    fn many_ids_come_in_parts_and_none_are_a_condition_too() {
        let query = |chats: std::ops::Range<i64>| EngineQuery {
            workspace_id: 1.into(),
            text: Vec::new(),
            chats: chats.map(ChatId).collect(),
            preferred_chats: [].into(),
            senders: Some(Vec::new()),
            created: crate::query::TimeRange::default(),
            has_link: true,
            sort: crate::engine::Sort::Newest,
            offset: 0,
            limit: 1,
            now: time::OffsetDateTime::UNIX_EPOCH,
        };
        assert_eq!(
            serde_json::to_value(Filter::of(&query(3..5))).unwrap(),
            serde_json::json!([
                "workspace_id = \"1\"",
                ["chat_id IN [\"3\",\"4\"]"],
                "sender_id IN []",
                "has_link = true"
            ])
        );
        let many = serde_json::to_value(Filter::of(&query(1..5_001))).unwrap();
        assert_eq!(many[1].as_array().unwrap().len(), 100);
        let none = serde_json::to_value(Filter::of(&query(1..1))).unwrap();
        assert_eq!(none[1], "chat_id IN []");
    }

    #[test]
    fn no_clause_becomes_syntax() {
        let clauses = [
            TextClause::Word("-secret".to_owned()),
            TextClause::Phrase("a \"b".to_owned()),
            TextClause::Word("foo\"-bar".to_owned()),
            TextClause::Prefix("x\"".to_owned()),
        ];
        assert_eq!(query_text(&clauses), "secret \"a b\" foo bar x");
    }

    #[test]
    fn what_tolerates_no_typo_is_quoted() {
        let clauses = [
            TextClause::Word("明日は東京tower".to_owned()),
            TextClause::Word("INC-1042:ed25519".to_owned()),
            TextClause::Phrase("東京 4.2".to_owned()),
            TextClause::Prefix("4.2.1".to_owned()),
        ];
        let expected = r#""明 日 は 東 京" tower inc "1042" "ed25519" "東 京 4 2" "4" "2" 1"#;
        assert_eq!(query_text(&clauses), expected);
    }

    #[test]
    fn the_last_state_of_a_message_wins_and_deleted_chats_take_theirs_along() {
        let message = |id: i64, chat: i64, version| MessageDocument {
            id: id.into(),
            workspace_id: 1.into(),
            chat_id: chat.into(),
            sender_id: 1.into(),
            content: "x".to_owned(),
            created_at: time::OffsetDateTime::UNIX_EPOCH,
            version,
        };
        let changes = [
            Change::Upsert(message(1, 1, 2)),
            Change::Upsert(message(1, 1, 1)),
            Change::Upsert(message(2, 2, 1)),
            Change::DeleteChat(2.into()),
            Change::Delete {
                id: 3.into(),
                version: 2,
            },
        ];
        let (latest, chats) = collapse(&changes);
        assert_eq!(latest.keys().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(latest[&1].0, 2);
        assert!(latest[&3].1.is_none() && chats.contains(&2.into()));
    }
}
