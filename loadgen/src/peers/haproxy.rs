//! HAProxy: as a bare TLS proxy, and doing the edge's job (ES256 tokens, a limit per user).

use std::path::Path;

use anyhow::Context;
use dev::child::Process;

use super::{require, start};

/// The Debian package.
pub const PACKAGE: &str = "haproxy";

/// Version, as it says itself.
pub fn version() -> anyhow::Result<String> {
    Ok(super::version(&require("haproxy", PACKAGE)?, "-v"))
}

/// What HAProxy is to check.
#[derive(Debug, Clone, Copy)]
pub enum Checks<'a> {
    /// Nothing: TLS and forwarding.
    None,
    /// The signature, issuer, audience and expiry of each token, by this public key (PEM), and a limit per user in a stick table.
    TokenAndLimit { public_key: &'a Path },
}

/// Starts HAProxy as `name`, with one thread per core.
pub fn proxy(
    name: &str,
    folder: &Path,
    port: u16,
    upstream: u16,
    tls: &Path,
    checks: Checks<'_>,
) -> anyhow::Result<Process> {
    let pem = folder.join(format!("{name}.pem"));
    let both = [
        std::fs::read(tls.join("cert.pem")).context("cannot read the certificate")?,
        std::fs::read(tls.join("key.pem")).context("cannot read the key")?,
    ];
    std::fs::write(&pem, both.concat()).context("cannot write the certificate for HAProxy")?;
    let rules = match checks {
        Checks::None => String::new(),
        Checks::TokenAndLimit { public_key } => format!(
            "    stick-table type string len 64 size 200k expire 60s store http_req_rate(60s)
    http-request set-var(txn.token) http_auth_bearer
    http-request deny deny_status 401 unless {{ var(txn.token) -m found }}
    http-request deny deny_status 401 unless {{ var(txn.token),jwt_header_query('$.alg') -m str ES256 }}
    http-request deny deny_status 401 unless {{ var(txn.token),jwt_verify(\"ES256\",\"{key}\") -m int 1 }}
    http-request deny deny_status 401 unless {{ var(txn.token),jwt_payload_query('$.iss') -m str fechatter }}
    http-request deny deny_status 401 unless {{ var(txn.token),jwt_payload_query('$.aud') -m str fechatter }}
    http-request set-var(txn.exp) var(txn.token),jwt_payload_query('$.exp','int')
    http-request set-var(txn.now) date()
    http-request deny deny_status 401 unless {{ var(txn.exp),sub(txn.now) -m int gt 0 }}
    http-request track-sc0 var(txn.token),jwt_payload_query('$.sub')
    http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 10000000 }}
",
            key = public_key.display()
        ),
    };
    let text = format!(
        "global
    maxconn 8192
    nbthread {threads}
    ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    http-reuse always
frontend edge
    bind 127.0.0.1:{port} ssl crt {pem} backlog 4096
{rules}    default_backend service
backend service
    server upstream 127.0.0.1:{upstream} pool-max-conn 256\n",
        threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        pem = pem.display()
    );
    let path = folder.join(format!("{name}.cfg"));
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let args = vec!["-f".to_owned(), path.display().to_string(), "-db".to_owned()];
    start(name, require("haproxy", PACKAGE)?, args, folder, port)
}
