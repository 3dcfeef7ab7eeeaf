//! `chat_service reconcile`: it names what differs between outbox, stream and index, mends it, and then finds nothing.

#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::time::{Duration, Instant};

use async_nats::jetstream;
use dev::platform::{Platform, Service};
use fechatter_core::events::{EventType, STREAM, shard_of};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::drive;

/// Messages that each test sends first.
const SENT: u64 = 30;

struct Talk {
    token: String,
    workspace: i64,
    chat: i64,
}

impl Talk {
    async fn begin(client: &Client) -> Self {
        let body = json!({
            "fullname": "Ada", "email": "ada@example.org", "password": "correct horse battery", "workspace": "Reconciled",
        });
        let tokens = client
            .call("sign up", Method::POST, "/api/signup", None, Some(body))
            .await
            .unwrap();
        let token = tokens["access_token"].as_str().unwrap().to_owned();
        let body = json!({"kind": "private_channel", "name": "ledger"});
        let chat = client
            .call("create chat", Method::POST, "/api/chat", Some(&token), Some(body))
            .await
            .unwrap();
        let talk = Self {
            token,
            workspace: tokens["user"]["workspace_id"].as_i64().unwrap(),
            chat: chat["id"].as_i64().unwrap(),
        };
        for _ in 0..SENT {
            talk.send(client, "ledger entry").await;
        }
        talk
    }

    async fn send(&self, client: &Client, content: &str) -> i64 {
        let path = format!("/api/chat/{}/messages", self.chat);
        let body = Some(json!({"content": content}));
        let sent = client
            .call("send", Method::POST, &path, Some(&self.token), body)
            .await
            .unwrap();
        sent["id"].as_i64().unwrap()
    }

    /// How many messages search says there are.
    async fn findable(&self, client: &Client) -> Value {
        let path = "/api/search/messages?q=ledger&limit=1";
        let found = client
            .call("search", Method::GET, path, Some(&self.token), None)
            .await
            .unwrap();
        found["estimated_total"].clone()
    }
}

/// Runs the command; its exit code and what it says.
fn reconcile(platform: &Platform, options: &[&str]) -> (i32, Value) {
    let indexer = format!("http://127.0.0.1:{}", platform.ports().admin(Service::Indexer));
    let mut args = vec!["reconcile", "--json", "--indexer", &indexer];
    args.extend(options);
    let output = platform.operate(Service::Chat, &args).unwrap();
    let code = output.status.code().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_str(&text).unwrap_or_else(|_| json!({ "complaint": complaint }));
    (code, report)
}

fn sql(platform: &mut Platform, statement: &str) {
    platform.postgres().unwrap().psql("fechatter", statement).unwrap();
}

/// JetStream as chat_service sees it.
async fn jetstream(platform: &Platform) -> jetstream::Context {
    let environment = platform.environment(Service::Chat);
    let of = |name: &str| {
        let (_, value) = environment.iter().find(|(key, _)| key.ends_with(name)).unwrap();
        // Quoted, so that a secret of digits is no number.
        value.trim_matches('"').to_owned()
    };
    let options = async_nats::ConnectOptions::with_user_and_password(of("NATS__USER"), of("NATS__PASSWORD"));
    let client = options
        .custom_inbox_prefix("_INBOX_chat")
        .connect(of("NATS__URL"))
        .await
        .unwrap();
    jetstream::new(client)
}

