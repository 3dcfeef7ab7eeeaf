//! A real PostgreSQL beside the engine: what a search is as a whole.

use std::sync::Arc;
use std::time::Duration;

use dev::postgres::{Server, TestDatabase};
use fechatter_core::chat::ChatKind;
use fechatter_core::{MessageId, UserId, WorkspaceId};
use indexer::engine::SearchEngine;
use indexer::metrics::Metrics;
use indexer::repositories::messages;
use indexer::services::search::{SearchAnswer, SearchError, SearchRequest, SearchService};
use migrations::rows;
use sqlx::PgPool;
use time::OffsetDateTime;

/// PostgreSQL, an engine, and the service that searches them.
pub struct World {
    /// As the owner of everything.
    pub pool: PgPool,
    pub service: SearchService,
    engine: Arc<dyn SearchEngine>,
    indexed: MessageId,
    _database: TestDatabase,
}

impl World {
    pub async fn new(engine: Arc<dyn SearchEngine>) -> Self {
        let database = Server::shared().database().expect("a database");
        let pool = PgPool::connect(&database.owner_url()).await.expect("a connection");
        migrations::MIGRATOR.run(&pool).await.expect("the schema");
        // The service itself has the rights of the indexer and no others.
        let own = PgPool::connect(&database.url("indexer")).await.expect("a connection");
        let service = SearchService::new(own, Arc::clone(&engine), Metrics::default(), Duration::from_secs(20));
        Self {
            pool,
            service,
            engine,
            indexed: MessageId(0),
            _database: database,
        }
    }

    pub async fn chat(&self, workspace: i64, kind: ChatKind, name: &str, members: &[i64]) -> i64 {
        let name = kind.needs_name().then_some(name);
        rows::chat(&self.pool, workspace, kind.as_str(), name, members).await
    }

    /// Writes a message; gives its id.
    pub async fn write(&self, chat: i64, sender: i64, content: &str, at: OffsetDateTime) -> i64 {
        sqlx::query_scalar(
            "WITH chat AS (UPDATE chats SET last_seq = last_seq + 1 WHERE id = $1 RETURNING id, workspace_id, last_seq)
             INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content, created_at)
             SELECT workspace_id, id, last_seq, $2, $3, $4 FROM chat RETURNING id",
        )
        .bind(chat)
        .bind(sender)
        .bind(content)
        .bind(at)
        .fetch_one(&self.pool)
        .await
        .expect("a message")
    }

    /// Brings what was written since the last time into the engine.
    pub async fn index(&mut self) {
        while let Some(chunk) = messages::changes_after(&self.pool, self.indexed, 1_000)
            .await
            .expect("messages")
        {
            self.engine.apply(chunk.changes, None).await.expect("applied");
            self.indexed = chunk.last;
        }
    }

    pub async fn search(
        &self,
        user: i64,
        workspace: i64,
        request: &SearchRequest,
    ) -> Result<SearchAnswer, SearchError> {
        self.service.search(UserId(user), WorkspaceId(workspace), request).await
    }
}
