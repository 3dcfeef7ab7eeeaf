//! Processor time and memory of processes, from /proc.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;

/// Ticks per second of /proc's times: fixed by the kernel's interface on every architecture we build for.
const TICKS: f64 = 100.0;

/// What a process used between two looks.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    pub name: String,
    /// Processor time, user and kernel.
    pub cpu_seconds: f64,
    /// Resident memory at the end, shared pages divided among those who share them.
    pub memory_mib: f64,
    /// Of that, what no file backs: what the process allocated, without mapped indexes and programs.
    pub anonymous_mib: f64,
    /// Highest resident memory of its life.
    pub peak_mib: f64,
}

/// What is looked at: names and root process ids; children count with their parent.
#[derive(Debug, Clone, Default)]
pub struct Watched(Vec<(String, u32)>);

impl Watched {
    pub fn add(&mut self, name: &str, id: u32) {
        self.0.push((name.to_owned(), id));
    }

    /// Looks now.
    pub fn look(&self) -> anyhow::Result<Look> {
        let children = children_by_parent();
        let mut cpu = Vec::new();
        for (name, root) in &self.0 {
            let mut ids = vec![*root];
            let mut next = 0;
            while let Some(id) = ids.get(next).copied() {
                ids.extend(children.get(&id).into_iter().flatten());
                next += 1;
            }
            let mut seconds = 0.0;
            let mut memory = Memory::default();
            for id in ids {
                let Ok(used) = Stat::read(id) else { continue };
                // What ended children used is in their parent.
                seconds += used.cpu_seconds;
                memory.add(&Memory::of(id));
            }
            cpu.push((name.clone(), seconds, memory));
        }
        Ok(Look {
            cpu,
            machine: machine_times()?,
            own: Stat::read(std::process::id())?.own_seconds,
        })
    }
}

/// One look.
#[derive(Debug, Clone)]
pub struct Look {
    /// Name, processor seconds, memory.
    cpu: Vec<(String, f64, Memory)>,
    /// Busy and all processor seconds of the machine.
    machine: (f64, f64),
    /// Of this process without its children.
    own: f64,
}

/// Who used the processor between two looks.
#[derive(Debug, Clone, Serialize)]
pub struct Shares {
    pub processes: Vec<Usage>,
    /// Processor seconds of the generator itself.
    pub generator_cpu_seconds: f64,
    /// The generator's share of all processor time, 0 to 1.
    pub generator_share: f64,
    /// Share of all processor time used by what is no part of the measurement, 0 to 1: the noise.
    pub foreign_share: f64,
    /// Share of all processor time that nobody used.
    pub idle_share: f64,
}

impl Look {
    /// What was used since an earlier look.
    pub fn since(&self, before: &Self) -> Shares {
        let earlier: BTreeMap<&str, f64> = before.cpu.iter().map(|entry| (entry.0.as_str(), entry.1)).collect();
        let processes: Vec<Usage> = self
            .cpu
            .iter()
            .map(|(name, seconds, memory)| Usage {
                name: name.clone(),
                cpu_seconds: (seconds - earlier.get(name.as_str()).copied().unwrap_or_default()).max(0.0),
                memory_mib: memory.resident,
                anonymous_mib: memory.anonymous,
                peak_mib: memory.peak,
            })
            .collect();
        let generator = self.own - before.own;
        let all = (self.machine.1 - before.machine.1).max(f64::EPSILON);
        let busy = self.machine.0 - before.machine.0;
        let ours: f64 = processes.iter().map(|usage| usage.cpu_seconds).sum::<f64>() + generator;
        Shares {
            processes,
            generator_cpu_seconds: generator,
            generator_share: generator / all,
            foreign_share: ((busy - ours) / all).max(0.0),
            idle_share: (1.0 - busy / all).max(0.0),
        }
    }
}

impl Shares {
    /// What a process used.
    pub fn of(&self, name: &str) -> Option<&Usage> {
        self.processes.iter().find(|usage| usage.name == name)
    }
}

struct Stat {
    parent: u32,
    /// With ended children.
    cpu_seconds: f64,
    own_seconds: f64,
}

impl Stat {
    fn read(id: u32) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{id}/stat")).context("no such process")?;
        // The name is in parentheses and may hold anything.
        let rest = text.rsplit_once(')').context("not a process")?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| {
            fields
                .get(at)
                .and_then(|field| field.parse::<f64>().ok())
                .unwrap_or_default()
        };
        // proc(5): ppid is field 4, utime 14, stime 15, cutime 16, cstime 17; `rest` begins with field 3.
        let own = (number(11) + number(12)) / TICKS;
        Ok(Self {
            parent: fields.get(1).and_then(|field| field.parse().ok()).unwrap_or_default(),
            cpu_seconds: own + (number(13) + number(14)) / TICKS,
            own_seconds: own,
        })
    }
}

fn children_by_parent() -> BTreeMap<u32, Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(id) = id
            && let Ok(stat) = Stat::read(id)
        {
            children.entry(stat.parent).or_default().push(id);
        }
    }
    children
}

/// Memory in MiB.
#[derive(Debug, Clone, Default)]
struct Memory {
    /// Shared pages divided.
    resident: f64,
    anonymous: f64,
    peak: f64,
}

impl Memory {
    fn of(id: u32) -> Self {
        let field = |file: &str, name: &str| -> Option<f64> {
            let text = std::fs::read_to_string(format!("/proc/{id}/{file}")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace()
                .next()?
                .parse::<f64>()
                .ok()
                .map(|kib| kib / 1_024.0)
        };
        let either = |rollup: &str, status: &str| field("smaps_rollup", rollup).or_else(|| field("status", status));
        Self {
            resident: either("Pss:", "VmRSS:").unwrap_or_default(),
            anonymous: either("Pss_Anon:", "RssAnon:").unwrap_or_default(),
            peak: field("status", "VmHWM:").unwrap_or_default(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.resident += other.resident;
        self.anonymous += other.anonymous;
        self.peak += other.peak;
    }
}

/// Busy and all processor seconds of the machine since it started.
fn machine_times() -> anyhow::Result<(f64, f64)> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    // user nice system idle iowait irq softirq steal; guest time is in user.
    let times: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|field| field.parse().ok())
        .collect();
    let all: f64 = times.iter().sum();
    let idle: f64 = times.iter().skip(3).take(2).sum();
    Ok(((all - idle) / TICKS, all / TICKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_where_it_is_done() {
        let mut watched = Watched::default();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        watched.add("busy", child.id());
        let before = watched.look().unwrap();
        let used = dev::wait::until(std::time::Duration::from_secs(30), "the child to have worked", || {
            let shares = watched.look().unwrap().since(&before);
            (shares.of("busy").unwrap().cpu_seconds > 0.2).then_some(shares)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        let shares = used.unwrap();
        assert!(shares.generator_cpu_seconds < shares.of("busy").unwrap().cpu_seconds);
        assert!(shares.of("busy").unwrap().peak_mib > 0.1);
        assert!((0.0..=1.0).contains(&shares.foreign_share));
    }
}
