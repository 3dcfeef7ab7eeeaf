//! Who changes things: senders, and owners who add and remove members.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use reqwest::Method;
use serde_json::{Value, json};

use crate::evidence::{Absence, Answered, Change};
use crate::people::{Ledger, Person, Request, count};

/// In every message, so that search can list them all.
pub const WORD: &str = "crashword";

/// Sends to `chats` until told to stop; now and then repeats, edits or deletes what was sent. An error ends it.
pub async fn send(person: &Person, chats: &[i64], mut random: StdRng, ledger: &Ledger, stop: &AtomicBool) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let chat = chats[random.random_range(0..chats.len())];
        let text = format!("{WORD} {} number {number}", person.name);
        let fate = random.random_range(0..20);
        match send_one(person, chat, &text, number, fate, ledger).await {
            Ok(answered) => ledger.answered.lock().expect("no panic holds it").push(answered),
            Err(error) => {
                ledger.wrong_answers.lock().expect("no panic holds it").push(error);
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(50..300))).await;
    }
}

async fn send_one(
    person: &Person,
    chat: i64,
    text: &str,
    number: u64,
    fate: u32,
    ledger: &Ledger,
) -> Result<Answered, String> {
    let path = format!("/api/chat/{chat}/messages");
    let key = format!("{}-{number}", person.name);
    let began = Instant::now();
    count(&ledger.sends);
    let send = || Request {
        method: Method::POST,
        path: &path,
        key: Some(&key),
        body: Some(json!({"content": text})),
        wanted: &[200, 201],
    };
    let (status, message) = person.call(ledger, send()).await?;
    if status == 200 {
        count(&ledger.found_done);
    }
    let field = |message: &Value, name: &str| message[name].as_i64().ok_or(format!("{path}: no {name} in {message}"));
    let mut answered = Answered {
        chat,
        id: field(&message, "id")?,
        seq: field(&message, "seq")?,
        content: Some(text.to_owned()),
        began,
    };
    let one = format!("{path}/{}", answered.id);
    match fate {
        // A client that did not get the answer asks again.
        0..4 => {
            let (status, again) = person.call(ledger, send()).await?;
            if status != 200 || field(&again, "id")? != answered.id || field(&again, "seq")? != answered.seq {
                return Err(format!("{key} sent again: {status} {again}, first {message}"));
            }
        }
        4 => answered.content = Some(edit(person, &one, answered.id, format!("{text} edited"), ledger).await?),
        5 => {
            delete(person, &one, answered.id, ledger).await?;
            answered.content = None;
        }
        6 => {
            edit(person, &one, answered.id, format!("{text} rewritten"), ledger).await?;
            answered.content = Some(edit(person, &one, answered.id, format!("{text} edited"), ledger).await?);
        }
        7 => {
            edit(person, &one, answered.id, format!("{text} edited"), ledger).await?;
            delete(person, &one, answered.id, ledger).await?;
            answered.content = None;
        }
        _ => {}
    }
    Ok(answered)
}

/// Gives what the message says then.
async fn edit(person: &Person, path: &str, id: i64, content: String, ledger: &Ledger) -> Result<String, String> {
    begin_change(ledger, id);
    let request = Request {
        method: Method::PATCH,
        path,
        key: None,
        body: Some(json!({"content": content})),
        wanted: &[200],
    };
    person.call(ledger, request).await?;
    count(&ledger.edits);
    Ok(content)
}

async fn delete(person: &Person, path: &str, id: i64, ledger: &Ledger) -> Result<(), String> {
    begin_change(ledger, id);
    let request = Request {
        method: Method::DELETE,
        path,
        key: None,
        body: None,
        // 404 says that an earlier attempt did it.
        wanted: &[204, 404],
    };
    person.call(ledger, request).await?;
    count(&ledger.deletions);
    Ok(())
}

fn begin_change(ledger: &Ledger, id: i64) {
    let began = Instant::now();
    ledger
        .changes
        .lock()
        .expect("no panic holds it")
        .push(Change { id, began });
}

/// Removes and adds `member` in turns until told to stop, and leaves them a member.
pub async fn come_and_go(
    owner: &Person,
    chat: i64,
    member: i64,
    mut random: StdRng,
    ledger: &Ledger,
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.random_range(300..2_500))).await;
        let away = Duration::from_millis(random.random_range(100..2_500));
        if let Err(error) = leave_and_return(owner, chat, member, away, ledger).await {
            ledger.wrong_answers.lock().expect("no panic holds it").push(error);
            return;
        }
    }
}

async fn leave_and_return(
    owner: &Person,
    chat: i64,
    member: i64,
    away: Duration,
    ledger: &Ledger,
) -> Result<(), String> {
    let path = format!("/api/chat/{chat}/members");
    let removal = Request {
        method: Method::DELETE,
        path: &path,
        key: None,
        body: Some(json!({"member_ids": [member]})),
        wanted: &[204, 422],
    };
    let (status, problem) = owner.call(ledger, removal).await?;
    // An earlier attempt, whose answer was lost, did it.
    if status == 422 && problem["errors"][0]["code"] != "not_a_member" {
        return Err(format!("DELETE {path}: {problem}"));
    }
    let from = Instant::now();
    tokio::time::sleep(away).await;
    let until = Some(Instant::now());
    let absence = Absence {
        user: member,
        chat,
        from,
        until,
    };
    ledger.absences.lock().expect("no panic holds it").push(absence);
    owner
        .post(ledger, &path, json!({"member_ids": [member]}), &[201])
        .await?;
    count(&ledger.member_changes);
    count(&ledger.member_changes);
    Ok(())
}
