//! Reads back what the ring no longer holds, from the stream by sequence. What was read is kept for a while and shared:
//! many clients return after the same interruption.
//!
//! The stream holds everybody's events. Of each block a reader keeps only what its user may see, and no more of it than
//! a backlog may have, so that a reader holds a block and a backlog whatever it looks through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind};
use fechatter_core::UserId;
use fechatter_core::events::STREAM;
use futures::{StreamExt, TryStreamExt, stream};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::config::ReplayConfig;
use crate::cursor::Cursor;
use crate::event::{Entry, Headers, decode};
use crate::hub::{Fetched, Hub};
use crate::positions::Admission;

/// Events read and kept together.
const BLOCK: u64 = 256;
/// Events asked for at the same time.
const IN_FLIGHT: usize = 64;
/// Longest time for one client's backlog.
const PATIENCE: Duration = Duration::from_secs(15);

/// One sequence of the stream.
#[derive(Debug, Clone)]
struct Stored {
    sequence: u64,
    headers: Headers,
    /// None for an event that cannot be read.
    entry: Option<Arc<Entry>>,
}

type Block = Arc<[Stored]>;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<(Uuid, u64), Block> for ByBytes {
    fn weight(&self, _: &(Uuid, u64), block: &Block) -> u64 {
        let bytes: usize = block
            .iter()
            .map(|stored| size_of::<Stored>() + stored.entry.as_ref().map_or(0, |entry| entry.weight()))
            .sum();
        bytes.max(1) as u64
    }
}

/// Why the backlog is not to be had; the label is what the client's `gap` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayFault {
    /// The stream no longer holds it, or it is further back than we look.
    Expired,
    /// Too many read at once, or NATS is away.
    Unavailable,
    /// What is there has holes, or events that cannot be read.
    Lost,
    /// More than a backlog may have.
    TooMany,
}

impl ReplayFault {
    /// A bounded label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Unavailable => "replay_unavailable",
            Self::Lost => "events_lost",
            Self::TooMany => "too_many",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Replay {
    context: jetstream::Context,
    hub: Arc<Hub>,
    blocks: Cache<(Uuid, u64), Block, ByBytes>,
    turns: Turns,
    readers: Semaphore,
    config: ReplayConfig,
}

impl Replay {
    /// A reader of the stream behind `context`, for the users whom `hub` knows.
    pub fn new(context: jetstream::Context, hub: Arc<Hub>, config: &ReplayConfig) -> Self {
        Self {
            context,
            hub,
            blocks: Cache::with_weighter(1_024, config.cache_bytes, ByBytes),
            turns: Turns::default(),
            readers: Semaphore::new(config.concurrent),
            config: config.clone(),
        }
    }

    /// The stream's last sequence, if its history is `epoch`.
    pub async fn last_sequence(&self, epoch: Uuid) -> Option<u64> {
        let stream = self.context.get_stream(STREAM).await.ok()?;
        let info = stream.cached_info();
        (crate::consumer::epoch_of(info) == Some(epoch)).then_some(info.state.last_sequence)
    }

