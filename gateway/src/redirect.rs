//! The plain HTTP listener: it answers one thing, where to find us by HTTPS.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::framing::HeadLimits;
use crate::head::{self, NoHead, Patience};

/// Connections at once: a redirect takes a moment.
const CONNECTIONS_MAX: usize = 1_024;

/// How redirects are made.
#[derive(Debug, Clone, Copy)]
pub struct Redirect {
    pub public_port: u16,
    pub patience: Patience,
    pub limits: HeadLimits,
}

/// Redirects until `stop`.
pub async fn run(redirect: Redirect, listener: TcpListener, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((mut stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            continue;
        };
        tokio::spawn(async move {
            // Whatever fails here, the client sees a closed connection.
            let _ = tokio::time::timeout(Duration::from_secs(15), redirect.answer(&mut stream)).await;
            drop(place);
        });
    }
}

impl Redirect {
    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> std::io::Result<()> {
        let answer = match head::read(stream, self.patience, &self.limits).await {
            Ok(head) => self.location(&head.bytes).map_or_else(bad_request, |location| {
                format!(
                    "HTTP/1.1 308 Permanent Redirect\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
            }),
            Err(NoHead::Quiet) => return Ok(()),
            Err(NoHead::Refused(_)) => bad_request(),
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

    /// The same host and target by HTTPS. [`head::read`] has made sure of both.
    fn location(&self, head: &[u8]) -> Option<String> {
        let text = std::str::from_utf8(head).ok()?;
        let mut lines = text.split("\r\n");
        let target = lines.next()?.split(' ').nth(1)?;
        let host = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("host").then(|| value.trim())
        })?;
        let name = match host.rfind(':') {
            Some(colon) if !host[colon..].contains(']') => &host[..colon],
            _ => host,
        };
        Some(match self.public_port {
            443 => format!("https://{name}{target}"),
            port => format!("https://{name}:{port}{target}"),
        })
    }
}

fn bad_request() -> String {
    "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_stays_and_the_port_changes() {
        let redirect = |public_port| Redirect {
            public_port,
            patience: Patience {
                idle: Duration::ZERO,
                head: Duration::ZERO,
            },
            limits: HeadLimits {
                uri_bytes: 1_000,
                header_bytes: 1_000,
                header_fields: 10,
            },
        };
        let location = |port, host: &str| {
            redirect(port).location(format!("GET /a?b=c HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
        };
        assert_eq!(
            location(8443, "localhost:8080").unwrap(),
            "https://localhost:8443/a?b=c"
        );
        assert_eq!(location(443, "chat.example").unwrap(), "https://chat.example/a?b=c");
        assert_eq!(location(8443, "[::1]:8080").unwrap(), "https://[::1]:8443/a?b=c");
        assert_eq!(location(8443, "[::1]").unwrap(), "https://[::1]:8443/a?b=c");
        assert_eq!(redirect(1).location(b"GET / HTTP/1.0\r\n\r\n"), None);
    }
}
