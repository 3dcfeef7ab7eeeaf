//! The Ed25519 keys that sign access tokens: a folder of PEM files shared by all replicas, re-read while running.
//!
//! A file's stem is its `kid` and begins with the second it was made. All keys are published; a new one signs only when
//! every replica has had `auth.key_activation_seconds` to publish it, counted from when this replica saw it first: a file may be
//! older than its way here. A replica that starts trusts the names, so that it signs as the others do. A key whose file is
//! removed stops verifying.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fechatter_core::token::{Claims, KeySet, Verifier};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// Time between two readings of the folder.
const RELOAD: Duration = Duration::from_secs(10);

/// What a PKCS#8 key is called in PEM (RFC 7468, section 10).
const PEM_TAG: &str = "PRIVATE KEY";

struct SigningKey {
    kid: String,
    /// The second from which it signs.
    active_from: i64,
    encoding: EncodingKey,
    public: Vec<u8>,
}

/// One reading of the folder.
struct Loaded {
    /// By when they begin to sign; never empty.
    keys: Vec<SigningKey>,
    jwks: Value,
}

/// The current keys; cheap to clone.
#[derive(Clone)]
pub struct SigningKeys {
    dir: Arc<PathBuf>,
    activation_seconds: i64,
    loaded: Arc<ArcSwap<Loaded>>,
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.loaded.load().keys.iter().map(|key| &key.kid))
            .finish()
    }
}

impl SigningKeys {
    /// Reads the folder; without a usable key the service cannot start. A key made while the service runs signs
    /// `activation_seconds` after it was seen.
    pub fn open(dir: &Path, activation_seconds: i64) -> anyhow::Result<Self> {
        let loaded = read(dir, |_, made_at| made_at + activation_seconds)?;
        Ok(Self {
            dir: Arc::new(dir.to_owned()),
            activation_seconds,
            loaded: Arc::new(ArcSwap::from_pointee(loaded)),
        })
    }

    /// Reads the folder again.
    fn reload(&self, now: i64) -> anyhow::Result<Loaded> {
        let before = self.loaded.load();
        read(&self.dir, |kid, made_at| {
            let known = before.keys.iter().find(|key| key.kid == kid);
            known.map_or(made_at.max(now) + self.activation_seconds, |key| key.active_from)
        })
    }

    /// The JWKS document with every public key.
    pub fn jwks(&self) -> Value {
        self.loaded.load().jwks.clone()
    }

    /// Signs claims with the newest key that all replicas have had time to publish.
    pub fn sign(&self, claims: &Claims, now: OffsetDateTime) -> Result<String, jsonwebtoken::errors::Error> {
        let loaded = self.loaded.load();
        let key = choose(&loaded.keys, now.unix_timestamp());
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(key.kid.clone());
        jsonwebtoken::encode(&header, claims, &key.encoding)
    }

    /// Gives the verifier the public keys.
    pub fn feed(&self, verifier: &Verifier) -> anyhow::Result<()> {
        let document = serde_json::to_vec(&self.jwks())?;
        verifier.set_keys(KeySet::parse(&document).context("own JWKS")?);
        Ok(())
    }

    /// Re-reads the folder until `shutdown`; an unreadable folder keeps the keys in use.
    pub async fn watch(self, verifier: Arc<Verifier>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RELOAD) => {}
            }
            match self.reload(OffsetDateTime::now_utc().unix_timestamp()) {
                Ok(loaded) => {
                    if loaded.jwks != self.loaded.load().jwks {
                        tracing::info!(keys = loaded.keys.len(), "signing keys changed");
                    }
                    self.loaded.store(Arc::new(loaded));
                    if let Err(error) = self.feed(&verifier) {
                        tracing::error!(error = format!("{error:#}"), "cannot use the signing keys");
                    }
                }
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "cannot read the signing keys, keeping the old"
                ),
            }
        }
    }
}

/// The key that began to sign last, else the one that will first. `keys` is sorted and never empty.
fn choose(keys: &[SigningKey], now: i64) -> &SigningKey {
    keys.iter().rev().find(|key| key.active_from <= now).unwrap_or(&keys[0])
}

/// Reads the folder; `active_from` tells of a key's name and the second it was made when it begins to sign.
fn read(dir: &Path, active_from: impl Fn(&str, i64) -> i64) -> anyhow::Result<Loaded> {
    let mut keys = Vec::new();
    let entries = std::fs::read_dir(dir).with_context(|| {
        format!(
            "auth.keys_dir: cannot read {}; `chat_service keys new --dir` makes a key",
            dir.display()
        )
    })?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            let key = read_key(&path, &active_from).with_context(|| format!("signing key {}", path.display()))?;
            keys.push(key);
        }
    }
    if keys.is_empty() {
        bail!(
            "auth.keys_dir: no *.pem in {}; make one by `chat_service keys new --dir {0}`",
            dir.display()
        );
    }
    keys.sort_by(|a, b| (a.active_from, &a.kid).cmp(&(b.active_from, &b.kid)));
    let jwks = json!({"keys": keys.iter().map(|key| json!({
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
        "kid": key.kid, "x": URL_SAFE_NO_PAD.encode(&key.public),
    })).collect::<Vec<_>>()});
    Ok(Loaded { keys, jwks })
}

