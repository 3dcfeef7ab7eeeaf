//! Every query of the services, as `.sqlx` lists them, planned against a database with some data: none reads a table that
//! grows from one end to the other.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;

use serde_json::Value;
use sqlx::{Connection, PgConnection, Row};

/// Tables that have as many rows as there are shards, for ever.
const FIXED: [&str; 3] = ["outbox_shards", "outbox_progress", "_sqlx_migrations"];

/// Some thousands of rows in each table that grows: enough for the planner to prefer an index where there is one.
const ROWS: &str = "
    BEGIN;
    INSERT INTO workspaces (id, name, owner_id) OVERRIDING SYSTEM VALUE
        SELECT w, 'workspace ' || w, w * 4 FROM generate_series(1, 3000) AS w;
    INSERT INTO users (id, workspace_id, fullname, email, password_hash, role) OVERRIDING SYSTEM VALUE
        SELECT u, u / 4, 'Person ' || u, 'person' || u || '@example.org', 'x',
               (CASE WHEN u % 4 = 0 THEN 'owner' ELSE 'member' END)::user_role
        FROM generate_series(4, 12003) AS u;
    INSERT INTO chats (id, workspace_id, kind, name, owner_id, member_count, last_seq) OVERRIDING SYSTEM VALUE
        SELECT c, c % 3000 + 1, (CASE WHEN c % 2 = 0 THEN 'public_channel' ELSE 'private_channel' END)::chat_kind,
               'chat ' || c, (c % 3000 + 1) * 4, 4, 2
        FROM generate_series(1, 30000) AS c;
    INSERT INTO chat_members (chat_id, user_id, workspace_id)
        SELECT c, (c % 3000 + 1) * 4 + m, c % 3000 + 1 FROM generate_series(1, 30000) AS c, generate_series(0, 3) AS m;
    COMMIT;
    INSERT INTO messages (workspace_id, chat_id, seq, sender_id, content, idempotency_key, idempotency_digest)
        SELECT c % 3000 + 1, c, s, (c % 3000 + 1) * 4, 'message ' || s, 'key ' || s, sha256(s::text::bytea)
        FROM generate_series(1, 30000) AS c, generate_series(1, 2) AS s;
    INSERT INTO message_edits (message_id, version, content, written_at)
        SELECT id, 1, 'before', now() FROM messages ORDER BY id LIMIT 20000;
    INSERT INTO sessions (id, workspace_id, user_id, expires_at)
        SELECT gen_random_uuid(), workspace_id, id, now() + n * interval '1 day'
        FROM users, generate_series(1, 2) AS n;
    INSERT INTO refresh_tokens (token_hash, session_id, expires_at)
        SELECT sha256((id::text || n)::bytea), id, expires_at FROM sessions, generate_series(1, 2) AS n;
    INSERT INTO invitations (workspace_id, token_hash, created_by, max_uses, expires_at)
        SELECT workspace_id, sha256(id::text::bytea), id, 1, now() + interval '1 day' FROM users;
    INSERT INTO signin_failures (subject, failures, last_failed_at)
        SELECT 'account:' || email, 1, now() - id * interval '1 minute' FROM users;
    INSERT INTO outbox (shard, position, event_id, event_type, workspace_id, scope_id, data, created_at)
        SELECT s, p, gen_random_uuid(), 'message.created', 1, 1, '{}', now() + (p % 5 - 1) * interval '1 day'
        FROM generate_series(0, 15) AS s, generate_series(1, 3000) AS p;
    INSERT INTO dead_letters (consumer, stream_epoch, stream_sequence, subject, reason, deliveries, body)
        SELECT 'notify', gen_random_uuid(), n, 'x', 'x', 1, 'x' FROM generate_series(1, 6000) AS n;
    UPDATE dead_letters SET replayed_at = now(), body = '' WHERE stream_sequence % 100 <> 0;
    VACUUM ANALYZE;
";

/// The queries with their numbers of parameters.
fn queries() -> Vec<(String, usize)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.sqlx");
    let mut queries: Vec<(String, usize)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let description: Value = serde_json::from_str(&text).unwrap();
            let query = description["query"].as_str().unwrap();
            let parameters = description["describe"]["parameters"]["Left"]
                .as_array()
                .map_or(0, Vec::len);
            (query.to_owned(), parameters)
        })
        .collect();
    queries.sort();
    queries
}

/// The tables that a plan reads from one end to the other, and the indexes unless a limit ends the reading early.
fn scanned(plan: &Value, is_limited: bool, found: &mut Vec<String>) {
    let name = |key: &str| plan[key].as_str().unwrap_or_default().to_owned();
    let node = plan["Node Type"].as_str().unwrap_or_default();
    if node == "Seq Scan" {
        found.push(name("Relation Name"));
    } else if node.contains("Index") && plan["Index Cond"].is_null() && !is_limited {
        found.push(name("Index Name"));
    }
    for child in plan["Plans"].as_array().into_iter().flatten() {
        scanned(child, is_limited || node == "Limit", found);
    }
}

/// The plan for any parameters, as a service that prepares its statements gets it.
async fn plan(connection: &mut PgConnection, query: &str, parameters: usize) -> Value {
    let nulls = vec!["NULL"; parameters].join(", ");
    let call = if parameters == 0 {
        String::new()
    } else {
        format!("({nulls})")
    };
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("PREPARE q AS {query}")))
        .execute(&mut *connection)
        .await
        .unwrap_or_else(|error| panic!("{query}: {error}"));
    let explained = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("EXPLAIN (FORMAT JSON) EXECUTE q{call}")))
        .fetch_one(&mut *connection)
        .await
        .unwrap_or_else(|error| panic!("{query}: {error}"));
    sqlx::raw_sql("DEALLOCATE q").execute(connection).await.unwrap();
    let text: String = explained.get_unchecked(0);
    serde_json::from_str::<Value>(&text).unwrap()[0]["Plan"].take()
}

#[tokio::test]
async fn no_query_reads_a_table_that_grows_from_end_to_end() {
    let database = dev::postgres::Server::shared().database().unwrap();
    let mut connection = PgConnection::connect(&database.owner_url()).await.unwrap();
    migrations::MIGRATOR.run(&mut connection).await.unwrap();
    for statement in ROWS.split(';').filter(|statement| !statement.trim().is_empty()) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()))
            .execute(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    sqlx::raw_sql("SET plan_cache_mode = force_generic_plan; SET jit = off")
        .execute(&mut connection)
        .await
        .unwrap();

    let queries = queries();
    assert!(queries.len() > 50, "{} queries in .sqlx", queries.len());
    let mut faults = Vec::new();
    for (query, parameters) in &queries {
        let plan = plan(&mut connection, query, *parameters).await;
        let mut tables = Vec::new();
        scanned(&plan, false, &mut tables);
        tables.retain(|table| !FIXED.contains(&table.as_str()) && !table.starts_with("pg_"));
        if !tables.is_empty() {
            faults.push(format!("{} by: {query}\n{plan:#}", tables.join(", ")));
        }
    }
    assert!(faults.is_empty(), "read from end to end: {}", faults.join("\n\n"));

    // The check can fail.
    for (query, parameters, read) in [
        ("SELECT id FROM messages WHERE content = $1 LIMIT 1", 1, "messages"),
        ("SELECT id FROM chats ORDER BY id", 0, "chats_pkey"),
    ] {
        let mut tables = Vec::new();
        scanned(&plan(&mut connection, query, parameters).await, false, &mut tables);
        assert_eq!(tables, [read]);
    }
}
