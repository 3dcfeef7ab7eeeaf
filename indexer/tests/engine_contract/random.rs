//! Random worlds, memberships and queries against an oracle.

use indexer::engine::{EngineQuery, SearchEngine};

use crate::{ask, chats, message, upserts};

/// A small generator, so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        let at = usize::try_from(self.below(words.len() as u64)).expect("a small number");
        words[at]
    }

    fn id(&mut self, bound: u64) -> i64 {
        self.below(bound).cast_signed() + 1
    }
}

pub async fn random_worlds_reveal_nothing_and_count_right(engine: &dyn SearchEngine) {
    // Far enough apart that no typo makes one of another.
    const WORDS: [&str; 6] = ["apple", "quartz", "zebra", "monkey", "violin", "harbour"];
    let seed = 0x9E37_79B9_7F4A_7C15;
    let mut random = Random(seed);
    let mut messages = Vec::new();
    for id in 1..=400 {
        let content = format!("{} {}", random.of(&WORDS), random.of(&WORDS));
        let mut message = message(id, random.id(40), random.id(8), &content);
        // A chat belongs to one workspace.
        message.workspace_id = (message.chat_id.0 % 3 + 1).into();
        messages.push(message);
    }
    engine.apply(upserts(messages.clone()), None).await.expect("applied");
    for round in 0..60 {
        let workspace = random.id(3);
        let mut member_of: Vec<i64> = (1..=40).filter(|chat| chat % 3 + 1 == workspace).collect();
        member_of.retain(|_| random.below(3) > 0);
        // A stray id of another workspace must not open it.
        member_of.push(random.id(40));
        member_of.sort_unstable();
        member_of.dedup();
        let word = random.of(&WORDS);
        let expected: Vec<_> = messages
            .iter()
            .filter(|message| message.workspace_id.0 == workspace && member_of.contains(&message.chat_id.0))
            .filter(|message| message.content.split(' ').any(|w| w == word))
            .collect();
        let found = engine
            .search(EngineQuery {
                workspace_id: workspace.into(),
                chats: chats(member_of.clone()),
                limit: 100,
                ..ask(word)
            })
            .await
            .expect("an answer");
        let mut hits: Vec<i64> = found.hits.iter().map(|hit| hit.id.0).collect();
        hits.sort_unstable();
        let ids: Vec<i64> = expected.iter().map(|message| message.id.0).collect();
        assert_eq!(
            hits, ids,
            "seed {seed}, round {round}: {word} in {member_of:?} of {workspace}"
        );
        assert_eq!(found.total, ids.len() as u64);
        let mut by_chat = std::collections::BTreeMap::new();
        for message in &expected {
            *by_chat.entry(message.chat_id).or_insert(0) += 1;
        }
        assert_eq!(found.facets.chats, by_chat, "seed {seed}, round {round}");
        assert_eq!(found.facets.senders.values().sum::<u64>(), found.total);
    }
}
