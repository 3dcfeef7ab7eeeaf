//! Use of a pool of database connections, looked at when metrics are read.

use opentelemetry::{KeyValue, global};

/// A pool, as far as it is measured. The functions must be quick and must not wait.
pub struct Pool<Open, Idle> {
    /// Most connections it may have.
    pub max: u32,
    /// Connections open now.
    pub open: Open,
    /// Those of them that nobody uses.
    pub idle: Idle,
}

/// Registers `db.client.connection.*` of the process's one pool.
pub fn observe<Open, Idle>(pool: Pool<Open, Idle>)
where
    Open: Fn() -> u32 + Send + Sync + 'static,
    Idle: Fn() -> usize + Send + Sync + 'static,
{
    const NAME: &str = "postgresql";
    let Pool { max, open, idle } = pool;
    let meter = global::meter("observability");
    // The SDK keeps the callbacks; the returned handles are only for dropping them early.
    let _ = meter
        .i64_observable_up_down_counter("db.client.connection.count")
        .with_unit("{connection}")
        .with_description("Open connections by state.")
        .with_callback(move |observer| {
            let idle = i64::try_from(idle()).unwrap_or(i64::MAX);
            let used = (i64::from(open()) - idle).max(0);
            for (state, count) in [("idle", idle), ("used", used)] {
                observer.observe(
                    count,
                    &[
                        KeyValue::new("db.client.connection.pool.name", NAME),
                        KeyValue::new("db.client.connection.state", state),
                    ],
                );
            }
        })
        .build();
    let _ = meter
        .i64_observable_up_down_counter("db.client.connection.max")
        .with_unit("{connection}")
        .with_description("Most connections the pool may have.")
        .with_callback(move |observer| {
            observer.observe(i64::from(max), &[KeyValue::new("db.client.connection.pool.name", NAME)]);
        })
        .build();
}
