//! States that must not be, whoever would write them: the database refuses each by name.

use sqlx::{Connection, Executor, PgConnection};

/// Two workspaces: 1 with Ada (1), Bob (2) and Carol (3), 2 with Eve (4). Chat 1 is a channel of Ada and Bob with one
/// message, chat 2 the single chat of Ada and Bob, chat 3 Eve's channel.
const WORLD: &str = "
    BEGIN;
    INSERT INTO workspaces (id, name, owner_id) OVERRIDING SYSTEM VALUE VALUES (1, 'Acme', 1), (2, 'Other', 4);
    INSERT INTO users (id, workspace_id, fullname, email, password_hash, role) OVERRIDING SYSTEM VALUE VALUES
        (1, 1, 'Ada', 'ada@example.org', 'x', 'owner'), (2, 1, 'Bob', 'bob@example.org', 'x', 'member'),
        (3, 1, 'Carol', 'carol@example.org', 'x', 'member'), (4, 2, 'Eve', 'eve@example.org', 'x', 'owner');
    INSERT INTO chats (id, workspace_id, kind, name, owner_id, pair_low, pair_high) OVERRIDING SYSTEM VALUE VALUES
        (1, 1, 'private_channel', 'one', 1, NULL, NULL), (2, 1, 'single', NULL, 1, 1, 2),
        (3, 2, 'public_channel', 'three', 4, NULL, NULL);
    INSERT INTO chat_members (chat_id, user_id, workspace_id) VALUES (1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (3, 4, 2);
    INSERT INTO messages (id, workspace_id, chat_id, seq, sender_id, content, idempotency_key, idempotency_digest)
        OVERRIDING SYSTEM VALUE VALUES (1, 1, 1, 1, 1, 'hello', 'k', sha256('hello'));
    COMMIT;
    ALTER TABLE workspaces ALTER id RESTART 100;
    ALTER TABLE chats ALTER id RESTART 100;
    ALTER TABLE messages ALTER id RESTART 100;";

/// What is tried, and the constraint that refuses it.
const REFUSED: [(&str, &str); 25] = [
    (
        "INSERT INTO workspaces (name, owner_id) VALUES ('ＡＣＭＥ', 1)",
        "workspaces_name_key",
    ),
    (
        "INSERT INTO workspaces (name, owner_id) VALUES ('ACME', 1)",
        "workspaces_name_key",
    ),
    (
        "UPDATE workspaces SET owner_id = 4 WHERE id = 1",
        "workspaces_owner_fkey",
    ),
    (
        "UPDATE users SET email = 'ADA@example.org' WHERE id = 2",
        "users_email_key",
    ),
    ("UPDATE users SET role = 'owner' WHERE id = 2", "users_one_owner"),
    (
        "INSERT INTO chat_members (chat_id, user_id, workspace_id) VALUES (1, 4, 1)",
        "chat_members_workspace_id_user_id_fkey",
    ),
    (
        "INSERT INTO chat_members (chat_id, user_id, workspace_id) VALUES (1, 4, 2)",
        "chat_members_workspace_id_chat_id_fkey",
    ),
    (
        "INSERT INTO chat_members (chat_id, user_id, workspace_id) VALUES (1, 2, 1)",
        "chat_members_pkey",
    ),
    (
        "DELETE FROM chat_members WHERE chat_id = 1 AND user_id = 1",
        "chats_owner_is_member",
    ),
    ("UPDATE chats SET owner_id = 3 WHERE id = 1", "chats_owner_is_member"),
    (
        "INSERT INTO chats (workspace_id, kind, owner_id, pair_low, pair_high) VALUES (1, 'single', 1, 1, 2)",
        "chats_pair",
    ),
    (
        "INSERT INTO chats (workspace_id, kind, owner_id, pair_low, pair_high) VALUES (1, 'single', 1, 1, 1)",
        "chats_check1",
    ),
    (
        "INSERT INTO chats (workspace_id, kind, owner_id) VALUES (1, 'single', 1)",
        "chats_check",
    ),
    (
        "INSERT INTO chats (workspace_id, kind, owner_id, pair_low, pair_high) VALUES (1, 'single', 1, 1, 4)",
        "chats_workspace_id_pair_high_fkey",
    ),
    (
        "WITH made AS (INSERT INTO chats (workspace_id, kind, owner_id, pair_low, pair_high)
                       VALUES (1, 'single', 1, 1, 3) RETURNING id)
         INSERT INTO chat_members (chat_id, user_id, workspace_id) SELECT id, 1, 1 FROM made",
        "single_chat_has_its_pair",
    ),
    (
        "INSERT INTO chat_members (chat_id, user_id, workspace_id) VALUES (2, 3, 1)",
        "single_chat_keeps_its_pair",
    ),
    (
        "DELETE FROM chat_members WHERE chat_id = 2 AND user_id = 2",
        "single_chat_keeps_its_pair",
    ),
    (
        "UPDATE chat_members SET user_id = 3 WHERE chat_id = 2 AND user_id = 2",
        "single_chat_keeps_its_pair",
    ),
    (
        "INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content) VALUES (1, 1, 1, 1, 'again')",
        "messages_chat_id_seq_key",
    ),
    (
        "INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content, idempotency_key, idempotency_digest)
         VALUES (1, 1, 2, 1, 'hello', 'k', sha256('hello'))",
        "messages_idempotency",
    ),
    (
        "INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content) VALUES (1, 1, 2, 4, 'intruder')",
        "messages_workspace_id_sender_id_fkey",
    ),
    (
        "UPDATE messages SET content = '' WHERE id = 1",
        "messages_content_length",
    ),
    (
        "UPDATE messages SET content = repeat('a', 10001) WHERE id = 1",
        "messages_content_length",
    ),
    ("UPDATE messages SET content = NULL WHERE id = 1", "messages_check"),
    (
        "INSERT INTO message_edits (message_id, version, content, written_at) VALUES (1, 1, '', now())",
        "message_edits_content_length",
    ),
];

#[tokio::test]
async fn illegal_states_are_refused_by_name() {
    let database = dev::postgres::Server::shared().database().unwrap();
    let pool = sqlx::PgPool::connect(&database.owner_url()).await.unwrap();
    migrations::MIGRATOR.run(&pool).await.unwrap();
    pool.execute(WORLD).await.unwrap();
    let mut connection = PgConnection::connect(&database.owner_url()).await.unwrap();
    let mut wrong = Vec::new();
    for (statement, constraint) in REFUSED {
        let mut transaction = connection.begin().await.unwrap();
        let mut result = transaction.execute(statement).await.map(drop);
        if result.is_ok() {
            // What is checked at the end only.
            result = transaction.execute("SET CONSTRAINTS ALL IMMEDIATE").await.map(drop);
        }
        let error = result.expect_err(statement);
        let refused_by = error.as_database_error().and_then(|error| error.constraint());
        if refused_by != Some(constraint) {
            wrong.push(format!("{statement}: not by {constraint}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The same world goes on: what is legal is not refused.
    let legal = "UPDATE chats SET deleted_at = now() WHERE id = 2;
        INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content) VALUES (1, 1, 2, 2, repeat('é', 10000));
        DELETE FROM chat_members WHERE chat_id = 1 AND user_id = 2;";
    pool.execute(legal).await.unwrap();
}
