//! An HTTPS client that trusts the development certificate authority, and an SSE reader.

use std::time::{Duration, Instant};

use dev::documented::assert_documented;
use dev::platform::Platform;
use reqwest::Method;
use serde_json::Value;

/// Talks to the gateway.
#[derive(Clone)]
pub struct Client {
    url: String,
    http: reqwest::Client,
}

/// A stream of events.
pub struct Events {
    response: reqwest::Response,
    buffer: String,
}

/// One event of a stream.
#[derive(Debug)]
pub struct Event {
    pub kind: String,
    pub id: String,
    pub data: Value,
}

impl Client {
    pub fn new(platform: &Platform) -> Result<Self, String> {
        let pem = std::fs::read(platform.ca()).map_err(|error| format!("certificate authority: {error}"))?;
        let ca = reqwest::Certificate::from_pem(&pem).map_err(|error| error.to_string())?;
        let http = reqwest::Client::builder()
            .tls_certs_only([ca])
            .connect_timeout(Duration::from_secs(2))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            url: platform.url(),
            http,
        })
    }

    /// Sends a request; anything but success is an error that begins with `step`.
    pub async fn call(
        &self,
        step: &str,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Result<Value, String> {
        let (status, body) = self
            .raw(method, path, token, body)
            .await
            .map_err(|error| format!("{step}: {error}"))?;
        if (200..300).contains(&status) {
            Ok(body)
        } else {
            Err(format!("{step}: {status} {body}"))
        }
    }

    /// Sends a request and returns status and body.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Result<(u16, Value), String> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.url))
            .timeout(Duration::from_secs(10));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = response.status().as_u16();
        let text = response.text().await.map_err(|error| error.to_string())?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        assert_documented(method.as_str(), path, status, &body);
        Ok((status, body))
    }

    /// Sends a request and returns the status as soon as it is known; a stream is not read.
    pub async fn status(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Result<u16, String> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.timeout(Duration::from_secs(10)).send().await;
        Ok(response.map_err(|error| format!("{error:?}"))?.status().as_u16())
    }

    /// Gets a page with more headers; returns the status and the `traceresponse`.
    pub async fn traced(&self, path: &str, token: &str, headers: &[(&str, &str)]) -> Result<(u16, String), String> {
        let mut request = self.http.get(format!("{}{path}", self.url)).bearer_auth(token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.timeout(Duration::from_secs(10)).send().await;
        let response = response.map_err(|error| format!("{error:?}"))?;
        let trace = response
            .headers()
            .get("traceresponse")
            .and_then(|value| value.to_str().ok());
        Ok((response.status().as_u16(), trace.unwrap_or_default().to_owned()))
    }

    /// Opens the stream of events.
    pub async fn events(&self, token: &str) -> Result<Events, String> {
        self.open(self.http.get(format!("{}/events", self.url)).bearer_auth(token))
            .await
    }

    /// Opens the stream of events behind a cursor.
    pub async fn events_after(&self, token: &str, cursor: &str) -> Result<Events, String> {
        let request = self.http.get(format!("{}/events", self.url)).bearer_auth(token);
        self.open(request.header("last-event-id", cursor)).await
    }

    async fn open(&self, request: reqwest::RequestBuilder) -> Result<Events, String> {
        let response = request.send().await.map_err(|error| format!("events: {error:?}"))?;
        if response.status() != 200 {
            return Err(format!("events: {}", response.status()));
        }
        Ok(Events {
            response,
            buffer: String::new(),
        })
    }

    /// Waits until `/health` says that everything works.
    pub async fn until_healthy(&self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let last = self.raw(Method::GET, "/health", None, None).await;
            if matches!(&last, Ok((200, health)) if health["status"] == "ok") {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not healthy: {last:?}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Events {
    /// The kind of the next event, whatever it is.
    pub async fn next_any(&mut self) -> Result<String, String> {
        self.find(|_| true, "any event").await.map(|event| event.kind)
    }

    /// The next event of this kind; others are passed over.
    pub async fn next(&mut self, kind: &str) -> Result<Event, String> {
        self.find(|event| event.kind == kind, kind).await
    }

    /// The next event of one of these kinds; others are passed over.
    pub async fn next_of(&mut self, kinds: &[&str]) -> Result<Event, String> {
        self.find(|event| kinds.contains(&event.kind.as_str()), "event of these kinds")
            .await
    }

    async fn find(&mut self, wanted: impl Fn(&Event) -> bool, kind: &str) -> Result<Event, String> {
        let find = async {
            loop {
                if let Some(end) = self.buffer.find("\n\n") {
                    let frame: String = self.buffer.drain(..end + 2).collect();
                    if let Some(event) = parse(&frame).filter(&wanted) {
                        return Ok(event);
                    }
                    continue;
                }
                match self.response.chunk().await {
                    Ok(Some(chunk)) => self.buffer.push_str(&String::from_utf8_lossy(&chunk)),
                    Ok(None) => return Err(format!("events: the stream ended before {kind}")),
                    Err(error) => return Err(format!("events: {error:?}")),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), find)
            .await
            .unwrap_or_else(|_| Err(format!("events: no {kind} within 10 s")))
    }
}

fn parse(frame: &str) -> Option<Event> {
    let field = |name: &str| {
        frame
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
    };
    Some(Event {
        kind: field("event:")?,
        id: field("id:").unwrap_or_default(),
        data: serde_json::from_str(&field("data:").unwrap_or_default()).unwrap_or(Value::Null),
    })
}
