//! Asks the gateway, as any client does.

use std::path::Path;

use fechatter_core::problem::{Code, Problem};
use reqwest::{Certificate, Method, Response, Url};
use serde_json::Value;

use crate::config::Config;

/// Requests on connections of its own, so that each round proves that connections can be made.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: Url,
}

/// Why something was not had, with the ids that lead to the log lines and the trace of it.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    pub reason: String,
    /// The code of the problem that was answered.
    pub code: Option<Code>,
    pub request_id: Option<String>,
    pub trace_id: Option<String>,
}

impl Fault {
    /// A fault that is no answer.
    pub fn new(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            ..Self::default()
        }
    }
}

impl Client {
    /// Reads what is to be trusted and finds the address; connects with the first request.
    pub async fn new(config: &Config) -> Result<Self, Fault> {
        let url = Url::parse(&config.url).map_err(|error| Fault::new(format!("url: {error}")))?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("fechatter-probe/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            // What leads elsewhere in this environment is not the gateway.
            .no_proxy()
            .connect_timeout(config.timeout());
        if let Some(path) = &config.ca {
            builder = builder.tls_certs_merge(authorities(path)?);
        }
        if let Some(host) = &config.connect_host {
            let port = url.port_or_known_default().unwrap_or(443);
            let addresses = tokio::net::lookup_host((host.as_str(), port)).await;
            let addresses: Vec<_> = addresses
                .map_err(|error| Fault::new(format!("cannot find {host}: {error}")))?
                .collect();
            builder = builder.resolve_to_addrs(url.host_str().unwrap_or_default(), &addresses);
        }
        let http = builder.build().map_err(|error| Fault::new(chain(&error)))?;
        Ok(Self { http, url })
    }

    /// Sends a request and returns what was answered; anything but success is a fault.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Value, Fault> {
        let response = self.open(method, path, token, body).await?;
        let ids = ids(&response);
        let text = response.bytes().await.map_err(|error| Fault {
            reason: chain(&error),
            ..ids.clone()
        })?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&text).map_err(|error| Fault {
            reason: format!("the answer is no JSON: {error}"),
            ..ids
        })
    }

    /// Sends a request and returns the answer once its head is there; anything but success is a fault.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Response, Fault> {
        let url = self
            .url
            .join(path)
            .map_err(|error| Fault::new(format!("{path}: {error}")))?;
        let mut request = self.http.request(method, url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| Fault::new(chain(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, ids) = (response.status(), ids(&response));
        let problem: Option<Problem> = response.json().await.ok();
        Err(Fault {
            reason: problem
                .as_ref()
                .map_or_else(|| status.to_string(), |problem| format!("{status}: {}", problem.detail)),
            code: problem.map(|problem| problem.code),
            ..ids
        })
    }
}

/// The certificates of a PEM file, none when there is no such file.
fn authorities(path: &Path) -> Result<Vec<Certificate>, Fault> {
    match std::fs::read(path) {
        Ok(pem) => {
            Certificate::from_pem_bundle(&pem).map_err(|error| Fault::new(format!("{}: {error}", path.display())))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Fault::new(format!("cannot read {}: {error}", path.display()))),
    }
}

/// What the answer says about where to look.
fn ids(response: &Response) -> Fault {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    Fault {
        request_id: header("x-request-id").map(str::to_owned),
        trace_id: header("traceresponse")
            .and_then(|value| value.split('-').nth(1))
            .map(str::to_owned),
        ..Fault::default()
    }
}

/// An error with its causes, which reqwest's own text leaves out, and without the URL.
fn chain(error: &reqwest::Error) -> String {
    let mut text = match () {
        () if error.is_connect() => "cannot connect".to_owned(),
        () if error.is_timeout() => "timed out".to_owned(),
        () => "the exchange failed".to_owned(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
