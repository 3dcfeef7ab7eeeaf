//! The servers of the tests are real, apart from each other, and survive a crash with their data.

use dev::{nats, postgres};

#[test]
fn postgres_keeps_its_data_through_a_kill() {
    let mut server = postgres::Server::temporary().unwrap();
    let database = server.database().unwrap();
    assert!(database.url("chat").starts_with("postgres://chat@127.0.0.1:"));
    server
        .psql("postgres", "CREATE TABLE t (n int); INSERT INTO t VALUES (42)")
        .unwrap();
    server.kill();
    assert!(server.psql("postgres", "SELECT n FROM t").is_err());
    server.restart().unwrap();
    assert_eq!(server.psql("postgres", "SELECT n FROM t").unwrap().trim(), "42");
}

#[test]
fn two_servers_side_by_side_do_not_meet() {
    let one = postgres::Server::temporary().unwrap();
    let two = postgres::Server::temporary().unwrap();
    assert_ne!(one.port(), two.port());
    one.psql("postgres", "CREATE DATABASE only_one").unwrap();
    assert_eq!(
        two.psql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname = 'only_one'"
        )
        .unwrap()
        .trim(),
        "0"
    );
}

#[test]
fn nats_starts_again_after_a_kill() {
    let mut server = nats::Server::temporary().unwrap();
    assert!(dev::ports::is_open(server.port()));
    server.kill();
    assert!(!dev::ports::is_open(server.port()));
    server.restart().unwrap();
    assert!(dev::ports::is_open(server.port()));
}

#[test]
fn a_nats_user_gets_what_is_listed_and_no_more() {
    let configuration = nats::configuration(&nats::Options {
        data: "/data".into(),
        port: 4222,
        log: "/log".into(),
        users: nats::USERS
            .iter()
            .map(|user| ((*user).to_owned(), "secret".to_owned()))
            .collect(),
        sync_always: false,
    });
    let line = |user: &str| {
        configuration
            .lines()
            .find(|line| line.contains(&format!("user: {user},")))
            .unwrap()
            .to_owned()
    };
    assert!(line("chat").contains("\"fechatter.>\""));
    for reader in ["notify", "indexer", "gateway"] {
        assert!(
            !line(reader).contains("\"fechatter.>\""),
            "{reader} may not publish events"
        );
        assert!(
            !line(reader).contains("STREAM.DELETE"),
            "{reader} may not delete the stream"
        );
    }
    assert!(!line("indexer").contains("ephemeral"));
}
