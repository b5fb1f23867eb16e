//! Rates over time that the tests make up.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn bucket(size: u64, one_time_burst: u64, refill_time: u64) -> config::TokenBucket {
    config::TokenBucket { size, one_time_burst: Some(one_time_burst), refill_time }
}

fn limiter(bandwidth: Option<config::TokenBucket>, ops: Option<config::TokenBucket>, now: Instant) -> RateLimiter {
    let mut limiter = RateLimiter::default();
    limiter.update(&config::RateLimiter { bandwidth, ops }, now);
    limiter
}

/// Takes items of one size as early as they go, and returns how many until `end`.
fn run(limiter: &mut RateLimiter, bytes: u64, start: Instant, end: Instant) -> u64 {
    let (mut now, mut items) = (start, 0);
    while now <= end {
        match limiter.take(bytes, 1, now) {
            Ok(()) => items += 1,
            Err(at) => {
                assert!(at > now, "a time to try again is in the future");
                now = at;
            }
        }
    }
    items
}

#[test]
fn what_is_not_limited_never_waits() {
    let now = Instant::now();
    for config in [None, Some(bucket(0, 0, 100)), Some(bucket(100, 0, 0))] {
        let mut free = limiter(config, None, now);
        assert!(!free.is_limited());
        assert_eq!(free.take(u64::MAX, u64::MAX, now), Ok(()));
    }
}

#[test]
fn rates_are_exact_over_a_long_time() {
    // 7 tokens in 3 ms, polled far more often than a token takes: a limiter that rounds at each poll gives none.
    let start = Instant::now();
    let mut exact = limiter(Some(bucket(7, 0, 3)), None, start);
    assert_eq!(exact.take(7, 1, start), Ok(()));
    let mut got = 0;
    for step in 1..=3_000_000u64 {
        let now = start + Duration::from_nanos(step * 100);
        while exact.take(1, 1, now).is_ok() {
            got += 1;
        }
    }
    assert_eq!(got, 300 * 7 / 3);
}

#[test]
fn nothing_is_saved_beyond_the_size() {
    let start = Instant::now();
    let mut full = limiter(Some(bucket(1000, 0, 10)), None, start);
    let later = start + Duration::from_secs(3600);
    assert_eq!(run(&mut full, 100, later, later), 10);
}

#[test]
fn the_burst_comes_first_and_once() {
    let start = Instant::now();
    let mut limited = limiter(Some(bucket(100, 1000, 1000)), None, start);
    assert_eq!(run(&mut limited, 100, start, start), 11);
    assert_eq!(run(&mut limited, 100, start + Duration::from_secs(100), start + Duration::from_secs(100)), 1);
}

#[test]
fn an_item_larger_than_the_bucket_goes_and_is_paid_for() {
    let start = Instant::now();
    let mut limited = limiter(Some(bucket(100, 0, 1000)), None, start);
    assert_eq!(limited.take(1000, 1, start), Ok(()));
    // 900 owed and 1 wanted, 10 ms each.
    assert_eq!(limited.take(1, 1, start), Err(start + Duration::from_millis(9010)));
    assert_eq!(limited.take(1000, 1, start), Err(start + Duration::from_secs(10)));
    assert_eq!(limited.take(1000, 1, start + Duration::from_secs(10)), Ok(()));
}

#[test]
fn both_limits_count_and_a_refusal_takes_nothing() {
    let start = Instant::now();
    let mut limited = limiter(Some(bucket(1000, 0, 1000)), Some(bucket(2, 0, 1000)), start);
    assert_eq!(limited.take(10, 1, start), Ok(()));
    assert_eq!(limited.take(10, 1, start), Ok(()));
    assert_eq!(limited.take(10, 1, start), Err(start + Duration::from_millis(500)), "operations");
    let now = start + Duration::from_millis(500);
    assert!(limited.take(1000, 1, now).is_ok(), "refusals cost bytes");
    assert_eq!(limited.take(500, 0, now), Err(now + Duration::from_millis(500)), "bytes");
}

#[test]
fn an_update_changes_what_it_has() {
    let start = Instant::now();
    let mut limited = limiter(Some(bucket(1, 0, 1000)), Some(bucket(1, 0, 1000)), start);
    assert_eq!(limited.take(1, 1, start), Ok(()));
    limited.update(&config::RateLimiter { bandwidth: Some(bucket(0, 0, 0)), ops: None }, start);
    assert!(limited.take(1, 1, start).is_err(), "operations stay limited");
    limited.update(&config::RateLimiter { bandwidth: None, ops: Some(bucket(5, 0, 1000)) }, start);
    assert_eq!(run(&mut limited, 1000, start, start), 5);
}

#[test]
fn a_gate_stays_shut_until_the_limits_change() {
    let config = config::RateLimiter { bandwidth: None, ops: Some(bucket(1, 0, 86_400_000)) };
    let shared = SharedLimiter::new(Some(&config)).unwrap();
    let counters = Arc::<Counters>::default();
    let mut gate = Gate::new(Arc::clone(&shared), Arc::clone(&counters));
    assert!(gate.admit(1, 1));
    assert!(!gate.admit(1, 1) && !gate.admit(1, 1));
    assert_eq!(counters.throttled.get(), 1, "a wait counts once");
    assert!(gate.deadline().is_some());
    shared.update(&config::RateLimiter { bandwidth: None, ops: Some(bucket(0, 0, 0)) });
    assert!(gate.is_shut());
    gate.retry();
    assert!(gate.admit(1, 1) && gate.deadline().is_none());
}

proptest! {
    /// Over any time, what goes through is at most a bucket, a burst and an item more than the rate gives, and at least the rate's.
    #[test]
    fn throughput_is_the_rate(
        size in 1u64..1 << 40, refill_ms in 1u64..100_000, burst in 0u64..1 << 40, share in 1u64..200, refills in 1u64..20,
    ) {
        let start = Instant::now();
        let item = (size.saturating_mul(share) / 100).max(1);
        let end = start + Duration::from_millis(refill_ms * refills);
        let mut limited = limiter(Some(bucket(size, 0, refill_ms)), None, start);
        limited.take(0, 0, start).unwrap();
        let bytes = u128::from(run(&mut limited, item, start, end)) * u128::from(item);
        let earned = u128::from(size) * u128::from(refills + 1);
        prop_assert!(bytes <= earned + u128::from(item), "{bytes} > {earned}");
        prop_assert!(bytes + 2 * u128::from(item) >= earned, "{bytes} < {earned}");
        let mut with_burst = limiter(Some(bucket(size, burst, refill_ms)), None, start);
        let more = u128::from(run(&mut with_burst, item, start, end)) * u128::from(item);
        prop_assert!(more + u128::from(item) >= bytes && more <= bytes + u128::from(burst) + 2 * u128::from(item));
    }

    #[test]
    fn extremes_do_not_overflow(
        size in any::<u64>(), burst in any::<u64>(), refill_ms in any::<u64>(), items in prop::collection::vec(any::<(u64, u64)>(), 1..20),
    ) {
        let mut now = Instant::now();
        let mut limited = limiter(Some(bucket(size, burst, refill_ms)), Some(bucket(size, burst, refill_ms)), now);
        for (count, ns) in items {
            let _ = limited.take(count, count, now);
            now += Duration::from_nanos(ns >> 8);
        }
    }
}
