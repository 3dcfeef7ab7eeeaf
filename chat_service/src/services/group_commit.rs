//! Group commit: messages that arrive while statements are in flight wait and are then stored together, by one statement.
//!
//! A statement costs PostgreSQL as much as five more rows in one, and each commit waits for the disk. A message that finds
//! nothing in its way goes at once and alone, in its own request. How many go together follows from the load: once
//! [`STATEMENTS`] statements are under way, messages are collected, and no more than [`STATEMENTS_TOGETHER`] are under way until
//! nothing waits any more. A timer collects only while messages come fast ([`PACE`]).
//!
//! - Only who has sent to a chat before takes part. Anybody else's message goes alone and waits for nobody: who may not know of
//!   a chat neither keeps its members waiting nor learns from the time of the answer that they are writing.
//! - A chat is in one statement at a time, and messages of a chat keep the order in which they arrived.
//! - A statement of several waits for no row that somebody else holds. What it leaves out (because of a lock, no membership, a
//!   repeated idempotency key) its request sends alone afterwards, as if there were no batches. Until that is done, the chat's
//!   other messages wait: they would find the same lock and all go alone, for good.
//! - When the server refuses the whole statement, each of its messages goes alone. When nobody knows whether it was
//!   committed, each request fails, as one that was alone would: sending again might make a second message.
//! - A batch is a task of its own: a client that goes away takes nothing from the others.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fechatter_core::events::shard_of;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use observability::instruments::Instruments;
use observability::propagation;
use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::trace::TraceContextExt;
use quick_cache::sync::Cache;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{Instrument, Span};

use crate::error::Error;
use crate::repositories::messages::{MessageRow, NewMessage};
use crate::repositories::{Connection, Repositories, Store};

/// Statements that are under way before messages begin to wait for each other: fewer would keep them waiting at a load that single
/// statements bear.
const STATEMENTS: usize = 4;
/// Statements that are under way while messages wait for each other: fewer make larger batches, and one row of many costs a third.
const STATEMENTS_TOGETHER: usize = 1;
/// While messages come so fast that [`PAYS`] of them arrive in this time, a statement begins no sooner than this after the one before:
/// at a statement's own pace batches stay small, and each costs the processor as much as sixteen messages more in it.
const PACE: Duration = Duration::from_millis(5);
/// Messages in that time from which on a batch is worth the wait. Fewer go at once.
const PAYS: u32 = 16;
/// A statement that takes longer no longer keeps others from beginning: it waits for somebody's lock or for a slow disk.
const SLOW: Duration = Duration::from_millis(50);
/// Most messages of one statement.
const BATCH_MESSAGES: usize = 64;
/// Most bytes of content of one statement of several messages.
const BATCH_BYTES: usize = 1 << 20;
/// Messages that may wait, and bytes of their content; further ones are refused.
const WAITING_MESSAGES: usize = 8_192;
const WAITING_BYTES: usize = 32 << 20;
/// Senders and chats that are remembered, about 50 bytes each.
const SENDERS: usize = 100_000;
/// Longest wait for a turn, as long as for a connection.
const WAIT: Duration = Duration::from_secs(5);

/// Decides which messages are stored together; cheap to clone.
#[derive(Debug, Clone)]
pub struct GroupCommit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    state: Mutex<State>,
    /// Who has sent to which chat, and was not refused since.
    senders: Cache<(ChatId, UserId), ()>,
    /// Messages of one statement.
    sizes: Histogram<u64>,
    /// Messages that their batch left out.
    apart: Counter<u64>,
}

#[derive(Debug)]
struct State {
    /// Statements that may begin.
    free: usize,
    /// Messages wait for each other, not only for their chat.
    collects: bool,
    /// Chats that something under way writes to.
    busy: HashSet<ChatId>,
    /// In the order of arrival.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    next_ticket: u64,
}

/// A message that waits for its turn.
#[derive(Debug)]
struct Waiting {
    ticket: u64,
    workspace_id: WorkspaceId,
    chat_id: ChatId,
    sender_id: UserId,
    content: String,
    idempotency: Option<(String, Vec<u8>)>,
    traceparent: Option<String>,
    reply: oneshot::Sender<Result<Outcome, Error>>,
}

