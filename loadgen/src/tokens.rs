//! Access tokens of made-up users, signed with the key of the platform that we started ourselves.
//!
//! Ten thousand sign-ins would take the password hash's time ten thousand times; the `signin` mode measures that.

use std::path::Path;

use anyhow::{Context, bail};
use fechatter_core::token::Claims;
use fechatter_core::user::Role;
use fechatter_core::{UserId, WorkspaceId};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use time::OffsetDateTime;
use uuid::Uuid;

/// Life of a token, in seconds: the longest that is accepted.
const LIFE: i64 = fechatter_core::token::ACCESS_SECONDS_MAX;

/// Signs tokens.
pub struct Signer {
    header: Header,
    key: EncodingKey,
}

impl Signer {
    /// With the platform's newest Ed25519 key.
    pub fn of_platform(keys: &Path) -> anyhow::Result<Self> {
        let mut found: Vec<_> = std::fs::read_dir(keys)
            .with_context(|| format!("cannot read {}", keys.display()))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "pem"))
            .collect();
        found.sort();
        let Some(path) = found.pop() else {
            bail!("{} holds no signing key", keys.display());
        };
        let kid = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .context("a key without a name")?;
        let pem = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let key = pem::parse(pem).context("not a PEM file")?;
        Ok(Self::new(
            Algorithm::EdDSA,
            kid,
            EncodingKey::from_ed_der(key.contents()),
        ))
    }

    /// With an ES256 key in PKCS#8 DER: what HAProxy 2.6 can verify too.
    pub fn es256(kid: &str, pkcs8: &[u8]) -> Self {
        Self::new(Algorithm::ES256, kid, EncodingKey::from_ec_der(pkcs8))
    }

    fn new(algorithm: Algorithm, kid: &str, key: EncodingKey) -> Self {
        let mut header = Header::new(algorithm);
        header.kid = Some(kid.to_owned());
        Self { header, key }
    }

    /// A token of a session of its own.
    pub fn sign(&self, user: i64, workspace: i64) -> anyhow::Result<String> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let claims = Claims {
            iss: "fechatter".to_owned(),
            aud: "fechatter".to_owned(),
            sub: UserId(user).0.to_string(),
            ws: WorkspaceId(workspace),
            role: Role::Member,
            sid: Uuid::now_v7(),
            jti: Uuid::now_v7(),
            iat: now,
            exp: now + LIFE,
        };
        jsonwebtoken::encode(&self.header, &claims, &self.key).context("cannot sign a token")
    }
}
