//! nchan, nginx's module for publish and subscribe: fan-out without a database, tokens or membership.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use dev::child::Process;
use dev::{ports, scratch, tools};
use http::Method;

use super::{nginx, require, start};
use crate::client::Address;
use crate::processes::Watched;
use crate::report::Report;
use crate::screens;
use crate::workers::Work;

/// Where subscribers look.
pub const SUBSCRIBE: &str = "/events";
const PUBLISH: &str = "/publish";
/// Descriptors of a worker besides its subscribers'.
const SPARE: u32 = 512;

/// A running nginx with one channel.
pub struct Nchan {
    port: u16,
    process: Process,
    // After the process, so that it is removed after it ended.
    _folder: tempfile::TempDir,
}

impl Nchan {
    /// Starts one worker per core for this many subscribers; with a certificate, they come over TLS 1.3.
    pub fn start(subscribers: u32, messages: u32, tls: Option<&Path>) -> anyhow::Result<Self> {
        let module = tools::nchan().context(
            "nchan is not installed; `cargo dev load` installs it, or: \
             apt-get install --no-install-recommends libnginx-mod-nchan",
        )?;
        let folder = scratch::folder()?;
        let port = ports::free()?;
        let path = folder.path().join("nchan.conf");
        std::fs::write(
            &path,
            configuration(&module, folder.path(), port, subscribers, messages, tls),
        )
        .with_context(|| format!("cannot write {}", path.display()))?;
        let args = [
            "-c",
            &path.display().to_string(),
            "-p",
            &folder.path().display().to_string(),
        ]
        .map(str::to_owned);
        let program = require("nginx", nginx::PACKAGE)?;
        let process = start("nchan", program, args.to_vec(), folder.path(), port)?;
        Ok(Self {
            port,
            process,
            _folder: folder,
        })
    }

    /// Says in a report what was measured and how it was set up.
    pub fn describe(report: &mut Report) -> anyhow::Result<()> {
        report.set(
            "nchan",
            format!(
                "{}: one worker per core, one channel, no token or membership to check",
                nginx::version()?
            ),
        );
        report.durability.push("nchan.messages=in memory only".to_owned());
        Ok(())
    }

    /// Where subscribers and publishers connect.
    pub fn address(&self, ca: Option<&Path>) -> anyhow::Result<Address> {
        let socket = SocketAddr::from(([127, 0, 0, 1], self.port));
        match ca {
            Some(ca) => Address::tls(socket, "127.0.0.1", ca),
            None => Ok(Address::plain(socket)),
        }
    }

    /// Master and workers.
    pub fn watched(&self) -> Watched {
        let mut watched = Watched::default();
        watched.add("nchan", self.process.id());
        watched
    }
}

/// A message with as many bytes as one of ours.
pub fn publication(number: u64, size: usize) -> Work {
    let mut body = format!("{{\"content\":\"{}\"", screens::content(number));
    let rest = size.saturating_sub(body.len() + r#","rest":""}"#.len());
    body = format!("{body},\"rest\":\"{}\"}}", "x".repeat(rest));
    Work {
        method: Method::POST,
        path: PUBLISH.into(),
        token: Arc::from("none"),
        body: Some(body.into()),
    }
}

fn configuration(
    module: &Path,
    folder: &Path,
    port: u16,
    subscribers: u32,
    messages: u32,
    tls: Option<&Path>,
) -> String {
    let (ssl, certificate) = match tls {
        Some(tls) => (
            " ssl",
            format!(
                "ssl_certificate {tls}/cert.pem; ssl_certificate_key {tls}/key.pem; ssl_protocols TLSv1.3;",
                tls = tls.display()
            ),
        ),
        None => ("", String::new()),
    };
    // `reuseport` shares connections out evenly. A worker may all the same get more than its share.
    format!(
        "load_module {module};
daemon off; worker_processes auto; pid {folder}/nchan.pid; error_log {folder}/nchan-error.log;
worker_rlimit_nofile {descriptors};
events {{ worker_connections {descriptors}; }}
http {{
    access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 3600s;
    nchan_shared_memory_size 256M;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port}{ssl} backlog=4096 reuseport;
        {certificate}
        location = {PUBLISH} {{
            nchan_publisher; nchan_channel_id load; nchan_eventsource_event message.created;
            nchan_message_buffer_length {messages}; nchan_message_timeout 1h;
        }}
        location = {SUBSCRIBE} {{
            nchan_subscriber eventsource; nchan_channel_id load; nchan_subscriber_first_message newest;
        }}
    }}
}}\n",
        module = module.display(),
        folder = folder.display(),
        descriptors = subscribers.saturating_add(SPARE),
        messages = messages.max(1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_as_large_as_asked_for() {
        let body = publication(12, 400).body.unwrap();
        assert_eq!(body.len(), 400);
        assert_eq!(screens::number_in(&body), Some(12));
        let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(parsed["content"], screens::content(12));
    }
}
