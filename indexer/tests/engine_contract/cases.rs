//! What every engine promises.

use indexer::engine::{Change, EngineQuery, SearchEngine, Sort, Stored, StreamPosition};
use indexer::query::TextClause;
use time::macros::{date, datetime};

use crate::{NOTHING, ask, chats, ids, message, sorted, upserts};

async fn fill(engine: &dyn SearchEngine, contents: &[&str]) {
    let messages = (1..).zip(contents).map(|(id, content)| message(id, 1, 7, content));
    engine.apply(upserts(messages), None).await.expect("applied");
}

pub async fn finds_words_in_any_case_and_accent(engine: &dyn SearchEngine) {
    fill(engine, &["Crème brûlée for dessert", "CREME FRAICHE", "plain custard"]).await;
    assert_eq!(sorted(engine, "creme").await, [1, 2]);
    assert_eq!(sorted(engine, "CRÈME").await, [1, 2]);
    assert_eq!(sorted(engine, "custard").await, [3]);
    assert_eq!(sorted(engine, "absent").await, NOTHING);
}

pub async fn the_last_word_is_a_prefix(engine: &dyn SearchEngine) {
    fill(
        engine,
        &["deployment is done", "deploy it now", "we deployed nothing", "employ"],
    )
    .await;
    assert_eq!(sorted(engine, "deploy").await, [1, 2, 3]);
    assert_eq!(sorted(engine, "dep").await, [1, 2, 3]);
    // Only the last word: "deploy" is whole here.
    assert_eq!(sorted(engine, "deploy n").await, [2]);
}

pub async fn tolerates_typos_by_length(engine: &dyn SearchEngine) {
    fill(engine, &["the database migration", "a cat sat", "release candidate"]).await;
    assert_eq!(sorted(engine, "databse x").await, NOTHING);
    assert_eq!(sorted(engine, "databse migration").await, [1]);
    assert_eq!(sorted(engine, "migartion").await, [1]);
    assert_eq!(sorted(engine, "candidtae").await, [3]);
    // Four letters must be right, three wrong ones are another word.
    assert_eq!(sorted(engine, "czt sat").await, NOTHING);
    assert_eq!(sorted(engine, "mxgrxtxon").await, NOTHING);
}

pub async fn finds_unspaced_scripts(engine: &dyn SearchEngine) {
    fill(
        engine,
        &[
            "明日は東京で会議があります",
            "東京タワーに行きたい",
            "大阪の猫",
            "회의는 내일입니다",
        ],
    )
    .await;
    assert_eq!(sorted(engine, "東京").await, [1, 2]);
    assert_eq!(sorted(engine, "会議").await, [1]);
    assert_eq!(sorted(engine, "猫").await, [3]);
    assert_eq!(sorted(engine, "회의").await, [4]);
    assert_eq!(sorted(engine, "名古屋").await, NOTHING);
}

pub async fn any_part_of_an_unspaced_text_is_found(engine: &dyn SearchEngine) {
    fill(
        engine,
        &[
            "明日は東京で会議があります",
            "東京都の天気",
            "我们明天在北京开会",
            "我們明天在臺北開會",
            "내일 오후에 회의합니다",
            "เราจะประชุมกันพรุ่งนี้ที่กรุงเทพ",
            "サーバーを再起動した",
        ],
    )
    .await;
    for (q, expected) in [
        // Ideographs alone, within Japanese and within Chinese.
        ("東京", &[1, 2][..]),
        ("京都", &[2]),
        ("明", &[1, 3, 4]),
        ("明天", &[3, 4]),
        ("天在", &[3, 4]),
        ("北京开会", &[3]),
        ("臺北", &[4]),
        ("会議", &[1]),
        ("회의", &[5]),
        ("의합", &[5]),
        ("ประชุม", &[6]),
        ("กรุงเทพ", &[6]),
        ("サーバー", &[7]),
        ("再起動", &[7]),
        // One after the other, and no other way round.
        ("京東", &[]),
        ("\"明天在\"", &[3, 4]),
        ("東京 天気", &[2]),
        ("東京で会議", &[1]),
        ("起動 サーバー", &[7]),
    ] {
        assert_eq!(sorted(engine, q).await, expected, "{q}");
    }
}

