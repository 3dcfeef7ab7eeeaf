//! PostgreSQL that goes and comes back costs no request a dead connection.

use std::time::Duration;

use sqlx::PgPool;

const CONNECTIONS: u32 = 8;

/// One statement on each connection of the pool, all at once: the process that answered.
async fn ask_all(pool: &PgPool) -> Vec<Result<i32, sqlx::Error>> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let pool = pool.clone();
        tasks.spawn(async move {
            // Sleeps, so that none has two.
            sqlx::query_scalar("SELECT pg_backend_pid() FROM pg_sleep(0.05)")
                .fetch_one(&pool)
                .await
        });
    }
    tasks.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_were_lost_are_not_handed_out() {
    let server = dev::postgres::Server::shared();
    let database = server.database().unwrap();
    let owner = PgPool::connect(&database.owner_url()).await.unwrap();
    migrations::MIGRATOR.run(&owner).await.unwrap();
    owner.close().await;
    let pool = migrations::open(&database.url("chat"), CONNECTIONS).await.unwrap();
    let name: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&pool)
        .await
        .unwrap();
    let watching = || {
        let sql = format!(
            "SELECT min(pid) FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'fechatter_watch'"
        );
        server.psql("postgres", &sql).unwrap().trim().parse::<u32>().ok()
    };
    let until = |what: &str, wanted: &dyn Fn(u32) -> bool| {
        // The one that watches runs meanwhile, on the other worker.
        dev::wait::until_ready(Duration::from_secs(30), what, || watching().filter(|pid| wanted(*pid))).unwrap()
    };
    let first = until("somebody to watch", &|_| true);
    let before: Vec<i32> = ask_all(&pool).await.into_iter().map(Result::unwrap).collect();

    let end = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'");
    let ended: u32 = server.psql("postgres", &end).unwrap().trim().parse().unwrap();
    assert_eq!(ended, CONNECTIONS + 1, "all of the pool and the one that watches");
    until("it to be noticed", &|pid| pid != first);

    // Within the second in which a connection that worked is trusted.
    for answer in ask_all(&pool).await {
        let pid = answer.unwrap();
        assert!(!before.contains(&pid), "{pid} is a new connection");
    }
    pool.close().await;
    dev::wait::until_ready(Duration::from_secs(30), "nobody to watch a closed pool", || {
        watching().is_none().then_some(())
    })
    .unwrap();
}
