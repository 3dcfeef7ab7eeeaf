//! Rows that tests of a service begin with, as chat_service would have written them, without its events.
//!
//! Only with the feature `rows`. Each function panics when the database refuses the row.

use sqlx::PgPool;
use uuid::Uuid;

/// Makes a workspace; gives its id and its owner's.
pub async fn workspace(pool: &PgPool, name: &str) -> (i64, i64) {
    sqlx::query_as(
        "WITH ids AS (SELECT nextval('workspaces_id_seq') AS w, nextval('users_id_seq') AS u),
              made AS (INSERT INTO workspaces (id, name, owner_id) OVERRIDING SYSTEM VALUE SELECT w, $1, u FROM ids)
         INSERT INTO users (id, workspace_id, fullname, email, password_hash, role) OVERRIDING SYSTEM VALUE
         SELECT u, w, 'Owner of ' || $1, 'owner@' || $1 || '.test', 'x', 'owner' FROM ids
         RETURNING workspace_id, id",
    )
    .bind(name)
    .fetch_one(pool)
    .await
    .expect("a workspace")
}

/// Makes a person; gives the id.
pub async fn user(pool: &PgPool, workspace: i64, fullname: &str) -> i64 {
    sqlx::query_scalar(
        "INSERT INTO users (workspace_id, fullname, email, password_hash) VALUES ($1, $2, $3, 'x') RETURNING id",
    )
    .bind(workspace)
    .bind(fullname)
    .bind(format!("{}@users.test", Uuid::now_v7().simple()))
    .fetch_one(pool)
    .await
    .expect("a user")
}

/// Makes a chat of `kind` with its members, the owner first; gives the id. A single chat has two.
pub async fn chat(pool: &PgPool, workspace: i64, kind: &str, name: Option<&str>, members: &[i64]) -> i64 {
    let pair = (kind == "single").then(|| (members[0].min(members[1]), members[0].max(members[1])));
    let mut transaction = pool.begin().await.expect("a transaction");
    let id = sqlx::query_scalar(
        "INSERT INTO chats (workspace_id, kind, name, owner_id, pair_low, pair_high, membership_version)
         VALUES ($1, $2::chat_kind, $3, $4, $5, $6, 1) RETURNING id",
    )
    .bind(workspace)
    .bind(kind)
    .bind(name)
    .bind(members[0])
    .bind(pair.map(|pair| pair.0))
    .bind(pair.map(|pair| pair.1))
    .fetch_one(&mut *transaction)
    .await
    .expect("a chat");
    sqlx::query("INSERT INTO chat_members (chat_id, user_id, workspace_id) SELECT $1, u, $2 FROM unnest($3) AS u")
        .bind(id)
        .bind(workspace)
        .bind(members)
        .execute(&mut *transaction)
        .await
        .expect("members");
    sqlx::query("UPDATE chats SET member_count = (SELECT count(*) FROM chat_members WHERE chat_id = $1) WHERE id = $1")
        .bind(id)
        .execute(&mut *transaction)
        .await
        .expect("a count");
    transaction.commit().await.expect("a commit");
    id
}
