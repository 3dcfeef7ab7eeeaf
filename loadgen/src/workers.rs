//! Kept connections that serve arrivals.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Method;
use tokio::task::JoinSet;

use crate::arrivals::{Arrival, Poisson, dispatch};
use crate::client::{Address, Answer, Call, Kept, PATIENCE};
use crate::outcome::{Fault, Outcomes};
use crate::progress::{Counters, Live, is_stopped};

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Work {
    pub method: Method,
    pub path: Arc<str>,
    pub token: Arc<str>,
    pub body: Option<Bytes>,
}

/// What is sent and what is made of the answers.
pub trait Job: Send + Sync + 'static {
    /// The request of an arrival.
    fn prepare(&self, arrival: Arrival) -> Work;
    /// A success; the latency is counted already.
    fn succeeded(&self, _arrival: Arrival, _answer: &Answer) {}
}

/// Open connections.
#[derive(Debug)]
pub struct Workers(Vec<Kept>);

/// How much is sent for how long.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Arrivals per second; none sends the next request when the last one was answered.
    pub rate: Option<f64>,
    pub length: Duration,
}

impl Workers {
    /// One connection each, opened by a first request that must succeed.
    pub async fn open(address: &Address, count: usize, first: &Work) -> anyhow::Result<Self> {
        let mut kept = Vec::with_capacity(count);
        for _ in 0..count {
            let mut one = Kept::new(address.clone());
            if let Err(fault) = one.call(&first.call()).await {
                bail!(
                    "{} {} at {} failed ({fault:?}): {}",
                    first.method,
                    first.path,
                    address.socket,
                    fault.advice()
                );
            }
            kept.push(one);
        }
        Ok(Self(kept))
    }

    /// Sends a load and waits until everything is answered.
    pub async fn run(
        &mut self,
        name: &str,
        load: Load,
        job: Arc<dyn Job>,
        counters: Arc<Counters>,
    ) -> anyhow::Result<Outcomes> {
        let start = Instant::now() + Duration::from_millis(20);
        let end = start + load.length;
        let (arrivals, dispatcher) = match load.rate {
            Some(rate) => {
                let (arrivals, thread) = dispatch(Poisson::new(rate, load.length, 1), start);
                (Some(arrivals), Some(thread))
            }
            None => (None, None),
        };
        let live = Live::show(name, load.length, Arc::clone(&counters));
        let mut tasks = JoinSet::new();
        for (number, mut kept) in std::mem::take(&mut self.0).into_iter().enumerate() {
            let (job, counters, arrivals) = (Arc::clone(&job), Arc::clone(&counters), arrivals.clone());
            tasks.spawn(async move {
                let mut outcomes = Outcomes::new();
                let mut own = number as u64;
                loop {
                    let arrival = if let Some(arrivals) = &arrivals {
                        arrivals.recv().await.ok()
                    } else {
                        own += 1 << 20;
                        let due = Instant::now();
                        (due < end).then_some(Arrival { number: own, due })
                    };
                    let Some(arrival) = arrival.filter(|_| !is_stopped()) else {
                        return (kept, outcomes);
                    };
                    // Whoever asked this long ago has given up; and a run must end, however overloaded the target is.
                    if arrival.due.elapsed() > PATIENCE {
                        outcomes.fail(Fault::Unsent);
                        counters.failed.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    counters.in_flight.fetch_add(1, Ordering::Relaxed);
                    let work = job.prepare(arrival);
                    match kept.call(&work.call()).await {
                        Ok(answer) => {
                            outcomes.succeed(arrival.due.elapsed());
                            counters.done.fetch_add(1, Ordering::Relaxed);
                            job.succeeded(arrival, &answer);
                        }
                        Err(fault) => {
                            outcomes.fail(fault);
                            counters.failed.fetch_add(1, Ordering::Relaxed);
                            if fault == Fault::Connect {
                                // Nothing listens: do not burn the processor until it does.
                                tokio::time::sleep(Duration::from_millis(10)).await;
                            }
                        }
                    }
                    counters.in_flight.fetch_sub(1, Ordering::Relaxed);
                }
            });
        }
        let mut outcomes = Outcomes::new();
        while let Some(ended) = tasks.join_next().await {
            let (kept, counted) = ended.context("a worker failed")?;
            self.0.push(kept);
            outcomes.add(&counted);
        }
        drop(live);
        // Workers that were stopped early leave arrivals behind; without a receiver the dispatcher ends.
        drop(arrivals);
        if let Some(thread) = dispatcher
            && thread.join().is_err()
        {
            bail!("the dispatcher failed");
        }
        Ok(outcomes)
    }
}

impl Work {
    /// As the client takes it.
    pub fn call(&self) -> Call<'_> {
        Call {
            method: self.method.clone(),
            path: &self.path,
            token: Some(&self.token),
            body: self.body.clone(),
            cursor: None,
            is_stream: false,
        }
    }
}
