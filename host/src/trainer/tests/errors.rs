use super::*;

fn error(config: &TrainConfig, training: &Samples, validation: Option<&Samples>) -> TrainError {
    run(config, training, validation).unwrap_err()
}

fn good() -> Samples {
    Samples::separable(20, 6, 2, 1)
}

#[test]
fn bad_data_sets_are_refused() {
    let config = small_config();
    let split = Split::Training;
    let empty = Samples::new(6, &[], &[]);
    assert_eq!(error(&config, &empty, None), TrainError::Empty { split });
    assert_eq!(
        error(&config, &good(), Some(&empty)),
        TrainError::Empty { split: Split::Validation }
    );
    let flat = Samples::new(0, &[], &[0, 1, 0]);
    assert_eq!(error(&config, &flat, None), TrainError::NoFeatures { split });

    let mut samples = good();
    samples.labels.pop();
    assert_eq!(
        error(&config, &samples, None),
        TrainError::LabelCount { split, rows: 20, labels: 19 }
    );
    let mut samples = good();
    samples.labels[7] = 2;
    let found = error(&config, &samples, None);
    assert_eq!(
        found.to_string(),
        "the label of row 7 of the training set is 2, but with 2 classes labels go from 0 to 1"
    );
    let other = Samples::separable(20, 5, 2, 1);
    assert_eq!(
        error(&config, &good(), Some(&other)),
        TrainError::DimensionMismatch { split: Split::Validation, expected: 6, found: 5 }
    );
}

#[test]
fn features_that_are_not_finite_are_named() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut samples = good();
        samples.features.values[6 * 13 + 2] = bad;
        let [training, validation] = [Split::Training, Split::Validation]
            .map(|split| TrainError::NonFiniteFeature { split, row: 13 });
        assert_eq!(error(&small_config(), &samples, None), training);
        assert_eq!(error(&small_config(), &good(), Some(&samples)), validation);
    }
}

#[test]
fn bad_configurations_are_refused() {
    let adam = |lr, beta1, beta2, epsilon| Optimizer::Adam { lr, beta1, beta2, epsilon };
    let rms_prop = |rho, epsilon, momentum| Optimizer::RmsProp { lr: 0.1, rho, epsilon, momentum };
    let sgd = |lr, momentum| Optimizer::Sgd { lr, momentum };
    let with = |optimizer| TrainConfig { optimizer, ..small_config() };
    #[rustfmt::skip]
    let cases = [
        (TrainConfig { classes: 1, ..small_config() }, "classes"),
        (TrainConfig { epochs: 0, ..small_config() }, "epochs"),
        (TrainConfig { batch_size: 0, ..small_config() }, "batch_size"),
        (TrainConfig { dropout: 1.0, ..small_config() }, "dropout"),
        (TrainConfig { dropout: -0.1, ..small_config() }, "dropout"),
        (TrainConfig { dropout: f32::NAN, ..small_config() }, "dropout"),
        (TrainConfig { units: vec![8, 0], ..small_config() }, "units"),
        (TrainConfig { batch_norm: true, batch_size: 1, ..small_config() }, "batch_size"),
        (TrainConfig { l2: -0.1, ..small_config() }, "l2"),
        (TrainConfig { l2: f64::NAN, ..small_config() }, "l2"),
        (TrainConfig { label_smoothing: 1.0, ..small_config() }, "label_smoothing"),
        (TrainConfig { class_weights: vec![1.0], ..small_config() }, "class_weights"),
        (TrainConfig { class_weights: vec![1.0, -1.0], ..small_config() }, "class_weights"),
        (TrainConfig { schedule: Schedule::Step { epochs: 0 }, ..small_config() }, "schedule.epochs"),
        (TrainConfig { schedule: Schedule::Plateau { patience: 0 }, ..small_config() }, "schedule.patience"),
        (with(Optimizer::rms_prop(0.0)), "optimizer.lr"),
        (with(Optimizer::adam(-1.0)), "optimizer.lr"),
        (with(Optimizer::sgd(f64::NAN)), "optimizer.lr"),
        (with(Optimizer::sgd(1e300)), "optimizer.lr"),
        (with(rms_prop(1.0, 1e-7, 0.0)), "optimizer.rho"),
        (with(rms_prop(0.9, 1e-60, 0.0)), "optimizer.epsilon"),
        (with(rms_prop(0.9, 1e-7, -1.0)), "optimizer.momentum"),
        (with(adam(0.1, 1.0, 0.9, 1e-7)), "optimizer.beta1"),
        (with(adam(0.1, 0.9, 0.999_999_999_9, 1e-7)), "optimizer.beta2"),
        (with(adam(0.1, 0.9, 0.9, 0.0)), "optimizer.epsilon"),
        (with(sgd(0.1, 1.0)), "optimizer.momentum"),
    ];
    for (config, expected) in cases {
        match error(&config, &good(), None) {
            TrainError::InvalidConfig { field, .. } => assert_eq!(field, expected),
            other => panic!("{expected}: {other}"),
        }
    }
    assert_eq!(
        TrainConfig { classes: 1, ..small_config() }.validate().unwrap_err().to_string(),
        "`classes` must be at least 2, but is 1"
    );
    assert_eq!(TrainConfig::default().validate(), Ok(()));
}

#[test]
fn absurd_widths_are_refused() {
    let config = TrainConfig { units: vec![usize::MAX / 3], ..small_config() };
    let found = error(&config, &good(), None);
    assert!(matches!(found, TrainError::TooManyWeights { inputs: 6, .. }), "{found}");
}

#[test]
fn divergence_names_epoch_and_batch() {
    let config = TrainConfig { optimizer: Optimizer::sgd(1e30), ..small_config() };
    let found = error(&config, &good(), None);
    assert!(matches!(found, TrainError::NonFiniteLoss { epoch: 1, batch: 2 | 3, .. }), "{found:?}");
    let message = found.to_string();
    assert!(message.contains("not finite in epoch 1, batch"), "{message}");
    assert!(message.contains("lower learning rate"), "{message}");
}

#[test]
fn divergence_in_the_last_step_shows() {
    // One step an epoch: its loss is still that of the initial weights.
    let mut samples = good();
    samples.features.values.iter_mut().for_each(|v| *v *= 1e10);
    let config = TrainConfig {
        units: vec![],
        dropout: 0.0,
        batch_size: 20,
        epochs: 1,
        optimizer: Optimizer::sgd(1e38),
        ..small_config()
    };
    let found = error(&config, &samples, None);
    assert!(matches!(found, TrainError::NonFiniteWeights { epoch: 1, .. }), "{found:?}");
}
