//! Queries made to confuse: each is refused by name or answered with what the words in it find, and never reaches
//! anything that is not the searcher's.

use std::sync::Arc;

use fechatter_core::chat::ChatKind;
use indexer::engine::SearchEngine;
use indexer::query::QUERY_CHARS_MAX;
use indexer::services::search::{OFFSET_MAX, SearchError, SearchRequest};
use migrations::rows;

use crate::NOW;
use crate::world::World;

/// What becomes of a query.
enum Outcome {
    /// Refused with this code.
    Refused(&'static str),
    /// Answered: with the harmless message, or with nothing.
    Finds,
    Nothing,
}

use Outcome::{Finds, Nothing, Refused};

fn table() -> Vec<(String, Outcome)> {
    let rows = [
        // Quotes
        ("\"harmless words", Finds),
        ("harmless \"", Finds),
        ("\"\"\"\" harmless", Finds),
        ("“harmless words”", Finds),
        ("\"harmless\" \"words\"", Finds),
        ("\"words harmless\"", Nothing),
        ("from:\"", Nothing),
        ("in:\"never closed", Nothing),
        // Operators that are none
        ("unknown:operator", Nothing),
        ("from: harmless", Nothing),
        (":harmless", Finds),
        ("harmless:", Finds),
        ("FROM:\"Owner of hostile\" harmless", Finds),
        ("from:nobody harmless", Nothing),
        ("in:nowhere harmless", Nothing),
        ("has:spaceship", Refused("unknown_value")),
        ("has:link has:link", Nothing),
        // Dates
        ("before:2026-02-30", Refused("invalid_date")),
        ("after:0000-00-00", Refused("invalid_date")),
        ("on:2026-13-01", Refused("invalid_date")),
        ("before:99999999999-01-01", Refused("invalid_date")),
        ("after:-1", Refused("invalid_date")),
        ("before:2026-01-01' OR 1=1", Refused("invalid_date")),
        ("on:1970-01-01", Nothing),
        ("after:9998-12-31", Nothing),
        ("before:1970-01-01", Nothing),
        ("before:2026-01-01 after:2026-12-31 harmless", Nothing),
        // Control, bidirectional and invisible characters
        ("harm\u{0}less", Refused("control_character")),
        ("harmless\u{1b}[31m", Refused("control_character")),
        ("harmless\u{7f}", Refused("control_character")),
        ("harmless\u{85}", Refused("control_character")),
        ("\u{202e}harmless\u{202c}", Finds),
        ("harm\u{200b}less", Finds),
        ("\u{feff}harmless", Finds),
        ("\u{202e}\u{2066}", Finds),
        ("harmless\r\n\twords", Finds),
        ("h\u{301}\u{302}\u{303}\u{304}armless", Finds),
        ("\u{301}", Nothing),
        ("\u{fffd}\u{ffff}", Nothing),
        // The syntax of engines
        ("chat_id = 1 OR workspace_id = 2", Nothing),
        ("harmless\" OR chat_id > 0 OR content = \"", Nothing),
        ("harmless'] OR sender_id EXISTS", Nothing),
        ("content:secret", Nothing),
        ("chat_id:[0 TO 9999]", Nothing),
        ("*", Nothing),
        ("harml*", Finds),
        ("harmless~2^5", Nothing),
        ("+harmless", Finds),
        ("-harmless", Finds),
        ("-secret", Nothing),
        ("NOT secret", Nothing),
        ("harmless AND words", Nothing),
        ("(harmless)", Finds),
        ("{harmless} [words]", Finds),
        // The beginning of the last word, and no pattern: "h.*s" finds nothing.
        ("/harm.*/", Finds),
        ("/h.*s/", Nothing),
        ("\\harmless\\", Finds),
        ("harmless && words", Nothing),
        ("harmless; DROP TABLE messages; --", Nothing),
        ("%27%20OR%201=1", Nothing),
        ("{{harmless}}", Finds),
        ("<script>alert(1)</script>", Nothing),
        ("_geoRadius(0, 0, 1)", Nothing),
        // Marks and nothing else
        ("!!!", Nothing),
        ("-", Nothing),
        ("...", Nothing),
        ("", Finds),
        ("   \t\n ", Finds),
    ];
    let long = [
        ("x".repeat(10_000), Refused("too_long")),
        ("\"".repeat(10_000), Refused("too_long")),
        ("日".repeat(QUERY_CHARS_MAX + 1), Refused("too_long")),
        ("x".repeat(QUERY_CHARS_MAX), Nothing),
        ("日".repeat(QUERY_CHARS_MAX), Nothing),
        ("\"".repeat(QUERY_CHARS_MAX), Finds),
        ("x-".repeat(QUERY_CHARS_MAX / 2), Nothing),
        ("💥".repeat(QUERY_CHARS_MAX), Nothing),
        ("harmless ".repeat(33), Refused("too_many_words")),
        ("from:a ".repeat(33), Refused("too_many_words")),
        ("harmless ".repeat(32), Finds),
    ];
    rows.into_iter()
        .map(|(q, outcome)| (q.to_owned(), outcome))
        .chain(long)
        .collect()
}

pub async fn hostile_queries_are_answered_or_refused(engine: &Arc<dyn SearchEngine>) {
    let mut world = World::new(Arc::clone(engine)).await;
    let (workspace, searcher) = rows::workspace(&world.pool, "hostile").await;
    let (elsewhere, stranger) = rows::workspace(&world.pool, "stranger").await;
    let colleague = rows::user(&world.pool, workspace, "Eve Elsewhere").await;
    let own = world.chat(workspace, ChatKind::PublicChannel, "own", &[searcher]).await;
    let closed = world
        .chat(workspace, ChatKind::PrivateChannel, "closed", &[colleague])
        .await;
    let foreign = world
        .chat(elsewhere, ChatKind::PublicChannel, "foreign", &[stranger])
        .await;
    let at = NOW - time::Duration::days(1);
    let harmless = world.write(own, searcher, "harmless words", at).await;
    for (chat, sender) in [(closed, colleague), (foreign, stranger)] {
        let bait = "secret harmless words chat_id content OR AND NOT TO DROP TABLE script alert xxx";
        world.write(chat, sender, bait, at).await;
    }
    world.index().await;

    let mut wrong = Vec::new();
    for (q, expected) in table() {
        let request = SearchRequest {
            q: q.clone(),
            limit: 100,
            ..SearchRequest::default()
        };
        let answer = world.search(searcher, workspace, &request).await;
        let got = match &answer {
            Ok(answer) => {
                assert!(
                    answer.chats.keys().all(|chat| chat.0 == own),
                    "{q:.60?} counts a foreign chat"
                );
                let ids: Vec<i64> = answer.hits.iter().map(|hit| hit.message.id.0).collect();
                assert!(ids.iter().all(|&id| id == harmless), "{q:.60?} found a foreign message");
                if ids.is_empty() { "nothing" } else { "finds" }
            }
            Err(SearchError::Invalid { code, .. }) => code,
            Err(error) => panic!("{q:.60?}: {error}"),
        };
        let wanted = match expected {
            Refused(code) => code,
            Finds => "finds",
            Nothing => "nothing",
        };
        if got != wanted {
            wrong.push(format!("{q:.60?}: expected {wanted}, got {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Beyond the end there is nothing, however far.
    for offset in [1, 100, OFFSET_MAX] {
        let request = SearchRequest {
            q: "harmless".to_owned(),
            limit: 100,
            offset,
            ..SearchRequest::default()
        };
        let answer = world.search(searcher, workspace, &request).await.expect("an answer");
        assert_eq!((answer.hits.len(), answer.estimated_total), (0, 1), "offset {offset}");
    }
}
