//! What was seen in a run, and the verdict on it. Nothing here talks to the platform, so that the verdict itself is tested.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

/// A message whose sending was answered with success.
#[derive(Debug, Clone)]
pub struct Answered {
    pub chat: i64,
    pub id: i64,
    pub seq: i64,
    /// What the message must say at the end; none when it was deleted.
    pub content: Option<String>,
    /// Before the first attempt to send it.
    pub began: Instant,
}

/// A row of `messages`.
#[derive(Debug, Clone)]
pub struct Row {
    pub chat: i64,
    pub id: i64,
    pub seq: i64,
    pub content: Option<String>,
}

/// An edit or the deletion of a message.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    pub id: i64,
    /// Before the first attempt to make it.
    pub began: Instant,
}

/// A time in which a user certainly was no member.
#[derive(Debug, Clone, Copy)]
pub struct Absence {
    pub user: i64,
    pub chat: i64,
    /// After the removal was answered.
    pub from: Instant,
    /// Before the next addition was asked for.
    pub until: Option<Instant>,
}

/// What a device saw, in its order.
#[derive(Debug, Clone)]
pub enum Observation {
    /// `message.created` in the stream.
    Message { chat: i64, seq: i64, id: i64, at: Instant },
    /// `message.updated` or `message.deleted` in the stream.
    Changed {
        chat: i64,
        seq: i64,
        id: i64,
        version: i64,
        at: Instant,
    },
    /// Another event of a chat in the stream.
    Other { chat: i64, kind: String },
    /// Read by the API, because the stream had said to.
    Fetched { chat: i64, seq: i64, id: i64 },
    /// Everything of the chat up to `upto` is known now, by the API.
    Reloaded { chat: i64, upto: i64 },
}

/// A device and its user.
#[derive(Debug, Clone)]
pub struct Device {
    pub name: String,
    pub user: i64,
    pub log: Vec<Observation>,
    /// What its screen shows at the end, by chat and message; nothing for a deleted one.
    pub screen: Screen,
}

/// What messages say, by chat and message.
pub type Screen = BTreeMap<i64, BTreeMap<i64, Option<String>>>;

/// All that is known of a run.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    pub answered: Vec<Answered>,
    pub changes: Vec<Change>,
    pub rows: Vec<Row>,
    pub devices: Vec<Device>,
    pub absences: Vec<Absence>,
    /// Users who were members from the first message to the last, by chat.
    pub lasting: BTreeMap<i64, BTreeSet<i64>>,
    /// Users who came and went, and are members at the end, by chat.
    pub passing: BTreeMap<i64, BTreeSet<i64>>,
    /// Messages that search finds, by chat.
    pub indexed: BTreeMap<i64, BTreeSet<i64>>,
    /// What a client found wrong with an answer.
    pub wrong_answers: Vec<String>,
}

/// What must not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub losses: Vec<String>,
    pub duplicates: Vec<String>,
    pub leaks: Vec<String>,
    /// Wrong answers, wrong contents, an index that differs.
    pub errors: Vec<String>,
    /// Events that came again after a reload, as they may.
    pub seen_again: usize,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.losses.is_empty() && self.duplicates.is_empty() && self.leaks.is_empty() && self.errors.is_empty()
    }
}

/// How far a device got in a chat.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    /// Everything up to here is known.
    high: i64,
    /// The last message of the stream since the last reload.
    last: Option<i64>,
}

