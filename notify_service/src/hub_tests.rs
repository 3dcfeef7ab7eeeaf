//! What happens between two steps that each take the lock.

use std::collections::HashSet;

use fechatter_core::WorkspaceId;

use super::*;
use crate::connection::Owner;
use crate::metrics::Source;

const ADA: UserId = UserId(1);
const BOB: UserId = UserId(2);
const CHAT: ChatId = ChatId(10);
const WORKSPACE: WorkspaceId = WorkspaceId(1);

fn hub() -> Hub {
    let config = serde_json::from_str(r#"{"database": {"url": "postgres://x"}}"#).expect("a configuration");
    let hub = Hub::new(&config, Metrics::default());
    hub.begin_history(Uuid::nil(), 0, None);
    hub.set_caught_up();
    hub
}

fn at(second: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second)
}

fn loaded(seats: &[(ChatId, i64)], second: i64) -> Loaded {
    Loaded {
        workspace: WORKSPACE,
        seats: seats.to_vec(),
        ended: Vec::new(),
        at: at(second),
    }
}

fn load(hub: &Hub, user: UserId, seats: &[(ChatId, i64)], second: i64) {
    hub.begin_load(&[user]);
    assert_eq!(hub.finish_load(user, loaded(seats, second)), LoadEnd::Ready);
}

fn entry(sequence: u64, route: Route, second: i64) -> Arc<Entry> {
    Arc::new(Entry {
        sequence,
        route,
        frame: Bytes::from(format!("id: {sequence}\n\n")),
        time: at(second),
        context: None,
    })
}

fn request(user: UserId, requested: Requested) -> JoinRequest {
    JoinRequest {
        owner: Owner {
            user,
            workspace: WORKSPACE,
            session: Uuid::nil(),
            ticket: None,
        },
        requested,
        is_loaded: false,
        fetched: None,
        is_ahead_confirmed: false,
        gap: None,
    }
}

fn join(hub: &Hub, user: UserId, requested: Requested) -> Join {
    hub.join(&mut request(user, requested))
}

