use super::*;

fn optimizers() -> impl Strategy<Value = Optimizer> {
    prop_oneof![
        Just(Optimizer::rms_prop(0.005)),
        Just(Optimizer::adam(0.01)),
        Just(Optimizer::sgd(0.1)),
        Just(Optimizer::Sgd { lr: 0.02, momentum: 0.9 }),
    ]
}

fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// On separable data the loss goes down and most samples come out right.
    #[test]
    fn learns_what_can_be_separated(
        optimizer in optimizers(),
        classes in 2_usize..5,
        units in prop_oneof![Just(0_usize), 4_usize..20],
        dropout in 0.0_f32..0.4,
        seed: u64,
    ) {
        let training = Samples::separable(90, 20, classes, 1);
        let validation = Samples::separable(40, 20, classes, 2);
        // A hidden layer as narrow as the classes are many may lose one of them.
        let units = if units == 0 { vec![] } else { vec![units + 2 * classes] };
        let config = TrainConfig {
            units, dropout, classes, optimizer, epochs: 40, batch_size: 16, seed,
            ..TrainConfig::default()
        };
        let head = run(&config, &training, Some(&validation)).unwrap();
        let (first, last) = (head.history[0], head.history[39]);
        prop_assert!(last.loss < 0.7 * first.loss, "{} to {}", first.loss, last.loss);
        let best = head.history[head.best_epoch - 1];
        prop_assert!(best.val_accuracy.unwrap() > 0.9, "{best:?}");
    }

    /// The same seed gives the same bits, another seed others, and the shapes are right for every
    /// size of the last batch.
    #[test]
    fn repeats_itself(
        rows in 1_usize..40,
        dim in 1_usize..20,
        units in prop::collection::vec(1_usize..20, 0..4),
        batch_norm: bool,
        classes in 2_usize..5,
        batch_size in 2_usize..50,
        optimizer in optimizers(),
        dropout in 0.0_f32..0.9,
        seed: u64,
    ) {
        let training = Samples::separable(rows, dim, classes, 1);
        let config = TrainConfig {
            units: units.clone(), batch_norm, dropout, classes, optimizer, batch_size, seed, epochs: 2,
            ..TrainConfig::default()
        };
        let head = run(&config, &training, Some(&training)).unwrap();
        let again = run(&config, &training, Some(&training)).unwrap();
        prop_assert_eq!(bits(&head), bits(&again));
        prop_assert_eq!(&head.history, &again.history);
        let other = run(&TrainConfig { seed: !seed, ..config }, &training, None).unwrap();
        prop_assert_ne!(bits(&head), bits(&other));

        let outputs = if classes == 2 { 1 } else { classes };
        let widths: Vec<_> = head.layers.iter().map(|l| (l.inputs, l.outputs)).collect();
        let ends: Vec<_> = [dim].into_iter().chain(units).chain([outputs]).collect();
        let expected: Vec<_> = ends.windows(2).map(|pair| (pair[0], pair[1])).collect();
        prop_assert_eq!(widths, expected);
        for layer in &head.layers {
            prop_assert_eq!(layer.kernel.len(), layer.inputs * layer.outputs);
            prop_assert_eq!(layer.bias.len(), layer.outputs);
        }
    }

    /// The weights returned are those of the epoch that the history shows to be the best.
    #[test]
    fn keeps_the_best_epoch(optimizer in optimizers(), seed: u64, with_validation: bool) {
        let training = Samples::separable(40, 5, 3, 1);
        let validation = Samples::separable(300, 5, 3, 2);
        let config = TrainConfig { optimizer, seed, classes: 3, epochs: 12, ..small_config() };
        let head = run(&config, &training, with_validation.then_some(&validation)).unwrap();
        let key = |stats: &EpochStats| match stats.val_accuracy {
            Some(accuracy) => (-accuracy, stats.val_loss.unwrap()),
            None => (0.0, stats.loss),
        };
        let best = &head.history[head.best_epoch - 1];
        for stats in &head.history {
            let better = key(stats) < key(best);
            let equal_and_earlier = key(stats) == key(best) && stats.epoch < best.epoch;
            prop_assert!(!better && !equal_and_earlier, "{stats:?} against {best:?}");
        }
        if with_validation {
            let measured = head.evaluate(&validation.dataset()).unwrap().unwrap();
            prop_assert_eq!(Some(measured.loss), best.val_loss);
            prop_assert_eq!(Some(measured.accuracy), best.val_accuracy);
        }
    }
}

/// Large enough for all parallel parts: the matrix products, the optimizer's pieces.
#[test]
fn threads_make_no_difference() {
    let training = Samples::separable(130, 700, 3, 1);
    let validation = Samples::separable(300, 700, 3, 2);
    for optimizer in [Optimizer::rms_prop(0.001), Optimizer::adam(0.001), Optimizer::sgd(0.01)] {
        let config = TrainConfig {
            units: vec![200, 40],
            batch_norm: optimizer == Optimizer::rms_prop(0.001),
            classes: 3,
            optimizer,
            epochs: 2,
            batch_size: 60,
            ..TrainConfig::default()
        };
        let train = |threads| {
            let head = in_pool(threads, || run(&config, &training, Some(&validation)));
            let head = head.unwrap();
            (bits(&head), head.history)
        };
        let alone = train(1);
        for threads in [2, 3, 7] {
            assert!(train(threads) == alone, "{optimizer:?} with {threads} threads");
        }
    }
}

