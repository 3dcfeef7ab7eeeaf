//! `/api/chat/{id}/members`, `/join`, `/leave`.

use axum::extract::State;
use fechatter_core::problem::Problem;
use fechatter_core::wire::{ChatView, MemberRole, MemberView, Page};
use fechatter_core::{ChatId, UserId};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use service_runtime::ApiResult;
use service_runtime::auth::Caller;
use service_runtime::extract::{Json, Path, Query};
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use utoipa::{IntoParams, ToSchema};

use super::ListQuery;
use crate::services::members::MemberService;

/// Whom to add or remove.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MembersRequest {
    #[schema(min_items = 1, max_items = 1000)]
    member_ids: Vec<UserId>,
}

/// Whom to remove, for clients that drop a body on DELETE.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemoveQuery {
    /// User ids separated by commas.
    #[param(example = "1,2", pattern = "^[1-9][0-9]{0,14}(,[1-9][0-9]{0,14})*$")]
    member_ids: Option<String>,
}

/// The only change of a member: becoming the owner.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateMemberRequest {
    #[schema(schema_with = owner)]
    role: MemberRole,
}

fn owner() -> Object {
    let role = ObjectBuilder::new().schema_type(Type::String);
    role.enum_values(Some(["owner"])).build()
}

/// The members a request was about.
#[derive(Debug, Serialize, ToSchema)]
pub struct Members {
    items: Vec<MemberView>,
}

/// Members of a chat.
#[utoipa::path(get, path = "/api/chat/{id}/members", tag = "members", operation_id = "list_members", extensions(("x-problem-codes" = json!(["forbidden"]))),
    params(("id" = ChatId, Path, description = "The chat."), ListQuery), security(("bearer" = [])),
    responses((status = 200, description = "Members", body = Page<MemberView>)))]
pub async fn list_members(
    State(members): State<MemberService>,
    caller: Caller,
    Path(id): Path<ChatId>,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Page<MemberView>>> {
    Ok(Json(
        members
            .list((&caller).into(), id, query.cursor.as_deref(), query.limit)
            .await?,
    ))
}

/// Adds members; the chat's owner may. Adding a member again changes nothing.
#[utoipa::path(post, path = "/api/chat/{id}/members", tag = "members", operation_id = "add_members", extensions(("x-problem-codes" = json!(["forbidden"]))),
    params(("id" = ChatId, Path, description = "The chat.")), request_body = MembersRequest, security(("bearer" = [])),
    responses((status = 201, description = "They are members now", body = Members)))]
pub async fn add_members(
    State(members): State<MemberService>,
    caller: Caller,
    Path(id): Path<ChatId>,
    Json(request): Json<MembersRequest>,
) -> ApiResult<(StatusCode, Json<Members>)> {
    let items = members.add((&caller).into(), id, &request.member_ids).await?;
    Ok((StatusCode::CREATED, Json(Members { items })))
}

/// Removes members; the chat's owner may.
#[utoipa::path(delete, path = "/api/chat/{id}/members", tag = "members", operation_id = "remove_members", extensions(("x-problem-codes" = json!(["forbidden"]))),
    params(("id" = ChatId, Path, description = "The chat."), RemoveQuery), request_body = Option<MembersRequest>, security(("bearer" = [])),
    responses((status = 204, description = "They are no members any more")))]
pub async fn remove_members(
    State(members): State<MemberService>,
    caller: Caller,
    Path(id): Path<ChatId>,
    Query(query): Query<RemoveQuery>,
    body: Option<Json<MembersRequest>>,
) -> ApiResult<StatusCode> {
    let in_query = query.member_ids.as_deref().map(parse_ids).transpose()?;
    let invalid = |code, detail| Problem::field("member_ids", code, detail);
    let ids = match (in_query, body.map(|Json(request)| request.member_ids)) {
        (Some(query), Some(body)) if query != body => {
            return Err(invalid("invalid", "body and parameter name different members").into());
        }
        (Some(ids), _) | (None, Some(ids)) => ids,
        (None, None) => {
            return Err(invalid("required", "say whom to remove, in the body or as ?member_ids=1,2").into());
        }
    };
    members.remove((&caller).into(), id, &ids).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn parse_ids(list: &str) -> Result<Vec<UserId>, Problem> {
    list.split(',')
        .map(|id| id.trim().parse::<UserId>())
        .collect::<Result<_, _>>()
        .map_err(|_| Problem::field("member_ids", "invalid", "user ids separated by commas, such as 1,2"))
}

/// Hands the chat over to this member; the chat's owner may.
#[utoipa::path(patch, path = "/api/chat/{id}/members/{member_id}", tag = "members", operation_id = "update_member", extensions(("x-problem-codes" = json!(["forbidden", "conflict"]))),
    params(("id" = ChatId, Path, description = "The chat."), ("member_id" = UserId, Path, description = "The member who is to own the chat.")), request_body = UpdateMemberRequest, security(("bearer" = [])),
    responses((status = 200, description = "The new owner", body = MemberView)))]
pub async fn update_member(
    State(members): State<MemberService>,
    caller: Caller,
    Path((id, member_id)): Path<(ChatId, UserId)>,
    Json(request): Json<UpdateMemberRequest>,
) -> ApiResult<Json<MemberView>> {
    if request.role != MemberRole::Owner {
        return Err(Problem::field("role", "invalid", "a chat is handed over with \"owner\"").into());
    }
    Ok(Json(members.transfer((&caller).into(), id, member_id).await?))
}

/// Joins a public channel.
#[utoipa::path(post, path = "/api/chat/{id}/join", tag = "members", operation_id = "join_chat", extensions(("x-problem-codes" = json!(["forbidden"]))), params(("id" = ChatId, Path, description = "The chat.")),
    security(("bearer" = [])), responses((status = 200, description = "The channel", body = ChatView)))]
pub async fn join_chat(
    State(members): State<MemberService>,
    caller: Caller,
    Path(id): Path<ChatId>,
) -> ApiResult<Json<ChatView>> {
    Ok(Json(members.join((&caller).into(), id).await?))
}

/// Leaves a chat. The longest-standing member inherits what an owner leaves; the last one out ends the chat.
#[utoipa::path(post, path = "/api/chat/{id}/leave", tag = "members", operation_id = "leave_chat", extensions(("x-problem-codes" = json!(["forbidden", "conflict", "validation_failed"]))), params(("id" = ChatId, Path, description = "The chat.")),
    security(("bearer" = [])), responses((status = 204, description = "Left")))]
pub async fn leave_chat(
    State(members): State<MemberService>,
    caller: Caller,
    Path(id): Path<ChatId>,
) -> ApiResult<StatusCode> {
    members.leave((&caller).into(), id).await?;
    Ok(StatusCode::NO_CONTENT)
}
