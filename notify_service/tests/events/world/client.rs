//! What a device does.

use std::collections::VecDeque;
use std::time::Duration;

use fechatter_core::token::Claims;
use fechatter_core::user::Role;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Notify, PATIENCE, User, World};

/// An event as the client sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub id: Option<String>,
    pub event: String,
    pub data: Value,
}

/// The texts of the messages among them.
pub fn contents(frames: &[Frame]) -> Vec<&str> {
    let messages = frames.iter().filter(|frame| frame.event == "message.created");
    messages
        .map(|frame| frame.data["message"]["content"].as_str().expect("text"))
        .collect()
}

/// An open stream.
pub struct Sse {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    bytes: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    buffer: Vec<u8>,
    /// `presence` events that nobody has asked for yet: they come when they come, between the others.
    presences: VecDeque<Frame>,
    /// The last event id, as `EventSource` keeps it.
    pub cursor: Option<String>,
    pub heartbeats: usize,
    pub retry: Option<u64>,
}

impl World {
    pub fn token(&self, user: User) -> String {
        self.token_of(user, Uuid::now_v7(), 900)
    }

    pub fn token_of(&self, user: User, session: Uuid, seconds: i64) -> String {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let claims = Claims {
            iss: "fechatter".to_owned(),
            aud: "fechatter".to_owned(),
            sub: user.id.to_string(),
            ws: user.workspace.into(),
            role: Role::Member,
            sid: session,
            jti: Uuid::now_v7(),
            iat: now,
            exp: now + seconds,
        };
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
        header.kid = Some("k1".to_owned());
        let key = jsonwebtoken::EncodingKey::from_ed_der(&self.signing);
        jsonwebtoken::encode(&header, &claims, &key).expect("a token")
    }

    /// Opens a stream with a fresh token.
    pub async fn open(&self, notify: &Notify, user: User, cursor: Option<&str>) -> Sse {
        self.open_as(notify, &self.token(user), cursor).await
    }

    pub async fn open_as(&self, notify: &Notify, token: &str, cursor: Option<&str>) -> Sse {
        let mut request = self.http.get(notify.url("/events")).bearer_auth(token);
        if let Some(cursor) = cursor {
            request = request.header("last-event-id", cursor);
        }
        Sse::of(request).await
    }

    /// Opens a stream of a process that may be away.
    pub async fn try_open(&self, notify: &Notify, user: User, cursor: Option<&str>) -> Option<Sse> {
        let mut request = self.http.get(notify.url("/events")).bearer_auth(self.token(user));
        if let Some(cursor) = cursor {
            request = request.header("last-event-id", cursor);
        }
        Sse::try_of(request).await
    }

    /// Opens a stream and reads until `caught_up`; gives what came before that.
    pub async fn follow(&self, notify: &Notify, user: User, cursor: Option<&str>) -> (Sse, Vec<Frame>) {
        let mut sse = self.open(notify, user, cursor).await;
        assert_eq!(sse.status, 200, "{}", notify.log());
        let frames = sse.until("caught_up").await;
        (sse, frames)
    }
}

impl Sse {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        Self::try_of(request).await.expect("an answer")
    }

    async fn try_of(request: reqwest::RequestBuilder) -> Option<Self> {
        let answer = request.send().await.ok()?;
        Some(Self {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            bytes: answer.bytes_stream().boxed(),
            buffer: Vec::new(),
            presences: VecDeque::new(),
            cursor: None,
            heartbeats: 0,
            retry: None,
        })
    }

    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        tokio::time::timeout(PATIENCE, self.read())
            .await
            .expect("an event in time")
    }

    /// What comes within `time`, if anything.
    pub async fn within(&mut self, time: Duration) -> Option<Frame> {
        tokio::time::timeout(time, self.read()).await.ok().flatten()
    }

    /// The events before the next one of this name.
    pub async fn until(&mut self, name: &str) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self
                .next()
                .await
                .unwrap_or_else(|| panic!("the stream ended before {name}"));
            if frame.event == name {
                return frames;
            }
            frames.push(frame);
        }
    }

    /// All events to the end of the stream.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// The next `presence` event, as (user, status); the events before it must have been read.
    pub async fn presence(&mut self) -> (i64, String) {
        while self.presences.is_empty() {
            let other = tokio::time::timeout(PATIENCE, self.read_one())
                .await
                .expect("presence in time");
            let frame = other.expect("an open stream");
            assert_eq!(frame.event, "presence", "{frame:?}");
            self.presences.push_back(frame);
        }
        let frame = self.presences.pop_front().expect("an event");
        assert_eq!(frame.id, None);
        let status = frame.data["status"].as_str().expect("a status").to_owned();
        assert_eq!(frame.data["last_seen_at"].is_string(), status == "offline", "{frame:?}");
        (frame.data["user_id"].as_i64().expect("a user"), status)
    }

    /// The `presence` events that have come and not been read.
    pub const fn presences(&self) -> &VecDeque<Frame> {
        &self.presences
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            let frame = self.read_one().await?;
            if frame.event != "presence" {
                return Some(frame);
            }
            self.presences.push_back(frame);
        }
    }

    async fn read_one(&mut self) -> Option<Frame> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(frame) = self.dispatch(std::str::from_utf8(&block).expect("UTF-8")) {
                    return Some(frame);
                }
            }
            // A stream that breaks has ended, for the client.
            self.buffer.extend(self.bytes.next().await?.ok()?);
        }
    }

    /// What the standard says of a block of lines.
    fn dispatch(&mut self, block: &str) -> Option<Frame> {
        let (mut id, mut event, mut data) = (None, "message", None);
        for line in block.lines().filter(|line| !line.is_empty()) {
            let (field, value) = line.split_once(':').expect("a field");
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => self.heartbeats += 1,
                "id" => id = Some(value.to_owned()),
                "event" => event = value,
                "data" => data = Some(value),
                "retry" => self.retry = value.parse().ok(),
                other => panic!("unknown field {other}"),
            }
        }
        if id.is_some() {
            self.cursor.clone_from(&id);
        }
        Some(Frame {
            id,
            event: event.to_owned(),
            data: serde_json::from_str(data?).expect("JSON"),
        })
    }
}
