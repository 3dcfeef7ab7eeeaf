//! SQL and row mapping, nothing else. A [`UnitOfWork`] owns one transaction and lends repositories on it; [`Store`]
//! begins one or lends a plain connection for reads.

pub mod chats;
pub mod invitations;
pub mod members;
pub mod messages;
pub mod outbox;
pub mod outbox_progress;
pub mod sessions;
pub mod signin_failures;
pub mod users;
pub mod workspaces;

use std::sync::Arc;

use fechatter_core::WorkspaceId;
use fechatter_core::events::{EventType, shard_of};
use serde::Serialize;
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tracing::Instrument;

use crate::error::Error;
use crate::outbox_relay::Wake;

pub use chats::Chats;
pub use invitations::Invitations;
pub use members::Members;
pub use messages::Messages;
use outbox::Outbox;
pub use sessions::Sessions;
pub use signin_failures::SigninFailures;
pub use users::Users;
pub use workspaces::Workspaces;

/// The database, as services hold it. Handlers cannot reach it.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    wake: Arc<Wake>,
}

impl Store {
    /// `wake` is how the relay hears of events that were just committed.
    pub fn new(pool: PgPool, wake: Arc<Wake>) -> Self {
        Self { pool, wake }
    }

    /// Tells the relay that a shard has a new event; called after the commit.
    pub fn wake(&self, shard: i16) {
        self.wake.notify(shard);
    }

    /// Begins a transaction; dropped without [`UnitOfWork::commit`], it is rolled back.
    pub async fn begin(&self) -> Result<UnitOfWork, Error> {
        Ok(UnitOfWork {
            transaction: begin(&self.pool).await?,
            wake: Arc::clone(&self.wake),
            shards: Vec::new(),
        })
    }

    /// A connection for single statements.
    pub async fn connection(&self) -> Result<Connection, Error> {
        Ok(Connection {
            connection: self.pool.acquire().await?,
        })
    }
}

/// Begins a transaction in a task of its own, which nobody can interrupt.
///
/// sqlx 0.9 forgets a `BEGIN` whose future is dropped before the answer (its depth is still 0, so nothing is rolled back)
/// and gives the connection back inside the transaction: the next statement on it would be answered and never committed.
/// Requests are dropped whenever a client goes away.
pub async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let pool = pool.clone();
    let begun = tokio::spawn(async move { pool.begin().await }.in_current_span());
    // Fails only when the runtime ends.
    begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

/// One transaction.
#[derive(Debug)]
pub struct UnitOfWork {
    transaction: Transaction<'static, Postgres>,
    wake: Arc<Wake>,
    /// The shards that events were appended to.
    shards: Vec<i16>,
}

/// One connection outside a transaction.
#[derive(Debug)]
pub struct Connection {
    connection: PoolConnection<Postgres>,
}

impl UnitOfWork {
    /// Makes everything written so far permanent, events included.
    pub async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await?;
        for shard in self.shards {
            self.wake.notify(shard);
        }
        Ok(())
    }

    /// Appends an event; see [`Outbox::append_all`].
    pub async fn append<T: Serialize>(
        &mut self,
        event_type: EventType,
        workspace: WorkspaceId,
        scope_id: i64,
        data: &T,
    ) -> Result<(), Error> {
        self.append_all(event_type, workspace, scope_id, std::slice::from_ref(data))
            .await
    }

    /// Appends several events of one type and scope, in order; see [`Outbox::append_all`].
    pub async fn append_all<T: Serialize>(
        &mut self,
        event_type: EventType,
        workspace: WorkspaceId,
        scope_id: i64,
        data: &[T],
    ) -> Result<(), Error> {
        self.shards.push(shard_of(scope_id));
        Outbox(&mut self.transaction)
            .append_all(event_type, workspace, scope_id, data)
            .await
    }
}

/// Lends the repositories of one connection or transaction.
pub trait Repositories {
    fn raw(&mut self) -> &mut PgConnection;

    fn workspaces(&mut self) -> Workspaces<'_> {
        Workspaces(self.raw())
    }
    fn users(&mut self) -> Users<'_> {
        Users(self.raw())
    }
    fn sessions(&mut self) -> Sessions<'_> {
        Sessions(self.raw())
    }
    fn signin_failures(&mut self) -> SigninFailures<'_> {
        SigninFailures(self.raw())
    }
    fn invitations(&mut self) -> Invitations<'_> {
        Invitations(self.raw())
    }
    fn chats(&mut self) -> Chats<'_> {
        Chats(self.raw())
    }
    fn members(&mut self) -> Members<'_> {
        Members(self.raw())
    }
    fn messages(&mut self) -> Messages<'_> {
        Messages(self.raw())
    }
}

impl Repositories for UnitOfWork {
    fn raw(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

impl Repositories for Connection {
    fn raw(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// Reads a closed set of names that a check or an enum of the schema guarantees.
fn known<T: std::str::FromStr>(text: &str) -> Result<T, Error> {
    text.parse()
        .map_err(|_| Error::Inconsistent(format!("unknown value {text:?}")))
}
