//! What waits for a stream, and how it ends.

use super::*;
use time::OffsetDateTime;

fn connection(live_bytes_max: usize) -> Connection {
    let owner = Owner {
        user: UserId(1),
        workspace: WorkspaceId(1),
        session: Uuid::nil(),
        ticket: None,
    };
    Connection::new(1, owner, live_bytes_max)
}

fn event(sequence: u64, chat: i64, bytes: usize) -> Arc<Entry> {
    Arc::new(Entry {
        sequence,
        route: Route::Chat(ChatId(chat)),
        frame: Bytes::from(vec![b'x'; bytes]),
        time: OffsetDateTime::UNIX_EPOCH,
        context: None,
    })
}

#[derive(Debug, PartialEq)]
enum Taken {
    Events(Vec<u64>),
    Nothing,
    End,
}

fn take(connection: &Connection) -> Taken {
    let mut context = Context::from_waker(Waker::noop());
    match connection.poll_next(&mut context) {
        Poll::Ready(Some(batch)) => Taken::Events(batch.events.iter().map(|entry| entry.sequence).collect()),
        Poll::Ready(None) => Taken::End,
        Poll::Pending => Taken::Nothing,
    }
}

#[test]
fn a_slow_reader_ends_and_holds_nothing() {
    let connection = connection(1_000);
    assert!((1..=10).all(|sequence| connection.push(&event(sequence, 1, 100))));
    assert_eq!(connection.live_bytes(), 1_000);
    assert!(!connection.push(&event(11, 1, 1)));
    assert_eq!((connection.ended(), connection.live_bytes()), (Some(End::Slow), 0));
    assert_eq!(take(&connection), Taken::End);
}

#[test]
fn the_backlog_has_a_bound_of_its_own_and_comes_first() {
    let connection = connection(100);
    connection.begin((1..=5).map(|sequence| event(sequence, 1, 1_000)).collect(), 0);
    assert!(connection.push(&event(6, 1, 100)));
    assert!(!connection.push_ephemeral(EphemeralKey::Presence(UserId(2)), &Bytes::from_static(b"p")));
    assert_eq!(take(&connection), Taken::Events(vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(connection.live_bytes(), 0);
    assert_eq!(take(&connection), Taken::Nothing);
}

#[test]
fn large_queues_are_written_in_parts_and_one_large_event_alone() {
    let connection = connection(1 << 20);
    for sequence in 1..=3 {
        connection.push(&event(sequence, 1, WRITE_BYTES / 2));
    }
    connection.push(&event(4, 1, WRITE_BYTES * 3));
    assert_eq!(take(&connection), Taken::Events(vec![1, 2]));
    assert_eq!(take(&connection), Taken::Events(vec![3]));
    assert_eq!(take(&connection), Taken::Events(vec![4]));
}

#[test]
fn what_waits_of_a_chat_is_taken_back_on_leaving_it() {
    let connection = connection(1_000);
    connection.begin(VecDeque::from([event(1, 7, 10), event(2, 8, 10)]), 0);
    for (sequence, chat) in [(3, 7), (4, 8), (5, 7)] {
        connection.push(&event(sequence, chat, 10));
    }
    connection.push_ephemeral(EphemeralKey::Typing(ChatId(7), UserId(2)), &Bytes::from_static(b"t"));
    connection.cut(ChatId(7), 5);
    assert_eq!(connection.live_bytes(), 20);
    assert_eq!(take(&connection), Taken::Events(vec![2, 4, 5]));
    assert_eq!(take(&connection), Taken::Nothing);
}

#[test]
fn what_the_client_knows_is_not_sent_again_until_a_gap() {
    let connection = connection(1_000);
    connection.begin(VecDeque::new(), 10);
    connection.push(&event(10, 1, 1));
    connection.push(&event(11, 1, 1));
    assert_eq!(take(&connection), Taken::Events(vec![11]));
    let at = Cursor {
        epoch: Uuid::nil(),
        sequence: 3,
    };
    assert_eq!(connection.idle_cursor(at).unwrap().sequence, 10);
    connection.push(&event(12, 1, 1));
    assert_eq!(connection.idle_cursor(at), None);
    connection.gap("history_changed", at);
    connection.push(&event(4, 1, 1));
    assert_eq!(take(&connection), Taken::Events(vec![0, 4]));
}

#[test]
fn a_revoked_stream_says_so_and_nothing_else() {
    let connection = connection(1_000);
    connection.push(&event(1, 1, 1));
    connection.end(End::Revoked);
    assert!(connection.push(&event(2, 1, 1)));
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(Some(batch)) = connection.poll_next(&mut context) else {
        panic!("nothing to write");
    };
    let text = String::from_utf8(batch.events[0].frame.to_vec()).unwrap();
    assert_eq!(batch.events.len(), 1);
    assert!(
        text.starts_with("event: reauth\ndata: {\"reason\":\"session_revoked\"}"),
        "{text}"
    );
    assert_eq!(take(&connection), Taken::End);
}

#[test]
fn ephemeral_events_are_coalesced_and_bounded() {
    let connection = connection(1_000);
    for round in 0..100_i64 {
        connection.push_ephemeral(EphemeralKey::Presence(UserId(1)), &Bytes::from_static(b"p"));
        connection.push_ephemeral(EphemeralKey::Presence(UserId(round)), &Bytes::from_static(b"p"));
    }
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(Some(batch)) = connection.poll_next(&mut context) else {
        panic!("nothing to write");
    };
    assert_eq!(batch.ephemeral.len(), EPHEMERAL_MAX);
}
