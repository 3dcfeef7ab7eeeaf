//! The operator's command, `… dead-letters list|show|replay|drop`.
//!
//! What an event brings is shown with its control characters escaped: nobody writes to an operator's terminal by a
//! message. Exit codes: 0 done, 1 something asked for was not done, 2 the database or the consumer could not be asked.

use std::fmt::Write as _;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use serde_json::json;
use time::format_description::well_known::Rfc3339;

use crate::{DeadLetters, Letter, Replay, Shown};

/// Not everything that was asked for was done.
pub const EXIT_NOT_DONE: u8 = 1;
/// Letters that `replay --all` reads at once.
const PAGE: i64 = 500;

/// What to do with the dead letters of this service.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Lists those that wait, the oldest first.
    List {
        /// Also those that were replayed or dropped.
        #[arg(long)]
        all: bool,
        /// At most so many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
        /// Only those after this id, to page on.
        #[arg(long, default_value_t = 0)]
        after: i64,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Shows one with its body.
    Show {
        id: i64,
        /// JSON instead of text; a body that is not UTF-8 comes as `body_base64`.
        #[arg(long)]
        json: bool,
    },
    /// Has events processed once more; what cannot be is a dead letter still, with its new reason.
    Replay {
        #[arg(required_unless_present = "all")]
        ids: Vec<i64>,
        /// All that wait now.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        /// JSON, a line for each.
        #[arg(long)]
        json: bool,
    },
    /// Gives events up for good: their bodies are erased, what was done and why is kept.
    Drop {
        #[arg(required = true)]
        ids: Vec<i64>,
        /// Why, for those who look later.
        #[arg(long)]
        reason: String,
    },
}

/// Carries `command` out; `replay` has the consumer process one letter again and record the outcome. Returns the exit code.
pub async fn run<F>(command: Command, letters: &DeadLetters, replay: F) -> anyhow::Result<u8>
where
    F: AsyncFn(i64) -> anyhow::Result<Replay>,
{
    match command {
        Command::List {
            all,
            limit,
            after,
            json,
        } => list(letters, after, limit, all, json).await,
        Command::Show { id, json } => show(letters, id, json).await,
        Command::Replay { ids, all, json } => {
            let ids = if all { waiting(letters).await? } else { ids };
            replay_each(&ids, json, replay).await
        }
        Command::Drop { ids, reason } => discard(letters, &ids, &reason).await,
    }
}

async fn list(letters: &DeadLetters, after: i64, limit: i64, all: bool, json: bool) -> anyhow::Result<u8> {
    let found = letters
        .list(after, limit, all)
        .await
        .context("cannot read the dead letters")?;
    let waiting = letters.waiting().await.context("cannot count the dead letters")?;
    if json {
        let listed: Vec<_> = found.iter().map(described).collect();
        print(&json!({ "waiting": waiting, "letters": listed }).to_string());
        return Ok(0);
    }
    if !found.is_empty() {
        print(&format!(
            "{:>8}  {:<20}  {:<8}  {:>10}  {:>7}  SUBJECT, REASON",
            "ID", "SINCE", "STATE", "DELIVERIES", "REPLAYS"
        ));
    }
    for letter in &found {
        print(&format!(
            "{:>8}  {:<20}  {:<8}  {:>10}  {:>7}  {}, {}",
            letter.id,
            since(letter),
            letter.state().as_str(),
            letter.deliveries,
            letter.replays,
            safe(&letter.subject),
            safe(&letter.reason)
        ));
    }
    print(&format!("{waiting} waiting, {} shown", found.len()));
    Ok(0)
}

async fn show(letters: &DeadLetters, id: i64, json: bool) -> anyhow::Result<u8> {
    let Some(Shown { letter, body }) = letters.get(id).await.context("cannot read the dead letter")? else {
        complain(&format!("this service has no dead letter {id}; `list --all` names all"));
        return Ok(EXIT_NOT_DONE);
    };
    let text = std::str::from_utf8(&body).ok();
    if json {
        let mut shown = described(&letter);
        match text {
            Some(text) => shown["body"] = json!(text),
            None => shown["body_base64"] = json!(STANDARD.encode(&body)),
        }
        print(&shown.to_string());
        return Ok(0);
    }
    let epoch = letter
        .stream_epoch
        .map_or_else(|| "unknown".to_owned(), |epoch| epoch.to_string());
    let mut lines = format!(
        "id          {}\nstate       {}\nsince       {}\nsubject     {}\nreason      {}\nstream      sequence {} of epoch {epoch}\n\
         deliveries  {}\nreplays     {}\n",
        letter.id,
        letter.state().as_str(),
        since(&letter),
        safe(&letter.subject),
        safe(&letter.reason),
        letter.stream_sequence,
        letter.deliveries,
        letter.replays
    );
    if let Some(reason) = &letter.drop_reason {
        let _ = writeln!(lines, "dropped     {}", safe(reason));
    }
    if let Some(text) = text {
        let _ = write!(lines, "body        {} bytes\n{}", letter.body_bytes, safe(text));
    } else {
        let encoded = STANDARD.encode(&body);
        let _ = write!(
            lines,
            "body        {} bytes, not UTF-8, in base64\n{encoded}",
            letter.body_bytes
        );
    }
    print(&lines);
    Ok(0)
}

