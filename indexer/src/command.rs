//! `indexer reindex`, `consistency` and `dead-letters replay` ask the running indexer, or work here when none runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dead_letters::{DeadLetters, Replay};
use indexer::config::Config;
use indexer::consumer::CONSUMER;
use indexer::engine::SearchEngine;
use indexer::metrics::Metrics;
use indexer::services::consistency::{Consistency, Difference, Report};
use indexer::services::indexing::Indexing;
use indexer::services::reindex::{Progress, Reindex, State};
use indexer::services::turn::Turn;
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use service_runtime::process::Process;
use sqlx::PgPool;

const POLL: Duration = Duration::from_millis(500);

/// Has the running indexer rebuild, or rebuilds here when none runs; prints how it goes.
pub async fn reindex(config: Config, process: Process) -> anyhow::Result<()> {
    let source = if let Some(remote) = Remote::ask(&config, "reindex").await? {
        print(&format!("the indexer at {} rebuilds", config.admin_listen));
        Source::Remote(remote)
    } else {
        print(&format!("no indexer runs at {}; rebuilding here", config.admin_listen));
        let (pool, engine) = open_here(&config).await?;
        let turn = take_turn(&pool, engine.as_ref()).await?;
        let reindex = Reindex::new(pool, engine, config.reindex.clone(), process.shutdown.clone());
        reindex.start("asked for by an operator, with no indexer running");
        Source::Here {
            task: reindex,
            _turn: Some(turn),
        }
    };
    let mut shown = -1;
    loop {
        let progress: Progress = match &source {
            Source::Here { task, .. } => task.progress(),
            Source::Remote(remote) => remote.read().await?,
        };
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
        if !pause(&process).await {
            if matches!(source, Source::Remote(_)) {
                print("the indexer goes on with the rebuild");
            }
            return Ok(());
        }
    }
}

/// Has the running indexer compare index and PostgreSQL, or compares here when none runs; fails when they differ.
pub async fn consistency(config: Config, process: Process) -> anyhow::Result<()> {
    let source = if let Some(remote) = Remote::ask(&config, "consistency").await? {
        print(&format!("the indexer at {} compares", config.admin_listen));
        Source::Remote(remote)
    } else {
        print(&format!("no indexer runs at {}; comparing here", config.admin_listen));
        let (pool, engine) = open_here(&config).await?;
        let consistency = Consistency::new(pool, engine, config.reindex.clone(), process.shutdown.clone());
        consistency.start();
        Source::Here {
            task: consistency,
            _turn: None,
        }
    };
    let mut shown = -1;
    loop {
        let report: Report = match &source {
            Source::Here { task, .. } => task.report(),
            Source::Remote(remote) => remote.read().await?,
        };
        if report.compared != shown {
            shown = report.compared;
            print(&format!("{} of {} messages", report.compared, report.total));
        }
        match report.state {
            State::Done => return conclude(&report),
            State::Failed => anyhow::bail!("the comparison failed: {}", report.problem.unwrap_or_default()),
            State::Idle => anyhow::bail!("the indexer was restarted; ask again"),
            State::Running => {}
        }
        if !pause(&process).await {
            return Ok(());
        }
    }
}

/// Carries out a command about dead letters and returns its exit code.
pub async fn dead_letters(config: Config, command: dead_letters::command::Command) -> anyhow::Result<u8> {
    let pool = migrations::open(config.database.url.expose_secret(), 2).await?;
    let letters = DeadLetters::new(pool.clone(), CONSUMER);
    // Opened once, and only when something is to be replayed and no indexer runs.
    let here = tokio::sync::OnceCell::new();
    dead_letters::command::run(command, &letters, async |id| {
        if let Some(outcome) = replay_there(&config, id).await? {
            return Ok(outcome);
        }
        let indexing = here
            .get_or_try_init(async || {
                let engine = crate::open_engine(&config)?;
                let turn = take_turn(&pool, engine.as_ref()).await?;
                let max = config.batch.max_deliveries;
                let indexing = Indexing::new(
                    pool.clone(),
                    engine,
                    Metrics::default(),
                    max,
                    tokio_util::sync::CancellationToken::default(),
                );
                anyhow::Ok((indexing, turn))
            })
            .await?;
        Ok(indexing.0.replay(id).await?)
    })
    .await
}

