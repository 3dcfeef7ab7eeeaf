//! `GET /events`: one stream of one device.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fechatter_core::problem::Code;
use futures::Stream;
use http::{HeaderMap, header};
use rand::RngExt;
use serde::Deserialize;
use service_runtime::extract::Query;
use service_runtime::{ApiError, ApiResult};
use time::OffsetDateTime;
use tokio::time::{Instant, Sleep};
use utoipa::IntoParams;

use crate::AppState;
use crate::config::Streams;
use crate::frame::{self, Cursor};
use crate::hub::{Connection, Earlier, End, Hub, Join, Joined, Refusal};
use crate::metrics;
use crate::services::tickets::Identity;

/// Times that a user's chats or missed events are read before a stream is refused.
const READINGS: usize = 5;

/// What the query may hold.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct EventsParams {
    /// The id of the last event received, for clients that cannot set `Last-Event-ID`.
    last_event_id: String,
    /// A ticket, for clients that cannot set `Authorization`.
    ticket: String,
}

/// Opens a stream of events.
///
/// The first event is exactly one of `ready` (no cursor was given), `resumed {"count"}` (that many missed events follow)
/// and `gap {"reason"}` (reload by REST). Then `caught_up`, then events as they happen, named by their type.
/// `reauth` asks for a new access token; any end of the stream else means: come back with the last id.
#[utoipa::path(
    get,
    path = "/events",
    tag = "events",
    operation_id = "stream_events",
    params(
        EventsParams,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event received.")
    ),
    responses(
        (status = 200, description = "Events until the stream ends", content_type = "text/event-stream", body = String),
        (status = 401, description = "Not authenticated", body = fechatter_core::problem::Problem, content_type = "application/problem+json"),
        (status = 503, description = "Not now", body = fechatter_core::problem::Problem, content_type = "application/problem+json"),
    ),
    security(("bearer" = []), ())
)]
pub async fn stream(
    State(state): State<AppState>,
    Query(params): Query<EventsParams>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let given = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .filter(|text| !text.is_empty())
        .unwrap_or(&params.last_event_id);
    let cursor: Option<Cursor> = given.parse().ok();
    let identity = if params.ticket.is_empty() || headers.contains_key(header::AUTHORIZATION) {
        Identity::from(&*state.authenticator.authenticate(&headers).await?.claims)
    } else {
        let redeemed = state.tickets.redeem(&params.ticket, cursor.is_some()).await;
        redeemed.map_err(super::tickets::refuse)?
    };
    let join = Join {
        user: identity.user,
        workspace: identity.workspace,
        session: identity.session,
        cursor,
        unreadable_cursor: cursor.is_none() && !given.is_empty(),
    };
    let joined = open(&state, &join).await?;
    let events = EventStream::new(Arc::clone(&state.hub), joined, identity);
    Ok((
        [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache, no-transform"),
            (header::HeaderName::from_static("x-accel-buffering"), "no"),
        ],
        Body::from_stream(events),
    )
        .into_response())
}

/// Joins the hub, reading the user's chats first when they are not known.
async fn open(state: &AppState, join: &Join) -> ApiResult<Joined> {
    let not_now = || ApiError::unavailable("Events cannot be delivered right now; try again.", 2);
    let mut earlier = Earlier::default();
    for _ in 0..READINGS {
        match state.hub.join(join, &earlier) {
            Ok(joined) => return Ok(joined),
            Err(Refusal::NotReady | Refusal::Full) => return Err(not_now()),
            Err(Refusal::Revoked) => return Err(ended()),
            Err(Refusal::NotKept { upto }) => {
                let Some(cursor) = join.cursor else {
                    return Err(not_now());
                };
                earlier = state.replay.read(join.workspace, cursor, upto).await;
            }
            Err(Refusal::NotRead) => {
                if !state.readings.read(&state.hub, join.workspace, join.user).await? {
                    return Err(ended());
                }
            }
        }
    }
    Err(not_now())
}

fn ended() -> ApiError {
    ApiError::new(Code::InvalidToken, "The session has ended; sign in again.")
}

/// The body of the answer.
struct EventStream {
    hub: Arc<Hub>,
    connection: Arc<Connection>,
    backlog: VecDeque<Bytes>,
    timer: Pin<Box<Sleep>>,
    heartbeat: Duration,
    /// When it ends by itself, and how.
    until: Instant,
    end: End,
}

impl EventStream {
    fn new(hub: Arc<Hub>, joined: Joined, identity: Identity) -> Self {
        let settings = hub.settings();
        let mut random = rand::rng();
        let heartbeat = settings.heartbeat().mul_f64(random.random_range(0.75..1.25));
        let (until, end) = lifetime(settings, identity, random.random_range(0.8..1.2));
        let mut backlog: VecDeque<Bytes> = joined.backlog.into();
        let first = backlog.pop_front().unwrap_or_default();
        let head = [frame::retry(random.random_range(500..2_000)).as_bytes(), &first].concat();
        backlog.push_front(head.into());
        Self {
            connection: joined.connection,
            backlog,
            timer: Box::pin(tokio::time::sleep_until(until.min(Instant::now() + heartbeat))),
            heartbeat,
            until,
            end,
            hub,
        }
    }

    /// What to send when the timer has run out, if anything.
    fn timer_ran_out(&mut self) -> Option<Bytes> {
        let now = Instant::now();
        if now >= self.until {
            let last = (self.end == End::Reauth).then(|| frame::reauth("token_expires"));
            self.connection.end(self.end, last);
            // Never again: the end of the queue ends the stream.
            self.until = now + Duration::from_hours(1);
            self.timer.as_mut().reset(self.until);
            return None;
        }
        self.timer.as_mut().reset(self.until.min(now + self.heartbeat));
        let mut cursor = self.hub.cursor()?;
        cursor.sequence = cursor.sequence.max(self.connection.after());
        Some(frame::heartbeat(cursor))
    }
}

/// Until when a stream may last: shortly before its token expires, else until it is rotated.
fn lifetime(settings: &Streams, identity: Identity, spread: f64) -> (Instant, End) {
    let left = u64::try_from(identity.expires - OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0);
    let token = Duration::from_secs(left.saturating_sub(settings.reauth_seconds).max(1));
    let rotation = Duration::from_secs(settings.rotation_seconds).mul_f64(spread);
    if token <= rotation {
        (Instant::now() + token, End::Reauth)
    } else {
        (Instant::now() + rotation, End::Rotated)
    }
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.connection.ended() == Some(End::Slow) {
            return Poll::Ready(None);
        }
        if let Some(frame) = this.backlog.pop_front() {
            if this.backlog.is_empty() {
                this.backlog = VecDeque::new();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        // A heartbeat says where the process is, which is true for this client only once its queue is found empty after.
        let mut heartbeat = None;
        while this.timer.as_mut().poll(context).is_ready() {
            heartbeat = this.timer_ran_out().or(heartbeat);
        }
        match (this.connection.poll_next(context), heartbeat) {
            (Poll::Pending, Some(frame)) => Poll::Ready(Some(Ok(frame))),
            (Poll::Pending, None) => Poll::Pending,
            (Poll::Ready(frame), _) => Poll::Ready(frame.map(Ok)),
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.hub.leave(&self.connection);
        metrics::ended(self.connection.ended());
    }
}
