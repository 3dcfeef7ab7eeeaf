//! The relevance table: each question of the corpus with what should come first, and a score over all of them.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use fechatter_core::chat::ChatKind;
use indexer::engine::SearchEngine;
use indexer::services::search::SearchRequest;
use migrations::rows;
use time::Duration;

use crate::NOW;
use crate::corpus::{CHANNELS, LINES, PEOPLE, QUESTIONS};
use crate::world::World;

/// Least share of questions whose first hit is the expected one.
const FIRST_MIN: f64 = 0.95;
/// Least mean reciprocal rank of the expected first hit.
const RANK_MIN: f64 = 0.97;
/// Least share of the expected first few that are among the first few.
const FOUND_MIN: f64 = 0.95;

#[expect(clippy::cast_precision_loss, reason = "a share of some dozens needs no more")]
pub async fn the_expected_comes_first(engine: &Arc<dyn SearchEngine>) {
    let mut world = World::new(Arc::clone(engine)).await;
    let (workspace, searcher) = rows::workspace(&world.pool, "relevance").await;
    let mut people = Vec::new();
    for fullname in PEOPLE {
        people.push(rows::user(&world.pool, workspace, fullname).await);
    }
    let mut channels = Vec::new();
    let members: Vec<i64> = std::iter::once(searcher).chain(people.iter().copied()).collect();
    for name in CHANNELS {
        channels.push(world.chat(workspace, ChatKind::PublicChannel, name, &members).await);
    }
    let mut keys = HashMap::new();
    for &(key, channel, sender, days, content) in LINES {
        let at = NOW - Duration::days(days);
        let id = world.write(channels[channel], people[sender], content, at).await;
        assert!(keys.insert(id, key).is_none());
    }
    world.index().await;

    let mut score = Score::default();
    for (q, expected) in QUESTIONS {
        let request = SearchRequest {
            q: (*q).to_owned(),
            limit: 10,
            ..SearchRequest::default()
        };
        let answer = world.search(searcher, workspace, &request).await.expect("an answer");
        let found: Vec<&str> = answer.hits.iter().map(|hit| keys[&hit.message.id.0]).collect();
        score.add(q, expected, &found);
    }
    let count = QUESTIONS.len() as f64;
    let (first, rank, found) = (score.first / count, score.rank / count, score.found / count);
    // Past the capture of the test harness: the score is the result, not only whether it suffices.
    let _ = writeln!(
        std::io::stderr(),
        "\nrelevance, {}: {} questions, first hit right {first:.3}, mean reciprocal rank {rank:.3}, found {found:.3}\n{}",
        engine.name(),
        QUESTIONS.len(),
        score.misses.join("\n"),
    );
    assert!(
        first >= FIRST_MIN && rank >= RANK_MIN && found >= FOUND_MIN,
        "relevance fell: at least {FIRST_MIN}, {RANK_MIN} and {FOUND_MIN} are asked for"
    );
}

#[derive(Default)]
struct Score {
    first: f64,
    rank: f64,
    found: f64,
    misses: Vec<String>,
}

impl Score {
    #[expect(clippy::cast_precision_loss, reason = "a rank needs no more")]
    fn add(&mut self, q: &str, expected: &[&str], found: &[&str]) {
        let (first, rank, share) = match expected.first() {
            None => {
                let right = f64::from(u8::from(found.is_empty()));
                (right, right, right)
            }
            Some(best) => {
                let rank = found
                    .iter()
                    .position(|key| key == best)
                    .map_or(0.0, |at| 1.0 / (at + 1) as f64);
                let top = &found[..found.len().min(expected.len())];
                let among = expected.iter().filter(|key| top.contains(key)).count();
                (
                    f64::from(u8::from(found.first() == Some(best))),
                    rank,
                    among as f64 / expected.len() as f64,
                )
            }
        };
        self.first += first;
        self.rank += rank;
        self.found += share;
        if first < 1.0 || share < 1.0 {
            self.misses
                .push(format!("  {q}: expected {expected:?}, found {found:?}"));
        }
    }
}
