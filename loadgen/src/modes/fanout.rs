//! `fanout`: one message to every member of a large channel, then many messages.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::messages::to_float;
use super::{Meter, SETTLE, Setting, until};
use crate::client::{Address, Kept};
use crate::ledger::Ledger;
use crate::limits;
use crate::machine::{self, Machine};
use crate::outcome::Outcomes;
use crate::peers::nchan::{self, Nchan};
use crate::population::Population;
use crate::processes::Watched;
use crate::progress::{Counters, Live, is_stopped, say};
use crate::report::{Report, Series};
use crate::screens::{First, Screen, Screens};
use crate::stage::Via;
use crate::talk::{self, Receiver};
use crate::target::Target;
use crate::workers::Work;

/// Options of `fanout`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Members of the channel, each with a stream.
    #[arg(long, alias = "streams", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub members: u32,
    /// Messages that are sent one at a time, each after the last one was everywhere.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub messages: u32,
    /// Messages that are sent as fast as they are accepted.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub burst: u32,
    /// Where the streams are opened.
    #[arg(long, value_enum, default_value_t = Via::Service)]
    pub via: Via,
    /// Then measure nginx with nchan, too: the same members, messages, sizes and, with `--via gateway`, TLS.
    #[arg(long)]
    pub peers: bool,
}

/// Open streams of one server, and how messages get there.
struct Hall<'a> {
    /// What its series are called after.
    name: &'a str,
    open: Screens,
    ledger: Arc<Ledger>,
    counters: Arc<Counters>,
    sender: Kept,
    message: Box<dyn Fn(u64) -> Work + 'a>,
    watched: Watched,
}

/// What became of them.
struct Outcome {
    /// Due to each screen.
    each: Series,
    /// Due to the last screen.
    last: Series,
    burst: Series,
    /// From the burst's first message until its last was accepted.
    sent: Duration,
    lost: u64,
    doubled: u64,
    partial: Option<String>,
}

/// Each delivery's latency, the time to the last one, and deliveries per second.
pub async fn fanout(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let members = args.members as usize;
    limits::require_descriptors(members as u64, "--members", "a stream to each member")?;
    limits::require_ports(members as u64, members as u64 / 20_000 + 1)?;
    let mut target = Target::start(&setting.binaries, &[], &[])?;
    say(&format!("making a channel of {members}"));
    let population = Population::settle(&target.platform, &target.data, members)?;
    let chat = population.chats(&[(0..members).collect()])?[0];
    let mode = match args.via {
        Via::Service => "fanout",
        Via::Gateway => "fanout-gateway",
    };
    let mut report = Report::new(mode, machine);
    report.durability = machine::durability(&mut target.platform, &target.data);
    report.set("members", members);
    report.set("streams_via", format!("{:?}", args.via).to_lowercase());
    report.set(
        "arrivals",
        "closed: each message after the last one, then as fast as they are accepted",
    );

    let address = match args.via {
        Via::Service => target.notify(),
        Via::Gateway => target.gateway()?,
    };
    let list = population.people.iter().enumerate().map(|(number, person)| Screen {
        number,
        token: person.token.as_str().into(),
        cursor: None,
    });
    let path: Arc<str> = format!("/api/chat/{chat}/messages").into();
    let token: Arc<str> = population.people[0].token.as_str().into();
    let (ledger, counters) = (args.ledger()?, Arc::<Counters>::default());
    let watch = Arc::new(Receiver::new(&ledger, &counters));
    say(&format!("opening {members} streams"));
    let hall = Hall {
        name: "",
        open: Screens::open(&address, "/events", list.collect(), watch.clone()).await?,
        ledger,
        counters,
        sender: Kept::new(target.chat()),
        message: Box::new(|number| {
            let (method, path, body) = talk::wording(&path, number);
            Work {
                method,
                path,
                token: Arc::clone(&token),
                body: Some(body),
            }
        }),
        watched: target.watched(),
    };
    let ours = hall.measure(args).await?;
    judge(&mut report, args, &ours);
    let size = watch.size.load(Ordering::Relaxed);
    report.set("bytes_of_an_event", size);
    report.partial.clone_from(&ours.partial);
    // nchan's streams get a certificate of the same kind, from the same authority.
    let (ca, tls) = (target.platform.ca(), target.data.join("tls"));
    if !args.peers || report.partial.is_some() || is_stopped() {
        report.series.extend([ours.each, ours.last, ours.burst]);
        return Ok(report);
    }
    let secure = (args.via == Via::Gateway).then_some((tls.as_path(), ca.as_path()));
    // The machine is the peer's alone; the folder with the certificate stays.
    target.platform.stop();
    let theirs = nchan(args, size, secure).await.context("measuring nchan failed")?;
    Nchan::describe(&mut report)?;
    report.compare("nchan", "one message, each delivery", &ours.each, &theirs.each);
    report.compare("nchan", "one message, last delivery", &ours.last, &theirs.last);
    report.compare("nchan", "burst", &ours.burst, &theirs.burst);
    report.figure("nchan_lost", to_float(theirs.lost));
    report.figure("nchan_doubled", to_float(theirs.doubled));
    report.partial = theirs.partial.map(|reason| format!("nchan: {reason}"));
    report.series.extend([ours.each, ours.last, ours.burst]);
    report.series.extend([theirs.each, theirs.last, theirs.burst]);
    Ok(report)
}

impl Args {
    fn total(&self) -> u64 {
        u64::from(self.messages) + u64::from(self.burst)
    }

