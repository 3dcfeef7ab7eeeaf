//! The frame of every `main`: configuration, telemetry, signals, exit codes.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fechatter_core::config::{EXIT_CONFIG, Validate};
use observability::LogConfig;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of an operator's command that could not do its work.
pub const EXIT_FAULT: u8 = 2;

/// What a running process hands to its parts.
#[derive(Debug, Clone)]
pub struct Process {
    /// Cancelled at the first SIGTERM or SIGINT: say that others are to be asked from now on.
    pub draining: CancellationToken,
    /// Cancelled with `draining`, or later when [`Process::delay_shutdown`] says so: stop accepting, drain, end.
    pub shutdown: CancellationToken,
    delay_ms: Arc<AtomicU64>,
}

impl Process {
    /// After SIGTERM, goes on serving for so long (in ms), so that who sends requests here can notice and go elsewhere.
    /// SIGINT is for people, who do not want to wait.
    pub fn delay_shutdown(&self, milliseconds: u64) {
        self.delay_ms.store(milliseconds, Ordering::Relaxed);
    }
}

/// Loads a configuration or prints each fault and gives the exit code; nothing is opened before it succeeds.
pub fn load<C: DeserializeOwned + Validate>(env_prefix: &str, file: Option<&Path>) -> Result<C, ExitCode> {
    fechatter_core::config::load(env_prefix, file).map_err(|faults| {
        for line in faults.0 {
            complain(&format!("configuration: {line}"));
        }
        ExitCode::from(EXIT_CONFIG)
    })
}

/// One line on standard error, for what happens before the log is up or after it is down.
#[expect(clippy::print_stderr, reason = "there is no log yet")]
pub fn complain(line: &str) {
    eprintln!("{line}");
}

/// Names the cryptography of TLS connections for libraries that ask for the process's own, as NATS' client does: they panic where
/// the build holds two and none is chosen.
fn choose_cryptography() {
    // Fails when one was chosen before, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Runs an asynchronous `main` with telemetry and signals; an error ends the process with code 1.
pub fn run<F, Fut>(service: &'static str, log: &LogConfig, main: F) -> ExitCode
where
    F: FnOnce(Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    choose_cryptography();
    let telemetry = match observability::init(service, log) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            complain(&format!("configuration: {error}"));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name(service)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    crate::runtime_metrics::register(runtime.handle());
    let result = runtime.block_on(async {
        let process = Process {
            draining: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            delay_ms: Arc::default(),
        };
        watch_signals(process.clone())?;
        tracing::info!(version = crate::VERSION, "starting");
        main(process).await
    });
    let code = match result {
        Ok(()) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped by an error");
            ExitCode::FAILURE
        }
    };
    // Tasks that do not end by themselves must not hold the process up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    telemetry.shutdown();
    code
}

/// Runs an operator's command to its end, without telemetry: standard output is its answer alone. Its value is the exit code;
/// an error is told on standard error and is code 2.
pub fn command<F, Fut>(main: F) -> ExitCode
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = anyhow::Result<u8>>,
{
    choose_cryptography();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(main()));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(EXIT_FAULT)
        }
    }
}

/// First signal: drain. Second: leave at once.
fn watch_signals(process: Process) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for first in [true, false] {
            let delay = tokio::select! {
                _ = terminate.recv() => Duration::from_millis(process.delay_ms.load(Ordering::Relaxed)),
                _ = interrupt.recv() => Duration::ZERO,
            };
            if first {
                tracing::info!("signal received, draining; a second one aborts");
                process.draining.cancel();
                let shutdown = process.shutdown.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    shutdown.cancel();
                });
            }
        }
        tracing::warn!("second signal, aborting");
        std::process::exit(130);
    });
    Ok(())
}

/// Watches a task that must live as long as the process: its end while no shutdown was asked for is an error.
pub async fn critical(
    name: &'static str,
    shutdown: &CancellationToken,
    task: tokio::task::JoinHandle<()>,
) -> anyhow::Result<()> {
    let result = task.await;
    if shutdown.is_cancelled() {
        return Ok(());
    }
    match result {
        Ok(()) => anyhow::bail!("{name} ended unexpectedly"),
        Err(error) => anyhow::bail!("{name} failed: {error}"),
    }
}
