//! `send` and `deliver`: messages in many chats, to the sender's answer and to another user's screen.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::Method;
use serde_json::{Value, json};

use super::{Meter, SETTLE, Setting, until};
use crate::arrivals::Arrival;
use crate::client::{Address, Call};
use crate::ledger::Ledger;
use crate::machine::{self, Machine};
use crate::outcome::Fault;
use crate::population::Population;
use crate::processes::Watched;
use crate::progress::{Counters, is_stopped, say};
use crate::report::{Report, Series};
use crate::screens::{self, Frame, Screen, Screens, Watch};
use crate::target::Target;
use crate::workers::{Job, Load, Work, Workers};

/// Where requests of `send` go in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// Straight to chat_service, without TLS.
    Service,
    /// Through the TLS gateway.
    Gateway,
}

/// A platform that runs elsewhere.
#[derive(Debug, Clone, clap::Args)]
pub struct Elsewhere {
    /// Gateway of a running platform, `https://host:port`, instead of one started here. Its rate limits apply.
    #[arg(long, requires = "ca", requires = "email")]
    pub url: Option<String>,
    /// Certificate authority that signed its certificate (PEM).
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// Whom to sign in as; the password is read from the variable FECHATTER_PASSWORD.
    #[arg(long)]
    pub email: Option<String>,
}

/// Options of `send` and `deliver`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Messages per second; several are measured one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000])]
    pub rate: Vec<u32>,
    /// Chats that they are spread over, each with a sender and a receiver.
    #[arg(long, default_value_t = 500)]
    pub chats: usize,
    #[arg(long, value_enum, default_value_t = Via::Service)]
    pub via: Via,
    #[command(flatten)]
    pub elsewhere: Elsewhere,
}

/// Sends messages, each in the next chat.
pub struct Sender {
    /// Path and sender's token.
    pub chats: Vec<(Arc<str>, Arc<str>)>,
    pub ledger: Option<Arc<Ledger>>,
    /// Number of the first message of this run.
    pub first: u64,
}

impl Job for Sender {
    fn prepare(&self, arrival: Arrival) -> Work {
        let number = self.first + arrival.number;
        if let Some(ledger) = &self.ledger {
            ledger.is_due(number, arrival.due);
        }
        let place = usize::try_from(number).unwrap_or_default() % self.chats.len();
        let (path, token) = &self.chats[place];
        Work {
            method: Method::POST,
            path: Arc::clone(path),
            token: Arc::clone(token),
            body: Some(json!({"content": screens::content(number)}).to_string().into()),
        }
    }
}

/// Notes in the ledger what comes.
pub struct Receiver {
    pub ledger: Arc<Ledger>,
    pub counters: Arc<Counters>,
}

