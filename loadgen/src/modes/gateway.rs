//! `gateway`: what the edge costs, beside other proxies with the same upstream, certificate and requests in the same run.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dev::child::{Process, Program};
use dev::{nats, ports, tools};
use http::Method;

use super::messages::to_float;
use super::{Meter, Setting};
use crate::arrivals::Arrival;
use crate::client::Address;
use crate::machine::Machine;
use crate::outcome::Outcomes;
use crate::peers::{haproxy, nginx};
use crate::processes::Watched;
use crate::progress::{Counters, is_stopped, say};
use crate::report::{Report, Series};
use crate::target::gateway_environment;
use crate::tokens::Signer;
use crate::workers::{Job, Load, Work, Workers};

/// Options of `gateway`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Requests per second; 0 sends the next one when the last one was answered.
    #[arg(long, default_value_t = 2_000)]
    pub rate: u32,
    /// Users, each with a token of their own.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub users: u32,
    /// How often all are measured, one after the other; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// The gateway alone, without nginx and HAProxy beside it; the upstream is nginx all the same.
    #[arg(long)]
    pub alone: bool,
}

const KID: &str = "load";
/// What every request asks for: a route that needs a token.
const PATH: &str = "/api/me";

/// SubjectPublicKeyInfo of a P-256 key (RFC 5480): a fixed beginning, then the point.
const PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

struct Users(Vec<Arc<str>>);

impl Users {
    fn work(&self, number: u64) -> Work {
        let place = usize::try_from(number).unwrap_or_default() % self.0.len();
        Work {
            method: Method::GET,
            path: PATH.into(),
            token: Arc::clone(&self.0[place]),
            body: None,
        }
    }
}

impl Job for Users {
    fn prepare(&self, arrival: Arrival) -> Work {
        self.work(arrival.number)
    }
}

/// A key that every proxy can verify with: HAProxy 2.6 knows no EdDSA.
struct Key {
    signer: Signer,
    jwks: String,
    public_pem: String,
}

impl Key {
    fn new() -> anyhow::Result<Self> {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).context("cannot make a key")?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).context("cannot read a key just made")?;
        // An uncompressed point: 0x04, x, y.
        let point = pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        let encode = |part| URL_SAFE_NO_PAD.encode(part);
        Ok(Self {
            signer: Signer::es256(KID, pkcs8.as_ref()),
            jwks: format!(
                r#"{{"keys":[{{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"{KID}","x":"{}","y":"{}"}}]}}"#,
                encode(x),
                encode(y)
            ),
            public_pem: pem::encode(&pem::Pem::new("PUBLIC KEY", [&PREFIX[..], point].concat())),
        })
    }
}

/// One proxy under the same load.
struct Contender {
    name: &'static str,
    process: Process,
    port: u16,
    rounds: Vec<Series>,
}

/// Everything that runs; NATS is there because the gateway hears of ended sessions from it.
struct Field {
    contenders: Vec<Contender>,
    upstream: Process,
    _nats: nats::Server,
    users: Arc<Users>,
    folder: tempfile::TempDir,
}

/// Processor time per request, and latency, of each.
pub async fn gateway(setting: &Setting, args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("gateway", Machine::read());
    report.set("users", args.users);
    report.set("connections", setting.connections);
    report.set("request", format!("GET {PATH}, TLS 1.3, kept alive, ES256 token"));
    report.set("upstream", nginx::version()?);
    report.set(
        "traces",
        "1 % of requests, exported over OTLP to a port that refuses them",
    );
    if !args.alone {
        report.set("haproxy", haproxy::version()?);
    }
    let mut field = set_up(setting, args)?;
    let ca = field.folder.path().join("tls/ca.pem");
    for round in 0..args.rounds {
        for contender in &mut field.contenders {
            say(&format!("round {} of {}: {}", round + 1, args.rounds, contender.name));
            let socket = SocketAddr::from(([127, 0, 0, 1], contender.port));
            let address = Address::tls(socket, "127.0.0.1", &ca)?;
            let mut watched = Watched::default();
            watched.add(contender.name, contender.process.id());
            watched.add("upstream", field.upstream.id());
            let series = round_of(setting, args, contender.name, &address, &watched, &field.users).await?;
            contender.rounds.push(series);
            if is_stopped() {
                report.partial = Some("interrupted".to_owned());
                break;
            }
        }
        if report.partial.is_some() {
            break;
        }
    }
    sum_up(&mut report, field.contenders);
    Ok(report)
}

async fn round_of(
    setting: &Setting,
    args: &Args,
    name: &str,
    address: &Address,
    watched: &Watched,
    users: &Arc<Users>,
) -> anyhow::Result<Series> {
    let rate = (args.rate > 0).then(|| f64::from(args.rate));
    let mut workers = Workers::open(address, setting.connections, &users.work(0)).await?;
    let load = |length| Load { rate, length };
    let warm: Outcomes = workers
        .run("warm-up", load(setting.warmup), users.clone(), Arc::default())
        .await?;
    drop(warm);
    let meter = Meter::start(watched)?;
    let started = Instant::now();
    let outcomes = workers
        .run(name, load(setting.length), users.clone(), Arc::<Counters>::default())
        .await?;
    let length = started.elapsed().max(setting.length);
    Ok(Series::new(name, rate, length, &outcomes, Some(meter.stop()?)))
}

