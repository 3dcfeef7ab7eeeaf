//! `indexer reindex`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use indexer::config::Config;
use indexer::services::reindex::{Progress, Reindex, State};
use secrecy::ExposeSecret;
use service_runtime::process::Process;

const POLL: Duration = Duration::from_millis(500);

/// Has the running indexer rebuild, or rebuilds here when none runs; prints how it goes.
pub async fn reindex(config: Config, process: Process) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
    let url = format!("http://{}/reindex", reachable(config.admin_listen));
    let source = match client.post(&url).send().await {
        Ok(answer) if answer.status().as_u16() == 202 || answer.status().as_u16() == 409 => {
            print(&format!("the indexer at {} rebuilds", config.admin_listen));
            Source::Remote { client, url }
        }
        Ok(answer) => anyhow::bail!("{url} answered {}", answer.status()),
        Err(error) if error.is_connect() => {
            print(&format!("no indexer runs at {}; rebuilding here", config.admin_listen));
            Source::Here(start_here(&config, &process).await?)
        }
        Err(error) => return Err(error).context("cannot ask the running indexer"),
    };
    follow(&source, &process).await
}

enum Source {
    Remote { client: reqwest::Client, url: String },
    Here(std::sync::Arc<Reindex>),
}

impl Source {
    async fn progress(&self) -> anyhow::Result<Progress> {
        match self {
            Self::Here(reindex) => Ok(reindex.progress()),
            Self::Remote { client, url } => {
                let answer = client
                    .get(url)
                    .send()
                    .await
                    .context("the running indexer does not answer any more")?;
                answer.json().await.context("an unexpected answer")
            }
        }
    }
}

/// An address to connect to for one that is listened on.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        SocketAddr::from(([127, 0, 0, 1], listen.port()))
    } else {
        listen
    }
}

async fn start_here(config: &Config, process: &Process) -> anyhow::Result<std::sync::Arc<Reindex>> {
    let pool = migrations::open(config.database.url.expose_secret(), config.database.max_connections).await?;
    let engine = crate::open_engine(config)?;
    let reindex = Reindex::new(pool, engine, config.reindex.clone(), process.shutdown.clone());
    reindex.start("asked for by an operator, with no indexer running");
    Ok(reindex)
}

async fn follow(source: &Source, process: &Process) -> anyhow::Result<()> {
    let mut shown = -1;
    loop {
        let progress = source.progress().await?;
        if progress.loaded != shown || progress.problem.is_some() {
            shown = progress.loaded;
            let problem = progress
                .problem
                .as_ref()
                .map(|problem| format!(" ({problem})"))
                .unwrap_or_default();
            print(&format!("{} of {} messages{problem}", progress.loaded, progress.total));
        }
        match progress.state {
            State::Done => {
                print("done; the fresh index serves");
                return Ok(());
            }
            State::Failed => anyhow::bail!("the rebuild failed; the old index serves on"),
            State::Idle => anyhow::bail!("the indexer was restarted; it goes on with the rebuild by itself"),
            State::Running => {}
        }
        tokio::select! {
            () = process.shutdown.cancelled() => {
                if matches!(source, Source::Remote { .. }) {
                    print("the indexer goes on with the rebuild");
                }
                return Ok(());
            }
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command for operators")]
fn print(line: &str) {
    println!("{line}");
}
