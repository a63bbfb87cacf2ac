use quant::FloatLayer;
use vgg_edge::head::Pool;

use super::*;
use crate::trainer::fine_tune::{FineTuneProgress, MapShape};

const SHAPE: MapShape = [4, 4, 5];

/// Two convolutions, 4x4x5 to 2x2x6, and heads of three classes on all values or on one a channel.
fn network(pool: Pool) -> (Vec<FloatLayer>, Vec<DenseWeights>) {
    let mut random = random::Random::new(11);
    let mut values = |len: usize, size: f32| -> Vec<f32> {
        random
            .weights
            .glorot_uniform(len, 1)
            .iter()
            .map(|v| size * v * ((len + 1) as f32 / 6.0).sqrt())
            .collect()
    };
    let mut conv = |name: &str, inputs: usize, outputs: usize, pool| FloatLayer {
        name: name.into(),
        inputs,
        outputs,
        kernel: values(9 * inputs * outputs, 0.35),
        bias: values(outputs, 0.1),
        pool,
    };
    let tail = vec![conv("a", 5, 4, false), conv("b", 4, 6, true)];
    let inputs = if pool == Pool::Flatten { 24 } else { 6 };
    let mut dense = |inputs: usize, outputs: usize| DenseWeights {
        inputs,
        outputs,
        kernel: values(inputs * outputs, 0.5),
        bias: values(outputs, 0.1),
        norm: None,
    };
    let head = vec![dense(inputs, 7), dense(7, 3)];
    (tail, head)
}

fn config() -> TrainConfig {
    TrainConfig {
        dropout: 0.0,
        classes: 3,
        optimizer: Optimizer::rms_prop(0.002),
        epochs: 8,
        batch_size: 10,
        ..TrainConfig::default()
    }
}

fn samples(seed: u64) -> Samples {
    Samples::separable(40, SHAPE.iter().product(), 3, seed)
}

fn tune(
    config: &TrainConfig,
    (tail, head): &(Vec<FloatLayer>, Vec<DenseWeights>),
    pool: Pool,
    validate: bool,
    from: Option<FineTuneState>,
    on_epoch: &mut dyn FnMut(&FineTuneProgress) -> ControlFlow<()>,
) -> Result<FineTuned, TrainError> {
    let (training, validation) = (samples(1), samples(2));
    let validation = validate.then(|| validation.dataset());
    fine_tune(
        config,
        Model { tail, head, shape: SHAPE, pool },
        &training.dataset(),
        validation.as_ref(),
        from,
        on_epoch,
    )
}

