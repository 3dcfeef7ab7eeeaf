//! Appends events to the outbox within the transaction of the change they tell of.

use fechatter_core::WorkspaceId;
use fechatter_core::events::{EventType, shard_of};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::Error;

pub struct Outbox<'c>(pub(super) &'c mut PgConnection);

impl Outbox<'_> {
    /// Appends events of one type and scope, in order. `scope_id` is the chat's id, or the user's for `user.*` and
    /// `session.*`; it decides the shard.
    ///
    /// Raising the shard's position locks its row until the commit: call this last in the transaction, and for several scopes in
    /// the order of their shards, so that two transactions never wait for each other in a circle.
    pub async fn append_all<T: Serialize>(
        &mut self,
        event_type: EventType,
        workspace: WorkspaceId,
        scope_id: i64,
        data: &[T],
    ) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let payloads: Vec<Value> = data
            .iter()
            .map(serde_json::to_value)
            .collect::<Result<_, _>>()
            .map_err(|error| Error::Inconsistent(format!("event payload: {error}")))?;
        let ids: Vec<Uuid> = payloads.iter().map(|_| Uuid::now_v7()).collect();
        sqlx::query!(
            r#"
            WITH shard AS (
                UPDATE outbox_shards SET last_position = last_position + cardinality($3::uuid[])
                WHERE shard = $1 RETURNING last_position - cardinality($3::uuid[]) AS base
            )
            INSERT INTO outbox (shard, position, event_id, event_type, workspace_id, scope_id, data, traceparent)
            SELECT $1, shard.base + event.ordinal, event.id, $2, $5, $6, event.data::json, $7
            FROM shard, unnest($3::uuid[], $4::jsonb[]) WITH ORDINALITY AS event (id, data, ordinal)
            "#,
            shard_of(scope_id),
            event_type.as_str(),
            &ids,
            &payloads,
            workspace.0,
            scope_id,
            observability::propagation::current_traceparent()
        )
        .execute(&mut *self.0)
        .await?;
        Ok(())
    }
}
