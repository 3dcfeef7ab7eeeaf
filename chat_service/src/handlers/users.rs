//! `/api/me` and `/api/users`.

use axum::extract::State;
use fechatter_core::UserId;
use fechatter_core::schema;
use fechatter_core::user::Role;
use fechatter_core::wire::{Page, UserView};
use http::StatusCode;
use serde::Deserialize;
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::{Json, Path, Query};
use utoipa::ToSchema;

use super::ListQuery;
use crate::services::users::{UpdateUser, UserService};

/// What changes; absent fields stay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateUserRequest {
    /// One's own only.
    #[serde(default)]
    #[schema(schema_with = schema::fullname_or_null)]
    fullname: Option<String>,
    /// By an owner or admin; `owner` hands the workspace over.
    #[serde(default)]
    role: Option<Role>,
}

/// The caller.
#[utoipa::path(get, path = "/api/me", tag = "users", operation_id = "get_me", security(("bearer" = [])),
    responses((status = 200, description = "The caller", body = UserView)))]
pub async fn get_me(State(users): State<UserService>, caller: Caller) -> ApiResult<Json<UserView>> {
    Ok(Json(users.me((&caller).into()).await?))
}

/// Active users of the workspace.
#[utoipa::path(get, path = "/api/users", tag = "users", operation_id = "list_users", params(ListQuery), security(("bearer" = [])),
    responses((status = 200, description = "Users", body = Page<UserView>)))]
pub async fn list_users(
    State(users): State<UserService>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Page<UserView>>> {
    Ok(Json(
        users
            .list((&caller).into(), query.cursor.as_deref(), query.limit)
            .await?,
    ))
}

/// Changes one's name, or as owner or admin somebody's role.
#[utoipa::path(patch, path = "/api/users/{id}", tag = "users", operation_id = "update_user", extensions(("x-problem-codes" = json!(["forbidden", "conflict"]))), params(("id" = UserId, Path, description = "The user.")),
    request_body = UpdateUserRequest, security(("bearer" = [])),
    responses((status = 200, description = "The user as they are now", body = UserView)))]
pub async fn update_user(
    State(users): State<UserService>,
    caller: Caller,
    Path(id): Path<UserId>,
    Json(request): Json<UpdateUserRequest>,
) -> ApiResult<Json<UserView>> {
    let request = UpdateUser {
        fullname: request.fullname,
        role: request.role,
    };
    Ok(Json(users.update((&caller).into(), id, request).await?))
}

/// Deactivates a user: oneself, or as owner or admin somebody below. Their sessions end.
#[utoipa::path(delete, path = "/api/users/{id}", tag = "users", operation_id = "deactivate_user", extensions(("x-problem-codes" = json!(["forbidden", "conflict"]))), params(("id" = UserId, Path, description = "The user.")),
    security(("bearer" = [])), responses((status = 204, description = "Deactivated")))]
pub async fn deactivate_user(
    State(users): State<UserService>,
    caller: Caller,
    Path(id): Path<UserId>,
) -> ApiResult<StatusCode> {
    users.deactivate((&caller).into(), id).await?;
    Ok(StatusCode::NO_CONTENT)
}
