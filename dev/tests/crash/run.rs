//! One run: people talk while processes are killed; then everything is gathered and judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dev::platform::{Part, Platform, Service};
use dev::{http, wait};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::evidence::{Device, Evidence, Row, Screen, Verdict};
use crate::people::{Ledger, Person, read};
use crate::plan::{Outage, PARTS, Plan};
use crate::readers::{Finish, Reader};
use crate::search;
use crate::writers::{come_and_go, send};

/// How long everything may take to arrive after the last crash.
const SETTLE: Duration = Duration::from_mins(2);

/// Messages that were sent, and as many that arrived, before NATS goes away.
const BEFORE_OUTAGE: u64 = 50;

/// Devices that read with tickets. The gateway sends a workspace's streams to one replica, and those with tickets to any.
const TICKET_DEVICES: [&str; 4] = ["ada's telephone", "cy's laptop", "wes's laptop", "yan's laptop"];

/// What happened, and the verdict.
#[derive(Debug)]
pub struct Report {
    pub verdict: Verdict,
    pub kills: BTreeMap<&'static str, u64>,
    text: String,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// The people and chats of a run.
struct Cast {
    people: BTreeMap<&'static str, Arc<Person>>,
    /// Each with the people who are in it from the first message to the last; the first owns it.
    chats: Vec<(i64, Vec<&'static str>)>,
    /// Who comes and goes, and where.
    passing: Vec<(&'static str, i64)>,
}

/// What the thread that kills found out.
#[derive(Default)]
struct Damage {
    kills: BTreeMap<&'static str, u64>,
    /// Processes that ended by themselves, because what they need to start was away.
    ended: u64,
    /// Deliveries to the indexer after the first.
    redeliveries: u64,
    /// New histories of the stream.
    rebuilds: u64,
    /// Events that each chat_service published, and streams that each notify_service opened.
    published: BTreeMap<&'static str, u64>,
    streams: BTreeMap<&'static str, u64>,
    /// What the outage showed.
    outage: Option<String>,
}

/// Runs a plan to its end. `say` gets a line of progress every few seconds.
pub fn run(plan: &Plan, say: &(dyn Fn(&str) + Sync)) -> Result<Report, String> {
    let started = Instant::now();
    let mut platform = Platform::temporary_twice(&[Service::Chat, Service::Notify], &environment())
        .map_err(|error| format!("{error:#}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let ledger = Arc::new(Ledger::default());
    let cast = runtime.block_on(assemble(&platform, &ledger))?;
    let (stop, waiting) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (finish, finished) = watch::channel(Finish::default());

    let mut devices = JoinSet::new();
    let mut writers = JoinSet::new();
    let _entered = runtime.enter();
    for (name, person) in &cast.people {
        // Some have two devices.
        for device in if *name == "ada" {
            &["laptop", "telephone"][..]
        } else {
            &["laptop"][..]
        } {
            let device = format!("{name}'s {device}");
            let random = plan.random(&device);
            let (person, ledger, waiting) = (Arc::clone(person), Arc::clone(&ledger), Arc::clone(&waiting));
            let reader = Reader::new(person, &device, random, ledger, finished.clone(), waiting);
            devices.spawn(if TICKET_DEVICES.contains(&device.as_str()) {
                reader.with_tickets().run()
            } else {
                reader.run()
            });
        }
    }
    for (name, person) in &cast.people {
        let mine = cast.chats.iter().filter(|(_, members)| members.contains(name));
        let mine: Vec<i64> = mine.map(|(chat, _)| *chat).collect();
        if !mine.is_empty() {
            let (person, ledger, stop) = (Arc::clone(person), Arc::clone(&ledger), Arc::clone(&stop));
            let random = plan.random(name);
            writers.spawn(async move { send(&person, &mine, random, &ledger, &stop).await });
        }
    }
    for (name, chat) in &cast.passing {
        let owner = Arc::clone(&cast.people["ada"]);
        let (member, chat) = (cast.people[name].id, *chat);
        let (ledger, stop) = (Arc::clone(&ledger), Arc::clone(&stop));
        let random = plan.random(&format!("{name} in {chat}"));
        writers.spawn(async move { come_and_go(&owner, chat, member, random, &ledger, &stop).await });
    }

    let damage = trouble(plan, &mut platform, &ledger, say);
    stop.store(true, Ordering::Relaxed);
    let mut damage = damage?;
    say("all processes run again; waiting until everything has arrived");
    runtime.block_on(async { while writers.join_next().await.is_some() {} });
    let rows = rows(&mut platform)?;
    let _ = finish.send(Finish {
        ends: Arc::new(ends(&cast, &rows)),
        screens: Arc::new(screens(&cast, &rows)),
        deadline: Some(Instant::now() + SETTLE),
    });
    let mut logs: Vec<Device> = Vec::new();
    runtime.block_on(async {
        while let Some(device) = devices.join_next().await {
            logs.push(device.map_err(|error| error.to_string())?);
        }
        Ok::<_, String>(())
    })?;
    for part in PARTS {
        damage.look(&platform, part);
    }
    logs.sort_by(|one, other| one.name.cmp(&other.name));
    let of_chats = cast.chats.iter();
    let asked: Vec<(i64, &Person)> = of_chats
        .map(|(chat, members)| (*chat, &*cast.people[members[0]]))
        .collect();
    let indexed = runtime.block_on(search::indexed(&asked, &rows, &ledger, SETTLE))?;
    let evidence = gather(&cast, &ledger, rows, logs, indexed);
    let verdict = evidence.verdict();
    let text = describe(plan, &ledger, &damage, &evidence, &verdict, started.elapsed());
    if !verdict.is_clean() {
        keep_logs(&platform, say);
    }
    Ok(Report {
        verdict,
        kills: damage.kills,
        text,
    })
}

/// Limits have tests of their own, and quick heartbeats let a client see quickly that its stream is gone.
fn environment() -> Vec<(&'static str, &'static str)> {
    const UNLIMITED: &str = "{requests=1000000,window_seconds=1}";
    vec![
        ("FECHATTER_GATEWAY__RATE_LIMITS__AUTH", UNLIMITED),
        ("FECHATTER_GATEWAY__RATE_LIMITS__SEND", UNLIMITED),
        ("FECHATTER_GATEWAY__RATE_LIMITS__READ", UNLIMITED),
        ("FECHATTER_GATEWAY__RATE_LIMITS__SEARCH", UNLIMITED),
        ("FECHATTER_GATEWAY__RATE_LIMITS__STREAM", UNLIMITED),
        ("FECHATTER_NOTIFY__STREAM__HEARTBEAT_MIN_SECONDS", "2"),
        ("FECHATTER_NOTIFY__STREAM__HEARTBEAT_MAX_SECONDS", "3"),
        // Little memory, so that returning devices are served from the stream, too.
        ("FECHATTER_NOTIFY__RING__MAX_EVENTS", "100"),
    ]
}

/// Two workspaces. Vic and Wes come and go in the first; Eve is in none of its chats.
async fn assemble(platform: &Platform, ledger: &Ledger) -> Result<Cast, String> {
    let mut people = BTreeMap::new();
    for (workspace, names) in [
        ("one", &["ada", "bob", "cy", "vic", "wes", "eve"][..]),
        ("two", &["zoe", "yan"][..]),
    ] {
        let owner = Arc::new(Person::sign_up(platform, names[0], workspace, None).await?);
        let body = json!({"max_uses": 10});
        let invitation = owner.post(ledger, "/api/workspace/invitations", body, &[201]).await?;
        people.insert(names[0], owner);
        for name in &names[1..] {
            let person = Person::sign_up(platform, name, workspace, invitation["token"].as_str()).await?;
            people.insert(*name, Arc::new(person));
        }
    }
    let mut cast = Cast {
        people,
        chats: Vec::new(),
        passing: Vec::new(),
    };
    let chats: [(&str, &[&'static str], &[&'static str]); 5] = [
        ("group", &["ada", "bob", "cy"], &["vic"]),
        ("private_channel", &["ada", "bob"], &["vic", "wes"]),
        ("private_channel", &["ada", "bob", "cy"], &[]),
        ("single", &["bob", "cy"], &[]),
        ("private_channel", &["zoe", "yan"], &[]),
    ];
    for (number, (kind, members, passing)) in chats.into_iter().enumerate() {
        let others = members[1..].iter().chain(passing);
        let ids: Vec<i64> = others.map(|name| cast.people[name].id).collect();
        let mut body = json!({"kind": kind, "member_ids": ids});
        if kind != "single" {
            body["name"] = json!(format!("chat {number}"));
        }
        let chat = cast.people[members[0]].post(ledger, "/api/chat", body, &[201]).await?;
        let chat = chat["id"].as_i64().ok_or(format!("no id in {chat}"))?;
        cast.chats.push((chat, members.to_vec()));
        cast.passing.extend(passing.iter().map(|name| (*name, chat)));
    }
    Ok(cast)
}

/// Kills and restarts by the plan, and sees to it that everything runs at the end.
fn trouble(
    plan: &Plan,
    platform: &mut Platform,
    ledger: &Ledger,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Damage, String> {
    let mut damage = Damage::default();
    let started = Instant::now();
    let mut done = 0;
    for (number, crash) in plan.crashes.iter().enumerate() {
        if number == plan.crashes.len() / 2 {
            damage.outage(plan, platform, ledger, say)?;
        }
        std::thread::sleep(crash.wait);
        for part in &crash.parts {
            damage.look(platform, *part);
            platform.kill_part(*part).map_err(|error| format!("{error:#}"))?;
            *damage.kills.entry(part.name()).or_default() += 1;
            done += 1;
        }
        std::thread::sleep(crash.away);
        // What serves the others first.
        for part in PARTS.iter().rev().filter(|part| crash.parts.contains(part)) {
            platform.restart(*part).map_err(|error| format!("{error:#}"))?;
        }
        damage.mend(platform)?;
        say(&format!(
            "{:>4} s: {done} of {} kills, {} sent, {} delivered, {} retries",
            started.elapsed().as_secs(),
            plan.kills(),
            read(&ledger.sends),
            read(&ledger.delivered),
            read(&ledger.retries),
        ));
    }
    if plan.crashes.is_empty() {
        damage.outage(plan, platform, ledger, say)?;
    }
    // Processes that found nothing to connect to end, and are started again as their supervisor would.
    wait::until(SETTLE, "all processes to be ready", || {
        if let Err(error) = damage.mend(platform) {
            return Some(Err(error));
        }
        let is_ready =
            |admin: u16| http::request(admin, "GET", "/ready", None, None).is_ok_and(|answer| answer.status == 200);
        let mut admins = PARTS.iter().filter_map(|part| platform.admin_port(*part));
        admins.all(is_ready).then_some(Ok(()))
    })
    .map_err(|error| format!("{error:#}"))??;
    Ok(damage)
}

impl Damage {
    /// Starts again what ended by itself.
    fn mend(&mut self, platform: &mut Platform) -> Result<(), String> {
        for (part, _) in platform.ended() {
            self.ended += 1;
            platform.restart(part).map_err(|error| format!("{error:#}"))?;
        }
        Ok(())
    }

    /// Adds what a process has counted; it forgets when it is killed.
    fn look(&mut self, platform: &Platform, part: Part) {
        let total = |name: &str| -> u64 {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
            let total = metric(platform, part, name) as u64;
            total
        };
        match part.service() {
            Some(Service::Indexer) => self.redeliveries += total("indexer_redeliveries"),
            Some(Service::Chat) => {
                self.rebuilds += total("fechatter_outbox_rebuilds");
                *self.published.entry(part.name()).or_default() += total("fechatter_outbox_published");
            }
            Some(Service::Notify) => *self.streams.entry(part.name()).or_default() += total("notify_connects"),
            Some(Service::Gateway) | None => {}
        }
    }

    /// NATS is away for as long as planned: sends are answered all the same, and the age of the outbox shows it.
    fn outage(
        &mut self,
        plan: &Plan,
        platform: &mut Platform,
        ledger: &Ledger,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<(), String> {
        let Some(Outage { away, wipe }) = plan.outage else {
            return Ok(());
        };
        let answered = || ledger.answered.lock().expect("no panic holds it").len();
        say(&format!(
            "NATS is away for {} s{}",
            away.as_secs(),
            if wipe { ", its streams destroyed" } else { "" }
        ));
        // There has to be something to be lost.
        let enough = || answered() as u64 >= BEFORE_OUTAGE && read(&ledger.delivered) >= BEFORE_OUTAGE;
        wait::until(SETTLE, "messages to be sent and delivered", || enough().then_some(()))
            .map_err(|error| format!("{error:#}"))?;
        let before = answered();
        let server = platform.nats().ok_or("no NATS of ours")?;
        if wipe {
            server.wipe().map_err(|error| format!("{error:#}"))?;
        } else {
            server.kill();
        }
        let began = Instant::now();
        let mut age = 0_f64;
        while began.elapsed() < away {
            std::thread::sleep(Duration::from_millis(500));
            age = age.max(metric(platform, Part::Service(Service::Chat), "fechatter_outbox_age"));
        }
        let meanwhile = answered() - before;
        platform.restart(Part::Nats).map_err(|error| format!("{error:#}"))?;
        let fault = |what: &str| {
            let mut wrong = ledger.wrong_answers.lock().expect("no panic holds it");
            wrong.push(format!("while NATS was away for {away:?}, {what}"));
        };
        if meanwhile == 0 {
            fault("no send was answered");
        }
        if age < away.as_secs_f64() / 2.0 {
            fault(&format!("the age of the outbox was {age} s at most"));
        }
        self.outage = Some(format!(
            "NATS for {} s{}; {meanwhile} sends answered meanwhile, age of the outbox up to {age:.1} s",
            away.as_secs(),
            if wipe { ", its streams destroyed" } else { "" }
        ));
        Ok(())
    }
}

/// The sum of a metric of a process over its labels; nothing when it does not answer.
fn metric(platform: &Platform, part: Part, name: &str) -> f64 {
    let Some(admin_port) = platform.admin_port(part) else {
        return 0.0;
    };
    let Ok(answer) = http::request(admin_port, "GET", "/metrics", None, None) else {
        return 0.0;
    };
    let values = answer.body.lines().filter(|line| line.starts_with(name));
    values
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// All messages, from the only truth.
fn rows(platform: &mut Platform) -> Result<Vec<Row>, String> {
    let sql =
        "SELECT chat_id, id, seq, CASE WHEN deleted_at IS NULL THEN content END FROM messages ORDER BY chat_id, seq";
    let server = platform.postgres().ok_or("no PostgreSQL of ours")?;
    let text = server.psql("fechatter", sql).map_err(|error| format!("{error:#}"))?;
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let fields: Vec<&str> = line.splitn(4, '|').collect();
            let [chat, id, seq, content] = fields[..] else {
                return Err(format!("an unexpected row: {line}"));
            };
            let number = |text: &str| text.parse::<i64>().map_err(|error| format!("{line}: {error}"));
            Ok(Row {
                chat: number(chat)?,
                id: number(id)?,
                seq: number(seq)?,
                content: Some(content.to_owned()).filter(|content| !content.is_empty()),
            })
        })
        .collect()
}

/// What each user has to have at the end.
fn ends(cast: &Cast, rows: &[Row]) -> BTreeMap<i64, BTreeMap<i64, i64>> {
    let mut ends: BTreeMap<i64, BTreeMap<i64, i64>> = BTreeMap::new();
    for row in rows {
        let lasting = cast.chats.iter().filter(|(chat, _)| *chat == row.chat);
        let lasting = lasting.flat_map(|(_, members)| members.iter());
        let passing = cast
            .passing
            .iter()
            .filter(|(_, chat)| *chat == row.chat)
            .map(|(name, _)| name);
        for name in lasting.chain(passing) {
            let end = ends
                .entry(cast.people[name].id)
                .or_default()
                .entry(row.chat)
                .or_default();
            *end = row.seq.max(*end);
        }
    }
    ends
}

/// What the messages of the chats that each user never leaves say.
fn screens(cast: &Cast, rows: &[Row]) -> BTreeMap<i64, Screen> {
    let mut screens: BTreeMap<i64, Screen> = BTreeMap::new();
    for (chat, members) in &cast.chats {
        let texts = rows.iter().filter(|row| row.chat == *chat);
        let texts: BTreeMap<i64, Option<String>> = texts.map(|row| (row.id, row.content.clone())).collect();
        for name in members {
            let screen = screens.entry(cast.people[name].id).or_default();
            screen.insert(*chat, texts.clone());
        }
    }
    screens
}

fn gather(
    cast: &Cast,
    ledger: &Ledger,
    rows: Vec<Row>,
    devices: Vec<Device>,
    indexed: BTreeMap<i64, BTreeSet<i64>>,
) -> Evidence {
    let mut passing: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
    for (name, chat) in &cast.passing {
        passing.entry(*chat).or_default().insert(cast.people[name].id);
    }
    let ids = |names: &[&str]| names.iter().map(|name| cast.people[name].id).collect();
    Evidence {
        answered: ledger.answered.lock().expect("no panic holds it").clone(),
        changes: ledger.changes.lock().expect("no panic holds it").clone(),
        rows,
        devices,
        absences: ledger.absences.lock().expect("no panic holds it").clone(),
        lasting: cast.chats.iter().map(|(chat, members)| (*chat, ids(members))).collect(),
        passing,
        indexed,
        wrong_answers: ledger.wrong_answers.lock().expect("no panic holds it").clone(),
    }
}

fn describe(
    plan: &Plan,
    ledger: &Ledger,
    damage: &Damage,
    evidence: &Evidence,
    verdict: &Verdict,
    took: Duration,
) -> String {
    let mut text = String::new();
    let named = |counts: &mut dyn Iterator<Item = (String, u64)>| {
        let counts: Vec<String> = counts.map(|(name, count)| format!("{name} {count}")).collect();
        if counts.is_empty() {
            "none".to_owned()
        } else {
            counts.join(", ")
        }
    };
    let counted =
        |counts: &BTreeMap<&str, u64>| named(&mut counts.iter().map(|(name, count)| ((*name).to_owned(), *count)));
    let kills = counted(&damage.kills);
    let gaps = ledger.gaps.lock().expect("no panic holds it");
    let gaps = named(&mut gaps.iter().map(|(name, count)| (name.clone(), *count)));
    let lines = [
        ("seed", format!("{} ({} s)", plan.seed, took.as_secs())),
        (
            "kills",
            format!(
                "{}: {kills}; {} starts failed for want of another",
                plan.kills(),
                damage.ended
            ),
        ),
        (
            "sends",
            format!(
                "{} answered of {}, {} of them found done by a retry; {} edits, {} deletions",
                evidence.answered.len(),
                read(&ledger.sends),
                read(&ledger.found_done),
                read(&ledger.edits),
                read(&ledger.deletions)
            ),
        ),
        ("retries", read(&ledger.retries).to_string()),
        (
            "members",
            format!("{} removals and additions", read(&ledger.member_changes)),
        ),
        (
            "devices",
            format!(
                "{}, {} events of messages, {} of edits and deletions",
                evidence.devices.len(),
                read(&ledger.delivered),
                read(&ledger.changes_delivered)
            ),
        ),
        (
            "connections",
            format!(
                "{}, {} resumed by cursor; {} tickets",
                read(&ledger.connects),
                read(&ledger.resumed),
                read(&ledger.tickets)
            ),
        ),
        ("streams opened by", counted(&damage.streams)),
        ("events published by", counted(&damage.published)),
        ("replays", format!("{} events", read(&ledger.replayed))),
        ("gaps", gaps),
        (
            "redeliveries",
            format!(
                "{} to the indexer; {} seen again after a reload",
                damage.redeliveries, verdict.seen_again
            ),
        ),
        ("outage", damage.outage.clone().unwrap_or_else(|| "none".to_owned())),
        ("rebuilds of the stream", damage.rebuilds.to_string()),
        ("losses", verdict.losses.len().to_string()),
        ("duplicates", verdict.duplicates.len().to_string()),
        ("leaks", verdict.leaks.len().to_string()),
        ("other errors", verdict.errors.len().to_string()),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<23} {value}");
    }
    for (kind, list) in [
        ("loss", &verdict.losses),
        ("duplicate", &verdict.duplicates),
        ("leak", &verdict.leaks),
        ("error", &verdict.errors),
    ] {
        for one in list.iter().take(10) {
            let _ = writeln!(text, "{kind}: {one}");
        }
    }
    text
}

/// The processes' logs outlive the platform when they are needed.
fn keep_logs(platform: &Platform, say: &(dyn Fn(&str) + Sync)) {
    let from = platform.log(Service::Chat);
    let to = std::env::temp_dir().join(format!("fechatter-crash-{}", std::process::id()));
    let kept = from
        .parent()
        .ok_or_else(|| std::io::Error::other("no folder"))
        .and_then(|from| {
            std::fs::create_dir_all(&to)?;
            for log in std::fs::read_dir(from)? {
                let log = log?;
                std::fs::copy(log.path(), to.join(log.file_name()))?;
            }
            Ok(())
        });
    match kept {
        Ok(()) => say(&format!("logs of the processes: {}", to.display())),
        Err(error) => say(&format!("the logs of the processes could not be kept: {error}")),
    }
}
