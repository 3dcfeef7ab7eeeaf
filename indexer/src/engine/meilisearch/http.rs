//! How requests reach Meilisearch.
//!
//! Not the SDK's own client: that one has no timeouts, trusts public authorities alone, and takes 8 MB for each request.

use std::time::Duration;

use async_trait::async_trait;
use futures::AsyncReadExt;
use meilisearch_sdk::errors::Error;
use meilisearch_sdk::request::{HttpClient, Method, parse_response};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A pool of connections to one server.
#[derive(Debug, Clone)]
pub(super) struct Http(reqwest::Client);

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(Box::new(error))
}

impl Http {
    /// Requests carry `key`, if there is one.
    pub(super) fn new(key: Option<&SecretString>) -> Result<Self, Error> {
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret())).map_err(other)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let builder = reqwest::Client::builder().default_headers(headers);
        let builder = builder.connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT);
        Ok(Self(builder.build().map_err(other)?))
    }

    fn prepare<Query: Serialize, Body>(&self, url: &str, method: &Method<Query, Body>) -> RequestBuilder {
        let request = match method {
            Method::Get { .. } => self.0.get(url),
            Method::Post { .. } => self.0.post(url),
            Method::Put { .. } => self.0.put(url),
            Method::Patch { .. } => self.0.patch(url),
            Method::Delete { .. } => self.0.delete(url),
        };
        request.query(method.query())
    }

    async fn send<Output: DeserializeOwned>(&self, request: RequestBuilder, expected: u16) -> Result<Output, Error> {
        // What it answers on a connection on which it waited for a request too long, and closes it: a request that comes
        // in this moment was not read.
        let again = request.try_clone();
        let mut answer = request.send().await.map_err(other)?;
        if answer.status() == StatusCode::REQUEST_TIMEOUT
            && let Some(again) = again
        {
            answer = again.send().await.map_err(other)?;
        }
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(other)?;
        let text = if text.is_empty() { "null" } else { &text };
        parse_response(status, expected, text, String::new())
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn request<Query, Body, Output>(
        &self,
        url: &str,
        method: Method<Query, Body>,
        expected: u16,
    ) -> Result<Output, Error>
    where
        Query: Serialize + Send + Sync,
        Body: Serialize + Send + Sync,
        Output: DeserializeOwned + 'static + Send,
    {
        let mut request = self.prepare(url, &method);
        if let Some(body) = method.body() {
            request = request
                .header(CONTENT_TYPE, "application/json")
                .body(serde_json::to_vec(body)?);
        }
        self.send(request, expected).await
    }

    async fn stream_request<Query, Body, Output>(
        &self,
        url: &str,
        method: Method<Query, Body>,
        content_type: &str,
        expected: u16,
    ) -> Result<Output, Error>
    where
        Query: Serialize + Send + Sync,
        Body: futures::AsyncRead + Send + Sync + 'static,
        Output: DeserializeOwned + 'static,
    {
        let mut request = self.prepare(url, &method).header(CONTENT_TYPE, content_type);
        if let Some(body) = method.into_body() {
            let mut bytes = Vec::new();
            std::pin::pin!(body).read_to_end(&mut bytes).await.map_err(other)?;
            request = request.body(bytes);
        }
        self.send(request, expected).await
    }

    fn is_tokio(&self) -> bool {
        true
    }
}