/// Other training in the same process must not disturb, as a global generator would.
#[test]
fn concurrent_training_makes_no_difference() {
    let training = Samples::separable(60, 30, 2, 1);
    let train = |seed| {
        let config = TrainConfig { seed, ..small_config() };
        bits(&run(&config, &training, None).unwrap())
    };
    let alone: Vec<_> = (0..4).map(train).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let train = &train;
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || train(seed))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

/// Without shuffling, a batch larger than the data set is the data set.
#[test]
fn batches_may_be_larger_than_the_data() {
    let training = Samples::separable(13, 6, 2, 1);
    let train = |batch_size| {
        let config = TrainConfig { batch_size, shuffle: false, ..small_config() };
        bits(&run(&config, &training, None).unwrap())
    };
    assert_eq!(train(13), train(1000));
    assert_ne!(train(13), train(12));
}

/// A source that counts how often each row is gathered.
struct Counting<'a> {
    inner: &'a Matrix,
    seen: std::sync::Mutex<Vec<Vec<usize>>>,
}

impl FeatureSource for Counting<'_> {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn gather(&self, rows: &[usize], out: &mut [f32]) -> std::io::Result<()> {
        self.seen.lock().unwrap().push(rows.to_vec());
        self.inner.gather(rows, out)
    }
}

#[test]
fn every_epoch_takes_every_sample_once() {
    let samples = Samples::separable(21, 6, 2, 1);
    let source = Counting { inner: &samples.features, seen: std::sync::Mutex::default() };
    let data = Dataset { features: &source, labels: &samples.labels };
    let mut orders = Vec::new();
    let mut hear = |progress: &Progress| {
        if progress.at.stats().is_none() {
            return ControlFlow::Continue(());
        }
        let batches = std::mem::take(&mut *source.seen.lock().unwrap());
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 5]);
        orders.push(batches.concat());
        ControlFlow::Continue(())
    };
    train(&small_config(), &data, None, None, &mut hear).unwrap();
    for (i, order) in orders.iter().enumerate() {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..21).collect::<Vec<_>>());
        assert!(!orders[..i].contains(order), "the order repeats");
    }
}

