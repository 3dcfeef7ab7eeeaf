//! Sign-up, sign-in, refresh and logout.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fechatter_core::events::{EventType, SessionRevokedEvent};
use fechatter_core::token::Claims;
use fechatter_core::user::{
    self, EMAIL_BYTES_MAX, FULLNAME_CHARS_MAX, PASSWORD_BYTES_MAX, PASSWORD_CHARS_MIN, WORKSPACE_NAME_CHARS_MAX,
};
use fechatter_core::wire::UserView;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::Actor;
use super::validation::Validation;
use crate::config::Auth;
use crate::error::Error;
use crate::passwords::{PasswordHasher, Verdict};
use crate::repositories::sessions::NewSession;
use crate::repositories::signin_failures::Failures;
use crate::repositories::users::NewUser;
use crate::repositories::{Repositories, Store, UnitOfWork};
use crate::signing_keys::SigningKeys;

/// Failures after which sign-ins of an account are slowed down.
const FREE_FAILURES: i32 = 5;
/// The same for an address, which a whole office may share.
const ADDRESS_FREE_FAILURES: i32 = 50;
/// Longest time between two attempts, in seconds.
const SLOWEST_SECONDS: i64 = 15 * 60;
/// Two refreshes of one token within this time are a client's race, not a theft.
const REFRESH_RACE: Duration = Duration::seconds(5);

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
                format_args!("at least {PASSWORD_CHARS_MIN} characters and at most {PASSWORD_BYTES_MAX} bytes"),
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
        let network = origin.address.as_deref().map(network);
        let address = network.as_deref();
        let mut connection = self.store.connection().await?;
        let failures = connection.signin_failures().of(email, address).await?;
        if let Some(seconds) = slow_down(&failures, OffsetDateTime::now_utc()) {
            return Err(Error::SlowedDown(seconds));
        }
        if !connection
            .signin_failures()
            .charge_account(email, FREE_FAILURES, SLOWEST_SECONDS)
            .await?
        {
            // Others tried at the same time.
            let failures = connection.signin_failures().of(email, None).await?;
            let seconds = slow_down(&failures, OffsetDateTime::now_utc()).unwrap_or(1);
            return Err(Error::SlowedDown(seconds));
        }
        let found = connection.users().find_by_email(email).await?;
        // The hash takes a while; the connection serves others meanwhile.
        drop(connection);
        let hash = found.as_ref().map(|user| user.password_hash.clone());
        let verdict = match self.passwords.verify(password.clone(), hash).await {
            Ok(verdict) => verdict,
            Err(error) => {
                // Nobody looked at the password.
                let mut connection = self.store.connection().await?;
                connection.signin_failures().refund_account(email).await?;
                return Err(error);
            }
        };
        let user = match (found, verdict) {
            (Some(user), Verdict::Right | Verdict::RightButOutdated) if !user.is_deactivated => user,
            _ => {
                let mut connection = self.store.connection().await?;
                connection.signin_failures().count_address(address).await?;
                return Err(Error::InvalidCredentials);
            }
        };
        let rehashed = match verdict {
            Verdict::RightButOutdated => Some(self.passwords.hash(password).await?),
            _ => None,
        };
        let mut unit = self.store.begin().await?;
        // While the hash was computed the account may have been deactivated, or its password changed; both ended all
        // sessions, and would not know of this one.
        let user = unit
            .users()
            .lock(user.view.workspace_id, user.view.id)
            .await?
            .filter(|now| !now.is_deactivated && now.password_hash == user.password_hash)
            .ok_or(Error::InvalidCredentials)?;
        if let Some(hash) = rehashed {
            unit.users().set_password_hash(user.view.id, &hash).await?;
        }
        unit.signin_failures().forgive(email, address).await?;
        let tokens = self.open_session(&mut unit, user.view, origin).await?;
        unit.commit().await?;
        Ok(tokens)
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

/// What counts as one address: of IPv6 the /64, of which a host has all.
fn network(address: &str) -> String {
    match address.parse() {
        Ok(std::net::IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        _ => address.to_owned(),
    }
}

/// Seconds until the next attempt is welcome: 1, 2, 4 … after the free failures, at most 15 minutes.
fn slow_down(failures: &[Failures], now: OffsetDateTime) -> Option<u64> {
    failures
        .iter()
        .filter_map(|failures| {
            let free = if failures.is_account {
                FREE_FAILURES
            } else {
                ADDRESS_FREE_FAILURES
            };
            let doublings = u32::try_from(failures.count - free).ok()?.min(20);
            let wait = Duration::seconds((1_i64 << doublings).min(SLOWEST_SECONDS));
            let left = failures.last + wait - now;
            // Whole seconds, rounded up: a client that waits as told is not told again.
            left.is_positive()
                .then(|| u64::try_from(left.whole_seconds()).unwrap_or(0) + 1)
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_slow_down_by_doubling_and_are_forgotten() {
        let now = OffsetDateTime::now_utc();
        let after = |count, seconds| {
            let last = now - Duration::seconds(seconds);
            let is_account = true;
            slow_down(
                &[Failures {
                    is_account,
                    count,
                    last,
                }],
                now,
            )
        };
        assert_eq!(after(4, 0), None);
        assert_eq!(after(5, 0), Some(2));
        assert_eq!(after(8, 0), Some(9));
        assert_eq!(after(1_000, 0), Some(901));
        assert_eq!(after(5, 2), None);
        let office = Failures {
            is_account: false,
            count: ADDRESS_FREE_FAILURES - 1,
            last: now,
        };
        assert_eq!(slow_down(&[office], now), None);
        let attack = Failures {
            count: ADDRESS_FREE_FAILURES,
            ..office
        };
        assert_eq!(slow_down(&[attack], now), Some(2));
    }

    #[test]
    fn an_address_is_a_host() {
        assert_eq!(network("203.0.113.7"), "203.0.113.7");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
    }

    #[test]
    fn secrets_are_long_and_only_their_hash_is_kept() {
        let (one, hash) = new_secret();
        let (two, _) = new_secret();
        assert_ne!(one, two);
        assert_eq!(one.len(), 43);
        assert_eq!(hash_secret(&one), hash);
    }
}