/// What became of a message that asked to be stored.
#[derive(Debug)]
pub enum Outcome {
    /// A batch stored it; `statement` is the `traceparent` of its span, if there is one.
    Stored { row: MessageRow, statement: Option<String> },
    /// It is its request's turn to store it.
    Turn(Turn),
}

/// May hold a message's chat, and one of the statements that may be under way, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    // In this order: the chat is free when the next statement begins.
    _claim: Option<Arc<Claim>>,
    slot: Option<Slot>,
}

/// Chats that nobody else sends to meanwhile.
#[derive(Debug)]
struct Claim {
    shared: Arc<Shared>,
    chats: Vec<ChatId>,
}

/// One of the statements that may be under way, and the connection that goes from one to the next while there is work: a pool would
/// ask it whether it lives each time.
#[derive(Debug)]
struct Slot {
    shared: Arc<Shared>,
    connection: Option<Connection>,
}

/// What may begin; to be started without the lock.
enum Start {
    Alone(Waiting, Turn),
    Batch(Vec<Waiting>, Claim, Slot),
}

impl GroupCommit {
    /// Messages go through `store`.
    pub fn new(store: Store) -> Self {
        let make = Instruments::of("chat_service");
        let apart = make.counter(
            "fechatter.send.apart",
            "{message}",
            "Messages that a statement of several left out and that were then sent alone",
        );
        Instruments::from_zero(&apart, "", &[]);
        Self(Arc::new(Shared {
            store,
            state: Mutex::new(State {
                free: STATEMENTS,
                collects: false,
                busy: HashSet::new(),
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                next_ticket: 0,
            }),
            senders: Cache::new(SENDERS),
            sizes: make
                .meter()
                .u64_histogram("fechatter.send.batch.size")
                .with_unit("{message}")
                .with_description("Messages that one statement stored")
                .with_boundaries(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
                .build(),
            apart,
        }))
    }

    /// Waits for a message's turn, or until a batch has stored it.
    ///
    /// # Errors
    /// Too many messages wait, this one waited for more than 5 s, or the statement of its batch failed and may have been committed.
    pub async fn join(&self, new: &NewMessage<'_>) -> Result<Outcome, Error> {
        if self.0.senders.get(&(new.chat_id, new.sender_id)).is_none() {
            return Ok(Outcome::Turn(Turn {
                _claim: None,
                slot: None,
            }));
        }
        let (ticket, mut receiver) = {
            let mut state = self.0.lock();
            if !state.collects && state.free > 0 && state.busy.insert(new.chat_id) {
                state.free -= 1;
                drop(state);
                return Ok(Outcome::Turn(self.0.turn(new.chat_id, None)));
            }
            // While it is set a statement is under way, whose end begins the next one.
            state.collects |= state.free == 0;
            state.add(new)?
        };
        let answer = match tokio::time::timeout(WAIT, &mut receiver).await {
            Ok(answer) => answer,
            Err(_) if self.0.withdraw(ticket) => return Err(Error::Overloaded),
            // It is under way.
            Err(_) => receiver.await,
        };
        answer.unwrap_or_else(|_| Err(Error::Inconsistent("a batch ended without an answer".to_owned())))
    }

    /// Counts a message that its request stored alone; its sender may take part from now on.
    pub fn stored_alone(&self, new: &NewMessage<'_>) {
        self.0.sizes.record(1, &[]);
        self.0.senders.insert((new.chat_id, new.sender_id), ());
    }

    /// The sender is no member of such a chat, or no longer.
    pub fn refused(&self, new: &NewMessage<'_>) {
        self.0.senders.remove(&(new.chat_id, new.sender_id));
    }
}

impl Turn {
    /// The connection that the statement before used, if it is still at hand.
    pub fn connection(&mut self) -> Option<Connection> {
        self.slot.as_mut().and_then(|slot| slot.connection.take())
    }

    /// Leaves a connection whose last statement succeeded to the next one.
    pub fn leave(&mut self, connection: Connection) {
        if let Some(slot) = &mut self.slot {
            slot.connection = Some(connection);
        }
    }

