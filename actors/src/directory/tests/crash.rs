//! Crashes and failed starts.

use super::{super::activation::CRASHES_FREE, *};

#[tokio::test(start_paused = true)]
async fn a_crash_in_a_burst_frees_the_key_and_spares_the_others() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    append(&directory, "b", 1).await.unwrap();
    let calls: Vec<_> = (0..40)
        .map(|number| {
            let directory = directory.clone();
            tokio::spawn(async move {
                if number == 20 {
                    let scribe = get(&directory, "a").await.unwrap();
                    return scribe.call(ScribeMessage::Panic).await.map(|()| 0);
                }
                append(&directory, "a", number).await
            })
        })
        .collect();
    let mut acknowledged = Vec::new();
    for (number, call) in (0..).zip(calls) {
        match call.await.unwrap() {
            Ok(_) => acknowledged.push(number),
            Err(CallError::Crashed) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(acknowledged.len() >= 20, "{acknowledged:?}");
    append(&directory, "a", 100).await.unwrap();
    acknowledged.push(100);
    let log = disk.log("a");
    assert!(acknowledged.iter().all(|number| log.iter().filter(|line| *line == number).count() == 1));
    assert_eq!(append(&directory, "b", 2).await.unwrap(), 2);
    assert_eq!(disk.starts("b"), 1);
    let stats = directory.stats();
    assert_eq!((stats.crashed, stats.active, stats.bytes, stats.backlog), (1, 2, 2000, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_after_a_crash_meets_a_new_actor_at_once() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    let scribe = get(&directory, "a").await.unwrap();
    assert!(matches!(scribe.call(ScribeMessage::Panic).await, Err(CallError::Crashed)));
    append(&directory, "a", 1).await.unwrap();
    // Old handles stay harmless.
    assert!(matches!(scribe.call(ScribeMessage::Stall).await, Err(CallError::Crashed)));
    drop(scribe);
    assert_eq!((disk.log("a"), directory.stats().active), (vec![1], 1));
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_ends_by_itself_is_replaced_though_it_is_leased() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    let scribe = get(&directory, "a").await.unwrap();
    assert!(matches!(scribe.call(ScribeMessage::End).await, Err(CallError::Crashed)));
    append(&directory, "a", 1).await.unwrap();
    assert_eq!((disk.starts("a"), directory.stats().crashed), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_ends_as_it_starts_does_not_block_its_key() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    disk.next_starts(Start::EndsAtOnce);
    let first = append(&directory, "a", 1).await;
    assert!(first.is_err(), "{first:?}");
    disk.next_starts(Start::Works);
    tokio::time::sleep(Duration::from_secs(1)).await;
    append(&directory, "a", 2).await.unwrap();
    assert_eq!(disk.log("a"), [2]);
}

#[tokio::test(start_paused = true)]
async fn repeated_crashes_delay_the_next_start_of_that_key_only() {
    let (directory, _) = directory(ClassConfig::default()).await;
    for _ in 0..CRASHES_FREE {
        let scribe = get(&directory, "a").await.unwrap();
        assert!(matches!(scribe.call(ScribeMessage::Panic).await, Err(CallError::Crashed)));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    let refused = append(&directory, "a", 1).await;
    let Err(CallError::Activate(ActivateError::BackingOff { retry_after })) = refused else {
        panic!("{refused:?}");
    };
    append(&directory, "b", 1).await.unwrap();
    tokio::time::sleep(retry_after).await;
    append(&directory, "a", 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_told_to_all_who_wait_and_tried_again_by_the_next() {
    for (start, reason) in [(Start::Fails, "disk is full"), (Start::Panics, "asked to")] {
        let (directory, disk) = directory(ClassConfig::default()).await;
        disk.next_starts(start);
        let calls: Vec<_> = (0..10)
            .map(|number| {
                let directory = directory.clone();
                tokio::spawn(async move { append(&directory, "a", number).await })
            })
            .collect();
        for call in calls {
            let result = call.await.unwrap();
            let Err(CallError::Activate(ActivateError::Failed(error))) = result else { panic!("{result:?}") };
            assert!(error.contains(reason), "{error}");
        }
        assert_eq!((disk.starts("a"), directory.stats().active, directory.stats().bytes), (1, 0, 0));
        disk.next_starts(Start::Works);
        append(&directory, "a", 1).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_hangs_is_an_error_and_may_be_tried_again() {
    let (directory, disk) = directory(ClassConfig::default()).await;
    disk.next_starts(Start::Hangs);
    assert!(matches!(get(&directory, "a").await, Err(ActivateError::Late)));
    disk.next_starts(Start::Works);
    append(&directory, "a", 1).await.unwrap();
}
