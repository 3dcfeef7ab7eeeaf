//! The meeting of loads and events.

use std::collections::HashSet;

use fechatter_core::{ChatId, UserId, WorkspaceId};
use time::{Duration, OffsetDateTime};

use super::*;
use crate::event::Route;

const ADA: UserId = UserId(1);
const BOB: UserId = UserId(2);
const CHAT: ChatId = ChatId(10);

fn at(second: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(second)
}

fn loaded(seats: &[(ChatId, i64)], second: i64) -> Loaded {
    Loaded {
        workspace: WorkspaceId(1),
        seats: seats.to_vec(),
        ended: Vec::new(),
        at: at(second),
    }
}

fn with(user: UserId, seats: &[(ChatId, i64)], second: i64) -> Membership {
    let mut membership = Membership::default();
    membership.begin_load(user);
    assert_eq!(membership.finish_load(user, loaded(seats, second)), LoadEnd::Ready);
    membership
}

fn added(user: UserId, version: i64) -> Route {
    Route::MemberAdded {
        chat: CHAT,
        version,
        user,
    }
}

fn removed(user: UserId, version: i64) -> Route {
    Route::MemberRemoved {
        chat: CHAT,
        version,
        user,
    }
}

#[test]
fn a_removal_that_the_load_has_seen_is_ignored_a_newer_one_counts() {
    let mut membership = with(ADA, &[(CHAT, 5)], 100);
    assert_eq!(membership.apply(&removed(ADA, 5), at(90), None), Effect::None);
    assert!(membership.is_member(ADA, CHAT));
    assert_eq!(
        membership.apply(&removed(ADA, 6), at(101), None),
        Effect::Left { chat: CHAT, user: ADA }
    );
    assert!(!membership.is_member(ADA, CHAT));
    assert_eq!(membership.members(CHAT).count(), 0);
}

#[test]
fn an_addition_after_the_load_counts_an_older_one_is_asked_about() {
    let mut membership = with(ADA, &[], 100);
    assert_eq!(membership.questions(&added(ADA, 3), at(101), None), None);
    assert_eq!(
        membership.questions(&added(ADA, 3), at(100), None),
        Some((CHAT, vec![ADA]))
    );
    // Unanswered, or answered with no: not let in.
    membership.apply(&added(ADA, 3), at(99), None);
    assert!(!membership.is_member(ADA, CHAT));
    membership.apply(&added(ADA, 3), at(99), Some(&Verdict::default()));
    assert!(!membership.is_member(ADA, CHAT));
    // Answered with yes, as of version 7: removals up to 7 are in the answer.
    let yes = Verdict {
        asked: HashSet::from([ADA]),
        version: 7,
        members: HashSet::from([ADA]),
    };
    assert_eq!(membership.questions(&added(ADA, 3), at(99), Some(&yes)), None);
    membership.apply(&added(ADA, 3), at(99), Some(&yes));
    assert_eq!(membership.apply(&removed(ADA, 7), at(99), None), Effect::None);
    assert!(membership.is_member(ADA, CHAT));
    assert!(matches!(
        membership.apply(&removed(ADA, 8), at(102), None),
        Effect::Left { .. }
    ));
}