    /// Runs a statement; one that is slow lets others begin.
    pub async fn run<T>(&mut self, statement: impl Future<Output = T>) -> T {
        run(&mut self.slot, statement).await
    }
}

async fn run<T>(slot: &mut Option<Slot>, statement: impl Future<Output = T>) -> T {
    tokio::pin!(statement);
    if slot.is_some() {
        if let Ok(done) = tokio::time::timeout(SLOW, &mut statement).await {
            return done;
        }
        *slot = None;
    }
    statement.await
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; if one did, the queue would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn for a chat that is marked busy and a statement that is counted.
    fn turn(self: &Arc<Self>, chat: ChatId, connection: Option<Connection>) -> Turn {
        Turn {
            _claim: Some(Arc::new(self.claim(vec![chat]))),
            slot: Some(self.slot(connection)),
        }
    }

    fn claim(self: &Arc<Self>, chats: Vec<ChatId>) -> Claim {
        Claim {
            shared: Arc::clone(self),
            chats,
        }
    }

    fn slot(self: &Arc<Self>, connection: Option<Connection>) -> Slot {
        Slot {
            shared: Arc::clone(self),
            connection,
        }
    }

    /// Takes a message out of the queue; `false` when it is no longer there.
    fn withdraw(&self, ticket: u64) -> bool {
        let mut state = self.lock();
        let found = state.waiting.iter().position(|waiting| waiting.ticket == ticket);
        found.and_then(|index| state.take(index)).is_some()
    }

    /// Changes what is under way and begins what may begin then, on `connection` if there is one.
    fn release(self: &Arc<Self>, connection: Option<Connection>, change: impl FnOnce(&mut State)) {
        let mut starts = Vec::new();
        let mut connection = connection;
        {
            let mut state = self.lock();
            change(&mut state);
            while state.may_begin() {
                let Some(start) = self.next(&mut state, &mut connection) else {
                    state.collects = false;
                    break;
                };
                starts.push(start);
            }
        }
        for start in starts {
            self.begin(start);
        }
    }

    /// The messages that wait longest and may go together.
    fn next(self: &Arc<Self>, state: &mut State, connection: &mut Option<Connection>) -> Option<Start> {
        let mut batch: Vec<Waiting> = Vec::new();
        let (mut chats, mut bytes, mut index) = (HashSet::new(), 0, 0);
        while batch.len() < BATCH_MESSAGES
            && let Some(waiting) = state.waiting.get(index)
        {
            if waiting.reply.is_closed() {
                // Its client has gone away.
                state.take(index);
            } else if state.busy.contains(&waiting.chat_id) {
                index += 1;
            } else if !batch.is_empty() && bytes + waiting.content.len() > BATCH_BYTES {
                break;
            } else {
                bytes += waiting.content.len();
                chats.insert(waiting.chat_id);
                batch.extend(state.take(index));
            }
        }
        if batch.is_empty() {
            return None;
        }
        state.free -= 1;
        state.busy.extend(&chats);
        let slot = self.slot(connection.take());
        let claim = self.claim(chats.into_iter().collect());
        match batch.pop() {
            Some(alone) if batch.is_empty() => {
                let turn = Turn {
                    _claim: Some(Arc::new(claim)),
                    slot: Some(slot),
                };
                Some(Start::Alone(alone, turn))
            }
            last => {
                batch.extend(last);
                Some(Start::Batch(batch, claim, slot))
            }
        }
    }

    fn begin(self: &Arc<Self>, start: Start) {
        match start {
            // If its client has just gone away, the turn comes back and is dropped here.
            Start::Alone(waiting, turn) => drop(waiting.reply.send(Ok(Outcome::Turn(turn)))),
            Start::Batch(batch, claim, slot) => {
                // A runtime that ends answers nobody any more.
                if let Ok(runtime) = Handle::try_current() {
                    let span = span_of(&batch);
                    runtime.spawn(Arc::clone(self).store_together(batch, claim, slot).instrument(span));
                }
            }
        }
    }

    /// Stores a batch by one statement: a row for each message that it took. An error leaves open what became of all.
    async fn store(&self, batch: &[Waiting], slot: &mut Option<Slot>) -> Result<Vec<Option<MessageRow>>, Error> {
        // A key goes once into a statement; its repeats find it stored afterwards.
        let mut seen = HashSet::new();
        let (taken, rows): (Vec<usize>, Vec<NewMessage<'_>>) = (batch.iter().enumerate())
            .filter(|(_, waiting)| seen.insert(waiting.key_in_chat()))
            .map(|(index, waiting)| (index, waiting.as_new()))
            .unzip();
        let kept = slot.as_mut().and_then(|slot| slot.connection.take());
        let statement = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.store.connection().await?,
            };
            let stored = connection.messages().insert_all(&rows).await?;
            Ok((connection, stored))
        };
        let mut stored: Vec<Option<MessageRow>> = batch.iter().map(|_| None).collect();
        match run(slot, statement).await {
            Ok((connection, found)) => {
                if let Some(slot) = slot {
                    slot.connection = Some(connection);
                }
                for (index, row) in taken.into_iter().zip(found) {
                    if let Some(place) = stored.get_mut(index) {
                        *place = row;
                    }
                }
                Ok(stored)
            }
            Err(error) if Error::is_undone(&error) => {
                tracing::debug!(%error, messages = rows.len(), "the statement of a batch was refused; each is sent alone");
                Ok(stored)
            }
            Err(error) => Err(error),
        }
    }

