//! `send` and `deliver`: messages in many chats, to the sender's answer and to another user's screen.

use std::sync::Arc;

use anyhow::{Context, bail};

use super::Setting;
use crate::ledger::Ledger;
use crate::machine::{self, Machine};
use crate::peers::synapse::{self, Synapse};
use crate::progress::{Counters, is_stopped, say};
use crate::report::{Report, Series};
use crate::screens::{Screen, Screens};
use crate::stage::{Elsewhere, Stage, Via};
use crate::talk::{Delivered, Receiver};

/// Options of `send` and `deliver`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Messages per second; several are measured one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000], value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Vec<u32>,
    /// Chats that they are spread over, each with a sender and a receiver.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub chats: u32,
    #[arg(long, value_enum, default_value_t = Via::Service)]
    pub via: Via,
    #[command(flatten)]
    pub elsewhere: Elsewhere,
    #[command(flatten)]
    pub beside: Beside,
}

/// Another chat server in the same run.
#[derive(Debug, Clone, clap::Args)]
pub struct Beside {
    /// Then measure Matrix Synapse on PostgreSQL, too: at --peer-rate and at the first --rate; ours also at --peer-rate.
    #[arg(long, conflicts_with = "url")]
    pub peers: bool,
    /// Messages per second that the peer can bear.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub peer_rate: u32,
    /// Rooms in the peer, each with a sender and a receiver: it makes about two a second.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub peer_chats: u32,
}

impl Args {
    /// What is asked of us: with a peer, also what it can bear.
    fn rates(&self) -> Vec<u32> {
        let mut rates = self.rate.clone();
        if self.beside.peers && !rates.contains(&self.beside.peer_rate) {
            rates.insert(0, self.beside.peer_rate);
        }
        rates
    }

    /// What is asked of the peer: what it can bear, and the first of what is asked of us.
    fn peer_rates(&self) -> Vec<u32> {
        let mut rates = vec![self.beside.peer_rate];
        rates.extend(self.rate.first().filter(|rate| **rate != self.beside.peer_rate));
        rates
    }
}

async fn stage(setting: &Setting, args: &Args, via: Via) -> anyhow::Result<Stage> {
    let chats = usize::try_from(args.chats)?;
    if args.elsewhere.url.is_some() {
        Stage::elsewhere(&args.elsewhere, chats).await
    } else {
        Stage::of_our_own(setting, chats, via)
    }
}

fn begin(mode: &str, setting: &Setting, args: &Args, stage: &mut Stage, machine: Machine) -> Report {
    let mut report = Report::new(mode, machine);
    report.set("chats", stage.chats.len());
    report.set("connections", setting.connections);
    report.set("send_to", stage.send_to.socket);
    report.set("arrivals", "poisson, open loop");
    if args.elsewhere.url.is_some() {
        report.set("target", "elsewhere: its processes and durability are not known here");
    }
    if let Some(target) = &mut stage.target {
        report.durability = machine::durability(&mut target.platform, &target.data);
    }
    report
}

/// From due to answered: accepted and committed.
pub async fn send(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let mut stage = stage(setting, args, args.via).await?;
    let mut report = begin("send", setting, args, &mut stage, machine);
    report.set("via", format!("{:?}", args.via).to_lowercase());
    let mut talk = stage.talk(setting.connections).await?;
    for rate in args.rates() {
        let series = talk.send(&format!("send {rate}/s"), f64::from(rate), setting).await?;
        judge_send(&mut report, rate, &series);
        report.series.push(series);
        if is_stopped() {
            report.partial = Some("interrupted".to_owned());
            return Ok(report);
        }
    }
    drop((talk, stage));
    if args.beside.peers {
        send_beside(setting, args, &mut report)
            .await
            .context("measuring Synapse failed")?;
    }
    Ok(report)
}

fn judge_send(report: &mut Report, rate: u32, series: &Series) {
    match rate {
        5_000 => {
            report.at_least("durable messages accepted", series.done_per_second, 4_900.0, "/s");
            report.at_most("p99 at 5,000/s", series.p99_ms, 25.0, "ms");
        }
        1_000 => report.at_most("p99 at 1,000/s", series.p99_ms, 10.0, "ms"),
        _ => {}
    }
    report.at_most(&format!("errors at {rate}/s"), to_float(series.error_count()), 0.0, "");
}

#[expect(clippy::cast_precision_loss, reason = "counts")]
pub(crate) fn to_float(count: u64) -> f64 {
    count as f64
}

/// Room for all messages of these rates.
fn ledger(setting: &Setting, rates: &[u32]) -> anyhow::Result<Arc<Ledger>> {
    let seconds = (setting.length + setting.warmup).as_secs() + 2;
    let messages: u64 = rates.iter().map(|rate| u64::from(*rate) * 2 * seconds).sum();
    Ok(Arc::new(Ledger::new(
        usize::try_from(messages).context("too many messages")? + 10_000,
    )))
}

