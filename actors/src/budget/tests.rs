use super::*;

fn budget(limit: u64) -> Arc<Budget> {
    Arc::new(Budget::new(limit))
}

#[test]
fn bytes_are_the_sum_of_open_accounts() {
    let budget = budget(1000);
    let (a, b) = (budget.open_account(), budget.open_account());
    a.set_bytes(300);
    b.set_bytes(500);
    a.set_bytes(100);
    assert_eq!((budget.bytes(), budget.is_exceeded()), (600, false));
    b.close();
    b.set_bytes(700);
    b.close();
    assert_eq!(budget.bytes(), 100);
}

#[test]
fn one_that_starts_counts_as_an_average_one() {
    let budget = budget(1000);
    budget.open_account().set_bytes(100);
    budget.open_account().set_bytes(300);
    let starting: Vec<_> = (0..10).map(|_| budget.open_account()).collect();
    assert_eq!(budget.bytes(), 400 + 10 * 200);
    starting.iter().for_each(Meter::close);
    assert_eq!(budget.bytes(), 400);
}

#[test]
fn what_is_leaving_is_not_asked_to_leave_again() {
    let budget = budget(1000);
    let (a, b) = (budget.open_account(), budget.open_account());
    a.set_bytes(600);
    b.set_bytes(600);
    assert_eq!(budget.excess(), 300);
    assert_eq!(a.leave(), 600);
    assert_eq!((budget.excess(), budget.is_exceeded()), (0, true));
    a.close();
    assert_eq!((budget.bytes(), budget.is_exceeded()), (600, false));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_room_ends_with_the_release_or_with_nothing_to_wait_for() {
    let budget = budget(1000);
    let (a, b) = (budget.open_account(), budget.open_account());
    a.set_bytes(2000);
    let start = tokio::time::Instant::now();
    budget.settled(Duration::from_secs(1)).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    a.leave();
    let other = budget.clone();
    let waiting = tokio::spawn(async move { other.settled(Duration::from_secs(1)).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!waiting.is_finished());
    a.close();
    waiting.await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(10));
    b.set_bytes(2000);
    b.leave();
    budget.settled(Duration::from_secs(1)).await;
    assert_eq!(start.elapsed(), Duration::from_millis(1010));
}

/// Pops everything last used before or at `until_ms`, with `used_ms[item]` as the truth.
fn pop_all(recency: &mut Recency<usize>, until_ms: u64, used_ms: &[Option<u64>]) -> Vec<usize> {
    let end = recency.end(until_ms);
    let mut looks = usize::MAX;
    std::iter::from_fn(|| recency.pop(end, &mut looks, |item| used_ms[*item])).collect()
}

#[test]
fn the_least_recently_used_comes_first_though_uses_are_not_noted() {
    let mut recency = Recency::new();
    for item in 0..5 {
        recency.insert(10, item);
    }
    let used_ms = [Some(40), Some(10), Some(30), None, Some(20)];
    assert_eq!(pop_all(&mut recency, 35, &used_ms), [1, 4, 2]);
    assert_eq!(pop_all(&mut recency, 40, &used_ms), [0]);
    assert!(pop_all(&mut recency, u64::MAX, &used_ms).is_empty());
}

#[test]
fn items_in_use_are_looked_at_once_a_sweep() {
    let mut recency = Recency::new();
    for item in 0..3 {
        recency.insert(50, item);
    }
    // All are in use now: each goes to the end, behind the sweep's.
    let end = recency.end(50);
    let mut looks = 100;
    while let Some(item) = recency.pop(end, &mut looks, |_| Some(50)) {
        recency.insert(50, item);
    }
    assert_eq!(looks, 97);
    assert_eq!(pop_all(&mut recency, 50, &[Some(50); 3]), [0, 1, 2]);
}

#[test]
fn a_sweep_stops_after_its_looks() {
    let mut recency = Recency::new();
    for item in 0..10_usize {
        recency.insert(0, item);
    }
    let mut looks = 4;
    assert_eq!(recency.pop(recency.end(5), &mut looks, |_| Some(9)), None);
    assert_eq!(looks, 0);
}