#[test]
fn the_callback_sees_and_stops() {
    let training = Samples::separable(30, 6, 2, 1);
    let (mut seen, mut batches) = (Vec::new(), Vec::new());
    let config = TrainConfig { epochs: 4, ..small_config() };
    let mut run = |stop: usize| {
        seen.clear();
        batches.clear();
        train(&config, &training.dataset(), None, None, &mut |progress| {
            match progress.at {
                Moment::Batch { epoch, done } => batches.push((epoch, done)),
                Moment::Epoch { stats, last } => {
                    assert_eq!(last, stats.epoch == 4);
                    seen.push(*stats);
                }
            }
            if batches.len() + seen.len() == stop {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .map(|head| (head, seen.clone(), batches.clone()))
    };
    // 30 samples in batches of 8: three moments between batches and one after the epoch.
    assert_eq!(run(2), Err(TrainError::Stopped));
    for stop in [12, 14] {
        let (head, seen, batches) = run(stop).unwrap();
        assert_eq!(seen.iter().map(|s| s.epoch).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(head.history, seen);
        assert_eq!(batches[..4], [(1, 1), (1, 2), (1, 3), (2, 1)]);
        assert_eq!(batches.len() + 3, stop);
    }
    let (head, seen, _) = run(usize::MAX).unwrap();
    assert_eq!((&head.history, seen.len()), (&seen, 4));
    assert!(seen.iter().all(|s| s.val_loss.is_none() && s.val_accuracy.is_none()));
}

#[test]
fn patience_stops_after_epochs_without_improvement() {
    let training = Samples::separable(40, 6, 2, 1);
    for (patience, limit) in [(0, 1), (1, 1), (4, 4)] {
        let config = TrainConfig { patience: Some(patience), epochs: 500, ..small_config() };
        let head = run(&config, &training, None).unwrap();
        assert!(head.history.len() < 500);
        assert_eq!(head.history.len(), head.best_epoch + limit);
    }
}

/// Dropout is active in training only: with most of the values dropped the training loss is worse
/// than that of the very same weights without dropout.
#[test]
fn dropout_acts_only_while_training() {
    let training = Samples::separable(200, 12, 2, 1);
    for units in [vec![], vec![16], vec![16, 12]] {
        let config = TrainConfig { units, dropout: 0.8, epochs: 30, ..small_config() };
        let head = run(&config, &training, Some(&training)).unwrap();
        let last = head.history[29];
        assert!(last.val_loss.unwrap() < 0.7 * last.loss, "{last:?}");
    }
}

/// A training that goes on from a state that was written and read comes to the same bits and history as one that was never away.
#[test]
fn going_on_changes_no_bit() {
    let training = Samples::separable(50, 9, 3, 1);
    let validation = Samples::separable(20, 9, 3, 2);
    let schedules = [
        Schedule::Constant,
        Schedule::Cosine,
        Schedule::Step { epochs: 2 },
        Schedule::Plateau { patience: 1 },
    ];
    let optimizers = [
        Optimizer::adam(0.01),
        Optimizer::rms_prop(0.005),
        Optimizer::Sgd { lr: 0.05, momentum: 0.9 },
    ];
    for ((schedule, optimizer), batch_norm) in schedules
        .into_iter()
        .zip(optimizers.into_iter().cycle())
        .zip([false, true].into_iter().cycle())
    {
        let config = TrainConfig {
            units: vec![8, 6],
            classes: 3,
            epochs: 12,
            patience: Some(5),
            l2: 0.001,
            schedule,
            optimizer,
            batch_norm,
            ..small_config()
        };
        let data = (training.dataset(), validation.dataset());
        let whole = run(&config, &training, Some(&validation)).unwrap();
        // After whole epochs, and between batches of the one that follows, the first among them.
        for (away_after, batches) in
            [(1, 0), (4, 0), (whole.history.len(), 0), (0, 2), (3, 1), (4, 6)]
        {
            let mut left = None;
            let stopped = train(&config, &data.0, Some(&data.1), None, &mut |progress| {
                let here = match progress.at {
                    Moment::Batch { epoch, done } => (epoch - 1, done),
                    Moment::Epoch { stats, .. } => (stats.epoch, 0),
                };
                if here != (away_after, batches) {
                    return ControlFlow::Continue(());
                }
                left = Some(postcard::to_stdvec(&progress.state().unwrap()).unwrap());
                ControlFlow::Break(())
            });
            assert_eq!(stopped.is_err(), away_after == 0);
            let state: State = postcard::from_bytes(&left.unwrap()).unwrap();
            assert_eq!(state.epochs(), away_after);
            let mut again = Vec::new();
            let resumed = train(&config, &data.0, Some(&data.1), Some(state), &mut |progress| {
                again.extend(progress.at.stats().map(|stats| stats.epoch));
                ControlFlow::Continue(())
            })
            .unwrap();
            assert_eq!(again, (away_after + 1..=whole.history.len()).collect::<Vec<_>>());
            assert!(bits(&resumed) == bits(&whole), "{schedule:?}, {optimizer:?}");
            assert_eq!(resumed, whole);
        }
    }
}

/// A state of another network or of other data is refused, not run into.
#[test]
fn states_that_do_not_fit_are_refused() {
    let training = Samples::separable(30, 9, 3, 1);
    let config = TrainConfig { classes: 3, ..small_config() };
    let mut state = None;
    train(&config, &training.dataset(), None, None, &mut |progress| {
        state = Some(progress.state().unwrap());
        if progress.at.stats().is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .unwrap();
    let state = state.unwrap();
    let fewer = Samples::separable(29, 9, 3, 1);
    let beyond =
        State { part: Some(state::Part { batches: 4, ..Default::default() }), ..state.clone() };
    let refused =
        train(&config, &training.dataset(), None, Some(beyond), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(TrainError::WrongState { .. })));
    let other =
        |config: &TrainConfig, data: &Samples| {
            train(config, &data.dataset(), None, Some(state.clone()), &mut |_| {
                ControlFlow::Continue(())
            })
            .map(drop)
        };
    for (config, data) in [
        (TrainConfig { units: vec![9], ..config.clone() }, &training),
        (TrainConfig { batch_norm: true, ..config.clone() }, &training),
        (TrainConfig { optimizer: Optimizer::adam(0.1), ..config.clone() }, &training),
        (config.clone(), &fewer),
    ] {
        assert!(matches!(other(&config, data), Err(TrainError::WrongState { .. })), "{config:?}");
    }
    assert_eq!(other(&config, &training), Ok(()));
}

#[test]
fn the_last_epoch_is_kept_if_asked_for() {
    let training = Samples::separable(40, 6, 2, 1);
    let config = TrainConfig { keep_last: true, optimizer: Optimizer::sgd(0.5), ..small_config() };
    let head = run(&config, &training, Some(&training)).unwrap();
    assert_eq!(head.best_epoch, head.history.len());
}

/// A class that weighs nothing has no part in training: its samples might as well be others.
#[test]
fn weightless_classes_have_no_say() {
    let training = Samples::separable(40, 6, 3, 1);
    let config = TrainConfig {
        classes: 3,
        class_weights: vec![1.0, 1.0, 0.0],
        dropout: 0.0,
        ..small_config()
    };
    let mut changed = Samples::separable(40, 6, 3, 1);
    for (row, &label) in training.labels.iter().enumerate() {
        if label == 2 {
            changed.features.values[row * 6..][..6].fill(0.25);
        }
    }
    let train =
        |config: &TrainConfig, samples: &Samples| bits(&run(config, samples, None).unwrap());
    assert_eq!(train(&config, &training), train(&config, &changed));
    let even = TrainConfig { class_weights: vec![], ..config };
    assert_ne!(train(&even, &training), train(&even, &changed));
}
