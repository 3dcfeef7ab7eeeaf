//! A new configuration without a new process: on SIGHUP, on a change of the file, or by the admin listener.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::certificate::Resolver;
use crate::config::{Config, ENV_PREFIX};
use crate::metrics::Metrics;
use crate::policy::{Current, Policy};
use crate::upstreams::Upstreams;

/// How often it is looked whether the file has changed.
const LOOK: Duration = Duration::from_secs(2);

/// Everything that heeds a configuration.
#[derive(Debug)]
pub struct Reloader {
    /// The configuration file; without one there is nothing new to read, the environment of a process being fixed.
    pub file: Option<PathBuf>,
    pub policy: Current,
    pub upstreams: Arc<Upstreams>,
    pub resolver: Arc<Resolver>,
    pub metrics: Arc<Metrics>,
    /// Whether the last reading was good.
    pub good: AtomicBool,
    /// One reload at a time.
    pub turn: Mutex<()>,
}

impl Reloader {
    /// Reads, checks and takes over the configuration; the old one stays when the new one has faults, which are returned.
    /// Otherwise returns the changed settings that only a restart applies.
    pub async fn reload(&self) -> Result<Vec<&'static str>, Vec<String>> {
        let _turn = self.turn.lock().await;
        let result = self.take_over().await;
        self.good.store(result.is_ok(), Ordering::Relaxed);
        self.metrics.reloaded(if result.is_ok() { "good" } else { "refused" });
        match &result {
            Ok(restart) if restart.is_empty() => tracing::info!("configuration reloaded"),
            Ok(restart) => tracing::warn!(?restart, "configuration reloaded; these settings need a restart"),
            Err(faults) => tracing::error!(?faults, "the new configuration has faults, keeping the old one"),
        }
        result
    }

    async fn take_over(&self) -> Result<Vec<&'static str>, Vec<String>> {
        let file = self.file.clone();
        // Files are read and certificates checked: not the work of a thread that serves requests.
        let loaded = tokio::task::spawn_blocking(move || {
            let config = load(file.as_deref())?;
            let certificates = crate::certificate::Certificates::load(&config.tls);
            Ok::<_, Vec<String>>((config, certificates.map_err(|error| vec![error])?))
        });
        let (config, certificates) = loaded.await.map_err(|error| vec![error.to_string()])??;
        let former = self.policy.load_full();
        let restart = needing_restart(&former.config, &config);
        if config.log.filter != former.config.log.filter {
            let taken = observability::log_filter::set(&config.log.filter);
            taken.map_err(|error| vec![format!("log.filter: {error}")])?;
        }
        self.upstreams.reconfigure(&config.upstreams).await;
        self.resolver.replace(certificates);
        self.policy.store(Arc::new(Policy::new(config, Some(&former))));
        Ok(restart)
    }

    /// Whether the last reading was good.
    pub fn is_good(&self) -> bool {
        self.good.load(Ordering::Relaxed)
    }
}

fn load(file: Option<&Path>) -> Result<Config, Vec<String>> {
    fechatter_core::config::load(ENV_PREFIX, file).map_err(|faults| faults.0)
}

/// Settings that are sockets, connections or sizes made at a start.
fn needing_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    type Text = fn(&Config) -> String;
    let settings: [(&'static str, Text); 13] = [
        ("listen", |c| c.listen.to_string()),
        ("redirect_listen", |c| c.redirect_listen.to_string()),
        ("admin_listen", |c| c.admin_listen.to_string()),
        ("upgrade_socket", |c| format!("{:?}", c.upgrade_socket)),
        ("threads", |c| c.threads.to_string()),
        ("tls.sessions", |c| c.tls.sessions.to_string()),
        ("tls.client_ca", |c| {
            format!("{:?} {}", c.tls.client_ca, c.tls.client_routes.is_empty())
        }),
        ("upstreams.idle_connections", |c| {
            c.upstreams.idle_connections.to_string()
        }),
        ("auth", |c| format!("{:?}", c.auth)),
        ("nats", |c| {
            use secrecy::ExposeSecret;
            let password = c.nats.password.as_ref().map(ExposeSecret::expose_secret);
            format!("{} {:?} {password:?}", c.nats.url, c.nats.user)
        }),
        ("limits.http2_streams", |c| c.limits.http2_streams.to_string()),
        ("log.format", |c| format!("{:?}", c.log.format)),
        ("drain", |c| format!("{:?}", c.drain)),
    ];
    let changed = settings.iter().filter(|(_, text)| text(old) != text(new));
    changed.map(|(name, _)| *name).collect()
}

/// Reloads on SIGHUP and when the contents of the file have changed, until `shutdown`.
pub async fn watch(reloader: Arc<Reloader>, shutdown: CancellationToken) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => return tracing::error!(%error, "SIGHUP cannot be heeded; the configuration is not reloaded"),
    };
    let mut seen = contents(reloader.file.as_deref()).await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = hangups.recv() => seen = contents(reloader.file.as_deref()).await,
            () = tokio::time::sleep(LOOK) => {
                let now = contents(reloader.file.as_deref()).await;
                if now == seen {
                    continue;
                }
                seen = now;
            }
        }
        // Faults are logged there.
        let _ = reloader.reload().await;
    }
}

/// ConfigMaps swap symbolic links, so contents are compared, not times.
async fn contents(file: Option<&Path>) -> Option<Vec<u8>> {
    match file {
        Some(file) => tokio::fs::read(file).await.ok(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_connections_need_a_restart_and_rules_do_not() {
        let old = Config::default();
        let mut new = old.clone();
        new.limits.uri_bytes = 1_000;
        new.hosts = vec!["chat.example.org".to_owned()];
        new.upstreams.chat = vec!["10.0.0.1:1".parse().unwrap()];
        assert!(needing_restart(&old, &new).is_empty());
        new.nats.password = Some("other".to_owned().into());
        new.listen.set_port(1);
        assert_eq!(needing_restart(&old, &new), ["listen", "nats"]);
    }
}
