//! Overload: how many requests a group of upstreams is given at once, who waits and who is turned away first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::routes::Class;

/// Bounds of a group.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Requests at once.
    pub requests: usize,
    /// Requests that may wait for a place, and how long.
    pub queue: usize,
    pub patience: Duration,
}

/// Part of the capacity a class may fill, in percent. What is easily asked for again goes first; signing in goes last, for
/// without it nobody recovers.
const fn share(class: Class) -> usize {
    match class {
        Class::Search => 70,
        Class::Read => 80,
        Class::Stream | Class::Send => 90,
        Class::Auth => 100,
    }
}

/// The requests of one group.
#[derive(Debug, Default)]
pub struct Admission {
    admitted: AtomicUsize,
    waiting: AtomicUsize,
    freed: Notify,
}

/// A request's place until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Admission>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.admitted.fetch_sub(1, Ordering::AcqRel);
        if self.0.waiting.load(Ordering::Acquire) > 0 {
            // All: whose class may use the place differs.
            self.0.freed.notify_waiters();
        }
    }
}

/// Counts a request that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Admission {
    /// A place for a request of this class, at once or after a short wait; none when there are too many.
    pub async fn enter(self: &Arc<Self>, class: Class, capacity: Capacity) -> Option<Place> {
        let limit = (capacity.requests * share(class) / 100).max(1);
        if let Some(place) = self.try_enter(limit) {
            return Some(place);
        }
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= capacity.queue * share(class) / 100 {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let _waiting = Waiting(&self.waiting);
        let deadline = Instant::now() + capacity.patience;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Listens before it looks, or a place freed in between would be missed.
            freed.as_mut().enable();
            if let Some(place) = self.try_enter(limit) {
                return Some(place);
            }
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                return self.try_enter(limit);
            }
        }
    }

    fn try_enter(self: &Arc<Self>, limit: usize) -> Option<Place> {
        let entered = self
            .admitted
            .try_update(Ordering::AcqRel, Ordering::Acquire, |admitted| {
                (admitted < limit).then_some(admitted + 1)
            });
        entered.is_ok().then(|| Place(Arc::clone(self)))
    }

    /// Requests that have a place, and that wait for one.
    pub fn counts(&self) -> (usize, usize) {
        (
            self.admitted.load(Ordering::Relaxed),
            self.waiting.load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity {
        requests: 10,
        queue: 0,
        patience: Duration::ZERO,
    };

    #[tokio::test]
    async fn the_cheap_to_repeat_are_turned_away_first_and_signing_in_last() {
        let admission = Arc::new(Admission::default());
        let mut places = Vec::new();
        for (class, upto) in [
            (Class::Search, 7),
            (Class::Read, 8),
            (Class::Send, 9),
            (Class::Auth, 10),
        ] {
            while let Some(place) = admission.enter(class, CAPACITY).await {
                places.push(place);
            }
            assert_eq!(places.len(), upto, "{class:?}");
        }
        places.truncate(9);
        assert!(admission.enter(Class::Send, CAPACITY).await.is_none());
        assert!(admission.enter(Class::Auth, CAPACITY).await.is_some());
        drop(places);
        assert_eq!(admission.counts(), (0, 0));
    }

    #[tokio::test]
    async fn a_short_queue_bridges_a_short_rush() {
        let capacity = Capacity {
            requests: 1,
            queue: 1,
            patience: Duration::from_secs(20),
        };
        let admission = Arc::new(Admission::default());
        let first = admission.enter(Class::Auth, capacity).await.unwrap();
        let second = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.enter(Class::Auth, capacity).await.is_some() }
        });
        while admission.counts().1 == 0 {
            tokio::task::yield_now().await;
        }
        assert!(
            admission.enter(Class::Auth, capacity).await.is_none(),
            "the queue is full"
        );
        drop(first);
        assert!(second.await.unwrap());
        assert_eq!(admission.counts(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_turned_away() {
        let capacity = Capacity {
            requests: 1,
            queue: 10,
            patience: Duration::from_millis(100),
        };
        let admission = Arc::new(Admission::default());
        let _first = admission.enter(Class::Auth, capacity).await.unwrap();
        assert!(admission.enter(Class::Auth, capacity).await.is_none());
        assert_eq!(admission.counts(), (1, 0));
    }
}