pub async fn digits_must_be_right(engine: &dyn SearchEngine) {
    fill(
        engine,
        &[
            "invoice 20260117 was paid",
            "invoice 20260118 was paid",
            "signed with ed25519 keys",
            "the release2025 branch, frozen",
        ],
    )
    .await;
    assert_eq!(sorted(engine, "20260117 paid").await, [1]);
    assert_eq!(sorted(engine, "paid 20260118").await, [2]);
    assert_eq!(sorted(engine, "paid 202601").await, [1, 2]);
    assert_eq!(sorted(engine, "20260119").await, NOTHING);
    assert_eq!(sorted(engine, "ed25519 keys").await, [3]);
    assert_eq!(sorted(engine, "ed25518 keys").await, NOTHING);
    assert_eq!(sorted(engine, "release2026 branch").await, NOTHING);
}

pub async fn phrases_are_exact(engine: &dyn SearchEngine) {
    fill(engine, &["red green blue", "green red blue", "the red, green ones"]).await;
    assert_eq!(sorted(engine, "\"red green\"").await, [1, 3]);
    assert_eq!(sorted(engine, "red green").await, [1, 2, 3]);
    assert_eq!(sorted(engine, "\"red gree\"").await, NOTHING);
    assert_eq!(sorted(engine, "\"red green\" blue").await, [1]);
}

pub async fn all_words_must_match(engine: &dyn SearchEngine) {
    fill(engine, &["alpha beta", "alpha gamma", "beta gamma"]).await;
    assert_eq!(sorted(engine, "alpha gamma").await, [2]);
    assert_eq!(sorted(engine, "alpha gamma beta").await, NOTHING);
}

pub async fn searches_only_the_given_chats_and_workspace(engine: &dyn SearchEngine) {
    let mut stranger = message(4, 1, 7, "secret plan");
    stranger.workspace_id = 2.into();
    let messages = [
        message(1, 1, 7, "secret plan"),
        message(2, 2, 7, "secret plan"),
        message(3, 3, 7, "secret plan"),
        stranger,
    ];
    engine.apply(upserts(messages), None).await.expect("applied");
    assert_eq!(sorted(engine, "secret").await, [1, 2]);
    for (in_chats, expected) in [(vec![3], vec![3]), (vec![], vec![]), (vec![99], vec![])] {
        let query = EngineQuery {
            chats: chats(in_chats),
            ..ask("secret")
        };
        assert_eq!(ids(engine, query).await, expected);
    }
}

pub async fn facets_and_total_stay_within_the_filter(engine: &dyn SearchEngine) {
    let mut messages = vec![
        message(1, 1, 7, "launch"),
        message(2, 1, 8, "launch"),
        message(3, 2, 7, "launch"),
        message(4, 3, 9, "launch"),
    ];
    messages[0].created_at = datetime!(2026-05-31 23:59:59 UTC);
    messages[1].created_at = datetime!(2026-06-01 00:00 UTC);
    messages[2].created_at = datetime!(2026-06-01 01:00 UTC);
    engine.apply(upserts(messages), None).await.expect("applied");
    let found = engine
        .search(EngineQuery {
            limit: 1,
            ..ask("launch")
        })
        .await
        .expect("an answer");
    assert_eq!((found.hits.len(), found.total), (1, 3));
    assert_eq!(found.facets.chats, [(1.into(), 2), (2.into(), 1)].into());
    assert_eq!(found.facets.senders, [(7.into(), 2), (8.into(), 1)].into());
    assert_eq!(
        found.facets.days,
        [(date!(2026 - 05 - 31), 1), (date!(2026 - 06 - 01), 2)].into()
    );
}