/// The round of the median processor time per request stands for all.
fn sum_up(report: &mut Report, contenders: Vec<Contender>) {
    let mut cost = std::collections::BTreeMap::new();
    for mut contender in contenders {
        let name = contender.name;
        contender.rounds.sort_by(|a, b| {
            a.cpu_micros_per_request(name)
                .total_cmp(&b.cpu_micros_per_request(name))
        });
        if contender.rounds.is_empty() {
            continue;
        }
        let (least, most) = (&contender.rounds[0], &contender.rounds[contender.rounds.len() - 1]);
        report.figure(
            &format!("{name}_cpu_micros_per_request_least"),
            least.cpu_micros_per_request(name),
        );
        report.figure(
            &format!("{name}_cpu_micros_per_request_most"),
            most.cpu_micros_per_request(name),
        );
        let middle = contender.rounds.swap_remove(contender.rounds.len() / 2);
        cost.insert(name, middle.cpu_micros_per_request(name));
        report.at_most(&format!("errors of {name}"), to_float(middle.error_count()), 0.0, "");
        report.series.push(middle);
    }
    if let (Some(ours), Some(theirs)) = (cost.get("gateway"), cost.get("haproxy-checks")) {
        report.at_most(
            "CPU per request, ÷ HAProxy doing the same job",
            ours / theirs,
            1.0 / 3.0,
            "",
        );
    }
    if let (Some(ours), Some(theirs)) = (cost.get("gateway"), cost.get("nginx")) {
        report.at_most("CPU per request, ÷ bare nginx", ours / theirs, 1.3, "");
    }
}

fn set_up(setting: &Setting, args: &Args) -> anyhow::Result<Field> {
    let folder = dev::scratch::folder()?;
    let path = folder.path();
    let key = Key::new()?;
    let public_key = path.join("public.pem");
    std::fs::write(&public_key, &key.public_pem).context("cannot write the public key")?;
    let tls = path.join("tls");
    tools::run(
        Command::new(setting.binaries.join("gateway"))
            .args(["dev-certificate", "--dir"])
            .arg(&tls),
    )?;
    let tokens: anyhow::Result<Vec<Arc<str>>> = (1..=i64::from(args.users))
        .map(|user| key.signer.sign(user, 1).map(Arc::from))
        .collect();
    let port = ports::free()?;
    let upstream = nginx::upstream(path, port, &key.jwks)?;
    let nats = nats::Server::temporary()?;
    let own = ports::free()?;
    let mut contenders = vec![Contender {
        name: "gateway",
        process: start_gateway(&setting.binaries, path, own, port, &tls, &nats)?,
        port: own,
        rounds: Vec::new(),
    }];
    if !args.alone {
        let mut add = |name, port, process| {
            contenders.push(Contender {
                name,
                process,
                port,
                rounds: Vec::new(),
            });
        };
        let at = ports::free()?;
        add("nginx", at, nginx::proxy(path, at, port, &tls)?);
        let at = ports::free()?;
        let bare = haproxy::proxy("haproxy", path, at, port, &tls, haproxy::Checks::None)?;
        add("haproxy", at, bare);
        let at = ports::free()?;
        let checks = haproxy::Checks::TokenAndLimit {
            public_key: &public_key,
        };
        let same_job = haproxy::proxy("haproxy-checks", path, at, port, &tls, checks)?;
        add("haproxy-checks", at, same_job);
    }
    Ok(Field {
        contenders,
        upstream,
        _nats: nats,
        users: Arc::new(Users(tokens?)),
        folder,
    })
}

fn start_gateway(
    binaries: &Path,
    folder: &Path,
    port: u16,
    upstream: u16,
    tls: &Path,
    nats: &nats::Server,
) -> anyhow::Result<Process> {
    let admin = ports::free()?;
    let mut env = gateway_environment();
    let mut set = |key: &str, value: String| env.push((format!("FECHATTER_GATEWAY__{key}"), value));
    set("LISTEN", format!("127.0.0.1:{port}"));
    set("ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
    set("REDIRECT_LISTEN", format!("127.0.0.1:{}", ports::free()?));
    set("NATS__URL", nats.url());
    set(
        "AUTH__JWKS_URL",
        format!("http://127.0.0.1:{upstream}/.well-known/jwks.json"),
    );
    set("TLS__CERTIFICATE", tls.join("cert.pem").display().to_string());
    set("TLS__KEY", tls.join("key.pem").display().to_string());
    for group in ["CHAT", "NOTIFY", "INDEXER"] {
        set(&format!("UPSTREAMS__{group}"), format!("[\"127.0.0.1:{upstream}\"]"));
    }
    // Recording, sampling and encoding are paid for; nobody keeps the result.
    let refused = ports::free()?;
    env.push((
        "OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
        format!("http://127.0.0.1:{refused}"),
    ));
    env.push(("OTEL_TRACES_SAMPLER".to_owned(), "parentbased_traceidratio".to_owned()));
    env.push(("OTEL_TRACES_SAMPLER_ARG".to_owned(), "0.01".to_owned()));
    let mut process = Process::start(&Program {
        name: "gateway".to_owned(),
        path: binaries.join("gateway"),
        args: Vec::new(),
        env,
        log: folder.join("gateway.log"),
        user: None,
        dir: folder.to_owned(),
    })?;
    dev::wait::until_ready(Duration::from_secs(30), "the gateway to be ready", || {
        if let Some(status) = process.ended() {
            return Some(Err(anyhow::anyhow!(
                "the gateway ended ({status}): {}",
                process.log_tail()
            )));
        }
        let answer = dev::http::request(admin, "GET", "/ready", None, None);
        answer.is_ok_and(|answer| answer.status == 200).then_some(Ok(()))
    })??;
    Ok(process)
}