    /// Adds the events after `after` (or after what `fetched` has) up to `upto` that the user may see. A user's readers
    /// take turns. What the user may see can change meanwhile; then the answer says so by its view.
    pub async fn fetch(
        &self,
        user: UserId,
        epoch: Uuid,
        after: u64,
        upto: u64,
        fetched: Option<Fetched>,
    ) -> Result<Fetched, ReplayFault> {
        let read = async {
            let turn = self.turns.of(user);
            let _turn = turn.wait().await;
            let _permit = self.readers.acquire().await.map_err(|_| ReplayFault::Unavailable)?;
            self.read(user, epoch, after, upto, fetched.unwrap_or_default()).await
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .unwrap_or(Err(ReplayFault::Unavailable))
    }

    async fn read(
        &self,
        user: UserId,
        epoch: Uuid,
        after: u64,
        upto: u64,
        mut fetched: Fetched,
    ) -> Result<Fetched, ReplayFault> {
        if upto.saturating_sub(after) > self.config.max_scanned {
            return Err(ReplayFault::Expired);
        }
        let stream = self
            .context
            .get_stream(STREAM)
            .await
            .map_err(|_| ReplayFault::Unavailable)?;
        let info = stream.cached_info();
        if crate::consumer::epoch_of(info) != Some(epoch) {
            return Err(ReplayFault::Lost);
        }
        if after + 1 < info.state.first_sequence {
            return Err(ReplayFault::Expired);
        }
        for number in (after + 1) / BLOCK..=upto / BLOCK {
            let (first, last) = (number * BLOCK, number * BLOCK + BLOCK - 1);
            let block = if first >= info.state.first_sequence.max(1) && last <= upto {
                let read = self.read_range(&stream, epoch, first, last);
                self.blocks.get_or_insert_async(&(epoch, number), read).await?
            } else {
                // Not whole: part of it has left, or is still to come.
                self.read_range(&stream, epoch, first.max(after + 1), last.min(upto))
                    .await?
            };
            let asked = block
                .iter()
                .filter(|stored| stored.sequence > after && stored.sequence <= upto);
            if !take(&self.hub, user, epoch, asked, &self.config, &mut fetched)? {
                break;
            }
        }
        fetched.upto = upto;
        Ok(fetched)
    }

    async fn read_range(
        &self,
        stream: &jetstream::stream::Stream,
        epoch: Uuid,
        first: u64,
        last: u64,
    ) -> Result<Block, ReplayFault> {
        let stored: Vec<Option<Stored>> = stream::iter(first..=last)
            .map(|sequence| read_one(stream, epoch, sequence))
            .buffered(IN_FLIGHT)
            .try_collect()
            .await?;
        Ok(stored.into_iter().flatten().collect())
    }
}

/// Reads one sequence; `None` for one that holds no event of ours.
async fn read_one(
    stream: &jetstream::stream::Stream,
    epoch: Uuid,
    sequence: u64,
) -> Result<Option<Stored>, ReplayFault> {
    let unavailable = |error: &dyn std::fmt::Display| {
        tracing::debug!(%error, sequence, "cannot read the stream");
        ReplayFault::Unavailable
    };
    let message = match stream.direct_get(sequence).await {
        Ok(message) => message,
        // Any replica of the stream may have answered, also one that does not have it yet. The leader knows.
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => match stream.get_raw_message(sequence).await {
            Ok(message) => message,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                let info = stream.get_info().await.map_err(|error| unavailable(&error))?;
                return why_absent(&info, epoch, sequence).map_or(Ok(None), Err);
            }
            Err(error) => return Err(unavailable(&error)),
        },
        Err(error) => return Err(unavailable(&error)),
    };
    let Ok(headers) = Headers::of(&message.headers) else {
        return Ok(None);
    };
    let at = Cursor { epoch, sequence };
    let entry = decode(at, &message.headers, &message.payload).ok().map(Arc::new);
    Ok(Some(Stored {
        sequence,
        headers,
        entry,
    }))
}

/// Why the stream does not hold a sequence that it held when the reading began; nothing when an operator deleted it.
fn why_absent(info: &jetstream::stream::Info, epoch: Uuid, sequence: u64) -> Option<ReplayFault> {
    if crate::consumer::epoch_of(info) != Some(epoch) {
        return Some(ReplayFault::Lost);
    }
    // What leaves by age or size leaves from the front, also while it is being read.
    (sequence < info.state.first_sequence).then_some(ReplayFault::Expired)
}

/// Adds what the user may see of the events that follow. `false` when that is no longer what it was for those before.
fn take<'a>(
    hub: &Hub,
    user: UserId,
    epoch: Uuid,
    events: impl Iterator<Item = &'a Stored>,
    config: &ReplayConfig,
    fetched: &mut Fetched,
) -> Result<bool, ReplayFault> {
    let mut firsts = Vec::new();
    for stored in events.filter(|stored| stored.headers.epoch == epoch) {
        match fetched.positions.admit(stored.headers.shard, stored.headers.position) {
            Admission::New => {}
            Admission::Copy => continue,
            Admission::Jump { .. } => return Err(ReplayFault::Lost),
        }
        // Nobody knows whom an event that cannot be read concerned.
        firsts.push(Arc::clone(stored.entry.as_ref().ok_or(ReplayFault::Lost)?));
    }
    let Some((view, visible)) = hub.visible(user, fetched.view, &firsts) else {
        return Ok(false);
    };
    fetched.view = Some(view);
    for entry in visible {
        fetched.bytes += entry.frame.len();
        if fetched.entries.len() >= config.max_events || fetched.bytes > config.max_bytes {
            return Err(ReplayFault::TooMany);
        }
        fetched.entries.push(entry);
    }
    Ok(true)
}

