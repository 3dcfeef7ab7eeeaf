//! `/api/workspace` and its invitations.

use axum::extract::State;
use fechatter_core::schema;
use fechatter_core::wire::Page;
use fechatter_core::{UserId, WorkspaceId};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::{Json, Path, Query};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::ListQuery;
use crate::repositories::invitations::InvitationRow;
use crate::repositories::workspaces::WorkspaceRow;
use crate::services::workspaces::{Invite, WorkspaceService};

/// A workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct Workspace {
    id: WorkspaceId,
    #[schema(example = "Analytical Engines")]
    name: String,
    owner_id: UserId,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl From<WorkspaceRow> for Workspace {
    fn from(row: WorkspaceRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            owner_id: row.owner_id,
            created_at: row.created_at,
        }
    }
}

/// A new name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWorkspaceRequest {
    #[schema(schema_with = schema::workspace_name)]
    name: String,
}

/// Whom to let in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// How many may use it; 1 by default.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 10000)]
    max_uses: Option<i64>,
    /// Seconds it lives; 7 days by default, at most 30.
    #[serde(default)]
    #[schema(minimum = 60, maximum = 2_592_000)]
    expires_in: Option<i64>,
    /// Only this address may use it.
    #[serde(default)]
    #[schema(schema_with = schema::email_or_null)]
    email: Option<String>,
}

/// An invitation.
#[derive(Debug, Serialize, ToSchema)]
pub struct Invitation {
    #[schema(minimum = 1, example = 42)]
    id: i64,
    /// Only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    created_by: UserId,
    #[schema(required)]
    email: Option<String>,
    max_uses: i32,
    uses: i32,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

impl Invitation {
    fn new(row: InvitationRow, token: Option<String>) -> Self {
        Self {
            id: row.id,
            token,
            created_by: row.created_by,
            email: row.email,
            max_uses: row.max_uses,
            uses: row.uses,
            expires_at: row.expires_at,
            created_at: row.created_at,
        }
    }
}

/// The caller's workspace.
#[utoipa::path(get, path = "/api/workspace", tag = "workspace", operation_id = "get_workspace", security(("bearer" = [])),
    responses((status = 200, description = "The workspace", body = Workspace)))]
pub async fn get_workspace(State(workspaces): State<WorkspaceService>, caller: Caller) -> ApiResult<Json<Workspace>> {
    Ok(Json(workspaces.get((&caller).into()).await?.into()))
}

/// Renames the workspace; its owner and admins may.
#[utoipa::path(patch, path = "/api/workspace", tag = "workspace", operation_id = "update_workspace", extensions(("x-problem-codes" = json!(["forbidden", "conflict"]))),
    request_body = UpdateWorkspaceRequest, security(("bearer" = [])),
    responses((status = 200, description = "The workspace as it is now", body = Workspace)))]
pub async fn update_workspace(
    State(workspaces): State<WorkspaceService>,
    caller: Caller,
    Json(request): Json<UpdateWorkspaceRequest>,
) -> ApiResult<Json<Workspace>> {
    Ok(Json(workspaces.rename((&caller).into(), &request.name).await?.into()))
}

/// Makes an invitation; the owner and admins may. Its token is shown once.
#[utoipa::path(post, path = "/api/workspace/invitations", tag = "workspace", operation_id = "create_invitation", extensions(("x-problem-codes" = json!(["forbidden"]))),
    request_body = InviteRequest, security(("bearer" = [])),
    responses((status = 201, description = "The invitation with its token", body = Invitation)))]
pub async fn create_invitation(
    State(workspaces): State<WorkspaceService>,
    caller: Caller,
    Json(request): Json<InviteRequest>,
) -> ApiResult<(StatusCode, Json<Invitation>)> {
    let request = Invite {
        max_uses: request.max_uses,
        expires_in: request.expires_in,
        email: request.email,
    };
    let (row, token) = workspaces.invite((&caller).into(), request).await?;
    Ok((StatusCode::CREATED, Json(Invitation::new(row, Some(token)))))
}

/// Invitations that can still be used; for the owner and admins.
#[utoipa::path(get, path = "/api/workspace/invitations", tag = "workspace", operation_id = "list_invitations", extensions(("x-problem-codes" = json!(["forbidden"]))), params(ListQuery),
    security(("bearer" = [])), responses((status = 200, description = "Invitations", body = Page<Invitation>)))]
pub async fn list_invitations(
    State(workspaces): State<WorkspaceService>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Page<Invitation>>> {
    let page = workspaces
        .list_invitations((&caller).into(), query.cursor.as_deref(), query.limit)
        .await?;
    Ok(Json(Page {
        items: page.items.into_iter().map(|row| Invitation::new(row, None)).collect(),
        next: page.next,
    }))
}

/// Revokes an invitation; the owner and admins may.
#[utoipa::path(delete, path = "/api/workspace/invitations/{id}", tag = "workspace", operation_id = "revoke_invitation", extensions(("x-problem-codes" = json!(["forbidden"]))),
    params(("id" = i64, Path, description = "The invitation.", minimum = 1, example = 42)), security(("bearer" = [])), responses((status = 204, description = "Revoked")))]
pub async fn revoke_invitation(
    State(workspaces): State<WorkspaceService>,
    caller: Caller,
    Path(id): Path<i64>,
) -> ApiResult<StatusCode> {
    workspaces.revoke_invitation((&caller).into(), id).await?;
    Ok(StatusCode::NO_CONTENT)
}
