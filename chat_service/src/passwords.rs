//! argon2id on threads of its own that yield to all others, behind a bounded queue: a sign-in storm waits for itself, not messaging
//! for it.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::{Semaphore, oneshot};

use crate::config::Passwords;
use crate::error::Error;

/// How much hashing yields to everything else on the machine; 19 is the most.
const NICE: i32 = 10;

type Work = Box<dyn FnOnce() + Send>;

/// Hashes and verifies passwords; cheap to clone. Its threads end with its last clone.
#[derive(Debug, Clone)]
pub struct PasswordHasher {
    params: Params,
    work: Sender<Work>,
    /// One permit per request that is waiting or being worked on.
    places: Arc<Semaphore>,
    /// Verified when the account does not exist, so that both cases take the same time.
    decoy: Arc<str>,
}

/// Outcome of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Wrong,
    Right,
    /// Right, and the hash was made with weaker parameters than now: this is the new one.
    RightButOutdated(String),
}

impl PasswordHasher {
    /// Prepares the hasher; computes one hash.
    pub fn new(config: &Passwords) -> anyhow::Result<Self> {
        let params = Params::new(config.memory_kib, config.iterations, 1, None)
            .map_err(|error| anyhow::anyhow!("passwords: {error}"))?;
        let decoy = argon2(&params)
            .hash_password(uuid::Uuid::new_v4().as_bytes())
            .map_err(|error| anyhow::anyhow!("passwords: {error}"))?
            .to_string();
        let (work, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..config.workers {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name(format!("passwords-{number}"))
                .spawn(move || serve(&queue))?;
        }
        Ok(Self {
            params,
            work,
            places: Arc::new(Semaphore::new(config.workers + config.queue)),
            decoy: decoy.into(),
        })
    }

    /// The PHC string of a new password.
    pub async fn hash(&self, password: String) -> Result<String, Error> {
        let params = self.params.clone();
        self.run(move || hash(&params, &password)).await?
    }

    /// Compares a password with a stored hash, or with the decoy when there is no account.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<Verdict, Error> {
        let (params, decoy) = (self.params.clone(), Arc::clone(&self.decoy));
        self.run(move || {
            let exists = hash.is_some();
            let text = hash.unwrap_or_else(|| decoy.as_ref().to_owned());
            let parsed = PasswordHash::new(&text).map_err(Error::hashing)?;
            let right = argon2(&params).verify_password(password.as_bytes(), &parsed).is_ok();
            Ok(if !(right && exists) {
                Verdict::Wrong
            } else if Params::try_from(&parsed).is_ok_and(|old| is_weaker(&old, &params)) {
                Verdict::RightButOutdated(self::hash(&params, &password)?)
            } else {
                Verdict::Right
            })
        })
        .await?
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| Error::Overloaded)?;
        let (answer, result) = oneshot::channel();
        let work = move || {
            // The place goes with the work: a client that leaves does not free the thread that still hashes for it.
            let _place = place;
            if !answer.is_closed() {
                let _ = answer.send(work());
            }
        };
        self.work
            .send(Box::new(work))
            .map_err(|_| Error::hashing("its threads have ended"))?;
        result.await.map_err(Error::hashing)
    }
}

/// Does what is queued until nobody can queue any more.
fn serve(queue: &Mutex<Receiver<Work>>) {
    // For this thread alone: Linux counts it per thread.
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::warn!(%error, "password hashing cannot yield to other work");
    }
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = next else {
            return;
        };
        // One password that cannot be hashed must not end the thread; who waits for it is told.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            tracing::error!("hashing a password failed");
        }
    }
}

fn argon2(params: &Params) -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
}

fn hash(params: &Params, password: &str) -> Result<String, Error> {
    argon2(params)
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(Error::hashing)
}

fn is_weaker(old: &Params, new: &Params) -> bool {
    old.m_cost() < new.m_cost() || old.t_cost() < new.t_cost()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Passwords {
        Passwords {
            memory_kib: 19_456,
            iterations: 2,
            workers: 1,
            queue: 1,
        }
    }

    #[tokio::test]
    async fn right_wrong_missing_and_outdated() {
        let hasher = PasswordHasher::new(&config()).unwrap();
        let hash = hasher.hash("correct horse".into()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_eq!(
            hasher.verify("correct horse".into(), Some(hash.clone())).await.unwrap(),
            Verdict::Right
        );
        assert_eq!(
            hasher.verify("wrong".into(), Some(hash.clone())).await.unwrap(),
            Verdict::Wrong
        );
        assert_eq!(
            hasher.verify("correct horse".into(), None).await.unwrap(),
            Verdict::Wrong
        );
        let stronger = PasswordHasher::new(&Passwords {
            iterations: 3,
            ..config()
        })
        .unwrap();
        assert_eq!(
            stronger.verify("wrong".into(), Some(hash.clone())).await.unwrap(),
            Verdict::Wrong
        );
        let Verdict::RightButOutdated(renewed) = stronger.verify("correct horse".into(), Some(hash)).await.unwrap()
        else {
            panic!("a hash of weaker parameters is outdated");
        };
        assert!(renewed.starts_with("$argon2id$v=19$m=19456,t=3,p=1$"), "{renewed}");
        assert_eq!(
            stronger.verify("correct horse".into(), Some(renewed)).await.unwrap(),
            Verdict::Right
        );
    }

    #[tokio::test]
    async fn more_than_the_queue_holds_is_refused_at_once() {
        let hasher = PasswordHasher::new(&config()).unwrap();
        let results = futures::future::join_all((0..6).map(|_| hasher.hash("correct horse".into()))).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2);
        assert!(results.iter().any(|result| matches!(result, Err(Error::Overloaded))));
    }
}
