//! `cargo dev crash`: the crash test in its long form.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;
use dev::install;

use crate::cargo::{self, Build, Stop};
use crate::lines::{say, show};

/// Options of `cargo dev crash`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Processes killed in all, shared evenly among the eight; a kill takes about 4 s.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    kills: u64,
    /// Makes the same schedule again; a new one by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Take NATS away once for as many seconds while people go on.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(2..=3_600))]
    nats_away: Option<u64>,
    /// Destroy the streams of NATS while it is away.
    #[arg(long, requires = "nats_away")]
    wipe: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let stop = Stop::on_signal()?;
    install::everything(&say)?;
    say("building");
    cargo::build(Build::Tests, &stop)?;
    let seed = args.seed.map_or_else(new_seed, Ok)?.to_string();
    let kills = args.kills.to_string();
    let away = args.nats_away.map(|seconds| seconds.to_string());
    let mut again = format!("cargo dev crash --kills {kills} --seed {seed}");
    let mut env = vec![
        ("FECHATTER_CRASH_SEED", seed.as_str()),
        ("FECHATTER_CRASH_KILLS", kills.as_str()),
    ];
    if let Some(away) = &away {
        again = format!("{again} --nats-away {away}");
        env.push(("FECHATTER_CRASH_NATS_AWAY", away));
    }
    if args.wipe {
        again.push_str(" --wipe");
        env.push(("FECHATTER_CRASH_WIPE", "yes"));
    }
    say(&format!("to do the same again: {again}"));
    // With --workspace the binaries are those that were built above.
    let test = [
        "test",
        "--workspace",
        "--test",
        "crash",
        "--",
        "--ignored",
        "--exact",
        "long_form",
        "--nocapture",
    ];
    if !cargo::run(&test, &env, &stop, show)? {
        bail!("the crash test failed; its report is above; the same again: {again}");
    }
    Ok(())
}

fn new_seed() -> anyhow::Result<u64> {
    // Small enough to be typed.
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() % 1_000_000)
}
