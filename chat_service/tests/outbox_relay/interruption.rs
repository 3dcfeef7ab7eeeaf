//! Requests are dropped when their client goes away, at any moment.

use std::time::Duration;

use chat_service::repositories;
use sqlx::Row;

use crate::support::Database;

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_begin_was_interrupted_is_not_left_open() {
    let database = Database::start().await;
    let pool = database.single().await;
    for step in 0..400 {
        // Dropped at another moment each time, before, during or after the round trip.
        let begun = tokio::time::timeout(Duration::from_micros(step * 5), repositories::begin(&pool)).await;
        drop(begun);
        // Inside a transaction, now() is the time at which it began. As one message: each of several has a time of its own.
        let row = sqlx::raw_sql("SELECT now() = statement_timestamp()")
            .fetch_one(&pool)
            .await
            .unwrap();
        let is_outside: bool = row.get(0);
        assert!(
            is_outside,
            "lent on inside a transaction, interrupted after {} µs",
            step * 5
        );
    }
}