impl Watch for Receiver {
    fn frame(&self, screen: usize, frame: &Frame<'_>, at: Instant) {
        if frame.kind == b"message.created"
            && let Some(number) = screens::number_in(frame.data)
            && self.ledger.is_seen(number, screen, at)
        {
            self.counters.delivered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Where messages go and who sees them.
struct Stage {
    target: Option<Target>,
    send_to: Address,
    see_at: Address,
    chats: Vec<(Arc<str>, Arc<str>)>,
    receivers: Vec<Arc<str>>,
}

impl Stage {
    fn of_our_own(setting: &Setting, chats: usize, via: Via) -> anyhow::Result<Self> {
        let target = Target::start(&setting.binaries, &[], &[])?;
        say("making people and chats");
        let population = Population::settle(&target.platform, &target.data, chats * 2)?;
        let groups: Vec<Vec<usize>> = (0..chats).map(|chat| vec![chat * 2, chat * 2 + 1]).collect();
        let ids = population.chats(&groups)?;
        let tokens: Vec<Arc<str>> = population
            .people
            .iter()
            .map(|person| person.token.as_str().into())
            .collect();
        let see_at = target.gateway()?;
        Ok(Self {
            send_to: match via {
                Via::Service => target.chat(),
                Via::Gateway => see_at.clone(),
            },
            see_at,
            chats: ids
                .iter()
                .enumerate()
                .map(|(number, id)| (messages_path(*id), Arc::clone(&tokens[number * 2])))
                .collect(),
            receivers: (0..chats).map(|chat| Arc::clone(&tokens[chat * 2 + 1])).collect(),
            target: Some(target),
        })
    }

    async fn elsewhere(args: &Elsewhere, chats: usize) -> anyhow::Result<Self> {
        let (Some(url), Some(ca), Some(email)) = (&args.url, &args.ca, &args.email) else {
            bail!("--url needs --ca and --email");
        };
        let authority = url
            .strip_prefix("https://")
            .with_context(|| format!("--url {url} does not begin with https://"))?
            .trim_end_matches('/');
        let name = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
        let with_port = if name == authority {
            format!("{authority}:443")
        } else {
            authority.to_owned()
        };
        let socket = with_port
            .to_socket_addrs()
            .with_context(|| format!("--url {url}: no such host"))?
            .next()
            .with_context(|| format!("--url {url}: no address"))?;
        let address = Address::tls(socket, name, ca)?;
        let token = sign_in(&address, email).await?;
        let mut made = Vec::new();
        let mut connection = address
            .connect()
            .await
            .map_err(|fault| anyhow::anyhow!("{url} {fault:?}"))?;
        let run = uuid::Uuid::now_v7().simple().to_string();
        // Few: somebody else's platform keeps them.
        for number in 0..chats.min(20) {
            let body = json!({"kind": "private_channel", "name": format!("load {run} {number}")}).to_string();
            let answer = connection
                .call(&Call::post("/api/chat", Some(&token), body.into_bytes()))
                .await
                .map_err(|fault| anyhow::anyhow!("making a chat failed: {fault:?}"))?;
            let chat: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let id = chat["id"].as_i64().with_context(|| {
                format!(
                    "making a chat was answered {} {}",
                    answer.status,
                    String::from_utf8_lossy(&answer.body)
                )
            })?;
            made.push((messages_path(id), Arc::<str>::from(token.as_str())));
        }
        Ok(Self {
            target: None,
            send_to: address.clone(),
            see_at: address,
            chats: made,
            receivers: vec![token.into()],
        })
    }

    fn watched(&self) -> Watched {
        self.target.as_ref().map(Target::watched).unwrap_or_default()
    }
}

fn messages_path(chat: i64) -> Arc<str> {
    format!("/api/chat/{chat}/messages").into()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a password belongs neither in arguments nor in a file of ours"
)]
fn password() -> anyhow::Result<String> {
    std::env::var("FECHATTER_PASSWORD").context("set FECHATTER_PASSWORD to the password of --email")
}

async fn sign_in(address: &Address, email: &str) -> anyhow::Result<String> {
    let mut connection = address
        .connect()
        .await
        .map_err(|fault| anyhow::anyhow!("cannot reach {} ({fault:?}): {}", address.socket, fault.advice()))?;
    let body = json!({"email": email, "password": password()?}).to_string();
    let answer = connection
        .call(&Call::post("/api/signin", None, body.into_bytes()))
        .await
        .map_err(|fault| anyhow::anyhow!("signing in failed ({fault:?}): {}", fault.advice()))?;
    if let Some(fault) = Fault::of_status(answer.status) {
        bail!(
            "signing in as {email} was answered {}: {}",
            answer.status,
            fault.advice()
        );
    }
    let tokens: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    Ok(tokens["access_token"]
        .as_str()
        .context("signing in gave no access token; is --url a Fechatter gateway?")?
        .to_owned())
}

async fn stage(setting: &Setting, args: &Args, via: Via) -> anyhow::Result<Stage> {
    if args.elsewhere.url.is_some() {
        Stage::elsewhere(&args.elsewhere, args.chats).await
    } else {
        Stage::of_our_own(setting, args.chats, via)
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

/// A first request that every connection makes: it must succeed, or nothing will.
fn first_look(stage: &Stage) -> Work {
    let (path, token) = &stage.chats[0];
    Work {
        method: Method::GET,
        path: format!("{path}?limit=1").into(),
        token: Arc::clone(token),
        body: None,
    }
}

/// From due to answered: accepted and committed.
pub async fn send(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let mut stage = stage(setting, args, args.via).await?;
    let mut report = begin("send", setting, args, &mut stage, machine);
    report.set("via", format!("{:?}", args.via).to_lowercase());
    let mut workers = Workers::open(&stage.send_to, setting.connections, &first_look(&stage)).await?;
    for rate in &args.rate {
        let rate = f64::from(*rate);
        let job = Arc::new(Sender {
            chats: stage.chats.clone(),
            ledger: None,
            first: 0,
        });
        let load = |length| Load {
            rate: Some(rate),
            length,
        };
        let warm = workers
            .run("warm-up", load(setting.warmup), job.clone(), Arc::default())
            .await?;
        drop(warm);
        let meter = Meter::start(&stage.watched())?;
        let counters = Arc::<Counters>::default();
        let started = Instant::now();
        let outcomes = workers.run("send", load(setting.length), job, counters).await?;
        let length = started.elapsed().max(setting.length);
        let name = format!("send {rate}/s");
        let series = Series::new(&name, Some(rate), length, &outcomes, Some(meter.stop()?));
        judge_send(&mut report, rate, &series);
        report.series.push(series);
        if is_stopped() {
            report.partial = Some("interrupted".to_owned());
            break;
        }
    }
    Ok(report)
}

fn judge_send(report: &mut Report, rate: f64, series: &Series) {
    if rate >= 5_000.0 {
        report.at_least("durable messages accepted", series.done_per_second, 4_900.0, "/s");
        report.at_most("p99 at 5,000/s", series.p99_ms, 25.0, "ms");
    } else if rate >= 1_000.0 {
        report.at_most("p99 at 1,000/s", series.p99_ms, 10.0, "ms");
    }
    report.at_most(&format!("errors at {rate}/s"), to_float(series.error_count()), 0.0, "");
}

#[expect(clippy::cast_precision_loss, reason = "counts")]
pub(crate) fn to_float(count: u64) -> f64 {
    count as f64
}

/// From due to the receiver's screen, through gateway, outbox, JetStream, notify_service and gateway again.
pub async fn deliver(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let machine = Machine::read();
    let mut stage = stage(setting, args, Via::Gateway).await?;
    let mut report = begin("deliver", setting, args, &mut stage, machine);
    let longest = args.rate.iter().copied().max().unwrap_or(1);
    let seconds = (setting.length + setting.warmup).as_secs() + 2;
    let room = usize::try_from(u64::from(longest) * 2 * seconds).context("too many messages")? * args.rate.len();
    let ledger = Arc::new(Ledger::new(room + 10_000));
    let counters = Arc::<Counters>::default();
    let watch = Arc::new(Receiver {
        ledger: Arc::clone(&ledger),
        counters: Arc::clone(&counters),
    });
    say(&format!("opening {} streams", stage.receivers.len()));
    let receivers = stage.receivers.iter().enumerate().map(|(number, token)| Screen {
        number,
        token: Arc::clone(token),
        cursor: None,
    });
    let mut screens = Screens::open(&stage.see_at, "/events", receivers.collect(), watch).await?;
    let mut workers = Workers::open(&stage.send_to, setting.connections, &first_look(&stage)).await?;
    let mut first = 0;
    for rate in &args.rate {
        let rate = f64::from(*rate);
        // A receiver of a ledger of its own for each rate would need streams of its own; numbers tell the runs apart.
        let run = |first| {
            Arc::new(Sender {
                chats: stage.chats.clone(),
                ledger: Some(Arc::clone(&ledger)),
                first,
            })
        };
        let load = |length| Load {
            rate: Some(rate),
            length,
        };
        let warm = workers
            .run("warm-up", load(setting.warmup), run(first), Arc::default())
            .await?;
        first += warm.count() + warm.error_count();
        settle(&ledger, 0..first, Duration::from_secs(5)).await;
        let before = ledger.latencies();
        let meter = Meter::start(&stage.watched())?;
        let started = Instant::now();
        let sent = workers
            .run("deliver", load(setting.length), run(first), Arc::clone(&counters))
            .await?;
        let length = started.elapsed().max(setting.length);
        let numbers = first..first + sent.count() + sent.error_count();
        first = numbers.end;
        settle(&ledger, numbers.clone(), SETTLE).await;
        let cpu = meter.stop()?;
        let mut arrived = ledger.latencies();
        arrived.subtract(&before);
        let seen: Vec<u32> = numbers.clone().map(|number| ledger.times_seen(number)).collect();
        let missing = seen.iter().filter(|times| **times == 0).count() as u64;
        let lost = missing.saturating_sub(sent.error_count());
        let doubled = seen.iter().filter(|times| **times > 1).count() as u64;
        let series = Series::new(&format!("deliver {rate}/s"), Some(rate), length, &arrived, Some(cpu));
        if rate >= 5_000.0 {
            report.at_most("p99 at 5,000/s", series.p99_ms, 50.0, "ms");
        } else if rate >= 1_000.0 {
            report.at_most("p99 at 1,000/s", series.p99_ms, 20.0, "ms");
        }
        report.at_most(&format!("lost at {rate}/s"), to_float(lost), 0.0, "");
        report.at_most(&format!("doubled at {rate}/s"), to_float(doubled), 0.0, "");
        report.series.push(series);
        let accepted = Series::new(&format!("accepted {rate}/s"), Some(rate), length, &sent, None);
        report.series.push(accepted);
        if is_stopped() {
            report.partial = Some("interrupted".to_owned());
            break;
        }
    }
    if screens.ended() > 0 {
        report.partial = Some(format!("{} streams ended while measuring", screens.ended()));
    }
    screens.close();
    Ok(report)
}

/// Waits until all of these messages were seen, or for as long as they may take.
async fn settle(ledger: &Ledger, numbers: std::ops::Range<u64>, bound: Duration) {
    until(bound, || {
        numbers.clone().rev().all(|number| ledger.times_seen(number) > 0)
    })
    .await;
}