fn joined(hub: &Hub, user: UserId, requested: Requested) -> (Arc<Connection>, Begun) {
    match join(hub, user, requested) {
        Join::Joined(connection, begun) => (connection, begun),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_comes_to_be_known_while_an_addition_is_asked_about_is_asked_about_too() {
    let hub = hub();
    load(&hub, ADA, &[], 100);
    let created = entry(
        1,
        Route::ChatCreated {
            chat: CHAT,
            version: 3,
            members: [ADA, BOB].into(),
        },
        90,
    );
    // Bob's load has begun, and its snapshot is older than the commit.
    hub.begin_load(&[BOB]);
    let ask = |users: &[UserId]| Published::Ask {
        chat: CHAT,
        users: users.to_vec(),
    };
    assert_eq!(hub.publish(&created, None), ask(&[ADA]));
    assert_eq!(hub.finish_load(BOB, loaded(&[], 100)), LoadEnd::Ready);
    let verdict = |users: &[UserId]| Verdict {
        asked: users.iter().copied().collect(),
        version: 3,
        members: HashSet::from([ADA, BOB]),
    };
    assert_eq!(hub.publish(&created, Some(&verdict(&[ADA]))), ask(&[ADA, BOB]));
    assert_eq!(hub.position().unwrap().sequence, 0, "nothing has happened yet");
    let (_bob, _) = joined(&hub, BOB, Requested::Start);
    assert_eq!(hub.publish(&created, Some(&verdict(&[ADA, BOB]))), Published::To(1));
    assert_eq!(hub.is_member(ADA, CHAT), Some(true));
    assert_eq!(hub.is_member(BOB, CHAT), Some(true));
}

#[test]
fn who_could_not_be_asked_about_is_forgotten_and_the_event_goes_on() {
    let hub = hub();
    load(&hub, ADA, &[], 100);
    let (ada, _) = joined(&hub, ADA, Requested::Start);
    let added = entry(
        1,
        Route::MemberAdded {
            chat: CHAT,
            version: 3,
            user: ADA,
        },
        90,
    );
    let Published::Ask { users, .. } = hub.publish(&added, None) else {
        panic!("an old addition is asked about");
    };
    hub.doubt(&users);
    assert_eq!(hub.publish(&added, None), Published::To(0));
    assert_eq!(ada.ended(), Some(End::Replaced));
    assert!(!hub.knows(ADA));
}

fn frames(connection: &Connection) -> Vec<String> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut frames = Vec::new();
    while let std::task::Poll::Ready(Some(batch)) = connection.poll_next(&mut context) {
        let texts = batch
            .events
            .iter()
            .map(|entry| String::from_utf8_lossy(&entry.frame).into_owned());
        frames.extend(texts);
    }
    frames
}

fn after(sequence: u64) -> Requested {
    Requested::After(Cursor {
        epoch: Uuid::nil(),
        sequence,
    })
}

#[tokio::test(start_paused = true)]
async fn unreadable_events_are_told_of_at_a_bounded_rate_and_no_cursor_passes_one_untold() {
    let hub = hub();
    load(&hub, ADA, &[(CHAT, 1)], 100);
    let (ada, _) = joined(&hub, ADA, Requested::Start);
    frames(&ada);
    let message = |sequence| entry(sequence, Route::Chat(CHAT), 101);
    let is_gap =
        |frames: &[String]| frames.len() == 1 && frames[0].contains("event: gap") && frames[0].contains("lost");

    hub.unreadable_event(1, false);
    assert!(is_gap(&frames(&ada)));
    assert_eq!(hub.publish(&message(2), None), Published::To(1));
    assert_eq!(frames(&ada).len(), 1);
    for sequence in 3..100 {
        hub.unreadable_event(sequence, false);
    }
    assert_eq!(hub.publish(&message(100), None), Published::To(0));
    hub.tell_owed_gap();
    assert_eq!((frames(&ada), hub.position()), (vec![], None));
    // Who comes meanwhile is told at once.
    assert_eq!(joined(&hub, ADA, after(2)).1, Begun::Gap("events_lost"));

    tokio::time::advance(TOLD_EVERY).await;
    hub.tell_owed_gap();
    let told = frames(&ada);
    assert!(is_gap(&told) && told[0].contains(".100\n"), "{told:?}");
    assert_eq!(hub.position().map(|at| at.sequence), Some(100));
    hub.tell_owed_gap();
    hub.publish(&message(101), None);
    assert_eq!(frames(&ada).len(), 1);
    assert!(matches!(
        joined(&hub, ADA, after(99)).1,
        Begun::Resumed { count: 2, .. }
    ));
}

#[test]
fn while_events_do_not_arrive_known_users_are_loaded_for_each_stream() {
    let hub = hub();
    load(&hub, ADA, &[(CHAT, 1)], 100);
    let (ada, _) = joined(&hub, ADA, Requested::Start);
    frames(&ada);
    hub.publish(&entry(1, Route::Chat(CHAT), 101), None);
    hub.set_interrupted();
    assert!(matches!(join(&hub, ADA, after(0)), Join::NotLoaded));
    assert_eq!((hub.is_member(ADA, CHAT), hub.is_known_now(ADA)), (None, false));

    load(&hub, ADA, &[], 102);
    assert_eq!(
        frames(&ada),
        Vec::<String>::new(),
        "what waits of the chat is taken back"
    );
    let mut request = request(ADA, after(0));
    request.is_loaded = true;
    assert!(matches!(
        hub.join(&mut request),
        Join::Joined(_, Begun::Resumed { count: 0, .. })
    ));
    // Another stream, another load.
    assert!(matches!(join(&hub, ADA, after(0)), Join::NotLoaded));

    hub.set_caught_up();
    assert_eq!(hub.is_member(ADA, CHAT), Some(false));
    joined(&hub, ADA, after(0));
}

#[test]
fn what_was_read_back_is_read_again_for_who_may_see_more_by_now() {
    let hub = hub();
    load(&hub, ADA, &[(CHAT, 1)], 100);
    let other = ChatId(11);
    let message = |sequence, chat| entry(sequence, Route::Chat(chat), 101);
    let added = Route::MemberAdded {
        chat: other,
        version: 1,
        user: ADA,
    };
    // Nothing of this is in memory any more.
    hub.core().ring = Ring::new(0, 0);
    hub.publish(&message(1, other), None);
    hub.publish(&message(2, CHAT), None);
    let mut request = request(ADA, after(0));
    let read = |hub: &Hub| {
        let events = [message(1, other), message(2, CHAT), message(3, CHAT)];
        let (view, entries) = hub.visible(ADA, None, &events[..]).unwrap();
        Fetched {
            upto: 3,
            entries,
            view: Some(view),
            ..Fetched::default()
        }
    };
    request.fetched = Some(read(&hub));
    hub.publish(&entry(3, added, 102), None);
    let Join::Fetch { after, upto, .. } = hub.join(&mut request) else {
        panic!("half of a chat");
    };
    assert_eq!((after, upto), (0, 3));
    request.fetched = Some(read(&hub));
    assert!(matches!(
        hub.join(&mut request),
        Join::Joined(
            _,
            Begun::Resumed {
                count: 3,
                source: Source::Stream
            }
        )
    ));
}

/// Asks as a client that has seen everything up to 0 and finds nothing of what follows in memory.
fn reading_back(hub: &Hub) -> JoinRequest {
    load(hub, ADA, &[(CHAT, 1)], 100);
    hub.core().ring = Ring::new(1, 1 << 20);
    for sequence in 1..=3 {
        hub.publish(&entry(sequence, Route::Chat(CHAT), 101), None);
    }
    request(ADA, after(0))
}

fn read_back(hub: &Hub, request: &mut JoinRequest, upto: u64) {
    let before = request.fetched.take().unwrap_or_default();
    let events: Vec<_> = (before.upto + 1..=upto)
        .map(|it| entry(it, Route::Chat(CHAT), 101))
        .collect();
    let (view, entries) = hub.visible(ADA, before.view, &events).unwrap();
    request.fetched = Some(Fetched {
        upto,
        entries: before.entries.into_iter().chain(entries).collect(),
        view: Some(view),
        ..Fetched::default()
    });
}

#[test]
fn what_leaves_memory_while_the_stream_is_read_back_is_read_too() {
    let hub = hub();
    let mut request = reading_back(&hub);
    let Join::Fetch { after: 0, upto, .. } = hub.join(&mut request) else {
        panic!("it is not in memory");
    };
    read_back(&hub, &mut request, upto);
    for sequence in 4..=6 {
        hub.publish(&entry(sequence, Route::Chat(CHAT), 101), None);
    }
    let Join::Fetch { after, upto: more, .. } = hub.join(&mut request) else {
        panic!("4 and 5 have left meanwhile");
    };
    assert_eq!((after, upto), (3, 3));
    read_back(&hub, &mut request, more);
    let Join::Joined(connection, Begun::Resumed { count: 6, .. }) = hub.join(&mut request) else {
        panic!("all of it is known now");
    };
    let sequences: Vec<String> = frames(&connection)[1..7].to_vec();
    assert_eq!(sequences, (1..=6).map(|it| format!("id: {it}\n\n")).collect::<Vec<_>>());
    // Live from here on.
    hub.publish(&entry(7, Route::Chat(CHAT), 102), None);
    assert_eq!(frames(&connection), ["id: 7\n\n"]);
}

#[test]
fn a_history_that_ends_while_it_is_read_back_is_a_gap() {
    let hub = hub();
    let mut request = reading_back(&hub);
    let Join::Fetch { upto, .. } = hub.join(&mut request) else {
        panic!("it is not in memory");
    };
    read_back(&hub, &mut request, upto);
    hub.begin_history(Uuid::from_u128(2), 0, Some(at(101)));
    hub.set_caught_up();
    let Join::Joined(connection, begun) = hub.join(&mut request) else {
        panic!("it can be told");
    };
    assert_eq!(begun, Begun::Gap("history_changed"));
    assert!(
        !frames(&connection)
            .iter()
            .any(|frame| frame.starts_with("id: ") && !frame.contains('.')),
        "nothing of the old"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_loss_that_may_have_moved_members_everybody_is_loaded_again() {
    let hub = hub();
    for user in [ADA, BOB] {
        load(&hub, user, &[(CHAT, 1)], 100);
    }
    let (ada, _) = joined(&hub, ADA, Requested::Start);
    frames(&ada);
    hub.unreadable_event(1, false);
    assert_eq!(hub.is_member(ADA, CHAT), Some(true), "it moved nobody");
    // In time to be told together with others.
    hub.unreadable_event(2, true);
    hub.unreadable_event(3, false);
    assert_eq!(hub.publish(&entry(4, Route::Chat(CHAT), 101), None), Published::To(0));
    hub.begin_load(&[BOB]);
    tokio::time::advance(TOLD_EVERY).await;
    hub.tell_owed_gap();
    assert_eq!(hub.doubtful().await, [ADA], "Bob has no stream and is forgotten");
    assert_eq!(hub.finish_load(BOB, loaded(&[(CHAT, 1)], 101)), LoadEnd::Again);
    for user in [ADA, BOB] {
        assert_eq!((hub.is_member(user, CHAT), hub.is_known_now(user)), (None, false));
        assert!(matches!(join(&hub, user, Requested::Start), Join::NotLoaded));
    }
    load(&hub, ADA, &[], 102);
    frames(&ada);
    assert_eq!(hub.publish(&entry(5, Route::Chat(CHAT), 103), None), Published::To(0));
    assert_eq!(hub.is_member(ADA, CHAT), Some(false));
    // Who leaves while in doubt is not remembered.
    hub.lost_events(7);
    hub.leave(&ada);
    assert!(hub.core().membership.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_may_have_been_removed_gets_nothing_until_that_is_known() {
    let hub = hub();
    for user in [ADA, BOB] {
        load(&hub, user, &[(CHAT, 1)], 100);
    }
    let (ada, _) = joined(&hub, ADA, Requested::Start);
    let (bob, _) = joined(&hub, BOB, Requested::Start);
    for connection in [&ada, &bob] {
        frames(connection);
    }
    // One of these removed Bob.
    hub.lost_events(5);
    assert_eq!(hub.doubtful().await.len(), 2);
    hub.publish(&entry(5, Route::Chat(CHAT), 101), None);
    // Others cannot be read meanwhile: that is told later, together.
    tokio::time::advance(TOLD_EVERY).await;
    hub.unreadable_event(6, false);
    let typing = EphemeralKey::Typing(CHAT, ADA);
    for connection in [&ada, &bob] {
        assert!(!connection.push_ephemeral(typing, &Bytes::from_static(b"typing")));
        assert_eq!(frames(connection), Vec::<String>::new());
        assert_eq!(
            connection.idle_cursor(hub.position().unwrap()),
            None,
            "no cursor passes what is owed"
        );
    }
    load(&hub, ADA, &[(CHAT, 1)], 102);
    load(&hub, BOB, &[], 102);
    for connection in [&ada, &bob] {
        let told = frames(connection);
        assert!(
            told.len() == 1 && told[0].contains("events_lost") && told[0].contains(".6\n"),
            "{told:?}"
        );
    }
    hub.publish(&entry(7, Route::Chat(CHAT), 103), None);
    assert_eq!((frames(&ada).len(), frames(&bob).len()), (1, 0));
}
