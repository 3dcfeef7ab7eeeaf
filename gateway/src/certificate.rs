//! The certificates in use: chosen by SNI, read again when their files change, without dropping a connection.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::Tls;
use crate::policy::Current;

/// One reading of all certificate files.
#[derive(Debug)]
pub struct Certificates {
    default: Arc<CertifiedKey>,
    /// By exact name, or by `*.rest`.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// When the first of them expires, in seconds since the epoch.
    expires_at: i64,
}

impl Certificates {
    /// Reads and checks every file; the error names the file.
    pub fn load(settings: &Tls) -> Result<Self, String> {
        let (default, mut expires_at, _) = load_pair(&settings.certificate, &settings.key)?;
        let mut by_name = HashMap::new();
        for files in &settings.additional {
            let (key, expires, names) = load_pair(&files.certificate, &files.key)?;
            expires_at = expires_at.min(expires);
            for name in names {
                by_name.insert(name, Arc::clone(&key));
            }
        }
        Ok(Self {
            default,
            by_name,
            expires_at,
        })
    }

    fn select(&self, server_name: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = server_name.filter(|_| !self.by_name.is_empty()) else {
            return &self.default;
        };
        let name = name.to_ascii_lowercase();
        let wildcard = || {
            name.split_once('.')
                .and_then(|(_, rest)| self.by_name.get(&format!("*.{rest}")))
        };
        self.by_name.get(&name).or_else(wildcard).unwrap_or(&self.default)
    }
}

type Pair = (Arc<CertifiedKey>, i64, Vec<String>);

fn load_pair(certificate: &Path, key: &Path) -> Result<Pair, String> {
    let said = |path: &Path, what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| said(certificate, &error))?;
    let Some(leaf) = chain.first() else {
        return Err(said(certificate, &"holds no PEM certificate"));
    };
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| said(certificate, &error))?;
    let expires_at = parsed.validity().not_after.timestamp();
    let names = dns_names(&parsed);
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| said(key, &error))?;
    let certified = CertifiedKey::from_der(chain, key_der, &aws_lc_rs::default_provider())
        .map_err(|error| said(key, &format_args!("{error} (for {})", certificate.display())))?;
    Ok((Arc::new(certified), expires_at, names))
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let dns = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    dns.collect()
}

/// The authorities in a PEM file; the error names the file.
pub fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let said = |what: &dyn std::fmt::Display| format!("{}: {what}", file.display());
    let mut authorities = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| said(&error))? {
        let certificate = certificate.map_err(|error| said(&error))?;
        authorities.add(certificate).map_err(|error| said(&error))?;
    }
    if authorities.is_empty() {
        return Err(said(&"holds no PEM certificate"));
    }
    Ok(authorities)
}

/// When the certificate in a PEM file expires, in seconds since the epoch.
pub fn expiry(certificate: &Path) -> Result<i64, String> {
    let leaf = CertificateDer::from_pem_file(certificate).map_err(|error| error.to_string())?;
    let (_, parsed) = X509Certificate::from_der(&leaf).map_err(|error| error.to_string())?;
    Ok(parsed.validity().not_after.timestamp())
}

/// Gives every handshake the newest good certificates.
#[derive(Debug)]
pub struct Resolver {
    current: ArcSwap<Certificates>,
    expires_at: AtomicI64,
}

impl Resolver {
    /// A resolver that begins with these.
    pub fn new(certificates: Certificates) -> Self {
        Self {
            expires_at: AtomicI64::new(certificates.expires_at),
            current: ArcSwap::from_pointee(certificates),
        }
    }

    /// When the first certificate in use expires, in seconds since the epoch.
    pub fn expires_at(&self) -> i64 {
        self.expires_at.load(Ordering::Relaxed)
    }

    /// Uses these from now on.
    pub fn replace(&self, certificates: Certificates) {
        self.expires_at.store(certificates.expires_at, Ordering::Relaxed);
        self.current.store(Arc::new(certificates));
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.current.load().select(hello.server_name())))
    }
}

/// Reads the files again whenever one has changed; a bad reading is said once and the old certificates stay.
pub async fn watch(resolver: Arc<Resolver>, policy: Current, shutdown: CancellationToken) {
    let settings = || policy.load().config.tls.clone();
    let mut seen = contents(&settings()).await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(settings().reload_seconds)) => {}
        }
        let settings = settings();
        let now = contents(&settings).await;
        if now == seen {
            continue;
        }
        seen = now;
        match Certificates::load(&settings) {
            Ok(certificates) => {
                tracing::info!(expires_at = certificates.expires_at, "certificates reloaded");
                resolver.replace(certificates);
            }
            Err(error) => tracing::error!(error, "new certificates are not usable, keeping the old ones"),
        }
    }
}

/// Certificate rotation swaps files or symbolic links, so contents are compared, not times.
async fn contents(settings: &Tls) -> Vec<Option<Vec<u8>>> {
    let mut paths = vec![&settings.certificate, &settings.key];
    paths.extend(
        settings
            .additional
            .iter()
            .flat_map(|files| [&files.certificate, &files.key]),
    );
    let mut contents = Vec::with_capacity(paths.len());
    for path in paths {
        contents.push(tokio::fs::read(path).await.ok());
    }
    contents
}
