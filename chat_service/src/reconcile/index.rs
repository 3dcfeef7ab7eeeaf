//! The index, by the indexer's admin listener.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const POLL: Duration = Duration::from_millis(300);

/// How rows and index compare, as the indexer answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IndexReport {
    pub expected: u64,
    pub findable: u64,
    pub missing: Documents,
    pub outdated: Documents,
    pub leftover: Documents,
}

/// Messages that differ in one way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Documents {
    pub count: u64,
    pub examples: Vec<i64>,
}

impl IndexReport {
    /// Whether the index holds what PostgreSQL says.
    pub const fn is_right(&self) -> bool {
        self.missing.count + self.outdated.count + self.leftover.count == 0
    }
}

/// The running indexer.
#[derive(Debug)]
pub(super) struct Indexer {
    client: reqwest::Client,
    url: String,
}

impl Indexer {
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self {
            client: reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?,
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// Compares rows and index.
    pub(super) async fn compare(&self, progress: impl Fn(&str)) -> anyhow::Result<IndexReport> {
        let report = self.carry_out("consistency", "compared", &progress).await?;
        serde_json::from_value(report).context("an unexpected answer of the indexer")
    }

    /// Makes the index anew.
    pub(super) async fn rebuild(&self, progress: impl Fn(&str)) -> anyhow::Result<()> {
        self.carry_out("reindex", "loaded", &progress).await.map(drop)
    }

    /// Starts a task, or joins the one that runs, and follows it to its end.
    async fn carry_out(&self, task: &str, counted: &str, progress: &impl Fn(&str)) -> anyhow::Result<Value> {
        let url = format!("{}/{task}", self.url);
        let started = self.client.post(&url).send().await.with_context(|| {
            format!(
                "cannot ask the indexer's admin listener at {}; --indexer says where it is, --no-index leaves the index out",
                self.url
            )
        })?;
        if !matches!(started.status().as_u16(), 202 | 409) {
            bail!("{url} answered {}", started.status());
        }
        loop {
            let answer = self
                .client
                .get(&url)
                .send()
                .await
                .context("the indexer does not answer any more")?;
            let report: Value = answer.json().await.context("an unexpected answer of the indexer")?;
            progress(&format!("{task}: {} of {} messages", report[counted], report["total"]));
            match report["state"].as_str() {
                Some("done") => return Ok(report),
                Some("running") => tokio::time::sleep(POLL).await,
                Some("failed") => bail!("the indexer could not do it: {}", report["problem"]),
                _ => bail!("the indexer was restarted meanwhile; run it again"),
            }
        }
    }
}
