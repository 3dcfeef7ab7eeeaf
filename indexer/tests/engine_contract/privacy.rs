//! Random workspaces, memberships and queries, over an index that lags behind what PostgreSQL says by now: hits, facets
//! and totals never tell of a chat that the searcher is not in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fechatter_core::chat::ChatKind;
use indexer::engine::{SearchEngine, Sort};
use indexer::services::search::{SearchError, SearchRequest};
use migrations::rows;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use time::OffsetDateTime;

use crate::world::World;

const CASES: u32 = 12;
const PEOPLE: usize = 4;
/// Far enough apart that no typo makes one of another.
const WORDS: [&str; 5] = ["apple", "quartz", "zebra", "monkey", "violin"];

/// What happens after the index was written and is not told to it.
#[derive(Debug, Clone, Copy)]
enum Later {
    Leave { chat: usize, person: usize },
    Join { chat: usize, person: usize },
    DeleteChat { chat: usize },
    DeleteMessage { message: usize },
    Rename { chat: usize },
}

#[derive(Debug, Clone, Copy)]
struct Ask {
    workspace: usize,
    person: usize,
    word: usize,
    /// Asks for one chat by id, of any workspace.
    chat: Option<usize>,
    /// Asks for the chats called "shared".
    by_name: bool,
    kind: Option<usize>,
    sender: Option<usize>,
    newest: bool,
}

#[derive(Debug, Clone)]
struct Plan {
    /// Workspace, kind and members of each chat.
    chats: Vec<(usize, usize, [bool; PEOPLE])>,
    /// Chat, sender and word of each message; the sender need not be a member any more.
    messages: Vec<(usize, usize, usize)>,
    later: Vec<Later>,
    asks: Vec<Ask>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let later = (0..5_usize, 0..64_usize, 0..PEOPLE).prop_map(|(what, n, person)| match what {
        0 => Later::Leave { chat: n, person },
        1 => Later::Join { chat: n, person },
        2 => Later::DeleteChat { chat: n },
        3 => Later::DeleteMessage { message: n },
        _ => Later::Rename { chat: n },
    });
    let ask = (
        (0..2_usize, 0..PEOPLE, 0..WORDS.len()),
        (
            proptest::option::weighted(0.2, 0..64_usize),
            proptest::bool::weighted(0.2),
        ),
        (
            proptest::option::weighted(0.2, 0..3_usize),
            proptest::option::weighted(0.2, 0..PEOPLE),
        ),
        any::<bool>(),
    )
        .prop_map(
            |((workspace, person, word), (chat, by_name), (kind, sender), newest)| Ask {
                workspace,
                person,
                word,
                chat,
                by_name,
                kind,
                sender,
                newest,
            },
        );
    (
        proptest::collection::vec((0..2_usize, 0..3_usize, any::<[bool; PEOPLE]>()), 2..8),
        proptest::collection::vec((0..64_usize, 0..PEOPLE, 0..WORDS.len()), 1..30),
        proptest::collection::vec(later, 0..6),
        proptest::collection::vec(ask, 8..16),
    )
        .prop_map(|(chats, messages, later, asks)| Plan {
            chats,
            messages,
            later,
            asks,
        })
}

struct Chat {
    id: i64,
    workspace: usize,
    kind: ChatKind,
    owner: i64,
    members: BTreeSet<i64>,
    is_shared: bool,
    is_deleted: bool,
}

struct Message {
    id: i64,
    chat: usize,
    sender: i64,
    word: usize,
    is_deleted: bool,
}

/// What there is, as PostgreSQL has it in the end.
struct Model {
    workspaces: [i64; 2],
    people: [Vec<i64>; 2],
    chats: Vec<Chat>,
    messages: Vec<Message>,
}

const KINDS: [ChatKind; 3] = [ChatKind::Group, ChatKind::PrivateChannel, ChatKind::PublicChannel];

