//! While it runs: one merged log, and whatever ends by itself is started again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use dev::platform::{Part, Platform};

use super::folder;
use crate::cargo::Stop;
use crate::lines::{Follower, say};

/// How often ended processes are looked for and new log lines printed.
const TICK: Duration = Duration::from_millis(200);
/// Pause before the first restart; it doubles with each until one lasts.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A part that ran this long has recovered.
const RECOVERED: Duration = Duration::from_mins(1);
const DISK_CHECK: Duration = Duration::from_secs(10);
/// Less free space than this is said.
const LOW_MB: u64 = 256;

/// What is known of a part that ended.
struct Fall {
    restarts: u32,
    last: Instant,
    due: Option<Instant>,
}

/// Until somebody wants to stop.
pub(super) fn supervise(platform: &mut Platform, data: &Path, follower: &mut Follower, stop: &Stop) {
    let mut falls: BTreeMap<Part, Fall> = BTreeMap::new();
    let mut disk = DiskWatch::default();
    while !stop.is_asked() {
        std::thread::sleep(TICK);
        follower.print_new();
        disk.look(data);
        for (part, how) in platform.ended() {
            attend(platform, part, &how, &mut falls);
        }
    }
}

fn attend(platform: &mut Platform, part: Part, how: &str, falls: &mut BTreeMap<Part, Fall>) {
    let now = Instant::now();
    let fall = falls.entry(part).or_insert(Fall {
        restarts: 0,
        last: now,
        due: None,
    });
    let Some(due) = fall.due else {
        if fall.last.elapsed() > RECOVERED {
            fall.restarts = 0;
        }
        // One that crashes at every start must not keep the machine busy.
        let pause = (FIRST_PAUSE * 2_u32.pow(fall.restarts.min(10))).min(LONGEST_PAUSE);
        say(&format!(
            "{} ended unexpectedly ({how}); starting it again in {:.1} s",
            part.name(),
            pause.as_secs_f64()
        ));
        fall.due = Some(now + pause);
        return;
    };
    if now < due {
        return;
    }
    match platform.restart(part) {
        Ok(()) => say(&format!("{} was started again", part.name())),
        Err(error) => say(&format!("{} could not be started again: {error:#}", part.name())),
    }
    *fall = Fall {
        restarts: fall.restarts + 1,
        last: Instant::now(),
        due: None,
    };
}

/// Says once that the disk fills up, before PostgreSQL has to stop.
#[derive(Default)]
struct DiskWatch {
    looked: Option<Instant>,
    said: bool,
}

impl DiskWatch {
    fn look(&mut self, data: &Path) {
        if self.looked.is_some_and(|at| at.elapsed() < DISK_CHECK) {
            return;
        }
        self.looked = Some(Instant::now());
        let Ok(free) = folder::free_megabytes(data) else {
            return;
        };
        if free < LOW_MB && !self.said {
            say(&format!(
                "only {free} MB are left on the disk of {}: free some before PostgreSQL must stop",
                data.display()
            ));
        }
        self.said = free < LOW_MB;
    }
}
