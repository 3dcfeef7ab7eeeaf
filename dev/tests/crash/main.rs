//! The crash test: people talk through the gateway while every process is killed with SIGKILL, again and again.
//!
//! `cargo dev test` runs the short form; `cargo dev crash` runs as long a form as is asked for.

mod evidence;
mod people;
mod plan;
mod readers;
mod run;
mod search;
mod writers;

use std::time::Duration;

use crate::plan::{Outage, Plan};

/// Kills of the short form: one or two of each process.
const SHORT: usize = 12;
const SHORT_SEED: u64 = 4;

#[test]
fn nothing_is_lost_doubled_or_leaked_whatever_is_killed() {
    let report = run::run(&Plan::new(SHORT_SEED, SHORT), &|line| println!("{line}")).unwrap();
    assert!(report.verdict.is_clean(), "\n{report}");
    println!("{report}");
    assert_eq!(
        report.kills.len(),
        plan::PARTS.len(),
        "every process was killed\n{report}"
    );
}

#[test]
fn without_nats_sends_are_answered_and_a_destroyed_stream_is_made_again() {
    let outage = Outage {
        away: Duration::from_secs(5),
        wipe: true,
    };
    let plan = Plan::new(SHORT_SEED, 0).with_outage(outage);
    let report = run::run(&plan, &|line| println!("{line}")).unwrap();
    assert!(report.verdict.is_clean(), "\n{report}");
    println!("{report}");
}

/// What `cargo dev crash` runs, with its options in the environment.
#[test]
#[ignore = "takes as long as it is told to; run it by `cargo dev crash`"]
fn long_form() {
    let number = |name: &str| option(name)?.parse::<u64>().ok();
    let seed = number("FECHATTER_CRASH_SEED").expect("FECHATTER_CRASH_SEED is a number");
    let kills = number("FECHATTER_CRASH_KILLS").expect("FECHATTER_CRASH_KILLS is a number");
    let mut plan = Plan::new(seed, usize::try_from(kills).expect("a small number"));
    if let Some(seconds) = number("FECHATTER_CRASH_NATS_AWAY") {
        plan = plan.with_outage(Outage {
            away: Duration::from_secs(seconds),
            wipe: option("FECHATTER_CRASH_WIPE").is_some(),
        });
    }
    let report = run::run(&plan, &|line| println!("{line}")).unwrap();
    println!("\n{report}");
    assert!(
        report.verdict.is_clean(),
        "something was lost, doubled or leaked; see above"
    );
}

/// What `cargo dev crash` was told.
#[expect(clippy::disallowed_methods, reason = "options of a command, not configuration")]
fn option(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
