//! What will happen, made from a seed alone: the same seed gives the same kills, clients and texts.

use std::time::Duration;

use dev::platform::{Part, Service};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// What is killed: every process of a platform with two replicas of what is stateless and holds streams.
pub const PARTS: [Part; 8] = [
    Part::Service(Service::Chat),
    Part::Twin(Service::Chat),
    Part::Service(Service::Notify),
    Part::Twin(Service::Notify),
    Part::Service(Service::Indexer),
    Part::Service(Service::Gateway),
    Part::Postgres,
    Part::Nats,
];

/// One moment at which processes are killed, and when they are started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// Time since the last crash was mended.
    pub wait: Duration,
    /// Killed together; each is another process, and they may be both replicas of a service.
    pub parts: Vec<Part>,
    /// How long they stay away.
    pub away: Duration,
}

/// NATS away while people go on, once in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    pub away: Duration,
    /// Its streams are destroyed meanwhile.
    pub wipe: bool,
}

/// The crashes of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub crashes: Vec<Crash>,
    /// After the first half of the crashes.
    pub outage: Option<Outage>,
}

impl Plan {
    /// Crashes with `kills` kills in all; every process gets its share, one crash in four takes two at once.
    pub fn new(seed: u64, kills: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut queue = Vec::new();
        while queue.len() < kills {
            let mut round = PARTS;
            round.shuffle(&mut random);
            queue.extend(round);
        }
        queue.truncate(kills);
        let mut crashes = Vec::new();
        let mut rest = queue.into_iter().peekable();
        while let Some(part) = rest.next() {
            let mut parts = vec![part];
            if random.random_range(0..4) == 0 {
                // Two rounds meet in one process.
                parts.extend(rest.next_if(|other| *other != part));
            }
            crashes.push(Crash {
                wait: Duration::from_millis(random.random_range(300..3_000)),
                parts,
                away: Duration::from_millis(random.random_range(0..2_000)),
            });
        }
        Self {
            seed,
            crashes,
            outage: None,
        }
    }

    /// The same with NATS away for a while.
    pub fn with_outage(self, outage: Outage) -> Self {
        Self {
            outage: Some(outage),
            ..self
        }
    }

    pub fn kills(&self) -> usize {
        self.crashes.iter().map(|crash| crash.parts.len()).sum()
    }

    /// Randomness for one client, the same for the same seed and name.
    pub fn random(&self, client: &str) -> StdRng {
        // FNV-1a: stable over builds, which the standard hasher is not.
        let hash = client.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        StdRng::seed_from_u64(self.seed ^ hash)
    }
}

#[test]
fn a_seed_is_a_schedule_and_every_process_has_its_share() {
    let plan = Plan::new(7, 120);
    assert_eq!(plan, Plan::new(7, 120));
    assert_ne!(plan.crashes, Plan::new(8, 120).crashes);
    assert_eq!(plan.kills(), 120);
    for part in PARTS {
        let kills = plan.crashes.iter().filter(|crash| crash.parts.contains(&part)).count();
        assert_eq!(kills, 15, "{}", part.name());
    }
}
