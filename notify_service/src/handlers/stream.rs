//! `GET /events`.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use fechatter_core::events::EventType;
use http::{HeaderMap, HeaderValue, header};
use rand::RngExt;
use serde::Deserialize;
use service_runtime::ApiResult;
use service_runtime::extract::Query;
use time::OffsetDateTime;
use tokio::time::Instant;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::body::{EventBody, Life};
use crate::config::StreamConfig;
use crate::connection::Owner;
use crate::hub::Requested;
use crate::state::AppState;

/// The header in which a client says what it saw last.
const LAST_EVENT_ID: &str = "last-event-id";

/// How a stream is asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct StreamParams {
    /// A ticket of `POST /events/ticket`, where no `Authorization` header can be sent. Good for one stream and its
    /// reconnects.
    ticket: String,
    /// The id of the last event seen, where no `Last-Event-ID` header can be sent.
    last_event_id: String,
    /// The same, as some clients spell it.
    #[serde(rename = "lastEventId")]
    #[param(rename = "lastEventId")]
    last_event_id_of_polyfills: String,
}

/// One event of the stream, its fields as Server-Sent Events have them. Without `event` it is a heartbeat.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "only described; events are encoded once, by `event`")]
pub struct StreamEvent {
    /// The cursor: to be sent as `Last-Event-ID` to go on after this event.
    #[schema(example = "0190a7c04f6e7b1e9d525b1f0c6e2d11.42")]
    id: Option<String>,
    event: Option<StreamEventType>,
    /// JSON: what the event concerns, in the shapes of the API.
    #[schema(example = "{\"chat_id\":42,\"user_id\":7}")]
    data: Option<String>,
    /// Milliseconds to wait before coming back.
    #[schema(minimum = 0, example = 1000)]
    retry: Option<i64>,
}

/// The types of events that are not stored.
const UNSTORED: [&str; 7] = ["ready", "resumed", "gap", "caught_up", "reauth", "typing", "presence"];

/// The name of an event's type.
#[derive(Debug)]
struct StreamEventType;

impl PartialSchema for StreamEventType {
    fn schema() -> RefOr<Schema> {
        // The end of a session ends its streams; nobody is told by an event.
        let stored = EventType::ALL
            .into_iter()
            .filter(|event| *event != EventType::SessionRevoked)
            .map(EventType::as_str);
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "Ready, resumed and gap begin a stream; the dotted ones are what happened.",
            ))
            .enum_values(Some(UNSTORED.into_iter().chain(stored)))
            .into()
    }
}

impl ToSchema for StreamEventType {}

/// What a client saw last: the header counts before the parameters, and an empty value is none.
fn requested(headers: &HeaderMap, params: &StreamParams) -> Requested {
    let parse = |text: &str| text.parse().map_or(Requested::Malformed, Requested::After);
    if let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) {
        return value.to_str().map_or(Requested::Malformed, parse);
    }
    [&params.last_event_id, &params.last_event_id_of_polyfills]
        .into_iter()
        .find(|text| !text.is_empty())
        .map_or(Requested::Start, |text| parse(text))
}

/// When a stream is to end, for a token that expires at `expires`.
fn life(config: &StreamConfig, expires: i64) -> Life {
    let now = OffsetDateTime::now_utc();
    let remaining = Duration::from_secs(u64::try_from(expires - now.unix_timestamp()).unwrap_or(0));
    let lead = Duration::from_secs(config.reauth_lead_seconds);
    // Clients that signed in together shall not all come back together.
    let rotate = rand::rng().random_range(config.rotate_seconds * 800..=config.rotate_seconds * 1_200);
    let started = Instant::now();
    Life {
        reauth_at: started + remaining.saturating_sub(lead).max(remaining / 2),
        rotate_at: started + Duration::from_millis(rotate),
    }
}