pub async fn filters_by_sender_time_and_link(engine: &dyn SearchEngine) {
    let mut messages = vec![
        message(1, 1, 7, "report at https://example.org/q1"),
        message(2, 1, 8, "report without one"),
        message(3, 2, 7, "report of old"),
    ];
    messages[2].created_at = datetime!(2025-12-31 23:59:59.999999 UTC);
    engine.apply(upserts(messages), None).await.expect("applied");
    assert_eq!(sorted(engine, "report has:link").await, [1]);
    assert_eq!(sorted(engine, "report before:2026-01-01").await, [3]);
    assert_eq!(sorted(engine, "report after:2025-12-31").await, [1, 2]);
    assert_eq!(sorted(engine, "on:2025-12-31").await, [3]);
    let of_eight = EngineQuery {
        senders: Some(vec![8.into()]),
        ..ask("report")
    };
    assert_eq!(ids(engine, of_eight).await, [2]);
    let of_nobody = EngineQuery {
        senders: Some(vec![]),
        ..ask("report")
    };
    assert_eq!(ids(engine, of_nobody).await, NOTHING);
}

pub async fn orders_by_relevance_or_newest(engine: &dyn SearchEngine) {
    // The higher the id, the older.
    fill(
        engine,
        &["budget of the whole team", "budget", "team notes: the budget, the team"],
    )
    .await;
    let newest = EngineQuery {
        sort: Sort::Newest,
        ..ask("budget")
    };
    assert_eq!(ids(engine, newest).await, [1, 2, 3]);
    // Without text, the newest first.
    assert_eq!(ids(engine, ask("")).await, [1, 2, 3]);
    // Equally good matches: the newer first.
    assert_eq!(ids(engine, ask("team")).await, [1, 3]);
}

pub async fn exact_beats_prefix_beats_typo(engine: &dyn SearchEngine) {
    // Newest first would be 1, 2, 3; the match decides otherwise.
    fill(engine, &["the planer was loud", "the planetary gear", "our planet"]).await;
    assert_eq!(ids(engine, ask("planet")).await.first(), Some(&3));
}

pub async fn pages_past_a_thousand_hits(engine: &dyn SearchEngine) {
    let messages = (1..=1_250).map(|id| message(id, 1, 7, "standup"));
    engine.apply(upserts(messages), None).await.expect("applied");
    let page = |offset| EngineQuery {
        sort: Sort::Newest,
        offset,
        limit: 100,
        ..ask("standup")
    };
    assert_eq!(ids(engine, page(0)).await, (1..=100).collect::<Vec<_>>());
    assert_eq!(ids(engine, page(1_200)).await, (1_201..=1_250).collect::<Vec<_>>());
    assert_eq!(ids(engine, page(5_000)).await, NOTHING);
}

pub async fn an_older_version_never_overwrites(engine: &dyn SearchEngine) {
    let at = |version, content| {
        let mut message = message(1, 1, 7, content);
        message.version = version;
        Change::Upsert(message)
    };
    engine.apply(vec![at(2, "second words")], None).await.expect("applied");
    let late = engine.apply(vec![at(1, "first words")], None).await.expect("applied");
    assert_eq!((late.written, late.stale), (0, 1));
    assert_eq!(sorted(engine, "second").await, [1]);
    assert_eq!(sorted(engine, "first").await, NOTHING);
    // Within one batch too, and a redelivery changes nothing.
    engine
        .apply(
            vec![at(4, "fourth words"), at(3, "third words"), at(4, "fourth words")],
            None,
        )
        .await
        .expect("applied");
    assert_eq!(sorted(engine, "words").await, [1]);
    assert_eq!(sorted(engine, "fourth").await, [1]);
    assert_eq!(engine.documents().await.expect("a count"), 1);
}