    /// Stores a batch and answers its requests.
    async fn store_together(self: Arc<Self>, batch: Vec<Waiting>, mut claim: Claim, slot: Slot) {
        let began = Instant::now();
        let mut slot = Some(slot);
        let stored = match self.store(&batch, &mut slot).await {
            Ok(stored) => stored,
            Err(error) => {
                let error = Arc::new(error);
                drop((claim, slot));
                for waiting in batch {
                    waiting.answer(Err(Error::Batch(Arc::clone(&error))));
                }
                return;
            }
        };
        let count = stored.iter().flatten().count();
        if count > 0 {
            self.sizes.record(count as u64, &[]);
        }
        self.apart.add((batch.len() - count) as u64, &[]);
        let shards: HashSet<i16> = (batch.iter().zip(&stored))
            .filter(|(_, row)| row.is_some())
            .map(|(waiting, _)| shard_of(waiting.chat_id.0))
            .collect();
        for shard in shards {
            self.store.wake(shard);
        }
        let apart: HashMap<ChatId, Arc<Claim>> = (batch.iter().zip(&stored))
            .filter(|(_, row)| row.is_none())
            .map(|(waiting, _)| waiting.chat_id)
            .collect::<HashSet<_>>()
            .into_iter()
            .map(|chat| (chat, Arc::new(claim.part(chat))))
            .collect();
        drop(claim);
        let pause = (slot.as_ref()).and_then(|_| pause(self.lock().waiting.len(), began.elapsed()));
        if pause.is_none() {
            // The next batch is under way before this one's answers are written.
            slot = None;
        }
        let statement = propagation::current_traceparent();
        for (waiting, row) in batch.into_iter().zip(stored) {
            let outcome = match (row, apart.get(&waiting.chat_id)) {
                (Some(row), _) => Ok(Outcome::Stored {
                    row,
                    statement: statement.clone(),
                }),
                (None, Some(claim)) => Ok(Outcome::Turn(Turn {
                    _claim: Some(Arc::clone(claim)),
                    slot: None,
                })),
                (None, None) => Err(Error::Inconsistent("a message of a batch without its chat".to_owned())),
            };
            waiting.answer(outcome);
        }
        if let (Some(pause), Some(slot)) = (pause, slot) {
            tokio::time::sleep(pause).await;
            drop(slot);
        }
    }
}

impl State {
    const fn may_begin(&self) -> bool {
        let most = if self.collects { STATEMENTS_TOGETHER } else { STATEMENTS };
        self.free > STATEMENTS - most
    }

