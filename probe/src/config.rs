//! The configuration of the probe; environment prefix `FECHATTER_PROBE__`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use fechatter_core::config::{Faults, Validate};
use observability::LogConfig;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// Prefix of the environment variables.
pub const ENV_PREFIX: &str = "FECHATTER_PROBE__";

/// Everything that can be configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The gateway as clients know it: `https://chat.example.org`.
    pub url: String,
    /// Another host to connect to, for where the public name does not lead to the gateway; the name is still what the
    /// certificate is checked for.
    #[serde(default)]
    pub connect_host: Option<String>,
    /// PEM file of authorities to trust besides the system's. Read in each round; one that is not there is passed over.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Email of the probe's account, which is made in the first round if nobody has it.
    pub email: String,
    /// Its password. A secret.
    pub password: SecretString,
    /// The workspace that is made with the account, for it alone.
    #[serde(default = "default_workspace")]
    pub workspace: String,
    /// Pause from the beginning of one round to that of the next, 5 to 120 s; the alert presumes several rounds in five minutes.
    #[serde(default = "default_interval")]
    pub interval_seconds: u64,
    /// Longest time of a step, 1 to 60 s.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
    /// `/live`, `/ready`, `/metrics`; never public.
    #[serde(default = "default_admin_listen")]
    pub admin_listen: SocketAddr,
    #[serde(default)]
    pub log: LogConfig,
}

impl Config {
    /// Longest time of a step.
    pub const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }
}

fn default_workspace() -> String {
    "Fechatter probe".to_owned()
}

const fn default_interval() -> u64 {
    60
}

const fn default_timeout() -> u64 {
    10
}

fn default_admin_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9690))
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        // The password travels on it.
        let is_https = |url: &reqwest::Url| url.scheme() == "https" && url.has_host() && url.username().is_empty();
        if !reqwest::Url::parse(&self.url).is_ok_and(|url| is_https(&url)) {
            faults.add("url", "not an HTTPS URL such as https://chat.example.org");
        }
        if self.connect_host.as_ref().is_some_and(String::is_empty) {
            faults.add("connect_host", "is empty; leave it out to connect to the host of url");
        }
        faults.required("email", &self.email);
        faults.required("password", self.password.expose_secret());
        faults.required("workspace", &self.workspace);
        faults.range("interval_seconds", self.interval_seconds, 5, 120);
        faults.range("timeout_seconds", self.timeout_seconds, 1, 60);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config {
            url: "https://localhost:8443".to_owned(),
            connect_host: None,
            ca: None,
            email: "probe@example.org".to_owned(),
            password: "a good one".into(),
            workspace: default_workspace(),
            interval_seconds: default_interval(),
            timeout_seconds: default_timeout(),
            admin_listen: default_admin_listen(),
            log: LogConfig::default(),
        };
        change(&mut config);
        let mut faults = Faults::default();
        config.validate(&mut faults);
        faults.into_lines()
    }

    #[test]
    fn each_fault_names_its_key() {
        assert_eq!(faults(|_| {}), Vec::<String>::new());
        for url in ["http://localhost", "localhost", "https://", "https://me@localhost"] {
            assert!(
                faults(|config| config.url = url.to_owned())[0].starts_with("url: "),
                "{url}"
            );
        }
        assert!(faults(|config| config.connect_host = Some(String::new()))[0].starts_with("connect_host: "));
        assert!(faults(|config| config.password = "".into())[0].starts_with("password: "));
        let ranges = faults(|config| {
            config.interval_seconds = 1;
            config.timeout_seconds = 0;
        });
        assert!(
            ranges[0].contains("5 to 120") && ranges[1].contains("1 to 60"),
            "{ranges:?}"
        );
    }
}