fn all(_: &FineTuneProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn it_learns_and_keeps_the_best_epoch() {
    for pool in [Pool::Flatten, Pool::Avg, Pool::Max] {
        let long = TrainConfig { epochs: 40, ..config() };
        let tuned = tune(&long, &network(pool), pool, true, None, &mut all).unwrap();
        assert_eq!(tuned.history.len(), 41);
        assert!(
            tuned.history[40].loss < 0.8 * tuned.history[1].loss,
            "{pool:?}: {:?}",
            tuned.history
        );
        let best = &tuned.history[tuned.best_epoch];
        assert!(tuned.history.iter().all(|stats| stats.val_accuracy <= best.val_accuracy));
        // The weights that are kept are those of that epoch.
        let again = (tuned.tail.clone(), tuned.head.clone());
        let again =
            tune(&config(), &again, pool, true, None, &mut |_| ControlFlow::Break(())).unwrap();
        assert_eq!(again.history[0].val_loss, best.val_loss);
        assert_eq!((again.best_epoch, &again.tail), (0, &tuned.tail));
    }
}

/// A step of plain gradient descent is the gradient, which differences of the loss give too.
#[test]
fn gradients_are_those_of_the_loss() {
    for pool in [Pool::Flatten, Pool::Avg, Pool::Max] {
        let before = network(pool);
        let lr = 1e-3;
        // One batch of all samples, and the weights after it whether they are better or not.
        let one =
            TrainConfig { optimizer: Optimizer::sgd(lr), epochs: 1, batch_size: 40, ..config() };
        let tuned = tune(&one, &before, pool, false, None, &mut all).unwrap();
        assert_eq!(tuned.best_epoch, 0, "the loss of the epoch is that before its step");
        let mut after = None;
        tune(&one, &before, pool, false, None, &mut |progress| {
            after = Some(progress.state().unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
        let after = after.unwrap();
        let loss = |network: &(Vec<FloatLayer>, Vec<DenseWeights>)| {
            tune(&one, network, pool, false, None, &mut |_| ControlFlow::Break(())).unwrap().history
                [0]
            .loss
        };
        let mut checked = 0;
        for layer in 0..2 {
            for at in (0..before.0[layer].kernel.len()).step_by(23) {
                let gradient = f64::from(before.0[layer].kernel[at] - after.kernel(layer)[at]) / lr;
                let moved = |by: f32| {
                    let mut network = before.clone();
                    network.0[layer].kernel[at] += by;
                    loss(&network)
                };
                let difference = (moved(2e-3) - moved(-2e-3)) / 4e-3;
                // A kink of ReLU or of a maximum may lie between; f32 has seven digits.
                assert!(
                    (gradient - difference).abs() < 2e-3 + 0.02 * difference.abs(),
                    "{gradient} {difference}"
                );
                checked += usize::from(difference.abs() > 1e-3);
            }
        }
        assert!(checked > 5, "gradients of 0 show nothing");
    }
}

#[test]
fn threads_and_interruptions_change_no_bit() {
    let config = TrainConfig { dropout: 0.4, ..config() };
    let network = network(Pool::Flatten);
    // Stops after an epoch, or after some batches of the next one.
    let run = |threads: usize, from, stop: (usize, usize)| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut kept = None;
        let tuned = pool.install(|| {
            tune(&config, &network, Pool::Flatten, true, from, &mut |progress| {
                kept = Some(progress.state().unwrap());
                let here = match progress.at {
                    Moment::Batch { epoch, done } => (epoch - 1, done),
                    Moment::Epoch { stats, last } => {
                        assert_eq!(last, stats.epoch == config.epochs);
                        (stats.epoch, 0)
                    }
                };
                if here == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        (tuned.unwrap(), kept)
    };
    let (whole, _) = run(1, None, (100, 0));
    assert_eq!(run(3, None, (100, 0)).0, whole);
    for stop in [(0, 0), (1, 0), (5, 0), (8, 0), (0, 1), (3, 2)] {
        let (left, state) = run(2, None, stop);
        let state = state.unwrap();
        assert_eq!((state.epochs(), left.history.len()), (stop.0, stop.0 + 1));
        let bytes = postcard::to_allocvec(&state).unwrap();
        let state: FineTuneState = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(run(2, Some(state), (100, 0)).0, whole, "after {stop:?}");
    }
}

#[test]
fn a_state_of_another_network_is_refused() {
    let flat = network(Pool::Flatten);
    let mut state = None;
    tune(&config(), &flat, Pool::Flatten, true, None, &mut |progress| {
        state = Some(progress.state().unwrap());
        ControlFlow::Break(())
    })
    .unwrap();
    let (mut short, mut headless) = (flat.clone(), flat.clone());
    short.0.remove(0);
    headless.1.clear();
    for (network, pool, state) in [
        (&short, Pool::Flatten, state),
        (&short, Pool::Flatten, None),
        (&headless, Pool::Flatten, None),
        (&flat, Pool::Avg, None),
    ] {
        let refused = tune(&config(), network, pool, true, state, &mut all).unwrap_err();
        assert!(matches!(refused, TrainError::WrongState { .. }), "{refused}");
    }
}

/// What comes through decoding must fit the training or be refused.
#[test]
fn states_that_somebody_made() {
    let config = TrainConfig { dropout: 0.4, epochs: 2, batch_size: 20, ..config() };
    let network = network(Pool::Flatten);
    let mut good = Vec::new();
    tune(&config, &network, Pool::Flatten, true, None, &mut |progress| {
        let state = postcard::to_stdvec(&progress.state().unwrap()).unwrap();
        good.push((format!("state {}", good.len()).into(), state));
        ControlFlow::Continue(())
    })
    .unwrap();
    let resumed = std::cell::Cell::new(0);
    fuzz_targets::attack("fine-tuning", &good, 500, |bytes| {
        if let Ok(state) = postcard::from_bytes::<FineTuneState>(bytes) {
            let tuned = tune(&config, &network, Pool::Flatten, true, Some(state), &mut all);
            resumed.set(resumed.get() + u32::from(tuned.is_ok()));
        }
    });
    assert!(resumed.get() > 50, "{resumed:?}");
}
