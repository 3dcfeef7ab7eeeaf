//! Receives what is never stored and hands it to the hub.

use std::sync::Arc;
use std::time::Duration;

use fechatter_core::WorkspaceId;
use fechatter_core::events::EPHEMERAL_PREFIX;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::typing::TypingEvent;
use crate::frame;
use crate::hub::{Hub, Scope};

/// Between two attempts to subscribe.
const PAUSE: Duration = Duration::from_secs(1);

/// Receives until shutdown; the client subscribes again by itself after a reconnection.
pub async fn run(client: async_nats::Client, hub: Arc<Hub>, shutdown: CancellationToken) {
    let subject = format!("{EPHEMERAL_PREFIX}.*.chat.*.typing");
    loop {
        match client.subscribe(subject.clone()).await {
            Ok(mut messages) => loop {
                let message = tokio::select! {
                    () = shutdown.cancelled() => return,
                    message = messages.next() => message,
                };
                let Some(message) = message else { break };
                typing(&hub, &message);
            },
            Err(error) => tracing::warn!(%error, "cannot subscribe to ephemeral events"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn typing(hub: &Hub, message: &async_nats::Message) {
    let Some(workspace) = workspace(&message.subject) else {
        return;
    };
    let Ok(event) = serde_json::from_slice::<TypingEvent>(&message.payload) else {
        return;
    };
    if let Ok(data) = serde_json::to_string(&event) {
        let frame = frame::ephemeral("typing", &data);
        hub.tell(workspace, Scope::Chat(event.chat_id), Some(event.user_id), &frame);
    }
}

/// The workspace that a subject names.
fn workspace(subject: &str) -> Option<WorkspaceId> {
    subject.split('.').nth(1)?.parse().ok()
}
