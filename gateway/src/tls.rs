//! TLS as this gateway speaks it: 1.2 and 1.3, HTTP/2 and HTTP/1.1, resumption by tickets and by a session store.

use std::sync::Arc;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

use crate::certificate::Resolver;
use crate::config::Tls;

/// Makes `aws-lc-rs` the process's cryptography; first thing in `main`, before a library picks another.
pub fn install_provider() {
    // The only failure is that one is installed already, which is what we want.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// Who checks certificates of clients: nobody, unless authorities are configured.
fn client_verifier(settings: &Tls) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let Some(file) = &settings.client_ca else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let authorities =
        crate::certificate::authorities(file).map_err(|error| anyhow::anyhow!("tls.client_ca: {error}"))?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(authorities));
    let verifier = if settings.client_routes.is_empty() {
        verifier
    } else {
        // Who asks for one of those routes is known after the handshake only.
        verifier.allow_unauthenticated()
    };
    verifier.build().context("tls.client_ca")
}

/// The acceptor of the public listener.
pub fn acceptor(settings: &Tls, resolver: Arc<Resolver>) -> anyhow::Result<TlsAcceptor> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .context("TLS versions")?
        .with_client_cert_verifier(client_verifier(settings)?)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().context("TLS session tickets")?;
    config.session_storage = if settings.sessions == 0 {
        Arc::new(NoServerSessionStorage {})
    } else {
        ServerSessionMemoryCache::new(settings.sessions)
    };
    Ok(TlsAcceptor::from(Arc::new(config)))
}
