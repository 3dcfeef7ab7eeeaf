//! Sign-up, sign-in, refresh, logout and passwords.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fechatter_core::events::{EventType, SessionRevokedEvent};
use fechatter_core::token::Claims;
use fechatter_core::user::{
    self, EMAIL_BYTES_MAX, FULLNAME_CHARS_MAX, PASSWORD_BYTES_MAX, PASSWORD_CHARS_MAX, PASSWORD_CHARS_MIN,
    WORKSPACE_NAME_CHARS_MAX,
};
use fechatter_core::wire::UserView;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::validation::Validation;
use super::{Actor, signin_failures};
use crate::config::Auth;
use crate::error::Error;
use crate::passwords::{PasswordHasher, Verdict};
use crate::repositories::sessions::NewSession;
use crate::repositories::signin_failures::Attempt;
use crate::repositories::users::NewUser;
use crate::repositories::{Repositories, Store, UnitOfWork};
use crate::signing_keys::SigningKeys;

/// Two refreshes of one token within this time are a client's race, not a theft.
const REFRESH_RACE: Duration = Duration::seconds(5);

/// What a new password has to be, for people.
static PASSWORD_RULE: LazyLock<String> =
    LazyLock::new(|| format!("{PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters"));
const WRONG_PASSWORD: &str = "this is not your password";

/// Identity use cases.
#[derive(Debug, Clone)]
pub struct AuthService {
    pub store: Store,
    pub passwords: PasswordHasher,
    pub keys: SigningKeys,
    pub config: Auth,
}

/// Where a sign-in comes from, as the gateway saw it.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    pub address: Option<String>,
    pub user_agent: Option<String>,
}

impl Origin {
    /// What sign-ins that fail are counted by.
    fn network(&self) -> Option<String> {
        self.address.as_deref().map(signin_failures::network)
    }
}

/// What `POST /api/signup` asks for.
#[derive(Debug)]
pub struct SignUp {
    pub fullname: String,
    pub email: String,
    pub password: String,
    pub workspace: String,
    pub invitation: Option<String>,
}

/// A pair of tokens and whose they are.
#[derive(Debug)]
pub struct Tokens {
    pub access_token: String,
    pub expires_in: i64,
    pub refresh_token: String,
    pub refresh_expires_in: i64,
    pub user: UserView,
}

/// A new secret of 256 random bits and the hash that is stored of it.
pub fn new_secret() -> (String, [u8; 32]) {
    let mut bytes = [0_u8; 32];
    rand::fill(&mut bytes);
    let secret = URL_SAFE_NO_PAD.encode(bytes);
    let hash = hash_secret(&secret);
    (secret, hash)
}

