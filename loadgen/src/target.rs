//! What is measured: the platform, started here, or one that runs elsewhere.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use dev::platform::{Options, Part, Platform, Ports, Service};

use crate::client::Address;
use crate::processes::Watched;
use crate::progress;

/// Limits that a generator on one address does not meet; they are counted all the same.
const LIMITS: [(&str, &str); 8] = [
    ("RATE_LIMITS__AUTH", "{requests=10000000, window_seconds=60}"),
    ("RATE_LIMITS__SEND", "{requests=10000000, window_seconds=60}"),
    ("RATE_LIMITS__READ", "{requests=10000000, window_seconds=60}"),
    ("RATE_LIMITS__SEARCH", "{requests=10000000, window_seconds=60}"),
    ("RATE_LIMITS__STREAM", "{requests=10000000, window_seconds=60}"),
    ("RATE_LIMITS__WORKSPACE", "{requests=100000000, window_seconds=60}"),
    ("LOG__FILTER", "info,access=off"),
    ("LIMITS__CONNECTIONS_PER_ADDRESS", "50000"),
];

/// The environment of a gateway under load.
pub fn gateway_environment() -> Vec<(String, String)> {
    LIMITS
        .iter()
        .map(|(key, value)| (format!("FECHATTER_GATEWAY__{key}"), (*value).to_owned()))
        .collect()
}

/// A platform of our own.
#[derive(Debug)]
pub struct Target {
    pub platform: Platform,
    pub data: PathBuf,
    // After the platform, so that it is removed after it stopped.
    _folder: tempfile::TempDir,
}

impl Target {
    /// Starts the platform of a build with durability as in production.
    pub fn start(binaries: &Path, without: &[Service], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let folder = dev::scratch::folder()?;
        dev::postgres::open_for_all(folder.path())?;
        let data = folder.path().to_owned();
        let mut all = gateway_environment();
        // Nor do they write a line for each request.
        let quiet = ["CHAT", "NOTIFY", "INDEXER"].map(|service| {
            let name = format!("FECHATTER_{service}__LOG__FILTER");
            (name, "info,request=off".to_owned())
        });
        all.extend(quiet);
        all.extend(
            env.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let platform = Platform::start(
            Options {
                data: data.clone(),
                binaries: binaries.to_owned(),
                ports: Ports::free()?,
                postgres_url: None,
                nats_url: None,
                fsync: true,
                without: without.to_vec(),
                twins: Vec::new(),
                env: all,
            },
            &progress::say,
        )
        .context("cannot start the platform")?;
        Ok(Self {
            platform,
            data,
            _folder: folder,
        })
    }

    /// The gateway, as clients see it.
    pub fn gateway(&self) -> anyhow::Result<Address> {
        let socket = SocketAddr::from(([127, 0, 0, 1], self.platform.ports().gateway));
        Address::tls(socket, "127.0.0.1", &self.platform.ca())
    }

    /// chat_service itself.
    pub fn chat(&self) -> Address {
        Address::plain(SocketAddr::from(([127, 0, 0, 1], self.platform.ports().chat)))
    }

    /// notify_service itself.
    pub fn notify(&self) -> Address {
        Address::plain(SocketAddr::from(([127, 0, 0, 1], self.platform.ports().notify)))
    }

    /// All processes of the platform.
    pub fn watched(&self) -> Watched {
        let mut watched = Watched::default();
        for part in Part::ALL {
            if let Some(id) = self.platform.process_id(part) {
                watched.add(part.name(), id);
            }
        }
        watched
    }
}
