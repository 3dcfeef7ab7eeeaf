//! Access tokens: claims, key sets and verification, the same at the edge and in every service.
//!
//! A token is verified once and remembered until it expires; only a change of the key set or of the clock can make a
//! remembered token invalid. Revocation is the gateway's business, by session id.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::ids::{UserId, WorkspaceId};
use crate::user::Role;

/// The algorithms a key set may use. Never a symmetric one: a public key must not double as a secret.
pub const ALGORITHMS: [Algorithm; 3] = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256];
/// Longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 4_096;
/// Longest life of an access token, in seconds: what is kept about sessions for as long as their tokens live is kept so long.
pub const ACCESS_SECONDS_MAX: i64 = 3_600;
/// Clock difference that `exp` and `nbf` forgive, in seconds.
pub const LEEWAY_SECONDS: u64 = 5;

/// What an access token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    /// The user id, as a string (RFC 7519 asks for one).
    pub sub: String,
    /// The workspace id.
    pub ws: WorkspaceId,
    pub role: Role,
    /// The session this token belongs to; ending the session ends the token.
    pub sid: Uuid,
    pub jti: Uuid,
    /// Seconds since the epoch.
    pub iat: i64,
    /// Seconds since the epoch.
    pub exp: i64,
}

impl Claims {
    /// The user the token speaks for. Verification has made sure that `sub` is a number.
    pub fn user_id(&self) -> UserId {
        UserId(self.sub.parse().unwrap_or_default())
    }
}

/// Why a token was refused. Clients are told no more than expired or invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TokenFault {
    #[error("not a token")]
    Malformed,
    #[error("algorithm not allowed")]
    Algorithm,
    #[error("unknown key")]
    UnknownKey,
    #[error("bad signature")]
    Signature,
    #[error("expired")]
    Expired,
    #[error("not valid yet")]
    NotYetValid,
    #[error("wrong issuer, audience or claims")]
    Claims,
}

impl TokenFault {
    /// A bounded label for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Claims => "claims",
        }
    }
}

/// The public keys of a JWKS document that can verify our tokens.
#[derive(Default)]
pub struct KeySet {
    keys: HashMap<String, PublicKey>,
}

struct PublicKey {
    algorithm: Algorithm,
    key: DecodingKey,
    thumbprint: Thumbprint,
}

/// Tells a key from another one that was published with the same id.
type Thumbprint = [u8; 32];

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

/// A JWKS document without a usable key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetFault {
    #[error("not a JWKS document: {0}")]
    Malformed(String),
    #[error("no key with a kid and an allowed algorithm")]
    Empty,
}

impl KeySet {
    /// Reads a JWKS document; keys without `kid`, of other algorithms or not for signatures are passed over.
    pub fn parse(json: &[u8]) -> Result<Self, KeySetFault> {
        let set: JwkSet = serde_json::from_slice(json).map_err(|error| KeySetFault::Malformed(error.to_string()))?;
        let keys: HashMap<_, _> = set.keys.iter().filter_map(usable).collect();
        if keys.is_empty() {
            return Err(KeySetFault::Empty);
        }
        Ok(Self { keys })
    }

    /// Whether this very key is among them still.
    fn contains(&self, kid: &str, thumbprint: &Thumbprint) -> bool {
        self.keys.get(kid).is_some_and(|key| key.thumbprint == *thumbprint)
    }

    /// The key ids, sorted.
    pub fn kids(&self) -> Vec<&str> {
        let mut kids: Vec<_> = self.keys.keys().map(String::as_str).collect();
        kids.sort_unstable();
        kids
    }
}

fn usable(jwk: &Jwk) -> Option<(String, PublicKey)> {
    let kid = jwk.common.key_id.clone()?;
    let algorithm: Algorithm = jwk.common.key_algorithm?.to_string().parse().ok()?;
    if !ALGORITHMS.contains(&algorithm) {
        return None;
    }
    let key = PublicKey {
        algorithm,
        key: DecodingKey::from_jwk(jwk).ok()?,
        thumbprint: Sha256::digest(serde_json::to_vec(&jwk.algorithm).ok()?).into(),
    };
    Some((kid, key))
}

struct Remembered {
    claims: Arc<Claims>,
    kid: String,
    key: Thumbprint,
}

