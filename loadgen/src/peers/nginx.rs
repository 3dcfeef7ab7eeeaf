//! nginx: as the upstream of every proxy, and as a bare TLS proxy.

use std::path::Path;

use anyhow::Context;
use dev::child::Process;

use super::{require, start};

/// The Debian package.
pub const PACKAGE: &str = "nginx-light";

/// Version, as it says itself.
pub fn version() -> anyhow::Result<String> {
    Ok(super::version(&require("nginx", PACKAGE)?, "-v"))
}

fn run(name: &str, folder: &Path, port: u16, http: &str) -> anyhow::Result<Process> {
    // One process: as many cores as the others are given, and no master to add up.
    let text = format!(
        "daemon off; master_process off; pid {folder}/{name}.pid; error_log {folder}/{name}-error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
    access_log off; tcp_nodelay on;
    keepalive_requests 1000000000; keepalive_timeout 3600s; keepalive_time 24h;
    client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-f; uwsgi_temp_path {folder}/{name}-u; scgi_temp_path {folder}/{name}-s;
{http}
}}\n",
        folder = folder.display()
    );
    let path = folder.join(format!("{name}.conf"));
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let args = ["-c", &path.display().to_string(), "-p", &folder.display().to_string()].map(str::to_owned);
    start(name, require("nginx", PACKAGE)?, args.to_vec(), folder, port)
}

/// Answers everything with a small JSON, and the key set of the tokens.
pub fn upstream(folder: &Path, port: u16, jwks: &str) -> anyhow::Result<Process> {
    run(
        "upstream",
        folder,
        port,
        &format!(
            "    server {{
        listen 127.0.0.1:{port} backlog=4096;
        default_type application/json;
        location = /.well-known/jwks.json {{ return 200 '{jwks}'; }}
        location / {{ return 200 '{{\"id\":1,\"fullname\":\"Ada Lovelace\",\"email\":\"ada@demo.example\",\"role\":\"member\"}}'; }}
    }}"
        ),
    )
}

/// A TLS proxy that checks nothing.
pub fn proxy(folder: &Path, port: u16, upstream: u16, tls: &Path) -> anyhow::Result<Process> {
    run(
        "nginx",
        folder,
        port,
        &format!(
            "    upstream service {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} ssl backlog=4096;
        ssl_certificate {tls}/cert.pem; ssl_certificate_key {tls}/key.pem; ssl_protocols TLSv1.3;
        location / {{
            proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection \"\";
        }}
    }}",
            tls = tls.display()
        ),
    )
}
