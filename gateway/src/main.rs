//! The gateway process; see `gateway --help`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gateway::config::{Config, ENV_PREFIX};
use gateway::server::Start;
use service_runtime::{openapi, process};

#[global_allocator]
static ALLOCATOR: service_runtime::heap::Allocator = service_runtime::heap::allocator();

/// The edge of Fechatter.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file (TOML); `FECHATTER_GATEWAY__…` variables overlay it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, certificates included, and end.
    #[arg(long)]
    check: bool,
    /// Take over from the gateway that runs with the same `upgrade_socket`, without refusing a connection; that one drains and ends.
    #[arg(long)]
    upgrade: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a certificate for development and say how to trust it.
    DevCertificate {
        /// Folder for ca.pem, cert.pem and key.pem.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Print the OpenAPI document of what the gateway answers itself.
    Openapi,
}

fn main() -> ExitCode {
    gateway::tls::install_provider();
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::DevCertificate { dir }) => return dev_certificate(&dir),
        Some(Command::Openapi) => return openapi::print(&gateway::openapi::document()),
        None => {}
    }
    let config: Config = match process::load(ENV_PREFIX, arguments.config.as_deref()) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if arguments.check {
        say("configuration is good\n");
        return ExitCode::SUCCESS;
    }
    let log = config.log.clone();
    process::run("gateway", &log, |process| {
        let start = Start {
            file: arguments.config,
            upgrade: arguments.upgrade,
        };
        gateway::server::run(config, start, process.shutdown)
    })
}

fn dev_certificate(dir: &std::path::Path) -> ExitCode {
    match gateway::dev_certificate::ensure(dir) {
        Ok(files) => {
            say(&gateway::dev_certificate::instructions(&files));
            ExitCode::SUCCESS
        }
        Err(error) => {
            process::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "what these commands are for")]
fn say(text: &str) {
    print!("{text}");
}