/// What is stored of an opaque token.
pub fn hash_secret(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

impl AuthService {
    /// Makes a user: the owner of a new workspace, or by invitation a member of an existing one.
    pub async fn sign_up(&self, request: SignUp, origin: &Origin) -> Result<Tokens, Error> {
        Validation::default()
            .check(
                user::is_name(&request.fullname, FULLNAME_CHARS_MAX),
                "fullname",
                "invalid",
                "1 to 64 visible characters, no spaces around",
            )
            .check(
                user::is_email(&request.email),
                "email",
                "invalid",
                format_args!("an address such as ada@example.org, at most {EMAIL_BYTES_MAX} bytes"),
            )
            .check(
                user::is_password(&request.password),
                "password",
                "invalid",
                PASSWORD_RULE.as_str(),
            )
            .check(
                user::is_name(&request.workspace, WORKSPACE_NAME_CHARS_MAX),
                "workspace",
                "invalid",
                "1 to 64 visible characters, no spaces around",
            )
            .finish()?;
        // Cheap refusals first: hashing is what an attacker would want us to do.
        let mut connection = self.store.connection().await?;
        let existing = connection.workspaces().find_by_name(&request.workspace).await?;
        drop(connection);
        if existing.is_some() && request.invitation.is_none() {
            return Err(Error::Forbidden(
                "This workspace exists; an invitation from its owner or an admin lets you in.",
            ));
        }
        let password_hash = self.passwords.hash(request.password).await?;
        let new = NewUser {
            fullname: &request.fullname,
            email: &request.email,
            password_hash: &password_hash,
        };
        let mut unit = self.store.begin().await?;
        let inserted = match (existing, &request.invitation) {
            (Some(workspace), Some(invitation)) => {
                if !unit
                    .invitations()
                    .redeem(workspace, &hash_secret(invitation), &request.email)
                    .await?
                {
                    return Err(Error::Forbidden(
                        "The invitation is not valid for this workspace and address, or is spent or expired.",
                    ));
                }
                unit.users().insert(workspace, &new).await
            }
            (None, Some(_)) => {
                return Err(Error::Forbidden(
                    "The invitation is not valid for this workspace and address, or is spent or expired.",
                ));
            }
            _ => unit.users().insert_with_workspace(&request.workspace, &new).await,
        };
        let user = match inserted {
            Ok(user) => user.view,
            Err(error) if error.violates("users_email_key") => {
                return Err(Error::Conflict("There is an account with this email; sign in instead."));
            }
            Err(error) if error.violates("workspaces_name_key") => {
                return Err(Error::Conflict(
                    "Somebody made this workspace a moment ago; ask for an invitation.",
                ));
            }
            Err(error) => return Err(error),
        };
        let tokens = self.open_session(&mut unit, user, origin).await?;
        unit.commit().await?;
        Ok(tokens)
    }

    /// Opens a session by email and password. Unknown email and wrong password are one answer, in content and in time.
    pub async fn sign_in(&self, email: &str, password: String, origin: &Origin) -> Result<Tokens, Error> {
        if !user::is_email(email) || password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
            return Err(Error::InvalidCredentials);
        }
        let network = origin.network();
        let attempt = signin_failures::charge(&self.store, email, network.as_deref()).await?;
        let mut connection = self.store.connection().await?;
        let found = connection.users().find_by_email(email).await?;
        // The hash takes a while; the connection serves others meanwhile.
        drop(connection);
        let hash = found.as_ref().map(|user| user.password_hash.clone());
        let verdict = self.verify(&attempt, password, hash).await?;
        let (user, rehashed) = match (found, verdict) {
            (Some(user), Verdict::Right) if !user.is_deactivated => (user, None),
            (Some(user), Verdict::RightButOutdated(hash)) if !user.is_deactivated => (user, Some(hash)),
            _ => return Err(Error::InvalidCredentials),
        };
        let mut unit = self.store.begin().await?;
        // While the hash was computed the account may have been deactivated, or its password changed; both ended all
        // sessions, and would not know of this one.
        let now = unit.users().lock(user.view.workspace_id, user.view.id).await?;
        let now = now.filter(|now| !now.is_deactivated).ok_or(Error::InvalidCredentials)?;
        if now.password_hash != user.password_hash {
            // Perhaps it is the same password, and somebody who signed in at the same time renewed its hash.
            unit.signin_failures().refund(&attempt).await?;
            unit.commit().await?;
            return Err(Error::Overloaded);
        }
        let user = now;
        if let Some(hash) = rehashed {
            unit.users().set_password_hash(user.view.id, &hash).await?;
        }
        unit.signin_failures().forgive(&attempt).await?;
        let tokens = self.open_session(&mut unit, user.view, origin).await?;
        unit.commit().await?;
        Ok(tokens)
    }

    /// Gives the actor another password and ends all their sessions but the one that asks. The present password is asked for, and
    /// guessed as slowly as at a sign-in: a token that was stolen does not take the account.
    pub async fn change_password(
        &self,
        actor: Actor,
        present: String,
        new: String,
        origin: &Origin,
    ) -> Result<(), Error> {
        Validation::default()
            .check(
                user::is_password(&new),
                "new_password",
                "invalid",
                PASSWORD_RULE.as_str(),
            )
            .check(
                !present.is_empty() && present.len() <= PASSWORD_BYTES_MAX,
                "current_password",
                "wrong",
                WRONG_PASSWORD,
            )
            .finish()?;
        let user = self
            .store
            .connection()
            .await?
            .users()
            .find(actor.workspace, actor.user)
            .await?;
        let user = user
            .filter(|user| !user.is_deactivated)
            .ok_or(Error::Forbidden("This account is deactivated."))?;
        let network = origin.network();
        let attempt = signin_failures::charge(&self.store, &user.view.email, network.as_deref()).await?;
        if self.verify(&attempt, present, Some(user.password_hash.clone())).await? == Verdict::Wrong {
            return Err(Error::field("current_password", "wrong", WRONG_PASSWORD));
        }
        let hash = self.passwords.hash(new).await?;
        let mut unit = self.store.begin().await?;
        let now = unit.users().lock(actor.workspace, actor.user).await?;
        if now.is_none_or(|now| now.is_deactivated || now.password_hash != user.password_hash) {
            return Err(Error::Conflict("The account changed at this moment; try again."));
        }
        unit.users().set_password_hash(actor.user, &hash).await?;
        unit.signin_failures().forgive(&attempt).await?;
        let ended = unit.sessions().revoke_all(actor.user, Some(actor.session)).await?;
        let events: Vec<_> = ended
            .into_iter()
            .map(|session_id| SessionRevokedEvent {
                session_id,
                user_id: actor.user,
            })
            .collect();
        unit.append_all(EventType::SessionRevoked, actor.workspace, actor.user.0, &events)
            .await?;
        unit.commit().await
    }

    /// Judges a password; a wrong one counts for the address as well.
    async fn verify(&self, attempt: &Attempt<'_>, password: String, hash: Option<String>) -> Result<Verdict, Error> {
        let verdict = self.passwords.verify(password, hash).await;
        match verdict {
            Ok(Verdict::Right | Verdict::RightButOutdated(_)) => {}
            Ok(Verdict::Wrong) => {
                let mut connection = self.store.connection().await?;
                connection.signin_failures().count_address(attempt.address).await?;
            }
            Err(_) => {
                // Nobody looked at the password.
                let mut connection = self.store.connection().await?;
                connection.signin_failures().refund(attempt).await?;
            }
        }
        verdict
    }

    /// Trades a refresh token for new tokens. A token used before ends the whole session: one of the two users of it is
    /// a thief. Within [`REFRESH_RACE`] it is only refused, so that a client that refreshes twice at once keeps its session.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Tokens, Error> {
        let hash = hash_secret(refresh_token);
        let now = OffsetDateTime::now_utc();
        let mut unit = self.store.begin().await?;
        let Some(row) = unit.sessions().lock_refresh_token(&hash).await? else {
            return Err(Error::InvalidRefreshToken);
        };
        if row.revoked_at.is_some() || row.session_expires_at <= now || row.token_expires_at <= now {
            return Err(Error::InvalidRefreshToken);
        }
        let (workspace, user) = (row.workspace_id.into(), row.user_id.into());
        if let Some(used_at) = row.used_at {
            if now - used_at > REFRESH_RACE {
                tracing::warn!(user.id = row.user_id, "refresh token reused, session revoked");
                unit.sessions().revoke(user, row.session_id).await?;
                let event = SessionRevokedEvent {
                    session_id: row.session_id,
                    user_id: user,
                };
                unit.append(EventType::SessionRevoked, workspace, user.0, &event)
                    .await?;
                unit.commit().await?;
            }
            return Err(Error::InvalidRefreshToken);
        }
        let Some(user) = unit
            .users()
            .find(workspace, user)
            .await?
            .filter(|user| !user.is_deactivated)
        else {
            return Err(Error::InvalidRefreshToken);
        };
        unit.sessions().use_refresh_token(&hash, row.session_id).await?;
        let tokens = self
            .issue(&mut unit, user.view, row.session_id, row.session_expires_at, now)
            .await?;
        unit.commit().await?;
        Ok(tokens)
    }

    /// Ends the actor's session; the gateways hear of it by event.
    pub async fn log_out(&self, actor: Actor) -> Result<(), Error> {
        let mut unit = self.store.begin().await?;
        if unit.sessions().revoke(actor.user, actor.session).await? {
            let event = SessionRevokedEvent {
                session_id: actor.session,
                user_id: actor.user,
            };
            unit.append(EventType::SessionRevoked, actor.workspace, actor.user.0, &event)
                .await?;
        }
        unit.commit().await
    }

    async fn open_session(&self, unit: &mut UnitOfWork, user: UserView, origin: &Origin) -> Result<Tokens, Error> {
        let now = OffsetDateTime::now_utc();
        let expires_at = now + Duration::seconds(self.config.session_seconds);
        let id = Uuid::now_v7();
        unit.sessions()
            .insert(&NewSession {
                id,
                workspace_id: user.workspace_id,
                user_id: user.id,
                user_agent: origin.user_agent.as_deref(),
                address: origin.address.as_deref(),
                expires_at,
            })
            .await?;
        self.issue(unit, user, id, expires_at, now).await
    }

    async fn issue(
        &self,
        unit: &mut UnitOfWork,
        user: UserView,
        session: Uuid,
        session_expires_at: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Tokens, Error> {
        let (refresh_token, hash) = new_secret();
        let refresh_expires_at = session_expires_at.min(now + Duration::seconds(self.config.refresh_seconds));
        unit.sessions()
            .insert_refresh_token(&hash, session, refresh_expires_at)
            .await?;
        let claims = Claims {
            iss: self.config.issuer.clone(),
            aud: self.config.audience.clone(),
            sub: user.id.to_string(),
            ws: user.workspace_id,
            role: user.role,
            sid: session,
            jti: Uuid::now_v7(),
            iat: now.unix_timestamp(),
            exp: now.unix_timestamp() + self.config.access_seconds,
        };
        Ok(Tokens {
            access_token: self.keys.sign(&claims, now)?,
            expires_in: self.config.access_seconds,
            refresh_token,
            refresh_expires_in: (refresh_expires_at - now).whole_seconds(),
            user,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_long_and_only_their_hash_is_kept() {
        let (one, hash) = new_secret();
        let (two, _) = new_secret();
        assert_ne!(one, two);
        assert_eq!(one.len(), 43);
        assert_eq!(hash_secret(&one), hash);
    }
}
