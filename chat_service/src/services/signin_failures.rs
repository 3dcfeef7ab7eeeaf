//! Slows down those who fail to sign in, without locking out whom they fail to be.

use std::net::{IpAddr, Ipv6Addr};

use time::{Duration, OffsetDateTime};

use crate::error::Error;
use crate::repositories::signin_failures::{Attempt, Failures, Patience, Subject};
use crate::repositories::{Repositories, Store};

/// What may fail before sign-ins are slowed down. Few guesses from one address are enough to slow that address down for this
/// account; many from everywhere slow the account down for all but the addresses that it has been used from before. So nobody
/// locks somebody else out by failing in their name.
const PATIENCE: Patience = Patience {
    account: 50,
    guess: 5,
    slowest_seconds: 15 * 60,
};
/// The same for an address, whatever accounts it tries; a whole office may share it.
const ADDRESS_FREE_FAILURES: i32 = 50;

/// Counts an attempt to sign in, unless it has to wait.
pub(super) async fn charge<'a>(store: &Store, email: &'a str, address: Option<&'a str>) -> Result<Attempt<'a>, Error> {
    let mut unit = store.begin().await?;
    let is_usual = match address {
        Some(address) => unit.sessions().was_here(email, address).await?,
        None => false,
    };
    let attempt = Attempt {
        email,
        address,
        is_usual,
    };
    let failures = unit.signin_failures().of(&attempt).await?;
    if let Some(seconds) = slow_down(&failures, is_usual, OffsetDateTime::now_utc()) {
        return Err(Error::SlowedDown(seconds));
    }
    if !unit.signin_failures().charge(&attempt, &PATIENCE).await? {
        // Others tried at the same time.
        let failures = unit.signin_failures().of(&attempt).await?;
        let seconds = slow_down(&failures, is_usual, OffsetDateTime::now_utc()).unwrap_or(1);
        return Err(Error::SlowedDown(seconds));
    }
    unit.commit().await?;
    Ok(attempt)
}

/// What counts as one address: of IPv6 the /64, of which a host has all.
pub(super) fn network(address: &str) -> String {
    match address.parse() {
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        _ => address.to_owned(),
    }
}

/// Seconds until the next attempt is welcome: 1, 2, 4 … after the free failures, at most 15 minutes.
fn slow_down(failures: &[Failures], is_usual: bool, now: OffsetDateTime) -> Option<u64> {
    failures
        .iter()
        .filter(|failures| !(is_usual && failures.of == Subject::Account))
        .filter_map(|failures| {
            let free = match failures.of {
                Subject::Account => PATIENCE.account,
                Subject::Guess => PATIENCE.guess,
                Subject::Address => ADDRESS_FREE_FAILURES,
            };
            let doublings = u32::try_from(failures.count - free).ok()?.min(20);
            let wait = Duration::seconds((1_i64 << doublings).min(PATIENCE.slowest_seconds));
            let left = failures.last + wait - now;
            // Whole seconds, rounded up: a client that waits as told is not told again.
            left.is_positive()
                .then(|| u64::try_from(left.whole_seconds()).unwrap_or(0) + 1)
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_slow_down_by_doubling_and_are_forgotten() {
        let now = OffsetDateTime::now_utc();
        let after = |count, seconds| {
            let last = now - Duration::seconds(seconds);
            let of = Subject::Guess;
            slow_down(&[Failures { of, count, last }], false, now)
        };
        assert_eq!(after(4, 0), None);
        assert_eq!(after(5, 0), Some(2));
        assert_eq!(after(8, 0), Some(9));
        assert_eq!(after(1_000, 0), Some(901));
        assert_eq!(after(5, 2), None);
        for (of, free, usual) in [
            (Subject::Address, ADDRESS_FREE_FAILURES, Some(2)),
            (Subject::Account, PATIENCE.account, None),
        ] {
            let failed = |count| Failures { of, count, last: now };
            assert_eq!(slow_down(&[failed(free - 1)], false, now), None);
            assert_eq!(slow_down(&[failed(free)], false, now), Some(2));
            assert_eq!(
                slow_down(&[failed(free)], true, now),
                usual,
                "from where one is at home"
            );
        }
    }

    #[test]
    fn an_address_is_a_host() {
        assert_eq!(network("203.0.113.7"), "203.0.113.7");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
    }
}