fn read_key(path: &Path, active_from: impl Fn(&str, i64) -> i64) -> anyhow::Result<SigningKey> {
    let file = pem::parse(std::fs::read(path)?).context("not a PKCS#8 PEM file")?;
    if file.tag() != PEM_TAG {
        bail!("holds a {}, not a {PEM_TAG}", file.tag());
    }
    let pkcs8 = file.contents();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|error| anyhow::anyhow!("not an Ed25519 key: {error}"))?;
    let kid = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .context("file name is not UTF-8")?
        .to_owned();
    let made_at = kid
        .split('-')
        .next()
        .and_then(|second| second.parse().ok())
        .unwrap_or(0);
    Ok(SigningKey {
        active_from: active_from(&kid, made_at),
        kid,
        encoding: EncodingKey::from_ed_der(pkcs8),
        public: pair.public_key().as_ref().to_vec(),
    })
}

/// Makes a new key file (mode 0600) and returns its path.
pub fn generate(dir: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let pair = Ed25519KeyPair::generate().map_err(|_| anyhow::anyhow!("no randomness for a key"))?;
    let pkcs8 = pair.to_pkcs8().map_err(|_| anyhow::anyhow!("cannot encode the key"))?;
    let random = uuid::Uuid::new_v4().simple().to_string();
    let path = dir.join(format!(
        "{}-{}.pem",
        OffsetDateTime::now_utc().unix_timestamp(),
        &random[..12]
    ));
    // Under another name first: a replica that reads the folder meanwhile finds a whole key or none.
    let unfinished = path.with_extension("unfinished");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(pem::encode(&pem::Pem::new(PEM_TAG, pkcs8.as_ref())).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fechatter_core::user::Role;
    use uuid::Uuid;

    fn claims(now: OffsetDateTime) -> Claims {
        Claims {
            iss: "fechatter".into(),
            aud: "fechatter".into(),
            sub: "1".into(),
            ws: 1.into(),
            role: Role::Owner,
            sid: Uuid::now_v7(),
            jti: Uuid::now_v7(),
            iat: now.unix_timestamp(),
            exp: now.unix_timestamp() + 900,
        }
    }

    #[test]
    fn a_generated_key_signs_what_its_jwks_verifies() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SigningKeys::open(dir.path(), 60).is_err(), "an empty folder is refused");
        generate(dir.path()).unwrap();
        let keys = SigningKeys::open(dir.path(), 60).unwrap();
        let verifier = Verifier::new("fechatter", "fechatter", 10);
        keys.feed(&verifier).unwrap();
        let now = OffsetDateTime::now_utc();
        let token = keys.sign(&claims(now), now).unwrap();
        assert_eq!(verifier.verify(&token, now).unwrap().claims.user_id().0, 1);
    }

    #[test]
    fn a_file_that_is_no_private_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = generate(dir.path()).unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        for (content, complaint) in [
            ("nothing".to_owned(), "not a PKCS#8 PEM file"),
            (
                good.replace(PEM_TAG, "PUBLIC KEY"),
                "holds a PUBLIC KEY, not a PRIVATE KEY",
            ),
            (pem::encode(&pem::Pem::new(PEM_TAG, *b"short")), "not an Ed25519 key"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = format!("{:#}", SigningKeys::open(dir.path(), 60).unwrap_err());
            assert!(error.contains(complaint) && error.contains(".pem"), "{error}");
        }
    }

    #[test]
    fn a_new_key_is_published_before_it_signs() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let named = |age: i64, name: &str| dir.path().join(format!("{}-{name}.pem", now - age));
        std::fs::rename(generate(dir.path()).unwrap(), named(3_600, "first")).unwrap();
        let keys = SigningKeys::open(dir.path(), 60).unwrap();
        let chosen = |loaded: &Loaded, at: i64| choose(&loaded.keys, at).kid.split_once('-').unwrap().1.to_owned();
        assert_eq!(chosen(&keys.loaded.load(), now), "first");

        // Its name says that it is five minutes old; this replica sees it only now.
        std::fs::rename(generate(dir.path()).unwrap(), named(300, "second")).unwrap();
        let loaded = keys.reload(now).unwrap();
        assert_eq!(loaded.jwks["keys"].as_array().unwrap().len(), 2);
        assert_eq!(chosen(&loaded, now + 59), "first");
        assert_eq!(chosen(&loaded, now + 60), "second");
        keys.loaded.store(Arc::new(loaded));
        // Seeing it again changes nothing.
        assert_eq!(chosen(&keys.reload(now + 30).unwrap(), now + 60), "second");
        // A replica that starts does as the others do.
        let started = SigningKeys::open(dir.path(), 60).unwrap();
        assert_eq!(chosen(&started.loaded.load(), now), "second");
    }
}
