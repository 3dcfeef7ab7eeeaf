//! The people of a workspace.

use fechatter_core::UserId;
use fechatter_core::events::{EventType, SessionRevokedEvent, UserEvent, shard_of};
use fechatter_core::user::{FULLNAME_CHARS_MAX, Role, is_name};
use fechatter_core::wire::{Page, UserView};
use service_runtime::error::Chain;

use super::inheritance::Inheritance;
use super::validation::Validation;
use super::{Actor, page};
use crate::error::Error;
use crate::repositories::users::UserRow;
use crate::repositories::{Repositories, Store};

/// User use cases.
#[derive(Debug, Clone)]
pub struct UserService {
    pub store: Store,
    pub inheritance: Inheritance,
}

/// What `PATCH /api/users/{id}` asks for.
#[derive(Debug, Default)]
pub struct UpdateUser {
    /// Only the user's own.
    pub fullname: Option<String>,
    /// An owner or admin sets `member` or `admin`; the owner hands over with `owner`.
    pub role: Option<Role>,
}

impl UserService {
    pub async fn me(&self, actor: Actor) -> Result<UserView, Error> {
        let user = self
            .store
            .connection()
            .await?
            .users()
            .find(actor.workspace, actor.user)
            .await?;
        user.map(|user| user.view).ok_or(Error::NotFound("user"))
    }

    pub async fn list(&self, actor: Actor, cursor: Option<&str>, limit: Option<i64>) -> Result<Page<UserView>, Error> {
        let (after, limit) = (page::cursor(cursor, 0)?, page::limit(limit)?);
        let users = self
            .store
            .connection()
            .await?
            .users()
            .list(actor.workspace, after, limit + 1)
            .await?;
        Ok(page::page(users, limit, |user| user.id.0))
    }

    /// Changes a name (one's own) or a role (of others, by who manages the workspace).
    pub async fn update(&self, actor: Actor, id: UserId, request: UpdateUser) -> Result<UserView, Error> {
        if let Some(fullname) = &request.fullname {
            Validation::default()
                .check(
                    is_name(fullname, FULLNAME_CHARS_MAX),
                    "fullname",
                    "invalid",
                    "1 to 64 visible characters, no spaces around",
                )
                .finish()?;
        }
        let mut unit = self.store.begin().await?;
        // Both rows in the order of their ids: two admins changing each other do not wait in a circle.
        let (low, high) = (actor.user.min(id), actor.user.max(id));
        let first = unit.users().lock(actor.workspace, low).await?;
        let second = if low == high {
            first.clone()
        } else {
            unit.users().lock(actor.workspace, high).await?
        };
        let (own, other) = if actor.user == low {
            (first, second)
        } else {
            (second, first)
        };
        let own = active(own)?;
        let other = active(other)?;
        if let Some(fullname) = &request.fullname {
            if id != actor.user {
                return Err(Error::Forbidden("Only users themselves change their name."));
            }
            unit.users().set_fullname(id, fullname).await?;
        }
        if let Some(role) = request.role.filter(|role| *role != other.view.role) {
            check_role_change(&own, &other, role)?;
            if role == Role::Owner {
                unit.users().set_role(actor.user, Role::Admin).await?;
                unit.workspaces().set_owner(actor.workspace, id).await?;
            }
            unit.users().set_role(id, role).await?;
        }
        let user = unit
            .users()
            .find(actor.workspace, id)
            .await?
            .ok_or(Error::NotFound("user"))?
            .view;
        if user == other.view {
            return Ok(user);
        }
        let mut changed = vec![user.clone()];
        if user.role == Role::Owner && id != actor.user {
            // Who hands over is an admin now, which others see as well.
            changed.extend(
                unit.users()
                    .find(actor.workspace, actor.user)
                    .await?
                    .map(|own| own.view),
            );
        }
        changed.sort_by_key(|user| shard_of(user.id.0));
        for user in changed {
            let scope = user.id.0;
            let event = UserEvent {
                user,
                deactivated: false,
            };
            unit.append(EventType::UserUpdated, actor.workspace, scope, &event)
                .await?;
        }
        unit.commit().await?;
        Ok(user)
    }

    /// Deactivates a user, ends all their sessions and hands over their chats; the account and what it wrote stay.
    pub async fn deactivate(&self, actor: Actor, id: UserId) -> Result<(), Error> {
        let mut unit = self.store.begin().await?;
        let (low, high) = (actor.user.min(id), actor.user.max(id));
        unit.users().lock(actor.workspace, low).await?;
        unit.users().lock(actor.workspace, high).await?;
        let own = active(unit.users().find(actor.workspace, actor.user).await?)?;
        let other = active(unit.users().find(actor.workspace, id).await?)?;
        if other.view.role == Role::Owner {
            return Err(Error::Conflict("The owner hands the workspace over before leaving it."));
        }
        if id != actor.user && !(own.view.role.manages_workspace() && own.view.role > other.view.role) {
            return Err(Error::Forbidden("Only an owner or admin above that user may do this."));
        }
        unit.users().deactivate(id).await?;
        let sessions = unit.sessions().revoke_all(id, None).await?;
        let revoked: Vec<_> = sessions
            .into_iter()
            .map(|session_id| SessionRevokedEvent {
                session_id,
                user_id: id,
            })
            .collect();
        let event = UserEvent {
            user: other.view,
            deactivated: true,
        };
        unit.append(EventType::UserUpdated, actor.workspace, id.0, &event)
            .await?;
        unit.append_all(EventType::SessionRevoked, actor.workspace, id.0, &revoked)
            .await?;
        unit.commit().await?;
        if let Err(error) = self.inheritance.settle(Some(id)).await {
            tracing::warn!(user_id = id.0, error = %Chain(&error), "chats of a deactivated user wait for the next sweep");
        }
        Ok(())
    }
}

fn active(user: Option<UserRow>) -> Result<UserRow, Error> {
    user.filter(|user| !user.is_deactivated).ok_or(Error::NotFound("user"))
}

fn check_role_change(own: &UserRow, other: &UserRow, role: Role) -> Result<(), Error> {
    if other.view.role == Role::Owner {
        return Err(Error::Conflict(
            "The owner hands over by making another user the owner.",
        ));
    }
    match role {
        Role::Owner if own.view.role != Role::Owner => {
            Err(Error::Forbidden("Only the owner hands the workspace over."))
        }
        Role::Owner => Ok(()),
        _ if !own.view.role.manages_workspace() => Err(Error::Forbidden("Only an owner or admin changes roles.")),
        // As for deactivation: nobody takes from their equals.
        _ if own.view.id != other.view.id && own.view.role <= other.view.role => {
            Err(Error::Forbidden("Only somebody above that user may do this."))
        }
        _ => Ok(()),
    }
}
