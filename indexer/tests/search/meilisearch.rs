//! The indexer as a process with a real Meilisearch, when `MEILI_URL` names one: with a key of the least rights, and over a
//! cable that can be pulled.

use std::sync::Once;

use fechatter_core::chat::ChatKind;
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::world::World;
use crate::{flow, recovery};

/// The actions of docs/search.md, and no others.
const ACTIONS: [&str; 10] = [
    "search",
    "documents.add",
    "documents.get",
    "documents.delete",
    "indexes.create",
    "indexes.get",
    "indexes.delete",
    "indexes.swap",
    "settings.update",
    "tasks.get",
];

/// The way to the server; it lets everything through until it is pulled.
struct Cable {
    port: u16,
    plugged: watch::Sender<bool>,
}

impl Cable {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (plugged, state) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut state, server) = (state.clone(), server.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = state.wait_for(|plugged| !plugged) => {}
                        () = async {
                            if let Ok(mut far) = TcpStream::connect(server).await {
                                let _ = copy_bidirectional(&mut near, &mut far).await;
                            }
                        } => {}
                    }
                });
            }
        });
        Self { port, plugged }
    }

    fn plug(&self, plugged: bool) {
        self.plugged.send_replace(plugged);
    }
}

/// A world with an index and a key of its own on the server that the environment names.
async fn world() -> Option<(World, Cable)> {
    #[expect(
        clippy::disallowed_methods,
        reason = "whether a Meilisearch is at hand is the environment's to say"
    )]
    let variable = |name| std::env::var(name).ok();
    let Some(url) = variable("MEILI_URL") else {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            use std::io::Write;
            let _ = writeln!(
                std::io::stderr(),
                "\nSKIPPED: the indexer did not run with Meilisearch, because MEILI_URL is not set\n"
            );
        });
        return None;
    };
    let server = url
        .strip_prefix("http://")
        .expect("MEILI_URL begins with http://, so that a cable can be put between");
    let cable = Cable::to(server.trim_end_matches('/').to_owned()).await;
    let mut world = World::without_indexer().await;
    let index = format!("process_{}", uuid::Uuid::now_v7().simple());
    world.set("ENGINE__KIND", "meilisearch");
    world.set("ENGINE__MEILI_URL", &format!("http://127.0.0.1:{}", cable.port));
    world.set("ENGINE__MEILI_INDEX", &index);
    if let Some(master) = variable("MEILI_KEY") {
        let key = limited_key(&world, &url, &master, &index).await;
        world.set("ENGINE__MEILI_KEY", &format!("\"{key}\""));
    }
    Some((world, cable))
}

async fn limited_key(world: &World, url: &str, master: &str, index: &str) -> String {
    let wanted = json!({"indexes": [format!("{index}*")], "actions": ACTIONS, "expiresAt": null});
    let answer = world
        .http
        .post(format!("{url}/keys"))
        .bearer_auth(master)
        .json(&wanted)
        .send()
        .await
        .expect("an answer");
    let status = answer.status();
    let made: Value = answer.json().await.expect("JSON");
    assert_eq!(status, 201, "MEILI_KEY has to be the master key: {made}");
    made["key"].as_str().expect("a key").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_an_edit_a_deletion_and_a_deleted_chat_reach_search() {
    if let Some((mut world, _cable)) = world().await {
        world.start().await;
        // Until the settings of the new index are applied, search is away.
        world.settled_after_start().await;
        flow::changes_reach_search(world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reindex_serves_the_old_while_it_builds_and_ends_with_the_truth() {
    if let Some((world, _cable)) = world().await {
        recovery::reindex_ends_with_the_truth(world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_consistency_report_names_what_differs() {
    if let Some((mut world, _cable)) = world().await {
        world.start().await;
        world.settled_after_start().await;
        recovery::consistency_names_what_differs(world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meilisearch_may_go_away_and_come_back() {
    let Some((mut world, cable)) = world().await else {
        return;
    };
    let owner = world.workspace("acme").await;
    let chat = world.chat(ChatKind::PublicChannel, "general", &[owner]).await;
    world.start().await;
    world.settled_after_start().await;
    let mut sent = vec![world.send(chat, owner, "patient words").await];
    world.finds(owner, "patient", &sent).await;

    cable.plug(false);
    for n in 0..30 {
        sent.push(world.send(chat, owner, &format!("patient words {n}")).await);
    }
    recovery::assert_search_is_away(&world, owner).await;
    world
        .eventually("health to say down", async || {
            recovery::health(&world).await == (503, "down".to_owned())
        })
        .await;

    cable.plug(true);
    world
        .eventually("search to be back", async || {
            world.ask(owner, &[("q", "patient")]).await.0 == 200
        })
        .await;
    world.finds(owner, "patient", &sent).await;
    world.settled().await;
    world
        .eventually("health to say ok", async || {
            recovery::health(&world).await == (200, "ok".to_owned())
        })
        .await;
    // What was in flight when the cable was pulled is there once.
    let (_, body) = world.ask(owner, &[("q", "patient")]).await;
    assert_eq!(body["estimated_total"], sent.len());
    let letters: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(letters, 0);
    // A process that is killed goes on where it was, without building the index anew.
    world.kill();
    sent.push(world.send(chat, owner, "patient until the end").await);
    world.start().await;
    world.finds(owner, "patient", &sent).await;
    let (succeeded, output) = world.try_command(&["consistency"]).await;
    assert!(succeeded, "{output}");
}