pub async fn a_deleted_message_stays_deleted(engine: &dyn SearchEngine) {
    fill(engine, &["keep me", "drop me"]).await;
    let deletion = || Change::Delete {
        id: 2.into(),
        version: 2,
    };
    engine.apply(vec![deletion()], None).await.expect("applied");
    assert_eq!(sorted(engine, "me").await, [1]);
    // Late: the creation again, and the creation of a message whose deletion came first.
    engine
        .apply(upserts([message(2, 1, 7, "drop me")]), None)
        .await
        .expect("applied");
    let early = Change::Delete {
        id: 3.into(),
        version: 2,
    };
    engine.apply(vec![early], None).await.expect("applied");
    engine
        .apply(upserts([message(3, 1, 7, "never me")]), None)
        .await
        .expect("applied");
    assert_eq!(sorted(engine, "me").await, [1]);
    assert_eq!(ids(engine, ask("")).await, [1]);
    assert_eq!(engine.documents().await.expect("a count"), 1);
}

pub async fn a_deleted_chat_is_forgotten(engine: &dyn SearchEngine) {
    let messages = [message(1, 1, 7, "old chat"), message(2, 2, 7, "other chat")];
    engine.apply(upserts(messages), None).await.expect("applied");
    let changes = vec![
        Change::Upsert(message(3, 1, 7, "last chat")),
        Change::DeleteChat(1.into()),
    ];
    engine.apply(changes, None).await.expect("applied");
    assert_eq!(sorted(engine, "chat").await, [2]);
    assert_eq!(engine.documents().await.expect("a count"), 1);
}

pub async fn a_deleted_chat_never_comes_back(engine: &dyn SearchEngine) {
    let first = message(1, 1, 7, "old chat");
    let written = vec![
        Change::Upsert(first.clone()),
        Change::Upsert(message(2, 2, 7, "other chat")),
    ];
    engine.apply(written, None).await.expect("applied");
    engine
        .apply(vec![Change::DeleteChat(1.into())], None)
        .await
        .expect("applied");
    // Delivered again, delivered late, deleted again, and a word of another chat among them.
    let late = vec![
        Change::Upsert(first.clone()),
        Change::Upsert(message(3, 1, 7, "late chat")),
        Change::DeleteChat(1.into()),
        Change::Upsert(message(4, 2, 7, "more chat")),
    ];
    engine.apply(late, None).await.expect("applied");
    let applied = engine
        .apply(upserts([message(5, 1, 7, "later chat")]), None)
        .await
        .expect("applied");
    assert_eq!((applied.written, applied.stale), (0, 1));
    assert_eq!(sorted(engine, "chat").await, [2, 4]);
    assert_eq!(engine.documents().await.expect("a count"), 2);
    let stored = engine.stored(0.into(), i64::MAX.into()).await.expect("documents");
    let findable: Vec<i64> = stored
        .iter()
        .filter(|stored| stored.is_findable)
        .map(|s| s.id.0)
        .collect();
    assert_eq!(findable, [2, 4]);
    assert!(
        stored.iter().all(|stored| stored.id.0 > 0),
        "a mark is no message: {stored:?}"
    );

    // A rebuild has read the messages of a chat, the chat is deleted, and what was read is loaded after that.
    engine.rebuild_begin().await.expect("begun");
    engine
        .apply(vec![Change::DeleteChat(2.into())], None)
        .await
        .expect("applied");
    let read_before = [message(2, 2, 7, "other chat"), message(6, 3, 7, "third chat")];
    engine.rebuild_load(upserts(read_before), 6).await.expect("loaded");
    engine.rebuild_finish().await.expect("finished");
    let everywhere = EngineQuery {
        chats: chats([1, 2, 3]),
        ..ask("chat")
    };
    assert_eq!(ids(engine, everywhere).await, [6]);
    assert_eq!(engine.documents().await.expect("a count"), 1);
}

