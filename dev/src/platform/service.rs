//! Our four processes and how each is configured.

use anyhow::Context;

use super::Platform;

/// One of our four processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    Chat,
    Notify,
    Indexer,
    Gateway,
}

impl Service {
    /// All, in the order in which they are started.
    pub const ALL: [Self; 4] = [Self::Chat, Self::Notify, Self::Indexer, Self::Gateway];

    /// Name of the binary, the log file and the log prefix.
    pub const fn binary(self) -> &'static str {
        match self {
            Self::Chat => "chat_service",
            Self::Notify => "notify_service",
            Self::Indexer => "indexer",
            Self::Gateway => "gateway",
        }
    }

    /// The same of its second replica.
    pub(super) const fn twin(self) -> &'static str {
        match self {
            Self::Chat => "chat_service-2",
            Self::Notify => "notify_service-2",
            Self::Indexer => "indexer-2",
            Self::Gateway => "gateway-2",
        }
    }
}

impl Platform {
    /// Where the indexer keeps its embedded index.
    pub fn index_folder(&self) -> std::path::PathBuf {
        self.options.data.join("search")
    }

    /// The variables that a service is started with; among them its secrets.
    pub fn environment(&self, service: Service) -> Vec<(String, String)> {
        let ports = &self.options.ports;
        let (prefix, user, listen, database) = match service {
            Service::Chat => ("CHAT", "chat", ports.chat, Some("chat")),
            Service::Notify => ("NOTIFY", "notify", ports.notify, Some("notify")),
            Service::Indexer => ("INDEXER", "indexer", ports.indexer, Some("indexer")),
            Service::Gateway => ("GATEWAY", "gateway", ports.gateway, None),
        };
        let mut env = Vec::new();
        let mut set = |key: &str, value: String| env.push((format!("FECHATTER_{prefix}__{key}"), value));
        set("LISTEN", format!("127.0.0.1:{listen}"));
        set("ADMIN_LISTEN", format!("127.0.0.1:{}", ports.admin(service)));
        if let Some(url) = &self.options.nats_url {
            set("NATS__URL", url.clone());
        } else {
            set("NATS__URL", format!("nats://127.0.0.1:{}", ports.nats));
            set("NATS__USER", user.to_owned());
            // Quoted: a password of digits alone must not be read as a number.
            set(
                "NATS__PASSWORD",
                format!("\"{}\"", self.secrets.get(&format!("nats_{user}"))),
            );
        }
        if let Some(role) = database {
            set("DATABASE__URL", self.database_url(role));
        }
        if service != Service::Gateway {
            // Ctrl-C is to be quick; the streams were closed by the gateway before.
            set("DRAIN_SECONDS", "2".to_owned());
            set("DRAIN_DELAY_MS", "0".to_owned());
        }
        let jwks = format!("http://127.0.0.1:{}/.well-known/jwks.json", ports.chat);
        match service {
            Service::Chat => set("AUTH__KEYS_DIR", self.options.data.join("keys").display().to_string()),
            Service::Notify => set("AUTH__JWKS_URL", jwks),
            Service::Indexer => {
                set("AUTH__JWKS_URL", jwks);
                set("ENGINE__PATH", self.index_folder().display().to_string());
            }
            Service::Gateway => {
                set("AUTH__JWKS_URL", jwks);
                set("REDIRECT_LISTEN", format!("127.0.0.1:{}", ports.redirect));
                set(
                    "TLS__CERTIFICATE",
                    self.options.data.join("tls/cert.pem").display().to_string(),
                );
                set("TLS__KEY", self.options.data.join("tls/key.pem").display().to_string());
                for (name, service, port) in [
                    ("CHAT", Service::Chat, ports.chat),
                    ("NOTIFY", Service::Notify, ports.notify),
                    ("INDEXER", Service::Indexer, ports.indexer),
                ] {
                    let twin = self.options.twin(service).map(|twin| twin.port);
                    let replicas = std::iter::once(port).chain(twin);
                    let replicas: Vec<String> = replicas.map(|port| format!("\"127.0.0.1:{port}\"")).collect();
                    set(&format!("UPSTREAMS__{name}"), format!("[{}]", replicas.join(",")));
                }
            }
        }
        env.extend(self.options.env.iter().cloned());
        env
    }

    /// The same for its second replica, which listens elsewhere.
    pub(super) fn environment_of_twin(&self, service: Service) -> anyhow::Result<Vec<(String, String)>> {
        let twin = self
            .options
            .twin(service)
            .context("the service has no second replica")?;
        let mut env = self.environment(service);
        for (name, value) in &mut env {
            if name.ends_with("__ADMIN_LISTEN") {
                *value = format!("127.0.0.1:{}", twin.admin_port);
            } else if name.ends_with("__LISTEN") {
                *value = format!("127.0.0.1:{}", twin.port);
            }
        }
        Ok(env)
    }
}