/// Verifies access tokens against the current [`KeySet`] and remembers the verdict of good ones.
pub struct Verifier {
    keys: ArcSwap<KeySet>,
    remembered: quick_cache::sync::Cache<[u8; 32], Arc<Remembered>>,
    issuer: String,
    audience: String,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("keys", &self.keys.load())
            .finish_non_exhaustive()
    }
}

/// A verified token, and whether it had been verified before.
#[derive(Debug, Clone)]
pub struct Verified {
    pub claims: Arc<Claims>,
    pub from_cache: bool,
}

impl Verifier {
    /// A verifier without keys; `remember` bounds the number of remembered tokens.
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>, remember: usize) -> Self {
        Self {
            keys: ArcSwap::default(),
            remembered: quick_cache::sync::Cache::new(remember.max(1)),
            issuer: issuer.into(),
            audience: audience.into(),
        }
    }

    /// Replaces the key set. Tokens of a key that is gone stop working at once.
    pub fn set_keys(&self, keys: KeySet) {
        self.keys.store(Arc::new(keys));
    }

    /// The key set in use.
    pub fn keys(&self) -> Arc<KeySet> {
        self.keys.load_full()
    }

    /// Whether any key is known; without one every token is refused.
    pub fn is_ready(&self) -> bool {
        !self.keys.load().keys.is_empty()
    }

    /// Verifies a token at time `now`.
    pub fn verify(&self, token: &str, now: OffsetDateTime) -> Result<Verified, TokenFault> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenFault::Malformed);
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(remembered) = self.remembered.get(&digest) {
            if !self.keys.load().contains(&remembered.kid, &remembered.key) {
                self.remembered.remove(&digest);
                return Err(TokenFault::UnknownKey);
            }
            if is_expired(&remembered.claims, now) {
                self.remembered.remove(&digest);
                return Err(TokenFault::Expired);
            }
            return Ok(Verified {
                claims: Arc::clone(&remembered.claims),
                from_cache: true,
            });
        }
        let remembered = Arc::new(self.verify_fresh(token, now)?);
        let claims = Arc::clone(&remembered.claims);
        self.remembered.insert(digest, remembered);
        Ok(Verified {
            claims,
            from_cache: false,
        })
    }

    fn verify_fresh(&self, token: &str, now: OffsetDateTime) -> Result<Remembered, TokenFault> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
            ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => TokenFault::Algorithm,
            _ => TokenFault::Malformed,
        })?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(TokenFault::Algorithm);
        }
        let kid = header.kid.ok_or(TokenFault::UnknownKey)?;
        let keys = self.keys.load();
        let known = keys.keys.get(&kid).ok_or(TokenFault::UnknownKey)?;
        if header.alg != known.algorithm {
            return Err(TokenFault::Algorithm);
        }
        let mut validation = Validation::new(known.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        // The caller's clock decides below, so that tests and the remembered path agree on it.
        validation.validate_exp = false;
        let data =
            jsonwebtoken::decode::<Claims>(token, &known.key, &validation).map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => TokenFault::Signature,
                ErrorKind::ImmatureSignature => TokenFault::NotYetValid,
                ErrorKind::InvalidAlgorithm => TokenFault::Algorithm,
                ErrorKind::InvalidToken | ErrorKind::Base64(_) => TokenFault::Malformed,
                _ => TokenFault::Claims,
            })?;
        let claims = data.claims;
        if is_expired(&claims, now) {
            return Err(TokenFault::Expired);
        }
        if claims.sub.parse::<i64>().is_ok_and(|id| id > 0) {
            Ok(Remembered {
                claims: Arc::new(claims),
                kid,
                key: known.thumbprint,
            })
        } else {
            Err(TokenFault::Claims)
        }
    }
}