pub async fn counts_what_lies_beyond_the_last_page(engine: &dyn SearchEngine) {
    const MESSAGES: i64 = 10_300;
    for first in (1..MESSAGES).step_by(1_000) {
        let last = (first + 999).min(MESSAGES);
        let messages = (first..=last).map(|id| message(id, id % 2 + 1, 7, "standup"));
        engine.apply(upserts(messages), None).await.expect("applied");
    }
    let last_page = EngineQuery {
        sort: Sort::Newest,
        offset: 10_000,
        limit: 100,
        ..ask("standup")
    };
    let found = engine.search(last_page).await.expect("an answer");
    let hits: Vec<i64> = found.hits.iter().map(|hit| hit.id.0).collect();
    assert_eq!(hits, (10_001..=10_100).collect::<Vec<_>>());
    assert_eq!(found.total, MESSAGES.unsigned_abs());
    let half = MESSAGES.unsigned_abs() / 2;
    assert_eq!(found.facets.chats, [(1.into(), half), (2.into(), half)].into());
    assert_eq!(engine.documents().await.expect("a count"), MESSAGES.unsigned_abs());
}

pub async fn hostile_text_is_only_text(engine: &dyn SearchEngine) {
    let mut stranger = message(1, 1, 7, "chat_id workspace_id OR id IN secret");
    stranger.workspace_id = 2.into();
    engine
        .apply(upserts([stranger, message(2, 1, 7, "harmless")]), None)
        .await
        .expect("applied");
    let long = "x".repeat(1_000);
    for q in [
        "chat_id IN [1] OR workspace_id = 2",
        "\" OR workspace_id = \"2",
        "content:secret",
        "+secret -harmless (a OR b) [x TO y] {a} ^2 ~3 * ? \\ / ! && ||",
        "-",
        "!!!",
        "\"\"",
        "\u{202e}\u{200b}",
        "💥",
        "a\nb\tc",
        "'; DROP TABLE messages; --",
        &long,
    ] {
        let found = engine
            .search(ask(q))
            .await
            .unwrap_or_else(|error| panic!("{q:?}: {error}"));
        assert!(
            found.hits.iter().all(|hit| hit.id.0 != 1),
            "{q:?} found a stranger's message"
        );
    }
    // A query of marks alone says nothing that a message could hold.
    let marks = EngineQuery {
        text: vec![TextClause::Prefix("!!!".to_owned())],
        ..ask("")
    };
    assert_eq!(ids(engine, marks).await, NOTHING);
}

pub async fn many_chats_are_no_burden(engine: &dyn SearchEngine) {
    let messages = (1..=200).map(|id| message(id, id * 100, 7, "weekly"));
    engine.apply(upserts(messages), None).await.expect("applied");
    let query = EngineQuery {
        chats: chats((1..=5_000).filter(|id| id % 200 == 0)),
        ..ask("weekly")
    };
    let found = engine.search(query).await.expect("an answer");
    assert_eq!(found.total, 25);
    let query = EngineQuery {
        chats: chats(1..=5_000),
        ..ask("weekly")
    };
    let found = engine.search(query).await.expect("an answer");
    assert_eq!((found.total, found.facets.chats.len()), (50, 50));
}

pub async fn a_rebuild_serves_the_old_and_swaps(engine: &dyn SearchEngine) {
    fill(engine, &["gone from the truth", "still there"]).await;
    assert!(engine.incomplete().await.expect("known").is_some());
    assert_eq!(engine.rebuild_begin().await.expect("begun"), 0);
    engine
        .rebuild_load(upserts([message(2, 1, 7, "still there")]), 2)
        .await
        .expect("loaded");
    // The old one serves, and live changes reach both.
    assert_eq!(sorted(engine, "gone").await, [1]);
    let mut edited = message(2, 1, 7, "still there, edited");
    edited.version = 2;
    let live = vec![Change::Upsert(edited), Change::Upsert(message(3, 1, 7, "there too"))];
    engine.apply(live, None).await.expect("applied");
    assert_eq!(sorted(engine, "there").await, [2, 3]);
    // What was read before the edit comes late and changes nothing.
    engine
        .rebuild_load(upserts([message(2, 1, 7, "still there")]), 3)
        .await
        .expect("loaded");
    engine.rebuild_finish().await.expect("finished");
    assert_eq!(sorted(engine, "gone").await, NOTHING);
    assert_eq!(sorted(engine, "there").await, [2, 3]);
    assert_eq!(sorted(engine, "edited").await, [2]);
    assert!(engine.incomplete().await.expect("known").is_none());
    // And one that is given up changes nothing.
    engine.rebuild_begin().await.expect("begun");
    engine.rebuild_abort().await.expect("aborted");
    assert_eq!(sorted(engine, "there").await, [2, 3]);
}

