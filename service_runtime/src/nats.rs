//! The connection to NATS. It is made in the background: no process fails to start because NATS is away.

use std::future::{Ready, ready};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use secrecy::ExposeSecret;

use crate::config::Nats;

/// Connects as `name`, for ever retrying in the background; the returned client is usable at once and buffers little.
pub async fn connect(config: &Nats, name: &str) -> Result<Client, async_nats::ConnectError> {
    let mut options = ConnectOptions::new()
        .name(name)
        .retry_on_initial_connect()
        .connection_timeout(Duration::from_secs(3))
        .ping_interval(Duration::from_secs(10))
        .request_timeout(Some(Duration::from_secs(5)))
        .reconnect_delay_callback(|attempts| Duration::from_millis((100 * attempts as u64).min(2_000)))
        // A private prefix: the server's permissions let each user subscribe to its own inboxes only.
        .custom_inbox_prefix(format!("_INBOX_{name}"))
        .event_callback(|event| async move {
            match event {
                Event::Connected => tracing::info!("connected to NATS"),
                Event::Disconnected => tracing::warn!("disconnected from NATS"),
                Event::SlowConsumer(id) => tracing::warn!(id, "NATS subscription is too slow, messages were dropped"),
                Event::ServerError(error) => tracing::warn!(%error, "NATS server error"),
                other => tracing::debug!(event = %other, "NATS"),
            }
        });
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        options = options.user_and_password(user.clone(), password.expose_secret().to_owned());
    }
    let servers: Vec<String> = config.url.split(',').map(|url| url.trim().to_owned()).collect();
    options.connect(servers).await
}

/// For `/health`: whether the client is connected now.
pub fn check(client: &Client) -> Ready<Result<Option<String>, String>> {
    ready(match client.connection_state() {
        async_nats::connection::State::Connected => Ok(None),
        state => Err(format!("NATS is {state}")),
    })
}