async fn build(world: &mut World, plan: &Plan) -> Model {
    let mut model = Model {
        workspaces: [0; 2],
        people: [Vec::new(), Vec::new()],
        chats: Vec::new(),
        messages: Vec::new(),
    };
    for side in 0..2 {
        let name = uuid::Uuid::now_v7().simple().to_string();
        let (workspace, owner) = rows::workspace(&world.pool, &name).await;
        model.workspaces[side] = workspace;
        model.people[side].push(owner);
        for n in 1..PEOPLE {
            let person = rows::user(&world.pool, workspace, &format!("Person {n}")).await;
            model.people[side].push(person);
        }
    }
    for (n, (workspace, kind, members)) in plan.chats.iter().enumerate() {
        let people = &model.people[*workspace];
        let mut members: Vec<i64> = people
            .iter()
            .zip(members)
            .filter_map(|(&person, &is_member)| is_member.then_some(person))
            .collect();
        if members.is_empty() {
            members.push(people[0]);
        }
        let (kind, is_shared) = (KINDS[*kind], n % 2 == 0);
        let name = if is_shared { "shared" } else { "other" };
        let id = world.chat(model.workspaces[*workspace], kind, name, &members).await;
        model.chats.push(Chat {
            id,
            workspace: *workspace,
            kind,
            owner: members[0],
            members: members.into_iter().collect(),
            is_shared: is_shared && kind.needs_name(),
            is_deleted: false,
        });
    }
    for &(chat, sender, word) in &plan.messages {
        let chat = chat % model.chats.len();
        let sender = model.people[model.chats[chat].workspace][sender];
        let now = OffsetDateTime::now_utc();
        let id = world.write(model.chats[chat].id, sender, WORDS[word], now).await;
        model.messages.push(Message {
            id,
            chat,
            sender,
            word,
            is_deleted: false,
        });
    }
    world.index().await;
    for &later in &plan.later {
        happen(world, &mut model, later).await;
    }
    model
}

async fn happen(world: &World, model: &mut Model, later: Later) {
    let execute = async |sql: &'static str, id: i64, person: i64| {
        sqlx::query(sql)
            .bind(id)
            .bind(person)
            .execute(&world.pool)
            .await
            .expect("a change");
    };
    let (chats, messages) = (model.chats.len(), model.messages.len());
    match later {
        Later::Leave { chat, person } => {
            let chat = &mut model.chats[chat % chats];
            let person = model.people[chat.workspace][person];
            if person != chat.owner && chat.members.remove(&person) {
                let sql = "DELETE FROM chat_members WHERE chat_id = $1 AND user_id = $2";
                execute(sql, chat.id, person).await;
            }
        }
        Later::Join { chat, person } => {
            let chat = &mut model.chats[chat % chats];
            let person = model.people[chat.workspace][person];
            if chat.members.insert(person) {
                let sql = "INSERT INTO chat_members (chat_id, user_id, workspace_id)
                           SELECT id, $2, workspace_id FROM chats WHERE id = $1";
                execute(sql, chat.id, person).await;
            }
        }
        Later::DeleteChat { chat } => {
            let chat = &mut model.chats[chat % chats];
            chat.is_deleted = true;
            execute(
                "UPDATE chats SET deleted_at = now() WHERE id = $1 AND $2 > 0",
                chat.id,
                1,
            )
            .await;
        }
        Later::DeleteMessage { message } => {
            let message = &mut model.messages[message % messages];
            if !std::mem::replace(&mut message.is_deleted, true) {
                let sql =
                    "UPDATE messages SET content = NULL, deleted_at = now(), version = 2 WHERE id = $1 AND $2 > 0";
                execute(sql, message.id, 1).await;
            }
        }
        Later::Rename { chat } => {
            let chat = &mut model.chats[chat % chats];
            if chat.kind.needs_name() {
                chat.is_shared = true;
                execute("UPDATE chats SET name = 'shared' WHERE id = $1 AND $2 > 0", chat.id, 1).await;
            }
        }
    }
}