    /// Puts a message into the queue and says its ticket and where its answer comes.
    fn add(&mut self, new: &NewMessage<'_>) -> Result<(u64, oneshot::Receiver<Result<Outcome, Error>>), Error> {
        if self.waiting.len() >= WAITING_MESSAGES || self.waiting_bytes + new.content.len() > WAITING_BYTES {
            return Err(Error::Overloaded);
        }
        let (reply, receiver) = oneshot::channel();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting_bytes += new.content.len();
        self.waiting.push_back(Waiting {
            ticket,
            workspace_id: new.workspace_id,
            chat_id: new.chat_id,
            sender_id: new.sender_id,
            content: new.content.to_owned(),
            idempotency: (new.idempotency).map(|(key, digest)| (key.to_owned(), digest.to_owned())),
            traceparent: new.traceparent.map(str::to_owned),
            reply,
        });
        Ok((ticket, receiver))
    }

    fn take(&mut self, index: usize) -> Option<Waiting> {
        let waiting = self.waiting.remove(index)?;
        self.waiting_bytes -= waiting.content.len();
        Some(waiting)
    }
}

impl Waiting {
    fn as_new(&self) -> NewMessage<'_> {
        NewMessage {
            workspace_id: self.workspace_id,
            chat_id: self.chat_id,
            sender_id: self.sender_id,
            content: &self.content,
            idempotency: (self.idempotency.as_ref()).map(|(key, digest)| (key.as_str(), digest.as_slice())),
            traceparent: self.traceparent.as_deref(),
        }
    }

    /// What may be once in a statement; without a key its ticket, which is.
    fn key_in_chat(&self) -> (ChatId, UserId, Result<&str, u64>) {
        let key = self.idempotency.as_ref().map(|(key, _)| key.as_str());
        (self.chat_id, self.sender_id, key.ok_or(self.ticket))
    }

    /// Tells the request; one whose client has gone away hears nothing, and a turn that it was given is dropped.
    fn answer(self, outcome: Result<Outcome, Error>) {
        drop(self.reply.send(outcome));
    }
}

impl Claim {
    /// Parts with one of the chats.
    fn part(&mut self, chat: ChatId) -> Self {
        self.chats.retain(|other| *other != chat);
        self.shared.claim(vec![chat])
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.chats.is_empty() {
            let chats = std::mem::take(&mut self.chats);
            self.shared.release(None, |state| {
                for chat in &chats {
                    state.busy.remove(chat);
                }
            });
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let connection = self.connection.take();
        self.shared.release(connection, |state| state.free += 1);
    }
}

/// How long the next batch should wait to be worth its statement, when so many wait after one that took `elapsed`.
fn pause(waiting: usize, elapsed: Duration) -> Option<Duration> {
    let rest = PACE.checked_sub(elapsed).filter(|rest| !rest.is_zero())?;
    let come_fast = u32::try_from(waiting).is_ok_and(|waiting| PACE * waiting >= elapsed * PAYS);
    (come_fast && waiting < BATCH_MESSAGES).then_some(rest)
}

/// The span of a batch: in the trace of the first of its requests whose trace is recorded, linked to all of those; none when there is
/// none.
fn span_of(batch: &[Waiting]) -> Span {
    let recorded: Vec<_> = batch
        .iter()
        .filter_map(|waiting| waiting.traceparent.as_deref())
        .filter_map(propagation::context_from_traceparent)
        .filter(|context| context.span().span_context().is_sampled())
        .collect();
    let Some(first) = recorded.first() else {
        return Span::none();
    };
    let span = tracing::info_span!(
        parent: None,
        "store_messages",
        otel.name = "store messages",
        db.operation.batch.size = batch.len(),
    );
    propagation::set_parent(&span, first.clone());
    for context in &recorded {
        propagation::add_link(&span, context);
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_batch_waits_only_while_messages_come_fast_and_it_is_not_full() {
        // 1,000 a second: five in the time between two statements.
        assert_eq!(pause(2, ms(2)), None);
        // 5,000 a second.
        assert_eq!(pause(10, ms(2)), Some(ms(3)));
        assert_eq!(pause(5, ms(1)), Some(ms(4)));
        // As many as go together, or the time is over.
        assert_eq!(pause(BATCH_MESSAGES, ms(2)), None);
        assert_eq!(pause(40, PACE), None);
        assert_eq!(pause(40, ms(9)), None);
        assert_eq!(pause(0, ms(2)), None);
    }
}
