//! Where messages are sent and seen: a platform of our own, or one that runs elsewhere.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use http::Method;
use serde_json::{Value, json};

use crate::client::{Address, Call};
use crate::modes::Setting;
use crate::outcome::Fault;
use crate::population::Population;
use crate::processes::Watched;
use crate::progress::say;
use crate::talk::{self, Talk};
use crate::target::Target;
use crate::workers::{Work, Workers};

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

/// Where messages go and who sees them.
pub struct Stage {
    pub target: Option<Target>,
    pub send_to: Address,
    pub see_at: Address,
    /// Path of its messages and the sender's token.
    pub chats: Vec<(Arc<str>, Arc<str>)>,
    /// Tokens of those who look at their streams.
    pub receivers: Vec<Arc<str>>,
}

impl Stage {
    /// A platform of our own, with people who are in one chat each.
    pub fn of_our_own(setting: &Setting, chats: usize, via: Via) -> anyhow::Result<Self> {
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

    /// One that runs elsewhere; chats are made in it.
    pub async fn elsewhere(args: &Elsewhere, chats: usize) -> anyhow::Result<Self> {
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

    /// Its processes, as far as they are ours.
    pub fn watched(&self) -> Watched {
        self.target.as_ref().map(Target::watched).unwrap_or_default()
    }

    /// A first request that every connection makes: it must succeed, or nothing will.
    pub fn first_look(&self) -> Work {
        let (path, token) = &self.chats[0];
        Work {
            method: Method::GET,
            path: format!("{path}?limit=1").into(),
            token: Arc::clone(token),
            body: None,
        }
    }

    /// Somebody who talks in its chats, on this many connections.
    pub async fn talk(&self, connections: usize) -> anyhow::Result<Talk> {
        Ok(Talk {
            chats: self.chats.clone(),
            wording: talk::wording,
            workers: Workers::open(&self.send_to, connections, &self.first_look()).await?,
            watched: self.watched(),
            next: 0,
        })
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