#[test]
fn changes_during_a_load_are_settled_at_its_end() {
    // Removed while loading, and the load did not see it.
    let mut membership = Membership::default();
    membership.begin_load(ADA);
    membership.apply(&removed(ADA, 6), at(100), None);
    assert_eq!(membership.finish_load(ADA, loaded(&[(CHAT, 5)], 100)), LoadEnd::Ready);
    assert!(!membership.is_member(ADA, CHAT));
    // Removed while loading, added again, and the load saw both.
    membership.begin_load(ADA);
    membership.apply(&removed(ADA, 6), at(100), None);
    assert_eq!(membership.finish_load(ADA, loaded(&[(CHAT, 7)], 100)), LoadEnd::Ready);
    assert!(membership.is_member(ADA, CHAT));
    // Added while loading and absent from the load: before or after it? Only another load can tell.
    membership.begin_load(ADA);
    membership.apply(&added(ADA, 8), at(100), None);
    assert_eq!(membership.finish_load(ADA, loaded(&[], 100)), LoadEnd::Again);
    membership.begin_load(ADA);
    assert_eq!(membership.finish_load(ADA, loaded(&[(CHAT, 8)], 101)), LoadEnd::Ready);
    // The chat ended while loading.
    membership.begin_load(ADA);
    membership.apply(&Route::ChatDeleted(CHAT), at(102), None);
    assert_eq!(membership.finish_load(ADA, loaded(&[(CHAT, 8)], 102)), LoadEnd::Ready);
    assert!(!membership.is_member(ADA, CHAT));
    assert!(membership.may_see(ADA, &Route::ChatDeleted(CHAT)));
}

#[test]
fn a_deleted_chat_is_over_for_everybody_and_no_old_event_revives_it() {
    let mut membership = with(ADA, &[(CHAT, 1)], 100);
    membership.begin_load(BOB);
    membership.finish_load(BOB, loaded(&[(CHAT, 1)], 100));
    membership.apply(&Route::ChatDeleted(CHAT), at(101), None);
    membership.apply(&added(ADA, 9), at(102), None);
    for user in [ADA, BOB] {
        assert!(!membership.is_member(user, CHAT));
        assert!(!membership.may_see(user, &Route::Chat(CHAT)));
    }
}

#[test]
fn a_new_history_brings_old_additions_that_are_asked_about() {
    let mut membership = with(ADA, &[], 100);
    membership.apply(&added(ADA, 1), at(110), None);
    membership.apply(&removed(ADA, 2), at(120), None);
    membership.doubt_until(at(120));
    assert!(membership.questions(&added(ADA, 1), at(110), None).is_some());
    membership.apply(&added(ADA, 1), at(110), None);
    assert!(!membership.is_member(ADA, CHAT));
}

#[test]
fn who_may_see_what_in_replay() {
    let membership = with(ADA, &[(CHAT, 4)], 100);
    let other = ChatId(11);
    let read = |chat, reader, shared| Route::Read { chat, reader, shared };
    for (route, visible) in [
        (Route::Chat(CHAT), true),
        (Route::Chat(other), false),
        (added(BOB, 2), true),
        (removed(BOB, 3), true),
        // One's own removal is the last that is seen of a chat.
        (
            Route::MemberRemoved {
                chat: other,
                version: 1,
                user: ADA,
            },
            true,
        ),
        (
            Route::MemberRemoved {
                chat: other,
                version: 1,
                user: BOB,
            },
            false,
        ),
        (
            Route::MemberAdded {
                chat: other,
                version: 1,
                user: ADA,
            },
            false,
        ),
        (read(CHAT, ADA, false), true),
        (read(CHAT, BOB, false), false),
        (read(CHAT, BOB, true), true),
        (read(other, ADA, true), false),
        (Route::ChatDeleted(other), false),
        (
            Route::User {
                workspace: WorkspaceId(1),
                user: BOB,
                deactivated: false,
            },
            true,
        ),
        (
            Route::User {
                workspace: WorkspaceId(2),
                user: BOB,
                deactivated: false,
            },
            false,
        ),
        (
            Route::SessionRevoked {
                session: uuid::Uuid::nil(),
                user: ADA,
            },
            false,
        ),
    ] {
        assert_eq!(membership.may_see(ADA, &route), visible, "{route:?}");
        assert!(!membership.may_see(UserId(99), &route), "a user not known sees nothing");
    }
}

#[test]
fn forgetting_leaves_nothing_behind() {
    let mut membership = with(ADA, &[(CHAT, 1)], 100);
    membership.forget(ADA);
    assert!(membership.is_empty() && !membership.knows(ADA));
    assert!(membership.chats.is_empty() && membership.workspaces.is_empty());
}