/// Lets each user's readers read one after the other.
#[derive(Debug, Default)]
struct Turns {
    users: Mutex<HashMap<UserId, Arc<tokio::sync::Mutex<()>>>>,
}

/// A reader that reads or waits.
#[derive(Debug)]
struct Turn<'a> {
    turns: &'a Turns,
    user: UserId,
    lock: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl Turns {
    fn users(&self) -> MutexGuard<'_, HashMap<UserId, Arc<tokio::sync::Mutex<()>>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, user: UserId) -> Turn<'_> {
        let lock = Arc::clone(self.users().entry(user).or_default());
        Turn {
            turns: self,
            user,
            lock: Some(lock),
        }
    }
}

impl Turn<'_> {
    /// Waits until nobody before reads any more.
    async fn wait(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        match &self.lock {
            Some(lock) => Some(lock.lock().await),
            None => None,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut users = self.turns.users();
        self.lock = None;
        if users.get(&self.user).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            users.remove(&self.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Route;
    use crate::hub::LoadEnd;
    use crate::membership::Loaded;
    use crate::metrics::Metrics;
    use fechatter_core::{ChatId, WorkspaceId};
    use futures::FutureExt;
    use time::OffsetDateTime;

    const ADA: UserId = UserId(1);
    const HERS: ChatId = ChatId(10);
    const OTHERS: ChatId = ChatId(11);

    fn hub() -> Hub {
        let config = serde_json::from_str(r#"{"database": {"url": "postgres://x"}}"#).expect("a configuration");
        let hub = Hub::new(&config, Metrics::default());
        load(&hub, &[HERS]);
        hub
    }

    fn load(hub: &Hub, chats: &[ChatId]) {
        hub.begin_load(&[ADA]);
        let loaded = Loaded {
            workspace: WorkspaceId(1),
            seats: chats.iter().map(|chat| (*chat, 1)).collect(),
            ended: Vec::new(),
            at: OffsetDateTime::UNIX_EPOCH,
        };
        assert_eq!(hub.finish_load(ADA, loaded), LoadEnd::Ready);
    }

    fn config(max_events: usize, max_bytes: usize) -> ReplayConfig {
        ReplayConfig {
            max_events,
            max_bytes,
            ..ReplayConfig::default()
        }
    }

    fn event(sequence: u64, chat: ChatId, bytes: usize) -> Arc<Entry> {
        Arc::new(Entry {
            sequence,
            route: Route::Chat(chat),
            frame: vec![b'x'; bytes].into(),
            time: OffsetDateTime::UNIX_EPOCH,
            context: None,
        })
    }

    fn stored(events: &[(Uuid, i16, i64)]) -> Vec<Stored> {
        events
            .iter()
            .zip(1..)
            .map(|(&(epoch, shard, position), sequence)| Stored {
                sequence,
                headers: Headers { epoch, shard, position },
                entry: Some(event(sequence, HERS, 1)),
            })
            .collect()
    }

    fn taken(all: &[Stored], epoch: Uuid) -> Result<Vec<u64>, ReplayFault> {
        let mut fetched = Fetched::default();
        let is_taken = take(&hub(), ADA, epoch, all.iter(), &ReplayConfig::default(), &mut fetched)?;
        assert!(is_taken);
        Ok(fetched.entries.iter().map(|entry| entry.sequence).collect())
    }

    #[test]
    fn copies_and_other_histories_are_passed_over() {
        let (now, before) = (Uuid::now_v7(), Uuid::nil());
        let all = stored(&[
            (now, 1, 5),
            (now, 2, 1),
            (before, 1, 6),
            (now, 1, 6),
            (now, 1, 5),
            (now, 1, 7),
            (now, 1, 6),
            (now, 2, 2),
        ]);
        assert_eq!(taken(&all, now), Ok(vec![1, 2, 4, 6, 8]));
    }

    #[test]
    fn a_copy_of_what_came_before_the_cursor_is_passed_over() {
        let (hub, now) = (hub(), Uuid::now_v7());
        hub.begin_history(now, 0, None);
        // The consumer has seen 5 at its first place; whoever reads back from behind that has not.
        hub.skip_copy(1);
        let mut fetched = Fetched::default();
        let all = stored(&[(now, 1, 5), (now, 1, 6)]);
        take(&hub, ADA, now, all.iter(), &ReplayConfig::default(), &mut fetched).expect("both can be read");
        assert_eq!(
            fetched.entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(),
            [2]
        );
    }

    #[test]
    fn a_hole_is_no_copy() {
        let now = Uuid::now_v7();
        assert_eq!(taken(&stored(&[(now, 1, 5), (now, 1, 7)]), now), Err(ReplayFault::Lost));
        assert_eq!(taken(&[], now), Ok(vec![]));
    }

    #[test]
    fn an_event_that_cannot_be_read_is_lost_unless_it_is_a_copy() {
        let now = Uuid::now_v7();
        let mut all = stored(&[(now, 1, 5), (now, 1, 6), (now, 1, 5)]);
        all[2].entry = None;
        assert_eq!(taken(&all, now), Ok(vec![1, 2]));
        all[1].entry = None;
        assert_eq!(taken(&all, now), Err(ReplayFault::Lost));
    }

    #[test]
    fn a_reader_holds_what_its_user_may_see_and_no_more_than_a_backlog() {
        let hub = hub();
        let block = |number: i64| -> Vec<Stored> {
            (0..256)
                .map(|index| {
                    let position = number * 256 + index;
                    let sequence = u64::try_from(position).unwrap();
                    Stored {
                        sequence,
                        headers: Headers {
                            epoch: Uuid::nil(),
                            shard: 1,
                            position,
                        },
                        // One of a block is hers.
                        entry: Some(event(sequence, if index == 7 { HERS } else { OTHERS }, 1_000)),
                    }
                })
                .collect()
        };
        for (max_events, max_bytes, fitting) in [(20, 1 << 20, 20), (1_000, 10_000, 10)] {
            let config = config(max_events, max_bytes);
            let mut fetched = Fetched::default();
            for number in 0..fitting {
                let result = take(&hub, ADA, Uuid::nil(), block(number).iter(), &config, &mut fetched);
                assert_eq!(result, Ok(true));
                let expected = usize::try_from(number + 1).unwrap();
                assert_eq!((fetched.entries.len(), fetched.bytes), (expected, expected * 1_000));
            }
            let one_more = take(&hub, ADA, Uuid::nil(), block(fitting).iter(), &config, &mut fetched);
            assert_eq!(one_more, Err(ReplayFault::TooMany));
        }
    }

    #[test]
    fn who_may_see_more_than_when_it_was_read_is_not_given_half_of_it() {
        let hub = hub();
        let all = stored(&[(Uuid::nil(), 1, 1), (Uuid::nil(), 1, 2)]);
        let (first, second) = all.split_at(1);
        let mut fetched = Fetched::default();
        let mut take = |part: &[Stored], hub: &Hub| {
            take(
                hub,
                ADA,
                Uuid::nil(),
                part.iter(),
                &ReplayConfig::default(),
                &mut fetched,
            )
        };
        assert_eq!(take(first, &hub), Ok(true));
        load(&hub, &[HERS, OTHERS]);
        assert_eq!(take(second, &hub), Ok(false));
    }

    /// A stream of ten events, read by somebody who found all of them when they looked.
    async fn stream_of_ten(allow_direct: bool) -> (dev::nats::Server, jetstream::stream::Stream, Replay, Uuid) {
        let server = dev::nats::Server::temporary().expect("a server");
        let client = async_nats::connect(server.url()).await.expect("a connection");
        let (context, epoch) = (jetstream::new(client), Uuid::now_v7());
        let config = jetstream::stream::Config {
            name: STREAM.to_owned(),
            subjects: vec![fechatter_core::events::SUBJECTS.to_owned()],
            metadata: [(fechatter_core::events::METADATA_EPOCH.to_owned(), epoch.to_string())].into(),
            allow_direct,
            ..jetstream::stream::Config::default()
        };
        let stream = context.create_stream(config).await.expect("a stream");
        for position in 1..=10 {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert(fechatter_core::events::HEADER_EPOCH, epoch.to_string());
            headers.insert(fechatter_core::events::HEADER_SHARD, "1");
            headers.insert(fechatter_core::events::HEADER_POSITION, position.to_string());
            let sent = context.publish_with_headers("fechatter.1.chat.10.x", headers, "{}".into());
            sent.await.expect("sent").await.expect("stored");
        }
        let replay = Replay::new(context, Arc::new(hub()), &ReplayConfig::default());
        (server, stream, replay, epoch)
    }

    async fn sequences(
        replay: &Replay,
        stream: &jetstream::stream::Stream,
        epoch: Uuid,
    ) -> Result<Vec<u64>, ReplayFault> {
        let block = replay.read_range(stream, epoch, 1, 10).await?;
        Ok(block.iter().map(|stored| stored.sequence).collect())
    }

    #[tokio::test]
    async fn what_leaves_the_stream_while_it_is_read_is_missed_and_not_passed_over() {
        let (_server, stream, replay, epoch) = stream_of_ten(true).await;
        stream.delete_message(7).await.expect("an operator may");
        let all_but_one: Vec<u64> = (1..=10).filter(|sequence| *sequence != 7).collect();
        assert_eq!(sequences(&replay, &stream, epoch).await, Ok(all_but_one));
        // By age or size, between the look at the stream's beginning and the reading.
        stream.purge().sequence(5).await.expect("a purge");
        assert_eq!(sequences(&replay, &stream, epoch).await, Err(ReplayFault::Expired));
        // Another history has begun.
        let other = Uuid::now_v7();
        assert_eq!(sequences(&replay, &stream, other).await, Err(ReplayFault::Lost));
    }

    #[tokio::test]
    async fn what_a_replica_of_the_stream_does_not_have_yet_its_leader_has() {
        let (server, stream, replay, epoch) = stream_of_ten(false).await;
        crate::services::lagging_replica::answer(server.port(), &format!("$JS.API.DIRECT.GET.{STREAM}"));
        assert_eq!(sequences(&replay, &stream, epoch).await, Ok((1..=10).collect()));
    }

    #[tokio::test]
    async fn a_users_readers_take_turns_and_leave_nothing_behind() {
        let turns = Turns::default();
        {
            let (one, two, other) = (turns.of(ADA), turns.of(ADA), turns.of(UserId(2)));
            let reading = one.wait().await;
            let _other = other.wait().now_or_never().expect("another user does not wait");
            assert!(two.wait().now_or_never().is_none());
            drop(reading);
            drop(one);
            let _two = two.wait().now_or_never().expect("its turn");
        }
        assert!(turns.users().is_empty());
    }
}
