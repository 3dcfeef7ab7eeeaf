//! A database in which names could not be compared is refused before anything is made in it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Output};

fn migrate(url: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_migrations"))
        .env("DATABASE_URL", url)
        .output()
        .unwrap()
}

#[test]
fn a_database_that_is_not_utf8_is_refused_with_a_way_out() {
    let server = dev::postgres::Server::shared();
    let usual = server.database().unwrap().owner_url();
    let (address, name) = usual.rsplit_once('/').unwrap();
    let plain = format!("{name}_plain");
    let create = format!("CREATE DATABASE {plain} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    server.psql("postgres", &create).unwrap();

    let refused = migrate(&format!("{address}/{plain}"));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(
        said.contains("encoded in SQL_ASCII") && said.contains("ENCODING 'UTF8'"),
        "{said}"
    );
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(server.psql(&plain, tables).unwrap().trim(), "0", "nothing was made");
    server.psql("postgres", &format!("DROP DATABASE {plain}")).unwrap();

    assert!(migrate(&usual).status.success(), "the usual one is taken");
}