impl Evidence {
    /// Judges everything.
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict {
            errors: self.wrong_answers.clone(),
            ..Verdict::default()
        };
        self.judge_rows(&mut verdict);
        self.judge_index(&mut verdict);
        for device in &self.devices {
            self.judge_order(device, &mut verdict);
            self.judge_versions(device, &mut verdict);
            self.judge_screen(device, &mut verdict);
            self.judge_sight(device, &mut verdict);
        }
        verdict
    }

    /// Every answered message is a row, once; nothing else is; `seq` is 1, 2, 3 ….
    fn judge_rows(&self, verdict: &mut Verdict) {
        let rows: HashMap<i64, &Row> = self.rows.iter().map(|row| (row.id, row)).collect();
        let mut known = BTreeSet::new();
        for sent in &self.answered {
            if !known.insert(sent.id) {
                verdict.errors.push(format!("message {} answered two sends", sent.id));
            }
            match rows.get(&sent.id) {
                None => verdict.losses.push(format!("{sent:?} is in no table")),
                Some(row) if (row.chat, row.seq) != (sent.chat, sent.seq) => {
                    verdict.errors.push(format!("{sent:?} is stored as {row:?}"));
                }
                Some(row) if row.content != sent.content => {
                    verdict
                        .losses
                        .push(format!("{sent:?} says {:?} at the end", row.content));
                }
                Some(_) => {}
            }
        }
        let mut seqs: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for row in &self.rows {
            if !known.contains(&row.id) {
                verdict
                    .duplicates
                    .push(format!("{row:?} is no answer to any send: one was stored twice"));
            }
            seqs.entry(row.chat).or_default().push(row.seq);
        }
        for (chat, mut seqs) in seqs {
            seqs.sort_unstable();
            if (1..).zip(&seqs).any(|(due, seq)| due != *seq) {
                verdict
                    .errors
                    .push(format!("seq of chat {chat} is not 1, 2, 3 …: {seqs:?}"));
            }
        }
    }

    /// Search finds what is not deleted, and nothing else.
    fn judge_index(&self, verdict: &mut Verdict) {
        let mut rows: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.content.is_some()) {
            rows.entry(row.chat).or_default().insert(row.id);
        }
        for chat in rows.keys().chain(self.indexed.keys()).collect::<BTreeSet<_>>() {
            let empty = BTreeSet::new();
            let (rows, found) = (
                rows.get(chat).unwrap_or(&empty),
                self.indexed.get(chat).unwrap_or(&empty),
            );
            for id in rows.difference(found) {
                verdict.losses.push(format!("search does not find {id} of chat {chat}"));
            }
            for id in found.difference(rows) {
                verdict
                    .errors
                    .push(format!("search finds {id} of chat {chat}, which is no row"));
            }
        }
    }

    /// A lasting member's stream has every message of the chat once and in order.
    fn judge_order(&self, device: &Device, verdict: &mut Verdict) {
        let is_in = |chats: &BTreeMap<i64, BTreeSet<i64>>, chat: &i64| {
            chats.get(chat).is_some_and(|users| users.contains(&device.user))
        };
        let ids: HashMap<(i64, i64), i64> = self.rows.iter().map(|row| ((row.chat, row.seq), row.id)).collect();
        let mut progress: HashMap<i64, Progress> = HashMap::new();
        for observation in &device.log {
            match *observation {
                Observation::Message { chat, seq, id, .. } | Observation::Fetched { chat, seq, id }
                    if ids.get(&(chat, seq)) != Some(&id) =>
                {
                    let name = &device.name;
                    verdict
                        .errors
                        .push(format!("{name} saw {id} as message {seq} of chat {chat}"));
                }
                Observation::Reloaded { chat, upto } => {
                    let at = progress.entry(chat).or_default();
                    *at = Progress {
                        high: at.high.max(upto),
                        last: None,
                    };
                }
                Observation::Message { chat, seq, .. } => {
                    let at = progress.entry(chat).or_default();
                    let next = at.last.unwrap_or(at.high) + 1;
                    if is_in(&self.lasting, &chat) {
                        let what = || {
                            format!(
                                "{}: message {seq} of chat {chat} came where {next} was due",
                                device.name
                            )
                        };
                        if seq > next {
                            verdict.losses.push(what());
                        } else if at.last.is_some() && seq < next {
                            verdict.duplicates.push(what());
                        }
                        verdict.seen_again += usize::from(seq <= at.high);
                    }
                    at.high = at.high.max(seq);
                    at.last = Some(seq);
                }
                Observation::Changed { .. } | Observation::Other { .. } | Observation::Fetched { .. } => {}
            }
        }
        let mut ends: BTreeMap<i64, i64> = BTreeMap::new();
        for row in &self.rows {
            let end = ends.entry(row.chat).or_default();
            *end = row.seq.max(*end);
        }
        for (chat, end) in ends {
            let high = progress.get(&chat).map_or(0, |at| at.high);
            if high < end && (is_in(&self.lasting, &chat) || is_in(&self.passing, &chat)) {
                let name = &device.name;
                verdict
                    .losses
                    .push(format!("{name} has chat {chat} up to {high} of {end} messages"));
            }
        }
    }

    /// A lasting member's stream has each version of a message once and in order: 1, 2, 3 ….
    fn judge_versions(&self, device: &Device, verdict: &mut Verdict) {
        let mut high: HashMap<i64, i64> = HashMap::new();
        // Since the last reload of their chat.
        let mut versions: HashMap<(i64, i64), i64> = HashMap::new();
        for observation in &device.log {
            match *observation {
                Observation::Reloaded { chat, upto } => {
                    versions.retain(|(of, _), _| *of != chat);
                    let high = high.entry(chat).or_default();
                    *high = upto.max(*high);
                }
                Observation::Message { chat, seq, id, .. } => {
                    versions.insert((chat, id), 1);
                    let high = high.entry(chat).or_default();
                    *high = seq.max(*high);
                }
                Observation::Changed {
                    chat, seq, id, version, ..
                } if self.is_lasting(device.user, chat) => {
                    let known = versions.insert((chat, id), version);
                    let what = |due: &str| {
                        let name = &device.name;
                        format!("{name}: version {version} of message {seq} of chat {chat} came {due}")
                    };
                    match known {
                        Some(known) if version <= known => verdict.duplicates.push(what(&format!("after {known}"))),
                        Some(known) if version > known + 1 => verdict.losses.push(what(&format!("after {known}"))),
                        None if seq > high.get(&chat).copied().unwrap_or_default() => {
                            verdict.losses.push(what("before the message"));
                        }
                        _ => {}
                    }
                }
                Observation::Changed { .. } | Observation::Other { .. } | Observation::Fetched { .. } => {}
            }
        }
    }

    /// A lasting member's screen ends with what each message says.
    fn judge_screen(&self, device: &Device, verdict: &mut Verdict) {
        for row in self.rows.iter().filter(|row| self.is_lasting(device.user, row.chat)) {
            let shown = device.screen.get(&row.chat).and_then(|chat| chat.get(&row.id));
            if shown.is_some_and(|shown| *shown != row.content) {
                let name = &device.name;
                verdict
                    .losses
                    .push(format!("{name} shows {shown:?} at the end for {row:?}"));
            }
        }
    }

    fn is_lasting(&self, user: i64, chat: i64) -> bool {
        self.lasting.get(&chat).is_some_and(|users| users.contains(&user))
    }

    /// Nobody sees a chat they never were in, or what was written and received while they were certainly out.
    fn judge_sight(&self, device: &Device, verdict: &mut Verdict) {
        let began: HashMap<i64, Instant> = self.answered.iter().map(|sent| (sent.id, sent.began)).collect();
        // The first of a message's changes: which of them an event tells of is not known.
        let mut changed: HashMap<i64, Instant> = HashMap::new();
        for change in &self.changes {
            let first = changed.entry(change.id).or_insert(change.began);
            *first = change.began.min(*first);
        }
        for observation in &device.log {
            let chat = match observation {
                Observation::Message { chat, .. }
                | Observation::Changed { chat, .. }
                | Observation::Other { chat, .. }
                | Observation::Fetched { chat, .. }
                | Observation::Reloaded { chat, .. } => chat,
            };
            let is_member = |chats: &BTreeMap<i64, BTreeSet<i64>>| {
                chats.get(chat).is_some_and(|users| users.contains(&device.user))
            };
            if !is_member(&self.lasting) && !is_member(&self.passing) {
                let what = match observation {
                    Observation::Other { kind, .. } => kind.clone(),
                    seen => format!("{seen:?}"),
                };
                let name = &device.name;
                verdict
                    .leaks
                    .push(format!("{name}, never a member of chat {chat}, saw {what}"));
            }
            let (chat, at, began) = match observation {
                Observation::Message { chat, id, at, .. } => (chat, at, began.get(id)),
                Observation::Changed { chat, id, at, .. } => (chat, at, changed.get(id)),
                _ => continue,
            };
            let Some(began) = began else { continue };
            let is_leak = |absence: &&Absence| {
                (absence.user, absence.chat) == (device.user, *chat)
                    && *began > absence.from
                    && absence.until.is_none_or(|until| *at < until)
            };
            if let Some(absence) = self.absences.iter().find(is_leak) {
                verdict
                    .leaks
                    .push(format!("{} saw {observation:?} during {absence:?}", device.name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CHAT: i64 = 1;
    const ADA: i64 = 10;
    const VIC: i64 = 11;
    const EVE: i64 = 12;

    fn message(seq: i64, at: Instant) -> Observation {
        Observation::Message {
            chat: CHAT,
            seq,
            id: 100 + seq,
            at,
        }
    }

    fn change(version: i64, at: Instant) -> Observation {
        Observation::Changed {
            chat: CHAT,
            seq: 2,
            id: 102,
            version,
            at,
        }
    }

    /// Three messages, sent a second apart, the second edited at once; Ada has them all, Vic was out for the second, Eve saw
    /// nothing.
    fn good(start: Instant) -> Evidence {
        let second = Duration::from_secs(1);
        let mut evidence = Evidence::default();
        let mut began = start;
        for seq in 1..=3 {
            let content = Some(format!("text {seq}"));
            began += second;
            evidence.answered.push(Answered {
                chat: CHAT,
                id: 100 + seq,
                seq,
                content: content.clone(),
                began,
            });
            evidence.rows.push(Row {
                chat: CHAT,
                id: 100 + seq,
                seq,
                content,
            });
            evidence.indexed.entry(CHAT).or_default().insert(100 + seq);
        }
        evidence.changes.push(Change {
            id: 102,
            began: start + second * 21 / 10,
        });
        evidence.lasting.insert(CHAT, BTreeSet::from([ADA]));
        evidence.passing.insert(CHAT, BTreeSet::from([VIC]));
        evidence.absences.push(Absence {
            user: VIC,
            chat: CHAT,
            from: start + second * 3 / 2,
            until: Some(start + second * 5 / 2),
        });
        let end = start + second * 4;
        for (name, user, log) in [
            (
                "ada",
                ADA,
                vec![message(1, end), message(2, end), message(3, end), change(2, end)],
            ),
            (
                "vic",
                VIC,
                vec![
                    message(1, start + second),
                    Observation::Reloaded { chat: CHAT, upto: 2 },
                    message(3, end),
                ],
            ),
            ("eve", EVE, Vec::new()),
        ] {
            evidence.devices.push(Device {
                name: name.to_owned(),
                user,
                log,
                screen: Screen::new(),
            });
        }
        let screen = evidence.rows.iter().map(|row| (row.id, row.content.clone()));
        evidence.devices[0].screen.insert(CHAT, screen.collect());
        evidence
    }

    #[test]
    fn a_good_run_is_clean() {
        assert_eq!(good(Instant::now()).verdict(), Verdict::default());
    }

    #[test]
    fn what_comes_again_after_a_reload_is_no_duplicate_but_its_order_counts() {
        let now = Instant::now();
        let mut evidence = good(now);
        evidence.devices[0]
            .log
            .push(Observation::Reloaded { chat: CHAT, upto: 3 });
        evidence.devices[0]
            .log
            .extend([message(2, now), message(3, now), change(2, now)]);
        let verdict = evidence.verdict();
        assert!(verdict.is_clean() && verdict.seen_again == 2, "{verdict:?}");
        evidence.devices[0].log.push(message(3, now));
        assert_eq!(evidence.verdict().duplicates.len(), 1);
    }

    #[test]
    fn each_kind_of_harm_is_found() {
        type Harm = fn(&mut Evidence, Instant);
        type Count = fn(&Verdict) -> usize;
        let losses: Count = |verdict| verdict.losses.len();
        let duplicates: Count = |verdict| verdict.duplicates.len();
        let leaks: Count = |verdict| verdict.leaks.len();
        let errors: Count = |verdict| verdict.errors.len();
        let harms: [(&str, Count, Harm); 18] = [
            ("an answered message without a row", losses, |run, _| {
                run.rows.pop();
            }),
            ("an edit that was answered and is gone", losses, |run, _| {
                run.answered[1].content = Some("edited".to_owned());
            }),
            ("a version that is missing", losses, |run, now| {
                run.devices[0].log.push(change(4, now));
            }),
            ("a change of a message that was never shown", losses, |run, now| {
                run.devices[0].log.swap_remove(1);
                run.devices[0].log.insert(1, change(2, now));
            }),
            ("a screen that shows an older version", losses, |run, _| {
                let screen = run.devices[0].screen.entry(CHAT).or_default();
                screen.insert(102, Some("older".to_owned()));
            }),
            ("a screen that shows what was deleted", losses, |run, _| {
                run.rows[2].content = None;
                run.answered[2].content = None;
            }),
            ("a version twice", duplicates, |run, now| {
                run.devices[0].log.push(change(2, now));
            }),
            ("a removed member's sight of an edit", leaks, |run, start| {
                run.devices[1]
                    .log
                    .insert(1, change(2, start + Duration::from_millis(2_200)));
            }),
            ("a hole in a stream", losses, |run, _| {
                run.devices[0].log.remove(1);
            }),
            ("a stream that stays behind", losses, |run, _| {
                run.devices[0].log.truncate(2);
            }),
            ("a passing member who stays behind", losses, |run, _| {
                run.devices[1].log.pop();
            }),
            ("a row that search does not find", losses, |run, _| {
                run.indexed.entry(CHAT).or_default().remove(&102);
            }),
            ("a row too many", duplicates, |run, _| {
                let copy = Row {
                    id: 104,
                    seq: 4,
                    ..run.rows[2].clone()
                };
                run.rows.push(copy);
            }),
            ("an event twice", duplicates, |run, now| {
                run.devices[0].log.insert(1, message(1, now));
            }),
            ("a stranger's sight of a message", leaks, |run, now| {
                run.devices[2].log.push(message(1, now));
            }),
            ("a stranger's sight of another event", leaks, |run, _| {
                let kind = "member.added".to_owned();
                run.devices[2].log.push(Observation::Other { chat: CHAT, kind });
            }),
            ("a removed member's sight", leaks, |run, start| {
                run.devices[1]
                    .log
                    .insert(1, message(2, start + Duration::from_millis(2_200)));
            }),
            ("a finding without a row", errors, |run, _| {
                run.indexed.entry(CHAT).or_default().insert(999);
            }),
        ];
        for (name, count, harm) in harms {
            let start = Instant::now();
            let mut evidence = good(start);
            harm(&mut evidence, start);
            let verdict = evidence.verdict();
            assert!(count(&verdict) > 0 && !verdict.is_clean(), "{name}: {verdict:?}");
        }
    }
}
