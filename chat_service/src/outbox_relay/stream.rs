//! The JetStream stream: its configuration, its epoch, and whether it still holds what it acknowledged.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{DiscardPolicy, Info, RawMessageErrorKind, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{Context, ErrorCode, stream};
use fechatter_core::events::{HEADER_EPOCH, HEADER_POSITION, HEADER_SHARD, METADATA_EPOCH, STREAM, SUBJECTS};
use futures::future::try_join_all;
use uuid::Uuid;

use super::Config;
use crate::repositories::outbox_progress::Progress;

/// Why the stream cannot be used now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamFault {
    #[error("the NATS server is {0}, 2.12.1 or newer is needed")]
    Server(String),
    #[error("cannot {what} the stream {STREAM}: {source}")]
    JetStream {
        what: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("examining the stream took too long")]
    Timeout,
}

fn cannot<E>(what: &'static str) -> impl Fn(E) -> StreamFault
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| StreamFault::JetStream {
        what,
        source: Box::new(source),
    }
}

/// Refuses servers whose batches do not look for duplicates.
pub(super) fn check_server(client: &async_nats::Client) -> Result<(), StreamFault> {
    if client.is_server_compatible(2, 12, 1) {
        Ok(())
    } else {
        Err(StreamFault::Server(client.server_info().version))
    }
}