/// Opens the live stream of everything that concerns the caller, as Server-Sent Events.
///
/// `event:` is the type, `data:` its JSON, `id:` an opaque cursor. The first event is always `ready` (no cursor),
/// `resumed {count}` (followed by what was missed and then `caught_up`) or `gap {reason}` (reload by the API; what
/// follows is live). `reauth {reason}` announces the end of a stream whose token ends. The stream is closed now and then:
/// return with the last id. An `id:` without data is a heartbeat that moves the cursor. `typing` and `presence` have no id.
#[utoipa::path(
    get,
    path = "/events",
    tag = "events",
    params(
        StreamParams,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen."),
    ),
    responses(
        (status = 200, description = "The stream", content_type = "text/event-stream", body = StreamEvent),
    ),
    security(("bearer" = []), ()),
)]
pub async fn events(
    State(state): State<AppState>,
    headers: HeaderMap,
    Query(params): Query<StreamParams>,
) -> ApiResult<Response> {
    let requested = requested(&headers, &params);
    let (owner, expires) = if !params.ticket.is_empty() && !headers.contains_key(header::AUTHORIZATION) {
        let admitted = state
            .tickets
            .redeem(&params.ticket, matches!(requested, Requested::After(_)))
            .await?;
        let owner = Owner {
            user: admitted.user,
            workspace: admitted.workspace,
            session: admitted.session,
            ticket: Some(admitted.digest),
        };
        (owner, admitted.expires)
    } else {
        let caller = state.authenticator.authenticate(&headers).await?;
        let owner = Owner {
            user: caller.user_id(),
            workspace: caller.workspace_id(),
            session: caller.session_id(),
            ticket: None,
        };
        (owner, caller.claims.exp)
    };
    let hub = state.streams.hub.clone();
    let life = life(hub.stream_config(), expires);
    let (connection, begun) = state.streams.open(owner, requested).await?;
    tracing::debug!(?begun, "stream opened");
    let body = EventBody::new(connection, hub, life);
    let mut response = Response::new(Body::new(body));
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    answer.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::Cursor;
    use uuid::Uuid;

    #[test]
    fn the_header_counts_first_and_empty_is_none() {
        let cursor = |sequence| Cursor {
            epoch: Uuid::nil(),
            sequence,
        };
        let params = |last_event_id: &str, polyfill: &str| StreamParams {
            last_event_id: last_event_id.to_owned(),
            last_event_id_of_polyfills: polyfill.to_owned(),
            ..StreamParams::default()
        };
        let with = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(LAST_EVENT_ID, HeaderValue::from_bytes(value).unwrap());
            headers
        };
        let (one, two) = (cursor(1).to_string(), cursor(2).to_string());
        let none = HeaderMap::new();
        assert_eq!(requested(&none, &params("", "")), Requested::Start);
        assert_eq!(requested(&with(b""), &params("", "")), Requested::Start);
        assert_eq!(requested(&with(b""), &params(&one, "")), Requested::After(cursor(1)));
        assert_eq!(requested(&none, &params("", &two)), Requested::After(cursor(2)));
        assert_eq!(
            requested(&with(two.as_bytes()), &params(&one, "")),
            Requested::After(cursor(2))
        );
        assert_eq!(requested(&with(b"nonsense"), &params(&one, "")), Requested::Malformed);
        assert_eq!(requested(&with(b"\xff"), &params("", "")), Requested::Malformed);
        assert_eq!(requested(&none, &params("1", "")), Requested::Malformed);
    }

    #[test]
    fn a_stream_ends_before_its_token() {
        let config = StreamConfig::default();
        for (seconds, least, most) in [(900, 880, 890), (20, 8, 11), (1, 0, 1), (-5, 0, 0)] {
            let life = life(&config, OffsetDateTime::now_utc().unix_timestamp() + seconds);
            let until = life.reauth_at.saturating_duration_since(Instant::now()).as_secs();
            assert!((least..=most).contains(&until), "{seconds}: {until}");
        }
    }
}
