//! What each service's role may do in the database: what is listed here, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;

use dev::postgres::{ROLES, Server, TestDatabase};
use sqlx::{Connection, Executor, PgConnection};

/// Login role, right, table; the columns where it is not all of them.
const GRANTED: &str = "
    chat SELECT _sqlx_migrations
    chat DELETE chat_members
    chat INSERT chat_members
    chat SELECT chat_members
    chat UPDATE chat_members last_read_seq
    chat INSERT chats
    chat SELECT chats
    chat UPDATE chats deleted_at description last_seq member_count membership_version name owner_id updated_at
    chat INSERT invitations
    chat SELECT invitations
    chat UPDATE invitations revoked_at uses
    chat INSERT message_edits
    chat SELECT message_edits
    chat INSERT messages
    chat SELECT messages
    chat UPDATE messages content deleted_at edited_at version
    chat INSERT outbox
    chat SELECT outbox
    chat SELECT outbox_progress
    chat UPDATE outbox_progress published_position stream_epoch stream_sequence updated_at
    chat SELECT outbox_shards
    chat UPDATE outbox_shards last_position
    chat DELETE refresh_tokens
    chat INSERT refresh_tokens
    chat SELECT refresh_tokens
    chat UPDATE refresh_tokens used_at
    chat DELETE sessions
    chat INSERT sessions
    chat SELECT sessions
    chat UPDATE sessions last_used_at revoked_at
    chat DELETE signin_failures
    chat INSERT signin_failures
    chat SELECT signin_failures
    chat UPDATE signin_failures
    chat INSERT users
    chat SELECT users
    chat UPDATE users deactivated_at fullname password_hash role updated_at
    chat INSERT workspaces
    chat SELECT workspaces
    chat UPDATE workspaces name owner_id
    notify SELECT _sqlx_migrations
    notify SELECT chat_members
    notify SELECT chats
    notify INSERT dead_letters
    notify SELECT dead_letters
    notify UPDATE dead_letters body deliveries drop_reason dropped_at reason replayed_at replays
    notify SELECT users deactivated_at fullname id role workspace_id
    indexer SELECT _sqlx_migrations
    indexer SELECT chat_members
    indexer SELECT chats
    indexer INSERT dead_letters
    indexer SELECT dead_letters
    indexer UPDATE dead_letters body deliveries drop_reason dropped_at reason replayed_at replays
    indexer SELECT messages
    indexer SELECT users deactivated_at fullname id role workspace_id
";

/// What the roles have, by the catalogue; whatever they have it from: themselves, their group or everybody.
const FOUND: &str = "
    WITH named AS (
        SELECT unnest($1::text[]) AS role
    ), rights AS (
        SELECT role, p, c.oid, c.relname, has_table_privilege(role, c.oid, p) AS whole,
               (SELECT string_agg(a.attname, ' ' ORDER BY a.attname) FROM pg_attribute AS a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                  AND p IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') AND has_column_privilege(role, c.oid, a.attnum, p)) AS columns
        FROM named, pg_class AS c,
             unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
    )
    SELECT concat_ws(' ', role, p, relname, CASE WHEN NOT whole THEN columns END) FROM rights WHERE whole OR columns IS NOT NULL";

/// What a service would do if it had gone astray, and is refused.
const REFUSED: [(&str, &str); 15] = [
    ("chat", "DELETE FROM messages"),
    ("chat", "DELETE FROM chats"),
    ("chat", "UPDATE messages SET sender_id = 1"),
    ("chat", "UPDATE messages SET seq = seq + 1"),
    ("chat", "UPDATE users SET workspace_id = 1"),
    ("chat", "UPDATE sessions SET user_id = 1"),
    ("chat", "UPDATE message_edits SET content = 'x'"),
    ("chat", "UPDATE outbox SET data = '{}'"),
    ("chat", "DELETE FROM outbox"),
    ("chat", "SELECT body FROM dead_letters"),
    ("chat", "CREATE TABLE mine (id int)"),
    ("notify", "SELECT content FROM messages"),
    ("notify", "SELECT password_hash FROM users"),
    ("indexer", "SELECT email FROM users"),
    ("indexer", "UPDATE messages SET content = 'x'"),
];

async fn database() -> TestDatabase {
    let database = Server::shared().database().unwrap();
    let mut owner = PgConnection::connect(&database.owner_url()).await.unwrap();
    migrations::MIGRATOR.run(&mut owner).await.unwrap();
    database
}

#[tokio::test]
async fn the_roles_have_the_rights_that_are_listed() {
    let database = database().await;
    let mut owner = PgConnection::connect(&database.owner_url()).await.unwrap();
    let roles: Vec<&str> = ROLES.iter().map(|(role, _)| *role).collect();
    let found: Vec<String> = sqlx::query_scalar(FOUND)
        .bind(&roles)
        .fetch_all(&mut owner)
        .await
        .unwrap();
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    let listed: BTreeSet<&str> = GRANTED.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(
        found.difference(&listed).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "more than is listed"
    );
    assert_eq!(
        listed.difference(&found).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "less than is listed"
    );

    let mighty: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_roles WHERE pg_has_role('chat', oid, 'MEMBER')
            AND (rolsuper OR rolcreatedb OR rolcreaterole OR rolbypassrls OR rolreplication)",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!(mighty, 0);
    // A function with its owner's rights names every schema that it looks into, a caller's temporary one last.
    let functions: Vec<(String, String)> = sqlx::query_as(
        "SELECT proname::text, coalesce(array_to_string(proconfig, ';'), '') FROM pg_proc
         WHERE prosecdef AND pronamespace = 'public'::regnamespace",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    assert!(!functions.is_empty());
    for (name, settings) in functions {
        let path = settings.split(';').find(|setting| setting.starts_with("search_path="));
        assert_eq!(path, Some("search_path=pg_catalog, public, pg_temp"), "{name}");
    }
}

#[tokio::test]
async fn what_is_not_granted_is_refused() {
    let database = database().await;
    for (role, statement) in REFUSED {
        let mut connection = PgConnection::connect(&database.url(role)).await.unwrap();
        let error = connection.execute(statement).await.expect_err(statement);
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        assert_eq!(code.as_deref(), Some("42501"), "{role}: {statement}: {error}");
    }
}