/// The stream as it should be, but for its epoch: [`open`] gives a new one to each stream that it makes.
pub(super) fn config(config: &Config, replicas: usize) -> stream::Config {
    stream::Config {
        name: STREAM.to_owned(),
        description: Some("Everything that happened, in order per shard; rebuilt from the outbox when lost".to_owned()),
        subjects: vec![SUBJECTS.to_owned()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        num_replicas: replicas,
        max_age: Duration::from_secs(config.stream_max_age_hours * 3_600),
        max_bytes: config.stream_max_bytes,
        duplicate_window: Duration::from_secs(config.duplicate_window_seconds),
        allow_direct: true,
        allow_atomic_publish: true,
        ..stream::Config::default()
    }
}

/// Creates the stream with an epoch that no stream had before: cursors of a lost one must not seem to go on in this one.
async fn create(context: &Context, wanted: &stream::Config) -> Result<Stream, CreateStreamError> {
    let epoch = Uuid::new_v4().to_string();
    context
        .create_stream(stream::Config {
            metadata: HashMap::from([(METADATA_EPOCH.to_owned(), epoch)]),
            ..wanted.clone()
        })
        .await
}

/// Opens the stream or creates it; `configure` also brings what may change of an existing one in line.
pub(super) async fn open(context: &Context, wanted: &stream::Config, configure: bool) -> Result<Stream, StreamFault> {
    let stream = match context.get_stream(STREAM).await {
        Ok(stream) => stream,
        Err(error) if is_not_found(&error.kind()) => match create(context, wanted).await {
            Ok(stream) => return Ok(stream),
            // Another process was quicker: its epoch counts.
            Err(error) if is_taken(&error.kind()) => context.get_stream(STREAM).await.map_err(cannot("open"))?,
            Err(error) => return Err(cannot("create")(error)),
        },
        Err(error) => return Err(cannot("open")(error)),
    };
    let existing = &stream.cached_info().config;
    let mut updated = existing.clone();
    updated.description.clone_from(&wanted.description);
    updated.subjects.clone_from(&wanted.subjects);
    updated.discard = wanted.discard;
    updated.num_replicas = wanted.num_replicas;
    updated.max_age = wanted.max_age;
    updated.max_bytes = wanted.max_bytes;
    updated.duplicate_window = wanted.duplicate_window;
    updated.allow_direct = wanted.allow_direct;
    updated.allow_atomic_publish = wanted.allow_atomic_publish;
    if configure && updated != *existing {
        context.update_stream(&updated).await.map_err(cannot("update"))?;
        return context.get_stream(STREAM).await.map_err(cannot("open"));
    }
    Ok(stream)
}

fn is_not_found(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn is_taken(kind: &CreateStreamErrorKind) -> bool {
    matches!(kind, CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NAME_EXIST)
}

fn epoch_of(info: &Info) -> Option<Uuid> {
    info.config.metadata.get(METADATA_EPOCH)?.parse().ok()
}

/// The stream's epoch, if all progress was made in it and the stream still holds the last event of every shard.
///
/// What a stream loses at a crash or by a restored disk is its end. A shard's last event that is still at its sequence
/// therefore vouches for all before it, whatever was stored since.
pub(super) async fn valid_epoch(stream: &Stream, progress: &[Progress]) -> Result<Option<Uuid>, StreamFault> {
    let Some(epoch) = epoch_of(stream.cached_info()) else {
        return Ok(None);
    };
    if progress.iter().any(|shard| shard.stream_epoch != Some(epoch)) {
        return Ok(None);
    }
    let held = try_join_all(progress.iter().map(|shard| holds(stream, shard))).await?;
    Ok(held.into_iter().all(|is_held| is_held).then_some(epoch))
}

/// Whether all progress was made in the stream's history and the stream still holds it.
pub(crate) async fn is_valid(stream: &Stream, progress: &[Progress]) -> Result<bool, StreamFault> {
    valid_epoch(stream, progress).await.map(|epoch| epoch.is_some())
}

/// Whether the last published event of a shard is where it was acknowledged, or has left by age or size.
async fn holds(stream: &Stream, progress: &Progress) -> Result<bool, StreamFault> {
    let state = &stream.cached_info().state;
    let Some(sequence) = u64::try_from(progress.stream_sequence)
        .ok()
        .filter(|sequence| *sequence > 0)
    else {
        return Ok(true);
    };
    if sequence < state.first_sequence {
        return Ok(true);
    }
    match stream.get_raw_message(sequence).await {
        Ok(message) => {
            let is = |name: &str, value: String| message.headers.get(name).is_some_and(|found| found.as_str() == value);
            Ok(is(HEADER_SHARD, progress.shard.to_string())
                && is(HEADER_POSITION, progress.published_position.to_string())
                && progress
                    .stream_epoch
                    .is_some_and(|epoch| is(HEADER_EPOCH, epoch.to_string())))
        }
        Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => {
            // Perhaps it has left since we asked for the state.
            let state = stream.get_info().await.map_err(cannot("examine"))?.state;
            Ok(sequence < state.first_sequence)
        }
        Err(error) => Err(cannot("read")(error)),
    }
}

/// The epoch of a stream that never held anything.
pub(super) fn unused_epoch(stream: &Stream) -> Option<Uuid> {
    let info = stream.cached_info();
    epoch_of(info).filter(|_| info.state.last_sequence == 0)
}

/// Gives the stream a new epoch and removes what older ones left. Its consumers live on.
///
/// Order matters: events carry their epoch, so that whoever reads between the two steps knows them for old.
pub(super) async fn begin_epoch(context: &Context, stream: &Stream) -> Result<Uuid, StreamFault> {
    let epoch = Uuid::new_v4();
    let mut config = stream.cached_info().config.clone();
    config.metadata.insert(METADATA_EPOCH.to_owned(), epoch.to_string());
    let info = context.update_stream(&config).await.map_err(cannot("update"))?;
    if info.state.last_sequence > 0 {
        stream
            .purge()
            .sequence(info.state.last_sequence + 1)
            .await
            .map_err(cannot("purge"))?;
    }
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_that_is_made_again_has_another_epoch() {
        let folder = tempfile::tempdir().unwrap();
        let server = dev::nats::Server::start(dev::nats::Options {
            data: folder.path().join("data"),
            port: dev::ports::free().unwrap(),
            log: folder.path().join("nats.log"),
            users: vec![("chat".to_owned(), "chat-password".to_owned())],
            sync_always: false,
        })
        .unwrap();
        let client = async_nats::ConnectOptions::with_user_and_password("chat".into(), "chat-password".into())
            .custom_inbox_prefix("_INBOX_chat")
            .connect(server.url())
            .await
            .unwrap();
        let context = async_nats::jetstream::new(client);
        // One examination looks twice with one configuration, and the stream may be lost in between.
        let wanted = config(&Config::default(), 1);
        let first = open(&context, &wanted, true).await.unwrap();
        let again = open(&context, &wanted, true).await.unwrap();
        assert_eq!(epoch_of(first.cached_info()), epoch_of(again.cached_info()));
        context.delete_stream(STREAM).await.unwrap();
        let second = open(&context, &wanted, false).await.unwrap();
        assert!(epoch_of(second.cached_info()).is_some());
        assert_ne!(epoch_of(first.cached_info()), epoch_of(second.cached_info()));
    }
}
