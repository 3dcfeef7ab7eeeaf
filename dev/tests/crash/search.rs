//! What search finds at the end of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::evidence::Row;
use crate::people::{Ledger, Person};
use crate::writers::WORD;

/// Waits until search finds what there is, chat by chat, each asked by one of its members, and lists what it finds then or when
/// `patience` is at its end.
pub async fn indexed(
    asked: &[(i64, &Person)],
    rows: &[Row],
    ledger: &Ledger,
    patience: Duration,
) -> Result<BTreeMap<i64, BTreeSet<i64>>, String> {
    let deadline = Instant::now() + patience;
    let mut found = BTreeMap::new();
    for (chat, person) in asked {
        let due = |is_due: fn(&str) -> bool| -> BTreeSet<i64> {
            let of_chat = rows.iter().filter(|row| row.chat == *chat);
            of_chat
                .filter(|row| row.content.as_deref().is_some_and(is_due))
                .map(|row| row.id)
                .collect()
        };
        // Edited messages are found by what they say now.
        let (all, edited) = (due(|_| true), due(|content| content.ends_with("edited")));
        // One message too many and one too few are as many as there are: not the number is waited for, but the messages.
        let now = loop {
            let now = Findable {
                all: find(person, ledger, WORD, *chat).await?,
                edited: find(person, ledger, &format!("{WORD}+%22edited%22"), *chat).await?,
            };
            let is_settled =
                now.all == (all.clone(), all.len() as u64) && now.edited == (edited.clone(), edited.len() as u64);
            if is_settled || Instant::now() > deadline {
                break now;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let mut wrong = ledger.wrong_answers.lock().expect("no panic holds it");
        // The engine's own count: its hits are checked against the rows before they are answered.
        for (what, (_, total), due) in [("messages", &now.all, &all), ("edits", &now.edited, &edited)] {
            if *total != due.len() as u64 {
                wrong.push(format!(
                    "the index has {total} {what} of chat {chat}, the table {}",
                    due.len()
                ));
            }
        }
        if now.edited.0 != edited {
            wrong.push(format!(
                "search finds the edits {:?} of chat {chat}, the table {edited:?}",
                now.edited.0
            ));
        }
        drop(wrong);
        found.insert(*chat, now.all.0);
    }
    Ok(found)
}

/// What search finds in a chat: messages, and how many the engine counts.
struct Findable {
    all: (BTreeSet<i64>, u64),
    edited: (BTreeSet<i64>, u64),
}

async fn find(person: &Person, ledger: &Ledger, query: &str, chat: i64) -> Result<(BTreeSet<i64>, u64), String> {
    let path = format!("/api/search/messages?q={query}&sort=newest&limit=100&chat_id={chat}");
    let mut ids = BTreeSet::new();
    for offset in (0..).step_by(100) {
        let page = person.get(ledger, &format!("{path}&offset={offset}")).await?;
        let hits = page["hits"].as_array().ok_or(format!("no hits in {page}"))?;
        ids.extend(hits.iter().filter_map(|hit| hit["message"]["id"].as_i64()));
        let total = page["estimated_total"].as_u64().unwrap_or_default();
        if offset + 100 >= total {
            return Ok((ids, total));
        }
    }
    Ok((ids, 0))
}