#[test]
fn it_names_each_difference_and_mends_it() {
    let mut platform = Platform::temporary(&[]).unwrap();
    let client = Client::new(&platform).unwrap();
    let talk = drive(Talk::begin(&client));
    let (code, report) = reconcile(&platform, &[]);
    assert_eq!((code, &report["agrees"]), (0, &json!(true)), "{report}");
    assert!(report["stream"]["events"].as_u64().unwrap() > SENT, "{report}");

    // The relay would mend the marks by itself.
    platform.kill(Service::Chat);
    let shard = shard_of(talk.chat);
    let unmark =
        format!("UPDATE outbox_progress SET published_position = published_position - 3 WHERE shard = {shard}");
    sql(&mut platform, &unmark);
    let (code, report) = reconcile(&platform, &["--no-index"]);
    assert_eq!(
        (code, &report["stream"]["unmarked"]["count"]),
        (1, &json!(3)),
        "{report}"
    );
    assert_eq!(report["stream"]["missing"]["count"], 0, "{report}");
    let (code, report) = reconcile(&platform, &["--no-index", "--repair"]);
    assert_eq!((code, report["repairs"].as_array().unwrap().len()), (0, 1), "{report}");

    // All events of messages but the last are taken out of the stream, and two rows change without an event.
    sql(&mut platform, &unmark);
    drive(async {
        let stream = jetstream(&platform).await.get_stream(STREAM).await.unwrap();
        let subject = EventType::MessageCreated.subject(talk.workspace.into(), talk.chat);
        stream.purge().filter(subject).keep(10).await.unwrap();
    });
    let nth = |n: u64| format!("(SELECT id FROM messages WHERE chat_id = {} AND seq = {n})", talk.chat);
    sql(
        &mut platform,
        &format!("UPDATE messages SET version = version + 1 WHERE id = {}", nth(1)),
    );
    sql(
        &mut platform,
        &format!(
            "UPDATE messages SET version = version + 1, content = NULL, deleted_at = now() WHERE id = {}",
            nth(2)
        ),
    );
    let (code, report) = reconcile(&platform, &[]);
    assert_eq!(code, 1, "{report}");
    assert_eq!(report["stream"]["missing"]["count"], SENT - 10, "{report}");
    assert_eq!(report["stream"]["unmarked"]["count"], 3, "{report}");
    assert_eq!(report["index"]["outdated"]["count"], 1, "{report}");
    assert_eq!(report["index"]["leftover"]["count"], 1, "{report}");

    platform.start_service(Service::Chat).unwrap();
    platform.wait_until_ready(Service::Chat).unwrap();
    let (code, report) = reconcile(&platform, &["--repair"]);
    assert_eq!((code, &report["agrees"]), (0, &json!(true)), "{report}");
    assert!(!report["repairs"].as_array().unwrap().is_empty(), "{report}");
    let (code, report) = reconcile(&platform, &[]);
    assert_eq!((code, &report["repairs"]), (0, &json!([])), "{report}");
    assert!(report["stream"]["events"].as_u64().unwrap() > SENT, "{report}");
    assert_eq!(drive(talk.findable(&client)), SENT - 1);

    platform.nats().unwrap().kill();
    let (code, report) = reconcile(&platform, &[]);
    assert_eq!(code, 2);
    assert!(
        report["complaint"].as_str().unwrap().contains("NATS does not answer"),
        "{report}"
    );
}

#[test]
fn a_wiped_jetstream_is_rebuilt_and_search_is_complete() {
    let mut platform = Platform::temporary(&[]).unwrap();
    let client = Client::new(&platform).unwrap();
    // One runtime for all of it: a stream lives no longer than its own.
    drive(async {
        let talk = Talk::begin(&client).await;
        let mut live = client.events(&talk.token).await.unwrap();
        live.next("ready").await.unwrap();
        talk.send(&client, "ledger before").await;
        let cursor = live.next("message.created").await.unwrap().id;
        platform.nats().unwrap().wipe().unwrap();
        // Answered while there is no stream at all.
        let meanwhile = talk.send(&client, "ledger meanwhile").await;
        platform.nats().unwrap().restart().unwrap();
        client.until_healthy().await.unwrap();
        let after = talk.send(&client, "ledger after").await;
        // Who stayed gets both, in order, or is told to reload.
        let mut seen = Vec::new();
        while seen.last() != Some(&after) {
            let event = live.next_of(&["message.created", "gap"]).await.unwrap();
            if event.kind == "gap" {
                break;
            }
            seen.push(event.data["message"]["id"].as_i64().unwrap());
        }
        assert!([meanwhile, after].starts_with(&seen), "{seen:?}");
        // Who comes back with a cursor of what is gone is told to reload.
        let mut back = client.events_after(&talk.token, &cursor).await.unwrap();
        assert_eq!(back.next_any().await.unwrap(), "gap");
        back.next("caught_up").await.unwrap();
        let (code, report) = reconcile(&platform, &["--repair"]);
        assert_eq!((code, &report["agrees"]), (0, &json!(true)), "{report}");
        let deadline = Instant::now() + Duration::from_secs(20);
        while talk.findable(&client).await != SENT + 3 {
            assert!(Instant::now() < deadline, "{}", talk.findable(&client).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}