/// Asks, and holds the answer against the model.
async fn verify(world: &World, model: &Model, ask: Ask) -> Result<(), TestCaseError> {
    let workspace = ask.workspace;
    let person = model.people[workspace][ask.person];
    let by_id = ask.chat.map(|chat| &model.chats[chat % model.chats.len()]);
    let sender = ask.sender.map(|sender| model.people[workspace][sender]);
    let kind = ask.kind.map(|kind| KINDS[kind]);
    let request = SearchRequest {
        q: format!("{}{}", WORDS[ask.word], if ask.by_name { " in:shared" } else { "" }),
        chat_id: by_id.map(|chat| chat.id.into()),
        sender_id: sender.map(Into::into),
        kind,
        sort: if ask.newest { Sort::Newest } else { Sort::Relevance },
        limit: 100,
        ..SearchRequest::default()
    };
    let answer = world.search(person, model.workspaces[workspace], &request).await;

    let is_member = |chat: &Chat| chat.workspace == workspace && !chat.is_deleted && chat.members.contains(&person);
    if let Some(chat) = by_id
        && !is_member(chat)
    {
        let may_know = chat.workspace == workspace && !chat.is_deleted && chat.kind == ChatKind::PublicChannel;
        let refused = match answer {
            Err(SearchError::NotMember) => may_know,
            Err(SearchError::UnknownChat) => !may_know,
            _ => false,
        };
        prop_assert!(refused, "{ask:?} of a chat that is not the searcher's");
        return Ok(());
    }
    let answer = answer.map_err(|error| TestCaseError::fail(error.to_string()))?;
    // What the index knows and the searcher may see: it may still count a message deleted a moment ago.
    let in_index: Vec<&Message> = model
        .messages
        .iter()
        .filter(|message| {
            let chat = &model.chats[message.chat];
            is_member(chat)
                && message.word == ask.word
                && by_id.is_none_or(|wanted| wanted.id == chat.id)
                && (!ask.by_name || chat.is_shared)
                && kind.is_none_or(|kind| kind == chat.kind)
                && sender.is_none_or(|sender| sender == message.sender)
        })
        .collect();
    let visible: BTreeSet<i64> = in_index
        .iter()
        .filter(|message| !message.is_deleted)
        .map(|message| message.id)
        .collect();
    let hits: BTreeSet<i64> = answer.hits.iter().map(|hit| hit.message.id.0).collect();
    prop_assert_eq!(&hits, &visible, "{:?}", ask);
    prop_assert_eq!(answer.hits.len(), hits.len(), "a hit came twice: {:?}", ask);
    prop_assert_eq!(answer.estimated_total, in_index.len() as u64, "{:?}", ask);
    let count = |key: &dyn Fn(&Message) -> i64| {
        let mut counts = BTreeMap::new();
        for message in &in_index {
            *counts.entry(key(message)).or_insert(0_u64) += 1;
        }
        counts
    };
    let chats: BTreeMap<i64, u64> = answer.chats.iter().map(|(chat, &n)| (chat.0, n)).collect();
    prop_assert_eq!(chats, count(&|message| model.chats[message.chat].id), "{:?}", ask);
    let senders: BTreeMap<i64, u64> = answer.senders.iter().map(|(sender, &n)| (sender.0, n)).collect();
    prop_assert_eq!(senders, count(&|message| message.sender), "{:?}", ask);
    let kinds: BTreeSet<&str> = answer.kinds.keys().copied().collect();
    let expected: BTreeSet<&str> = in_index
        .iter()
        .map(|message| model.chats[message.chat].kind.as_str())
        .collect();
    prop_assert_eq!(kinds, expected, "{:?}", ask);
    prop_assert_eq!(answer.days.values().sum::<u64>(), answer.estimated_total, "{:?}", ask);
    Ok(())
}

pub async fn hits_and_facets_never_tell_of_a_foreign_chat(engine: &Arc<dyn SearchEngine>) {
    // All cases share one database and one index, so that each is surrounded by the others' messages.
    let mut world = World::new(Arc::clone(engine)).await;
    let config = Config {
        cases: CASES,
        max_shrink_iters: 100,
        failure_persistence: None,
        ..Config::default()
    };
    // The same cases each time: what fails once fails again.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let handle = tokio::runtime::Handle::current();
    let world = std::cell::RefCell::new(&mut world);
    tokio::task::block_in_place(|| {
        let result = runner.run(&plan(), |plan| {
            let mut world = world.borrow_mut();
            handle.block_on(async {
                let model = build(&mut world, &plan).await;
                for &ask in &plan.asks {
                    verify(&world, &model, ask).await?;
                }
                Ok(())
            })
        });
        if let Err(failure) = result {
            panic!("{failure}");
        }
    });
}