#[expect(clippy::cast_possible_wrap, reason = "a constant of a few seconds")]
fn is_expired(claims: &Claims, now: OffsetDateTime) -> bool {
    claims.exp + LEEWAY_SECONDS as i64 <= now.unix_timestamp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
    use base64::Engine;
    use jsonwebtoken::{EncodingKey, Header};

    struct Signer {
        kid: &'static str,
        pkcs8: Vec<u8>,
        public: Vec<u8>,
    }

    impl Signer {
        fn new(kid: &'static str) -> Self {
            let pair = Ed25519KeyPair::generate().unwrap();
            Self {
                kid,
                pkcs8: pair.to_pkcs8().unwrap().as_ref().to_vec(),
                public: pair.public_key().as_ref().to_vec(),
            }
        }

        fn jwks(&self) -> Vec<u8> {
            let x = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&self.public);
            serde_json::to_vec(&serde_json::json!({"keys": [
                {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": x}
            ]}))
            .unwrap()
        }

        fn sign<T: Serialize>(&self, claims: &T) -> String {
            let mut header = Header::new(Algorithm::EdDSA);
            header.kid = Some(self.kid.to_owned());
            jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&self.pkcs8)).unwrap()
        }
    }

    fn claims(now: OffsetDateTime) -> Claims {
        Claims {
            iss: "fechatter".to_owned(),
            aud: "fechatter".to_owned(),
            sub: "42".to_owned(),
            ws: WorkspaceId(7),
            role: Role::Member,
            sid: Uuid::now_v7(),
            jti: Uuid::now_v7(),
            iat: now.unix_timestamp(),
            exp: now.unix_timestamp() + 900,
        }
    }

    fn verifier(signer: &Signer) -> Verifier {
        let verifier = Verifier::new("fechatter", "fechatter", 100);
        verifier.set_keys(KeySet::parse(&signer.jwks()).unwrap());
        verifier
    }

    #[test]
    fn a_good_token_is_verified_once_and_remembered() {
        let (signer, now) = (Signer::new("k1"), OffsetDateTime::now_utc());
        let verifier = verifier(&signer);
        let token = signer.sign(&claims(now));
        let first = verifier.verify(&token, now).unwrap();
        assert!(!first.from_cache);
        assert_eq!(first.claims.user_id(), UserId(42));
        assert!(verifier.verify(&token, now).unwrap().from_cache);
    }

    #[test]
    fn a_remembered_token_expires_and_dies_with_its_key() {
        let (signer, now) = (Signer::new("k1"), OffsetDateTime::now_utc());
        let verifier = verifier(&signer);
        let token = signer.sign(&claims(now));
        verifier.verify(&token, now).unwrap();
        let later = now + time::Duration::seconds(906);
        assert_eq!(verifier.verify(&token, later).unwrap_err(), TokenFault::Expired);
        verifier.verify(&token, now).unwrap();
        verifier.set_keys(KeySet::parse(&Signer::new("k2").jwks()).unwrap());
        assert_eq!(verifier.verify(&token, now).unwrap_err(), TokenFault::UnknownKey);
    }

    #[test]
    fn another_key_with_the_same_id_ends_what_was_remembered() {
        let (signer, now) = (Signer::new("k1"), OffsetDateTime::now_utc());
        let verifier = verifier(&signer);
        let token = signer.sign(&claims(now));
        verifier.verify(&token, now).unwrap();
        verifier.set_keys(KeySet::parse(&signer.jwks()).unwrap());
        assert!(verifier.verify(&token, now).unwrap().from_cache, "the same key again");
        verifier.set_keys(KeySet::parse(&Signer::new("k1").jwks()).unwrap());
        assert_eq!(verifier.verify(&token, now).unwrap_err(), TokenFault::UnknownKey);
        assert_eq!(verifier.verify(&token, now).unwrap_err(), TokenFault::Signature);
    }

    #[test]
    fn each_algorithm_is_verified_with_its_own_kind_of_key_alone() {
        use aws_lc_rs::encoding::AsDer;
        use aws_lc_rs::rsa::KeySize;
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RsaKeyPair};
        let url_safe = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let curve = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let (x, y) = curve.public_key().as_ref()[1..].split_at(32);
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let (modulus, exponent) = (rsa.public_key().modulus(), rsa.public_key().exponent());
        let (modulus, exponent) = (
            modulus.big_endian_without_leading_zero(),
            exponent.big_endian_without_leading_zero(),
        );
        let jwks = serde_json::json!({"keys": [
            {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "curve", "x": url_safe(x), "y": url_safe(y)},
            {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "rsa", "n": url_safe(modulus), "e": url_safe(exponent)},
        ]});
        let verifier = Verifier::new("fechatter", "fechatter", 100);
        verifier.set_keys(KeySet::parse(&serde_json::to_vec(&jwks).unwrap()).unwrap());
        assert_eq!(verifier.keys().kids(), ["curve", "rsa"]);
        let curve = EncodingKey::from_ec_der(curve.to_pkcs8v1().unwrap().as_ref());
        // PKCS#8 is PKCS#1 behind 26 bytes that say so.
        let rsa: aws_lc_rs::encoding::Pkcs8V1Der<'_> = rsa.as_der().unwrap();
        let rsa = EncodingKey::from_rsa_der(&rsa.as_ref()[26..]);
        let now = OffsetDateTime::now_utc();
        let sign = |algorithm, kid: &str, key: &EncodingKey| {
            let mut header = Header::new(algorithm);
            header.kid = Some(kid.to_owned());
            jsonwebtoken::encode(&header, &claims(now), key).unwrap()
        };
        for (algorithm, kid, key) in [(Algorithm::ES256, "curve", &curve), (Algorithm::RS256, "rsa", &rsa)] {
            let good = verifier.verify(&sign(algorithm, kid, key), now).unwrap();
            assert_eq!(good.claims.user_id(), UserId(42), "{kid}");
        }
        for (algorithm, kid, key) in [
            (Algorithm::RS256, "curve", &rsa),
            (Algorithm::ES256, "rsa", &curve),
            (Algorithm::RS384, "rsa", &rsa),
            (Algorithm::PS256, "rsa", &rsa),
        ] {
            let fault = verifier.verify(&sign(algorithm, kid, key), now).unwrap_err();
            assert_eq!(fault, TokenFault::Algorithm, "{algorithm:?} for {kid}");
        }
    }

    #[test]
    fn forgeries_are_refused() {
        let (signer, now) = (Signer::new("k1"), OffsetDateTime::now_utc());
        let verifier = verifier(&signer);
        let good = claims(now);
        let refused = |token: &str| verifier.verify(token, now).unwrap_err();

        assert_eq!(refused(&Signer::new("k1").sign(&good)), TokenFault::Signature);
        assert_eq!(refused(&Signer::new("other").sign(&good)), TokenFault::UnknownKey);
        assert_eq!(
            refused(&signer.sign(&Claims {
                exp: now.unix_timestamp() - 60,
                ..good.clone()
            })),
            TokenFault::Expired
        );
        assert_eq!(
            refused(&signer.sign(&Claims {
                iss: "evil".into(),
                ..good.clone()
            })),
            TokenFault::Claims
        );
        assert_eq!(
            refused(&signer.sign(&Claims {
                aud: "evil".into(),
                ..good.clone()
            })),
            TokenFault::Claims
        );
        assert_eq!(
            refused(&signer.sign(&Claims {
                sub: "x".into(),
                ..good.clone()
            })),
            TokenFault::Claims
        );

        let mut premature = serde_json::to_value(&good).unwrap();
        premature["nbf"] = (now.unix_timestamp() + 600).into();
        assert_eq!(refused(&signer.sign(&premature)), TokenFault::NotYetValid);

        // HS256 with the public key as the secret.
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("k1".to_owned());
        let confused = jsonwebtoken::encode(&header, &good, &EncodingKey::from_secret(&signer.public)).unwrap();
        assert_eq!(refused(&confused), TokenFault::Algorithm);

        let token = signer.sign(&good);
        let body = token.split('.').nth(1).unwrap();
        let none = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"k1"}"#);
        assert!(matches!(
            refused(&format!("{none}.{body}.")),
            TokenFault::Algorithm | TokenFault::Malformed
        ));
        assert!(matches!(
            refused(&token[..token.len() - 10]),
            TokenFault::Signature | TokenFault::Malformed
        ));
        for garbage in ["", ".", "..", "a.b.c", &"x".repeat(65_536)] {
            assert_eq!(refused(garbage), TokenFault::Malformed, "{garbage:.20}");
        }
    }

    #[test]
    fn symmetric_keys_in_a_jwks_are_passed_over() {
        let json = br#"{"keys":[{"kty":"oct","kid":"k","alg":"HS256","k":"AAAA"}]}"#;
        assert_eq!(KeySet::parse(json).unwrap_err(), KeySetFault::Empty);
        assert!(matches!(KeySet::parse(b"[]"), Err(KeySetFault::Malformed(_))));
    }
}
