//! How a stream begins: backlog and live part are joined in one step.

use std::collections::VecDeque;
use std::sync::Arc;

use uuid::Uuid;

use super::{Core, Hub};
use crate::connection::{Connection, End, Owner};
use crate::cursor::Cursor;
use crate::event::Entry;
use crate::metrics::Source;
use crate::positions::Positions;

/// Events read from the stream although the ring holds them yet.
const FETCH_AHEAD: u64 = 256;

/// Where a client wants to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requested {
    /// It is new.
    Start,
    /// It sent something that is not a cursor of ours.
    Malformed,
    After(Cursor),
}

/// Part of the stream, read because the ring no longer holds it.
#[derive(Debug, Default)]
pub struct Fetched {
    /// Everything up to here that the user might see is in `entries`, from the client's cursor on.
    pub upto: u64,
    pub entries: Vec<Arc<Entry>>,
    /// Bytes of their frames.
    pub bytes: usize,
    /// What the user might see when it was read, by [`Hub::visible`].
    pub view: Option<u64>,
    /// What was met of each shard.
    pub positions: Positions,
}

/// A client that wants a stream.
#[derive(Debug)]
pub struct JoinRequest {
    pub owner: Owner,
    pub requested: Requested,
    /// The user's chats have been loaded for this request.
    pub is_loaded: bool,
    /// What has been read of the stream so far.
    pub fetched: Option<Fetched>,
    /// A cursor ahead of this process is in the stream: another replica has got further.
    pub is_ahead_confirmed: bool,
    /// Reading the stream failed: why the client must reload.
    pub gap: Option<&'static str>,
}

/// How a stream began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    Ready,
    Resumed { source: Source, count: usize },
    Gap(&'static str),
}

impl Begun {
    /// The name of the first event.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Resumed { .. } => "resumed",
            Self::Gap(_) => "gap",
        }
    }
}

/// What became of a request.
#[derive(Debug)]
pub enum Join {
    Joined(Arc<Connection>, Begun),
    /// Read the stream from `after` to `upto` at least, and come again.
    Fetch {
        epoch: Uuid,
        after: u64,
        upto: u64,
    },
    /// Make sure that the stream has this sequence, and come again.
    Confirm(Cursor),
    /// Load the user, who may be known, and come again.
    NotLoaded,
    /// The stream of events has not been found yet.
    Starting,
    /// No more streams here.
    Full,
    /// The session has been revoked.
    Revoked,
}

enum Beginning {
    Ready,
    Gap(&'static str),
    Resume {
        after: Cursor,
        backlog: VecDeque<Arc<Entry>>,
        source: Source,
    },
}

impl Hub {
    /// Opens a stream, or says what is missing for it.
    pub fn join(&self, request: &mut JoinRequest) -> Join {
        let mut core = self.core();
        let Some(at) = core.cursor().filter(|_| core.is_caught_up) else {
            return Join::Starting;
        };
        if core.is_draining || core.streams >= self.stream.max_streams {
            return Join::Full;
        }
        if core.revoked.contains_key(&request.owner.session) {
            return Join::Revoked;
        }
        if !core.membership.knows(request.owner.user) || !(core.is_current || request.is_loaded) {
            return Join::NotLoaded;
        }
        let beginning = match core.beginning(at, request) {
            Ok(beginning) => beginning,
            Err(missing) => return missing,
        };
        let (events, known, begun) = self.opening(beginning, at);
        let id = core.next_id;
        core.next_id += 1;
        let connection = Arc::new(Connection::new(id, request.owner.clone(), self.stream.queue_bytes));
        connection.begin(events, known);
        core.admit(&connection, self.stream.max_streams_per_user);
        drop(core);
        self.metrics.opened(begun.as_str());
        match begun {
            Begun::Ready => {}
            Begun::Resumed { source, count } => self.metrics.replayed(source, count),
            Begun::Gap(reason) => self.metrics.gap(reason, 1),
        }
        Join::Joined(connection, begun)
    }

