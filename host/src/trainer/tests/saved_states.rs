//! States that an earlier version of the trainer wrote: the order of their fields is the format of
//! checkpoints.

use quant::FloatLayer;
use vgg_edge::head::Pool;

use super::*;

/// Samples like those of the states: 10 of 3 classes.
fn samples(dim: usize) -> Samples {
    Samples::separable(10, dim, 3, 1)
}

#[test]
fn saved_head_state_is_read_and_resumed() {
    let bytes = include_bytes!("head.state");
    let state: HeadState = postcard::from_bytes(bytes).unwrap();
    assert!(postcard::to_stdvec(&state).unwrap() == bytes);
    assert_eq!(state.epochs(), 1);
    assert_eq!(state.partial.unwrap().batches, 1);

    let config = TrainConfig {
        units: vec![4, 2],
        batch_norm: true,
        classes: 3,
        epochs: 3,
        batch_size: 4,
        optimizer: Optimizer::adam(0.01),
        schedule: Schedule::Plateau { patience: 1 },
        ..TrainConfig::default()
    };
    let (samples, on_event) = (samples(3), &mut |_: &Progress<_>| ControlFlow::Continue(()));
    let head = train(&config, &samples.dataset(), None, Some(state), on_event).unwrap();
    assert_eq!(head.history.len(), 3);
}

#[test]
fn saved_fine_tuning_state_is_read_and_resumed() {
    let bytes = include_bytes!("fine_tune.state");
    let state: FineTuneState = postcard::from_bytes(bytes).unwrap();
    assert!(postcard::to_stdvec(&state).unwrap() == bytes);
    assert_eq!(state.epochs(), 1);
    assert_eq!(state.partial.unwrap().batches, 1);

    let conv = |inputs, outputs, pool| FloatLayer {
        name: "conv".into(),
        inputs,
        outputs,
        kernel: vec![0.0; 9 * inputs * outputs],
        bias: vec![0.0; outputs],
        pool,
    };
    let tail = [conv(2, 3, false), conv(3, 2, true)];
    let config = TrainConfig {
        classes: 3,
        epochs: 3,
        batch_size: 4,
        optimizer: Optimizer::rms_prop(0.001),
        ..TrainConfig::default()
    };
    let model = Model { tail: &tail, head: &[], shape: [4, 4, 2], pool: Pool::Avg };
    let (samples, on_event) = (samples(32), &mut |_: &Progress<_>| ControlFlow::Continue(()));
    let data = samples.dataset();
    let tuned = fine_tune(&config, model, &data, Some(&data), Some(state), on_event).unwrap();
    assert_eq!(tuned.history.len(), 4);
}
