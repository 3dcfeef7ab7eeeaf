//! The plain HTTP listener: it says where to find us by HTTPS, and answers ACME challenges.

use bytes::BytesMut;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fechatter_core::problem::{Code, PROBLEM_JSON};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::answer::Refusal;
use crate::head::{self, NoHead, Patience};
use crate::identity::{network_of, new_request_id};
use crate::listener::{Counted, Counts};
use crate::policy::{Current, Policy};
use crate::proxy_protocol;

/// Connections at once: a redirect takes a moment.
const CONNECTIONS_MAX: usize = 1_024;
/// Of them, those of one address, so that nobody keeps others from their redirect or an authority from its challenge.
const CONNECTIONS_PER_ADDRESS: usize = 128;

/// How redirects are made.
#[derive(Debug, Clone)]
pub struct Redirect {
    pub policy: Current,
    pub counts: Arc<Counts>,
}

/// Redirects until `stop`.
pub async fn run(redirect: Redirect, listener: TcpListener, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((mut stream, peer)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            continue;
        };
        let Ok(counted) = redirect.count(peer.ip()) else {
            continue;
        };
        let redirect = redirect.clone();
        tokio::spawn(async move {
            // Whatever fails here, the client sees a closed connection.
            let _ = tokio::time::timeout(Duration::from_secs(15), redirect.answer(&mut stream, peer)).await;
            drop((place, counted));
        });
    }
}

/// An address has too many connections.
struct TooMany;

impl Redirect {
    /// Counts a connection for its address; those of proxies are many people's.
    fn count(&self, peer: IpAddr) -> Result<Option<Counted>, TooMany> {
        let policy = self.policy.load();
        let address = peer.to_canonical();
        let is_balancer = || {
            policy
                .config
                .proxy_protocol
                .iter()
                .any(|network| network.contains(&address))
        };
        if policy.identifier.is_trusted(address) || is_balancer() {
            return Ok(None);
        }
        let counted = self.counts.enter(network_of(address), CONNECTIONS_PER_ADDRESS);
        counted.map(Some).ok_or(TooMany)
    }

    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S, peer: SocketAddr) -> std::io::Result<()> {
        let policy = self.policy.load_full();
        let limits = policy.connections;
        let patience = Patience {
            // Nobody keeps such a connection.
            idle: limits.patience.head,
            ..limits.patience
        };
        let balancers = &policy.config.proxy_protocol;
        let Ok(client) = proxy_protocol::client(stream, peer, balancers, patience.head).await else {
            return Ok(());
        };
        if !policy.identifier.is_trusted(client.ip()) && !policy.addresses.permit(client.ip()) {
            return Ok(());
        }
        let answer = match head::read(stream, BytesMut::new(), patience, &limits.head).await {
            Ok(head) => compose(&head.bytes, &policy).await,
            Err(NoHead::Quiet) => return Ok(()),
            Err(NoHead::Refused(refusal)) => refuse(&refusal),
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Let the client read before it meets a reset for bytes of its body we never read.
        let mut scrap = [0; 1_024];
        while let Ok(1..) = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut scrap))
            .await
            .unwrap_or(Ok(0))
        {}
        Ok(())
    }
}

/// The answer to a head that [`head::read`] has let through.
async fn compose(head: &[u8], policy: &Policy) -> String {
    let Some((target, host)) = std::str::from_utf8(head).ok().and_then(target_and_host) else {
        return refuse(&Refusal::new(Code::BadRequest, "host", "There must be one Host."));
    };
    if let Some(folder) = &policy.config.acme_challenges
        && let Some(token) = target.strip_prefix("/.well-known/acme-challenge/")
    {
        return challenge(folder, token).await;
    }
    if !policy.hosts.answer_to(host) {
        let detail = "This gateway does not answer to that host name.";
        return refuse(&Refusal::new(Code::MisdirectedRequest, "unknown_host", detail));
    }
    let location = location(target, host, policy.config.public_port());
    format!("HTTP/1.1 308 Permanent Redirect\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

fn unknown_challenge() -> String {
    refuse(&Refusal::new(
        Code::NotFound,
        "unknown_challenge",
        "There is no such challenge.",
    ))
}

/// A refusal as a problem, and the end of the connection.
fn refuse(refusal: &Refusal) -> String {
    let id = new_request_id();
    let body = refusal.body(&id);
    let status = http::StatusCode::from_u16(refusal.status()).unwrap_or(http::StatusCode::BAD_REQUEST);
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\ncache-control: no-store\r\nx-request-id: {}\r\nconnection: close\r\n\r\n{}",
        body.len(),
        id.to_str().unwrap_or_default(),
        String::from_utf8_lossy(&body),
    )
}

/// The file an ACME client has put there to prove that this name is ours (RFC 8555 section 8.3).
async fn challenge(folder: &Path, token: &str) -> String {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if token.is_empty() || token.len() > 200 || !token.bytes().all(is_token) {
        return unknown_challenge();
    }
    match tokio::fs::read_to_string(folder.join(token)).await {
        Ok(text) if text.len() <= 4_096 => format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        ),
        _ => unknown_challenge(),
    }
}

fn target_and_host(head: &str) -> Option<(&str, &str)> {
    let mut lines = head.split("\r\n");
    let target = lines.next()?.split(' ').nth(1)?;
    let host = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| value.trim())
    })?;
    Some((target, host))
}

/// The same host and target by HTTPS.
fn location(target: &str, host: &str, public_port: u16) -> String {
    let name = match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    match public_port {
        443 => format!("https://{name}{target}"),
        port => format!("https://{name}:{port}{target}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_stays_and_the_port_changes() {
        for (host, port, expected) in [
            ("localhost:8080", 8443, "https://localhost:8443/a?b=c"),
            ("chat.example", 443, "https://chat.example/a?b=c"),
            ("[::1]:8080", 8443, "https://[::1]:8443/a?b=c"),
            ("[::1]", 8443, "https://[::1]:8443/a?b=c"),
        ] {
            let head = format!("GET /a?b=c HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let (target, host) = target_and_host(&head).unwrap();
            assert_eq!(location(target, host, port), expected);
        }
        assert_eq!(target_and_host("GET / HTTP/1.0\r\n\r\n"), None);
    }

    #[tokio::test]
    async fn challenges_are_files_of_one_folder_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("inside")).unwrap();
        std::fs::write(folder.path().join("tok-en_1"), "tok-en_1.thumb").unwrap();
        std::fs::write(folder.path().join("secret.txt"), "no").unwrap();
        let found = challenge(&folder.path().join("inside/.."), "tok-en_1").await;
        assert!(found.ends_with("\r\n\r\ntok-en_1.thumb"), "{found}");
        for token in ["", "absent", "inside", "../secret", "secret.txt", "%2e%2e"] {
            let answer = challenge(&folder.path().join("inside/.."), token).await;
            assert!(answer.starts_with("HTTP/1.1 404"), "{token}: {answer}");
        }
    }
}