    /// The first events, and up to where the client knows everything.
    fn opening(&self, beginning: Beginning, at: Cursor) -> (VecDeque<Arc<Entry>>, u64, Begun) {
        let alone = |entry: Entry| VecDeque::from([Arc::new(entry), Arc::new(Entry::caught_up(at))]);
        match beginning {
            Beginning::Ready => (alone(Entry::ready(at)), 0, Begun::Ready),
            Beginning::Gap(reason) => (alone(Entry::gap(reason, at)), 0, Begun::Gap(reason)),
            Beginning::Resume {
                after,
                mut backlog,
                source,
            } => {
                let bytes: usize = backlog.iter().map(|entry| entry.frame.len()).sum();
                let count = backlog.len();
                if count > self.replay.max_events || bytes > self.replay.max_bytes {
                    return (alone(Entry::gap("too_many", at)), 0, Begun::Gap("too_many"));
                }
                let end = Cursor {
                    epoch: at.epoch,
                    sequence: at.sequence.max(after.sequence),
                };
                backlog.push_front(Arc::new(Entry::resumed(count, after)));
                backlog.push_back(Arc::new(Entry::caught_up(end)));
                (backlog, after.sequence, Begun::Resumed { source, count })
            }
        }
    }
}

impl Core {
    fn beginning(&self, at: Cursor, request: &mut JoinRequest) -> Result<Beginning, Join> {
        let after = match request.requested {
            Requested::Start => return Ok(Beginning::Ready),
            Requested::Malformed => return Ok(Beginning::Gap("unknown_cursor")),
            Requested::After(after) => after,
        };
        if after.epoch != at.epoch {
            return Ok(Beginning::Gap("history_changed"));
        }
        if let Some(reason) = request.gap {
            return Ok(Beginning::Gap(reason));
        }
        if after.sequence < self.floor {
            return Ok(Beginning::Gap("events_lost"));
        }
        if after.sequence > at.sequence {
            if !request.is_ahead_confirmed {
                return Err(Join::Confirm(after));
            }
            return Ok(Beginning::Resume {
                after,
                backlog: VecDeque::new(),
                source: Source::Ring,
            });
        }
        let user = request.owner.user;
        let is_visible = |entry: &&Arc<Entry>| self.membership.may_see(user, &entry.route);
        if let Some(newer) = self.ring.after(after.sequence) {
            let backlog = newer.filter(is_visible).cloned().collect();
            return Ok(Beginning::Resume {
                after,
                backlog,
                source: Source::Ring,
            });
        }
        let view = self.membership.widened(user);
        // Who may see more than when it was read gets it read again.
        request.fetched.take_if(|fetched| fetched.view != view);
        let upto = request.fetched.as_ref().map_or(after.sequence, |fetched| fetched.upto);
        let (Some(fetched), Some(newer)) = (&request.fetched, self.ring.after(upto)) else {
            return Err(Join::Fetch {
                epoch: at.epoch,
                after: upto,
                // A little of what the ring holds too: it moves on while the stream is read.
                upto: at.sequence.min(self.ring.start() + FETCH_AHEAD),
            });
        };
        let backlog = fetched
            .entries
            .iter()
            .filter(is_visible)
            .chain(newer.filter(is_visible))
            .cloned()
            .collect();
        Ok(Beginning::Resume {
            after,
            backlog,
            source: Source::Stream,
        })
    }

    fn admit(&mut self, connection: &Arc<Connection>, per_user: usize) {
        let owner = &connection.owner;
        let siblings = self.connections.entry(owner.user).or_default();
        if owner.ticket.is_some() {
            // A ticket is bound to one stream: whoever returns with it has lost the one before.
            for sibling in siblings.iter().filter(|sibling| sibling.owner.ticket == owner.ticket) {
                sibling.end(End::Replaced);
            }
        }
        if siblings.len() >= per_user
            && let Some(oldest) = siblings.iter().find(|sibling| sibling.ended().is_none())
        {
            oldest.end(End::Replaced);
        }
        siblings.push(Arc::clone(connection));
        self.streams += 1;
        self.away.remove(&owner.user);
        self.moves(owner.user, owner.session);
    }
}
