//! Opens a stream: loads the user, reads back what the ring no longer holds, joins.

use std::sync::Arc;

use fechatter_core::problem::Code;
use service_runtime::{ApiError, ApiResult};

use super::loader::{LoadFault, Loader};
use super::replay::Replay;
use crate::connection::{Connection, Owner};
use crate::hub::{Begun, Hub, Join, JoinRequest, Requested};

/// Most steps of one opening; each goes on from the one before.
const STEPS: usize = 12;

/// See the module.
#[derive(Debug, Clone)]
pub struct Streams {
    pub hub: Arc<Hub>,
    pub loader: Loader,
    pub replay: Arc<Replay>,
}

impl Streams {
    /// Opens a stream for `owner`.
    pub async fn open(&self, owner: Owner, requested: Requested) -> ApiResult<(Arc<Connection>, Begun)> {
        let user = owner.user;
        let mut request = JoinRequest {
            owner,
            requested,
            is_loaded: false,
            fetched: None,
            is_ahead_confirmed: false,
            gap: None,
        };
        for _ in 0..STEPS {
            match self.hub.join(&mut request) {
                Join::Joined(connection, begun) => return Ok((connection, begun)),
                Join::NotLoaded => {
                    self.loader.load(user).await.map_err(refusal)?;
                    request.is_loaded = true;
                }
                Join::Fetch { epoch, after, upto } => {
                    match self
                        .replay
                        .fetch(user, epoch, after, upto, request.fetched.take())
                        .await
                    {
                        Ok(fetched) => request.fetched = Some(fetched),
                        Err(fault) => request.gap = Some(fault.as_str()),
                    }
                }
                Join::Confirm(cursor) => match self.replay.last_sequence(cursor.epoch).await {
                    Some(last) if cursor.sequence <= last => request.is_ahead_confirmed = true,
                    _ => request.gap = Some("unknown_cursor"),
                },
                Join::Starting => {
                    return Err(ApiError::unavailable(
                        "Events are not available yet; try again soon.",
                        2,
                    ));
                }
                Join::Full => return Err(ApiError::unavailable("Too many streams here; try again soon.", 5)),
                Join::Revoked => {
                    return Err(ApiError::new(
                        Code::InvalidToken,
                        "The session has ended; sign in again.",
                    ));
                }
            }
        }
        // The ring ran away faster than the stream could be read.
        request.gap = Some("expired");
        match self.hub.join(&mut request) {
            Join::Joined(connection, begun) => Ok((connection, begun)),
            _ => Err(ApiError::unavailable(
                "The stream could not be opened; try again soon.",
                2,
            )),
        }
    }
}

fn refusal(fault: LoadFault) -> ApiError {
    match fault {
        LoadFault::Unavailable => ApiError::unavailable("Your chats could not be loaded; try again soon.", 2),
        LoadFault::NotActive => ApiError::new(Code::InvalidToken, "This account is not active."),
    }
}
