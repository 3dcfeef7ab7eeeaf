//! HTTP only: extract, call one service method, map to a view.

pub mod auth;
pub mod chats;
pub mod keys;
pub mod members;
pub mod messages;
pub mod openapi;
pub mod sessions;
pub mod users;
pub mod workspaces;

use serde::Deserialize;
use utoipa::IntoParams;

/// Query of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// `next` of the page before.
    #[param(example = "id_42", pattern = "^id_[1-9][0-9]{0,15}$")]
    pub cursor: Option<String>,
    /// Items of a page.
    #[param(minimum = 1, maximum = 100, default = 50)]
    pub limit: Option<i64>,
}