/// Has the running indexer replay a dead letter; nothing when none runs.
async fn replay_there(config: &Config, id: i64) -> anyhow::Result<Option<Replay>> {
    let client = reqwest::Client::builder().timeout(Duration::from_mins(1)).build()?;
    let url = format!("http://{}/dead-letters/{id}/replay", reachable(config.admin_listen));
    let answer = match client.post(&url).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return Ok(None),
        Err(error) => return Err(error).context("the running indexer does not answer"),
    };
    let status = answer.status();
    if status.is_success() {
        return Ok(Some(
            answer
                .json()
                .await
                .context("an unexpected answer of the running indexer")?,
        ));
    }
    let said = answer.text().await.unwrap_or_default();
    anyhow::bail!("the running indexer answered {status}: {said}")
}

fn conclude(report: &Report) -> anyhow::Result<()> {
    print(&format!(
        "{} messages should be findable, {} are",
        report.expected, report.findable
    ));
    for (name, Difference { count, examples }) in [
        ("missing", &report.missing),
        ("outdated", &report.outdated),
        ("leftover", &report.leftover),
    ] {
        if *count > 0 {
            print(&format!("{name}: {count}, such as {examples:?}"));
        }
    }
    anyhow::ensure!(
        report.differences() == 0,
        "the index differs from PostgreSQL; `indexer reindex` makes it anew"
    );
    print("the index agrees with PostgreSQL");
    Ok(())
}

enum Source<T> {
    Remote(Remote),
    Here {
        task: Arc<T>,
        /// Held as long as the task may write.
        _turn: Option<Turn>,
    },
}

/// A task of the running indexer, by its admin listener.
struct Remote {
    client: reqwest::Client,
    url: String,
}

impl Remote {
    /// Starts the task, or joins the one that runs; nothing when no indexer runs.
    async fn ask(config: &Config, task: &str) -> anyhow::Result<Option<Self>> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let url = format!("http://{}/{task}", reachable(config.admin_listen));
        match client.post(&url).send().await {
            Ok(answer) if matches!(answer.status().as_u16(), 202 | 409) => Ok(Some(Self { client, url })),
            Ok(answer) => {
                let status = answer.status();
                anyhow::bail!("{url} answered {status}: {}", answer.text().await.unwrap_or_default());
            }
            Err(error) if error.is_connect() => Ok(None),
            Err(error) => Err(error).context("cannot ask the running indexer"),
        }
    }

    async fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        let answer = self
            .client
            .get(&self.url)
            .send()
            .await
            .context("the running indexer does not answer any more")?;
        answer.json().await.context("an unexpected answer")
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

async fn open_here(config: &Config) -> anyhow::Result<(PgPool, Arc<dyn SearchEngine>)> {
    let pool = migrations::open(config.database.url.expose_secret(), config.database.max_connections).await?;
    Ok((pool, crate::open_engine(config)?))
}

/// Takes the turn to write; an error when an indexer elsewhere has it.
async fn take_turn(pool: &PgPool, engine: &dyn SearchEngine) -> anyhow::Result<Turn> {
    let turn = Turn::new(pool.clone(), engine.is_shared());
    anyhow::ensure!(
        turn.take().await?,
        "an indexer that runs elsewhere writes to this index; ask it, or stop it first"
    );
    Ok(turn)
}

/// Waits a little; `false` when the process is to end.
async fn pause(process: &Process) -> bool {
    tokio::select! {
        () = process.shutdown.cancelled() => false,
        () = tokio::time::sleep(POLL) => true,
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command for operators")]
fn print(line: &str) {
    println!("{line}");
}