/// The ids of all that wait.
async fn waiting(letters: &DeadLetters) -> anyhow::Result<Vec<i64>> {
    let mut ids: Vec<i64> = Vec::new();
    loop {
        let after = ids.last().copied().unwrap_or(0);
        let page = letters
            .list(after, PAGE, false)
            .await
            .context("cannot read the dead letters")?;
        if page.is_empty() {
            return Ok(ids);
        }
        ids.extend(page.iter().map(|letter| letter.id));
    }
}

async fn replay_each<F>(ids: &[i64], json: bool, replay: F) -> anyhow::Result<u8>
where
    F: AsyncFn(i64) -> anyhow::Result<Replay>,
{
    let mut code = 0;
    let mut done = 0;
    for &id in ids {
        let outcome = replay(id).await.with_context(|| {
            format!(
                "cannot replay {id}; {done} of {} were done, and doing them again does no harm",
                ids.len()
            )
        })?;
        match &outcome {
            Replay::Replayed | Replay::AlreadyReplayed => done += 1,
            Replay::Returned { .. } | Replay::Dropped | Replay::Unknown => code = EXIT_NOT_DONE,
        }
        if json {
            let mut line = serde_json::to_value(&outcome)?;
            line["id"] = json!(id);
            print(&line.to_string());
            continue;
        }
        print(&match outcome {
            Replay::Replayed => format!("{id}: replayed"),
            Replay::AlreadyReplayed => format!("{id}: was replayed before; nothing to do"),
            Replay::Dropped => format!("{id}: was dropped; its body is gone"),
            Replay::Returned { reason } => format!("{id}: is a dead letter still: {}", safe(&reason)),
            Replay::Unknown => format!("{id}: this service has no such dead letter"),
        });
    }
    if !json {
        print(&format!("{done} of {} have had their effect", ids.len()));
    }
    Ok(code)
}

async fn discard(letters: &DeadLetters, ids: &[i64], reason: &str) -> anyhow::Result<u8> {
    let reason = reason.trim();
    ensure!(!reason.is_empty(), "--reason must say why");
    let mut code = 0;
    for &id in ids {
        if letters
            .discard(id, reason)
            .await
            .context("cannot drop the dead letter")?
        {
            print(&format!("{id}: dropped"));
        } else {
            complain(&format!("{id}: no dead letter of this service waits under this id"));
            code = EXIT_NOT_DONE;
        }
    }
    Ok(code)
}

fn described(letter: &Letter) -> serde_json::Value {
    let mut value = json!(letter);
    value["state"] = json!(letter.state());
    value
}

fn since(letter: &Letter) -> String {
    let at = letter.created_at;
    at.replace_nanosecond(0)
        .unwrap_or(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}

/// Text with everything escaped that a terminal could take for an order, or that reorders what is read.
fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        let reorders = matches!(character, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || reorders {
            safe.extend(character.escape_unicode());
        } else {
            safe.push(character);
        }
    }
    safe
}

#[expect(clippy::print_stdout, reason = "the answer of a command for operators")]
fn print(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "why a command for operators did not do it")]
fn complain(line: &str) {
    eprintln!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn terminals_get_no_orders() {
        assert_eq!(safe("a\u{1b}[2Jb\n\u{202E}ç"), "a\\u{1b}[2Jb\\u{a}\\u{202e}ç");
    }

    #[test]
    fn wrong_lines_are_refused() {
        use clap::Parser;
        for line in [
            "x replay",
            "x replay 1 --all",
            "x drop --reason why",
            "x drop 1",
            "x list --limit 0",
            "x show one",
        ] {
            assert!(Line::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        assert!(Line::try_parse_from(["x", "replay", "--all"]).is_ok());
    }
}
