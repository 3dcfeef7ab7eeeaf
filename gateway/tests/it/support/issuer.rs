//! Signs tokens with a key made for the test and serves its JWKS.

use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fechatter_core::token::Claims;
use fechatter_core::user::Role;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::upstream::{Reply, Upstream};

/// One signing key.
#[derive(Clone)]
pub struct Key {
    pub kid: String,
    pkcs8: Vec<u8>,
    pub public: Vec<u8>,
}

impl Key {
    pub fn new(kid: &str) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        Self {
            kid: kid.to_owned(),
            pkcs8: pair.to_pkcs8().unwrap().as_ref().to_vec(),
            public: pair.public_key().as_ref().to_vec(),
        }
    }

    pub fn jwk(&self) -> serde_json::Value {
        let x = URL_SAFE_NO_PAD.encode(&self.public);
        serde_json::json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": x})
    }

    pub fn sign<T: Serialize>(&self, claims: &T) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&self.pkcs8)).unwrap()
    }
}

/// The source of keys and tokens.
pub struct Issuer {
    pub key: Key,
    keys: Arc<Mutex<Vec<Key>>>,
    pub server: Upstream,
}

impl Issuer {
    pub async fn start() -> Self {
        let key = Key::new("first");
        let keys = Arc::new(Mutex::new(vec![key.clone()]));
        let published = Arc::clone(&keys);
        let server = Upstream::with(move |_| {
            let keys: Vec<_> = published.lock().unwrap().iter().map(Key::jwk).collect();
            Reply::json(200, &serde_json::json!({ "keys": keys }))
        })
        .await;
        Self { key, keys, server }
    }

    /// Publishes exactly these keys from now on.
    pub fn publish(&self, keys: Vec<Key>) {
        *self.keys.lock().unwrap() = keys;
    }

    /// A token for a user, in a session of its own.
    pub fn token(&self, user: i64) -> String {
        self.key.sign(&claims(user))
    }
}

/// Good claims of a user.
pub fn claims(user: i64) -> Claims {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    Claims {
        iss: "fechatter".to_owned(),
        aud: "fechatter".to_owned(),
        sub: user.to_string(),
        ws: 1.into(),
        role: Role::Member,
        sid: Uuid::now_v7(),
        jti: Uuid::now_v7(),
        iat: now,
        exp: now + 900,
    }
}