/// From due to the receiver's screen, through gateway, outbox, JetStream, notify_service and gateway again.
pub async fn deliver(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let mut stage = stage(setting, args, Via::Gateway).await?;
    let mut report = begin("deliver", setting, args, &mut stage, machine);
    let ledger = ledger(setting, &args.rates())?;
    let counters = Arc::<Counters>::default();
    say(&format!("opening {} streams", stage.receivers.len()));
    let receivers = stage.receivers.iter().enumerate().map(|(number, token)| Screen {
        number,
        token: Arc::clone(token),
        cursor: None,
    });
    let watch = Arc::new(Receiver::new(&ledger, &counters));
    let mut screens = Screens::open(&stage.see_at, "/events", receivers.collect(), watch).await?;
    let mut talk = stage.talk(setting.connections).await?;
    for rate in args.rates() {
        let name = format!("deliver {rate}/s");
        let delivered = talk
            .deliver(&name, f64::from(rate), setting, &ledger, &counters)
            .await?;
        judge_delivery(&mut report, rate, &delivered);
        report.series.extend([delivered.arrived, delivered.accepted]);
        if is_stopped() {
            report.partial = Some("interrupted".to_owned());
            return Ok(report);
        }
    }
    if screens.ended() > 0 {
        report.partial = Some(format!("{} streams ended while measuring", screens.ended()));
    }
    screens.close();
    drop((screens, talk, stage));
    if args.beside.peers {
        deliver_beside(setting, args, &mut report)
            .await
            .context("measuring Synapse failed")?;
    }
    Ok(report)
}

fn judge_delivery(report: &mut Report, rate: u32, delivered: &Delivered) {
    let p99 = delivered.arrived.p99_ms;
    match rate {
        5_000 => report.at_most("p99 at 5,000/s", p99, 50.0, "ms"),
        1_000 => report.at_most("p99 at 1,000/s", p99, 20.0, "ms"),
        _ => {}
    }
    report.at_most(&format!("lost at {rate}/s"), to_float(delivered.lost), 0.0, "");
    report.at_most(&format!("doubled at {rate}/s"), to_float(delivered.doubled), 0.0, "");
    // A message that was refused is not lost, but nobody sees it.
    let refused = delivered.accepted.error_count();
    report.at_most(&format!("errors at {rate}/s"), to_float(refused), 0.0, "");
}

/// Ours at a rate, and the peer's name for what was done at it.
fn compare(report: &mut Report, rate: u32, ours: &str, theirs: &Series) -> anyhow::Result<()> {
    let Some(ours) = report.series.iter().find(|series| series.name == ours).cloned() else {
        bail!("nothing of ours was measured at {rate}/s");
    };
    report.compare("synapse", &format!("{rate}/s"), &ours, theirs);
    Ok(())
}

async fn send_beside(setting: &Setting, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let peer = Synapse::start()?;
    peer.describe(report);
    let rooms = peer.settle(usize::try_from(args.beside.peer_chats)?).await?;
    let mut talk = peer.talk(&rooms, setting.connections).await?;
    for rate in args.peer_rates() {
        let theirs = talk
            .send(&format!("synapse send {rate}/s"), f64::from(rate), setting)
            .await?;
        compare(report, rate, &format!("send {rate}/s"), &theirs)?;
        report.series.push(theirs);
        if is_stopped() {
            report.partial = Some("interrupted".to_owned());
            break;
        }
    }
    Ok(())
}

async fn deliver_beside(setting: &Setting, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let peer = Synapse::start()?;
    peer.describe(report);
    let rooms = peer.settle(usize::try_from(args.beside.peer_chats)?).await?;
    let ledger = ledger(setting, &args.peer_rates())?;
    let counters = Arc::<Counters>::default();
    let syncs = synapse::Syncs::open(&peer.address(), &rooms.receivers, &ledger, &counters).await?;
    let mut talk = peer.talk(&rooms, setting.connections).await?;
    for rate in args.peer_rates() {
        let name = format!("synapse deliver {rate}/s");
        let theirs = talk
            .deliver(&name, f64::from(rate), setting, &ledger, &counters)
            .await?;
        compare(report, rate, &format!("deliver {rate}/s"), &theirs.arrived)?;
        report.figure(&format!("synapse_not_delivered_at_{rate}"), to_float(theirs.lost));
        report.series.extend([theirs.arrived, theirs.accepted]);
        if is_stopped() {
            report.partial = Some("interrupted".to_owned());
            break;
        }
    }
    report.figure("synapse_syncs_that_failed", to_float(syncs.failed()));
    Ok(())
}