    fn ledger(&self) -> anyhow::Result<Arc<Ledger>> {
        Ok(Arc::new(Ledger::for_all(
            usize::try_from(self.total())?,
            self.members as usize,
        )))
    }
}

fn judge(report: &mut Report, args: &Args, ours: &Outcome) {
    let (last, rate) = match args.via {
        Via::Gateway => (250.0, 60_000.0),
        Via::Service => (100.0, 150_000.0),
    };
    report.at_most("last byte, median message", ours.last.p50_ms, last, "ms");
    report.at_least("deliveries", ours.burst.done_per_second, rate, "/s");
    report.at_most("lost", to_float(ours.lost), 0.0, "");
    report.at_most("doubled", to_float(ours.doubled), 0.0, "");
    report.figure("burst_sent_after_seconds", ours.sent.as_secs_f64());
    for part in ["notify_service", "gateway"] {
        report.figure(
            &format!("{part}_cpu_micros_per_delivery"),
            ours.burst.cpu_micros_per_request(part),
        );
    }
}

/// The same through nchan; `secure` is the folder of its certificate and the authority.
async fn nchan(args: &Args, size: usize, secure: Option<(&Path, &Path)>) -> anyhow::Result<Outcome> {
    say("starting nginx with nchan");
    let messages = u32::try_from(args.total())?;
    let peer = Nchan::start(args.members, messages, secure.map(|(tls, _)| tls))?;
    let address: Address = peer.address(secure.map(|(_, ca)| ca))?;
    let (ledger, counters) = (args.ledger()?, Arc::<Counters>::default());
    let list = (0..args.members as usize).map(|number| Screen {
        number,
        token: "none".into(),
        cursor: None,
    });
    let watch = Arc::new(Receiver::new(&ledger, &counters));
    say(&format!("opening {} streams", args.members));
    let open = Screens::open_after(First::Comment, &address, nchan::SUBSCRIBE, list.collect(), watch).await?;
    let hall = Hall {
        name: "nchan ",
        open,
        ledger,
        counters,
        sender: Kept::new(address),
        message: Box::new(|number| nchan::publication(number, size)),
        watched: peer.watched(),
    };
    hall.measure(args).await
}

impl Hall<'_> {
    async fn measure(mut self, args: &Args) -> anyhow::Result<Outcome> {
        let name = self.name;
        let mut partial = None;
        let mut to_last = Outcomes::new();
        let meter = Meter::start(&self.watched)?;
        let started = Instant::now();
        let live = Live::show(
            &format!("{name}fanout"),
            Duration::from_secs(u64::from(args.messages)),
            Arc::clone(&self.counters),
        );
        for number in 0..u64::from(args.messages) {
            if is_stopped() {
                partial = Some("interrupted".to_owned());
                break;
            }
            self.send(number).await?;
            if !until(SETTLE, || self.ledger.times_seen(number) >= args.members).await {
                partial = Some(format!(
                    "message {number} came to {} of {} within {} s",
                    self.ledger.times_seen(number),
                    args.members,
                    SETTLE.as_secs()
                ));
                break;
            }
            if let Some(after) = self.ledger.last_after(number) {
                to_last.succeed(after);
            }
        }
        let length = started.elapsed();
        let each = self.ledger.latencies();
        let each_series = Series::new(
            &format!("{name}each delivery"),
            None,
            length,
            &each,
            Some(meter.stop()?),
        );
        let latest = Series::new(&format!("{name}last delivery"), None, length, &to_last, None);
        let (burst, sent, arrived) = self.burst(args, &each).await?;
        drop(live);
        let (lost, doubled) = self.ledger.lost_and_doubled(args.total());
        if !arrived && partial.is_none() {
            let expected = args.total() * u64::from(args.members);
            partial = Some(format!("{lost} of {expected} deliveries did not arrive in time"));
        }
        if self.open.ended() > 0 {
            partial = Some(format!("{} streams ended while measuring", self.open.ended()));
        }
        self.open.close();
        Ok(Outcome {
            each: each_series,
            last: latest,
            burst,
            sent,
            lost,
            doubled,
            partial,
        })
    }

    /// The burst, how long sending it took, and whether all of it arrived.
    async fn burst(&mut self, args: &Args, before: &Outcomes) -> anyhow::Result<(Series, Duration, bool)> {
        let numbers = u64::from(args.messages)..args.total();
        let meter = Meter::start(&self.watched)?;
        let started = Instant::now();
        for number in numbers.clone() {
            if is_stopped() {
                break;
            }
            self.send(number).await?;
        }
        let sent = started.elapsed();
        let bound = SETTLE + Duration::from_secs(u64::from(args.burst) * u64::from(args.members) / 20_000);
        let all = |number| self.ledger.times_seen(number) >= args.members;
        let arrived = until(bound, || numbers.clone().all(all)).await;
        let cpu = meter.stop()?;
        let end = numbers.filter_map(|number| self.ledger.last_at(number)).max();
        let took = end.unwrap_or_else(Instant::now).saturating_duration_since(started);
        let mut burst = self.ledger.latencies();
        burst.subtract(before);
        let name = format!("{}burst, each delivery", self.name);
        Ok((Series::new(&name, None, took, &burst, Some(cpu)), sent, arrived))
    }

    async fn send(&mut self, number: u64) -> anyhow::Result<()> {
        self.ledger.is_due(number, Instant::now());
        let work = (self.message)(number);
        match self.sender.call(&work.call()).await {
            Ok(_) => {
                self.counters.done.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(fault) => bail!("sending failed ({fault:?}): {}", fault.advice()),
        }
    }
}
