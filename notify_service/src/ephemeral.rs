//! Typing and presence between replicas: core NATS, `ephemeral.{workspace}.{scope}.{scope id}.{kind}`, never stored and never replayed.

use std::sync::Arc;
use std::time::Duration;

use fechatter_core::events::EPHEMERAL_PREFIX;
use fechatter_core::{ChatId, UserId, WorkspaceId};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::connection::EphemeralKey;
use crate::event::frame;
use crate::hub::Hub;
use crate::presence::{Sighting, Status};
use crate::services::presence::Presence;

/// Somebody is typing in a chat; also the data of the `typing` event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Typing {
    pub chat_id: ChatId,
    pub user_id: UserId,
}

/// Something that is sent this way.
pub trait Signal: Serialize {
    /// The last token of the subject.
    const KIND: &'static str;

    /// What it is about: the tokens before the last.
    fn scope(&self) -> String;
}

impl Signal for Typing {
    const KIND: &'static str = "typing";

    fn scope(&self) -> String {
        format!("chat.{}", self.chat_id)
    }
}

impl Signal for Sighting {
    const KIND: &'static str = "presence";

    fn scope(&self) -> String {
        format!("user.{}", self.user_id)
    }
}

/// A session says whether its user is at the device.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Awayness {
    pub user_id: UserId,
    pub session_id: Uuid,
    pub is_away: bool,
}

impl Signal for Awayness {
    const KIND: &'static str = "awayness";

    fn scope(&self) -> String {
        format!("user.{}", self.user_id)
    }
}

/// A replica repeats whom it sees.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Repetition {
    pub replica: Uuid,
    pub users: Vec<(UserId, WorkspaceId, Status)>,
}

impl Signal for Repetition {
    const KIND: &'static str = "repetition";

    fn scope(&self) -> String {
        format!("replica.{}", self.replica.simple())
    }
}

/// A replica that may have missed what others said asks all to say it again.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct RollCall {
    pub replica: Uuid,
}

impl Signal for RollCall {
    const KIND: &'static str = "roll_call";

    fn scope(&self) -> String {
        format!("replica.{}", self.replica.simple())
    }
}

/// Sends a signal to all replicas, this one included. One that cannot be sent is dropped.
pub async fn send<S: Signal>(client: &async_nats::Client, workspace: WorkspaceId, signal: &S) {
    let Ok(body) = serde_json::to_vec(signal) else { return };
    let subject = format!("{EPHEMERAL_PREFIX}.{workspace}.{}.{}", signal.scope(), S::KIND);
    if let Err(error) = client.publish(subject, body.into()).await {
        tracing::debug!(%error, kind = S::KIND, "a signal was dropped");
    }
}

/// Receives signals until `shutdown`.
pub async fn receive(client: async_nats::Client, hub: Arc<Hub>, presence: Presence, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        // The client renews the subscription itself after a reconnection.
        match client.subscribe(format!("{EPHEMERAL_PREFIX}.>")).await {
            Ok(mut signals) => {
                while let Some(Some(message)) = shutdown.run_until_cancelled(signals.next()).await {
                    accept(&hub, &presence, &message);
                }
            }
            Err(error) => tracing::debug!(%error, "cannot subscribe to signals"),
        }
        shutdown
            .run_until_cancelled(tokio::time::sleep(Duration::from_secs(1)))
            .await;
    }
}

fn accept(hub: &Hub, presence: &Presence, message: &async_nats::Message) {
    match message.subject.rsplit('.').next() {
        Some(Typing::KIND) => {
            let Ok(typing) = serde_json::from_slice::<Typing>(&message.payload) else {
                return;
            };
            let Ok(data) = serde_json::to_string(&typing) else {
                return;
            };
            let frame = frame(None, Typing::KIND, &data);
            let key = EphemeralKey::Typing(typing.chat_id, typing.user_id);
            let receivers = hub.publish_ephemeral(&[typing.chat_id], typing.user_id, key, &frame);
            hub.metrics().ephemeral(Typing::KIND, receivers);
        }
        Some(Sighting::KIND) => {
            if let Ok(sighting) = serde_json::from_slice(&message.payload) {
                presence.see(&sighting);
            }
        }
        Some(Repetition::KIND) => {
            if let Ok(repetition) = serde_json::from_slice(&message.payload) {
                presence.repeat(&repetition);
            }
        }
        Some(RollCall::KIND) => presence.is_called(),
        Some(Awayness::KIND) => {
            if let Ok(Awayness {
                user_id,
                session_id,
                is_away,
            }) = serde_json::from_slice(&message.payload)
            {
                hub.set_away(user_id, session_id, is_away);
            }
        }
        kind => tracing::trace!(kind, "unknown signal"),
    }
}
