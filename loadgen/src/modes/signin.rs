//! `signin`: a storm of sign-ins beside messaging. Password hashing must not make others wait.

use std::sync::Arc;
use std::time::Instant;

use http::Method;
use serde_json::json;

use super::messages::to_float;
use super::{Meter, Setting};
use crate::arrivals::Arrival;
use crate::machine::{self, Machine};
use crate::population::{PASSWORD, Population};
use crate::progress::{Counters, is_stopped, say};
use crate::report::{Report, Series};
use crate::talk::{self, Sender};
use crate::target::Target;
use crate::workers::{Job, Load, Work, Workers};

/// Options of `signin`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Messages per second, alone and beside the storm.
    #[arg(long, default_value_t = 500)]
    pub rate: u32,
    /// Sign-ins per second.
    #[arg(long, default_value_t = 20)]
    pub signins: u32,
    /// People who sign in, in turn.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub people: u32,
}

struct SignIns {
    bodies: Vec<bytes::Bytes>,
}

impl Job for SignIns {
    fn prepare(&self, arrival: Arrival) -> Work {
        let place = usize::try_from(arrival.number).unwrap_or_default() % self.bodies.len();
        Work {
            method: Method::POST,
            path: "/api/signin".into(),
            token: "".into(),
            body: Some(self.bodies[place].clone()),
        }
    }
}

/// Messages alone, then messages and sign-ins.
pub async fn signin(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let mut target = Target::start(&setting.binaries, &[], &[])?;
    let count = args.people as usize;
    let population = Population::settle(&target.platform, &target.data, count)?;
    let groups: Vec<Vec<usize>> = (0..count / 2).map(|pair| vec![pair * 2, pair * 2 + 1]).collect();
    let chats = population.chats(&groups)?;
    let mut report = Report::new("signin", machine);
    report.durability = machine::durability(&mut target.platform, &target.data);
    report.set("people", count);
    report.set("connections", setting.connections);

    let address = target.gateway()?;
    let sender = Arc::new(Sender {
        chats: chats
            .iter()
            .zip(&groups)
            .map(|(chat, group)| {
                (
                    format!("/api/chat/{chat}/messages").into(),
                    population.people[group[0]].token.as_str().into(),
                )
            })
            .collect(),
        wording: talk::wording,
        ledger: None,
        first: 0,
    });
    let look = Work {
        method: Method::GET,
        path: "/api/me".into(),
        token: population.people[0].token.as_str().into(),
        body: None,
    };
    let mut talking = Workers::open(&address, setting.connections, &look).await?;
    let mut entering = Workers::open(&address, setting.connections, &look).await?;
    let signins = Arc::new(SignIns {
        bodies: population
            .people
            .iter()
            .map(|person| json!({"email": person.email, "password": PASSWORD}).to_string().into())
            .collect(),
    });
    let rate = f64::from(args.rate);
    let load = |rate, length| Load {
        rate: Some(rate),
        length,
    };
    talking
        .run("warm-up", load(rate, setting.warmup), sender.clone(), Arc::default())
        .await?;
    let meter = Meter::start(&target.watched())?;
    let started = Instant::now();
    let alone = talking
        .run(
            "messages alone",
            load(rate, setting.length),
            sender.clone(),
            Arc::default(),
        )
        .await?;
    let length = started.elapsed().max(setting.length);
    let alone = Series::new("messages alone", Some(rate), length, &alone, Some(meter.stop()?));

    say("the storm begins");
    let storm = f64::from(args.signins);
    let meter = Meter::start(&target.watched())?;
    let started = Instant::now();
    let counters = Arc::<Counters>::default();
    let (beside, entered) = tokio::join!(
        talking.run(
            "messages beside it",
            load(rate, setting.length),
            sender,
            Arc::clone(&counters)
        ),
        entering.run("sign-ins", load(storm, setting.length), signins, Arc::default()),
    );
    let length = started.elapsed().max(setting.length);
    let cpu = meter.stop()?;
    let beside = Series::new("messages beside sign-ins", Some(rate), length, &beside?, Some(cpu));
    let entered = Series::new("sign-ins", Some(storm), length, &entered?, None);
    report.at_most("message p99, beside ÷ alone", beside.p99_ms / alone.p99_ms, 2.0, "");
    report.at_most(
        "errors of messages",
        to_float(alone.error_count() + beside.error_count()),
        0.0,
        "",
    );
    report.at_least("sign-ins that succeeded", to_float(entered.done), 1.0, "");
    report.series.extend([alone, beside, entered]);
    if is_stopped() {
        report.partial = Some("interrupted".to_owned());
    }
    Ok(report)
}