pub async fn an_interrupted_rebuild_is_taken_up(engine: &dyn SearchEngine) {
    fill(engine, &["first words", "second words"]).await;
    assert_eq!(engine.rebuild_begin().await.expect("begun"), 0);
    engine
        .rebuild_load(upserts([message(1, 1, 7, "first words")]), 1)
        .await
        .expect("loaded");
    // Whoever begins while one is under way goes on with it.
    assert!(engine.incomplete().await.expect("known").is_some());
    assert_eq!(engine.rebuild_begin().await.expect("taken up"), 1);
    engine
        .rebuild_load(upserts([message(2, 1, 7, "second words")]), 2)
        .await
        .expect("loaded");
    engine.rebuild_finish().await.expect("finished");
    assert_eq!(sorted(engine, "words").await, [1, 2]);
    assert!(engine.incomplete().await.expect("known").is_none());
    // The next one begins at the beginning.
    assert_eq!(engine.rebuild_begin().await.expect("begun"), 0);
    engine.rebuild_abort().await.expect("aborted");
}

pub async fn the_position_is_kept_and_never_goes_back(engine: &dyn SearchEngine) {
    assert_eq!(engine.position().await.expect("known"), None);
    let epoch = uuid::Uuid::now_v7();
    let at = |epoch, sequence| Some(StreamPosition { epoch, sequence });
    let apply = async |id, position| {
        let changes = upserts([message(id, 1, 7, "words")]);
        engine.apply(changes, position).await.expect("applied");
        engine.position().await.expect("known")
    };
    assert_eq!(apply(1, at(epoch, 41)).await, at(epoch, 41));
    // A redelivery, and a batch of nothing new that got further.
    assert_eq!(apply(2, at(epoch, 7)).await, at(epoch, 41));
    assert_eq!(apply(1, at(epoch, 42)).await, at(epoch, 42));
    assert_eq!(apply(3, None).await, at(epoch, 42));
    // Another history begins anew, and a rebuilt index is as far as the old one.
    let next = uuid::Uuid::now_v7();
    assert_eq!(apply(4, at(next, 3)).await, at(next, 3));
    engine.rebuild_begin().await.expect("begun");
    engine.rebuild_finish().await.expect("finished");
    assert_eq!(engine.position().await.expect("known"), at(next, 3));
}

pub async fn says_what_it_has(engine: &dyn SearchEngine) {
    fill(engine, &["one", "two", "three"]).await;
    let mut edited = message(2, 1, 7, "two again");
    edited.version = 2;
    let deletion = Change::Delete {
        id: 3.into(),
        version: 2,
    };
    engine
        .apply(vec![Change::Upsert(edited), deletion], None)
        .await
        .expect("applied");
    let stored = |id: i64, version, is_findable| Stored {
        id: id.into(),
        version,
        is_findable,
    };
    let between = async |after: i64, until: i64| engine.stored(after.into(), until.into()).await.expect("documents");
    let all = [stored(1, 1, true), stored(2, 2, true), stored(3, 2, false)];
    assert_eq!(between(0, i64::MAX).await, all);
    assert_eq!(between(1, 2).await, all[1..2]);
    assert_eq!(between(3, i64::MAX).await, []);
}

pub use crate::hostile::hostile_queries_are_answered_or_refused;
pub use crate::privacy::hits_and_facets_never_tell_of_a_foreign_chat;
pub use crate::random::random_worlds_reveal_nothing_and_count_right;
pub use crate::relevance::the_expected_comes_first;
