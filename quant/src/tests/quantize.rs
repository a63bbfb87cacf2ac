//! Bases that are quantized from end to end.

use std::path::Path;

use prost::Message;
use tract_onnx::pb;
use vgg_edge::kernels::Kernel;
use vgg_edge::{Backbone, Image};

use super::{frames, inputs_of, small};
use crate::calibrate::Method;
use crate::float::{FloatConv, Map};
use crate::quantize::{Inputs, Options, QuantBase, bounds, quantize};
use crate::round::Rounding;
use crate::tail::{Tail, replace, tail};
use crate::weights::FloatBase;
use crate::{Error, onnx};

fn calibrated(base: &FloatBase, options: &Options, threads: usize) -> QuantBase {
    let inputs = || vec![inputs_of(base, &frames(12, 1))];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| quantize(base, inputs(), options, Kernel::PORTABLE, |_| Ok(()))).unwrap()
}

fn relative_error(float: &FloatBase, base: &QuantBase) -> f64 {
    let bytes = onnx::int8_model(base);
    let loaded = Backbone::from_bytes(Path::new("int8"), &bytes, Kernel::PORTABLE).unwrap();
    let layers = loaded.layers_with_weights();
    let inputs = inputs_of(float, &frames(6, 99));
    let reports =
        crate::compare::compare(float, &layers, &loaded.scales(), &inputs, Kernel::PORTABLE)
            .unwrap();
    reports.last().unwrap().relative_error
}

#[test]
fn quantized_bases_are_close_and_the_same_on_any_number_of_threads() {
    let float = small();
    let nearest = Options { rounding: Rounding::Nearest, ..Options::default() };
    let mut errors = Vec::new();
    for options in [
        Options::default(),
        nearest.clone(),
        Options { method: Method::MinMax, ..nearest.clone() },
        Options { method: Method::Percentile(99.99), ..nearest.clone() },
        Options { equalization: 1.0, ..nearest.clone() },
        Options { equalization: 8.0, ..nearest.clone() },
        Options { bias_correction: true, ..nearest },
    ] {
        let one = calibrated(&float, &options, 1);
        assert_eq!(
            onnx::int8_model(&one),
            onnx::int8_model(&calibrated(&float, &options, 3)),
            "{options:?}"
        );
        // Equalization does not change the features in real units.
        errors.push(relative_error(&float, &one));
        assert!(errors.last().unwrap() < &0.05, "{options:?}: {errors:?}");
        for layer in &one.layers {
            assert_eq!(layer.bounds(), bounds(&layer.conv));
            assert!(layer.bounds().0 >= -(1 << 31) && layer.bounds().1 < 1 << 31);
        }
    }
    assert!(errors[0] < errors[1], "compensation: {errors:?}");
}

#[test]
fn accumulator_bounds_are_tight() {
    let base = calibrated(&small(), &Options::default(), 2);
    let layer = &base.layers[1].conv;
    let sum = |input: &dyn Fn(i8) -> i64| {
        let channels = layer.weights.chunks_exact(9 * layer.inputs).zip(&layer.bias);
        channels
            .map(|(w, &b)| i64::from(b) + w.iter().map(|&w| i64::from(w) * input(w)).sum::<i64>())
            .collect::<Vec<_>>()
    };
    let most = sum(&|w| if w > 0 { 255 } else { 0 }).into_iter().max().unwrap();
    let least = sum(&|w| if w < 0 { 255 } else { 0 }).into_iter().min().unwrap();
    assert_eq!(base.layers[1].bounds(), (least, most));
}

#[test]
fn calibration_images_without_information_are_refused() {
    let base = small();
    let run = |base: &FloatBase, frames: &[Image]| {
        let inputs = vec![inputs_of(base, frames)];
        quantize(base, inputs, &Options::default(), Kernel::PORTABLE, |_| Ok(()))
    };
    assert!(run(&base, &[]).unwrap_err().to_string().contains("no images"));
    let black = Image::new(8, 8, vec![0; 192]).unwrap();
    let message = run(&base, &[black.clone(), black]).unwrap_err().to_string();
    assert!(message.contains("all 2 images are of a single color"), "{message}");
    // One image is enough to compute with.
    run(&base, &frames(1, 4)).unwrap();
    // A layer whose output is never above 0.
    let mut dead = base.clone();
    dead.layers[1].bias = vec![-1e6; 24];
    let message = run(&dead, &frames(2, 4)).unwrap_err().to_string();
    assert!(message.contains("block1_conv2") && message.contains("output above 0"), "{message}");
    // A bias that does not fit 32 bits.
    let mut huge = base;
    huge.layers[2].kernel.iter_mut().for_each(|w| *w *= 1e-20);
    huge.layers[2].bias[0] = 1e3;
    let error = run(&huge, &frames(2, 4)).unwrap_err();
    assert!(matches!(error, Error::Layer { layer, .. } if layer == "block2_conv1"));
}

#[test]
fn the_f32_convolution_equals_the_plain_loop() {
    let base = small();
    let inputs = inputs_of(&base, &frames(1, 8));
    let (layer, input) = (&base.layers[0], &inputs.real[0]);
    let sums = FloatConv::new(layer).sums(input);
    for (at, &found) in sums.data.iter().enumerate() {
        let (output, x, y) = (at % 16, at / 16 % 32, at / 512);
        let mut sum = layer.bias[output];
        for tap in 0..9 {
            let (row, column) = ((y + tap / 3).wrapping_sub(1), (x + tap % 3).wrapping_sub(1));
            for channel in 0..3 {
                let inside = row < 32 && column < 32;
                let value =
                    if inside { input.data[(row * 32 + column) * 3 + channel] } else { 0.0 };
                sum += value * layer.kernel[(output * 3 + channel) * 9 + tap];
            }
        }
        assert_eq!(found.to_bits(), (sum + 0.0).to_bits(), "{output} {y} {x}");
    }
}

/// Returns the feature maps of a base for some inputs, in integers and in real units.
fn features(base: &Backbone, inputs: &Inputs, size: u32) -> (Vec<Map<u8>>, Vec<Map<f32>>) {
    let mut runner = base.runner(None).unwrap();
    let side = (size / base.contract().stride) as usize;
    let map = |planes: &Vec<u8>| {
        let data = runner.features(planes, size).unwrap();
        Map { height: side, width: side, channels: base.contract().channels as usize, data }
    };
    let integers: Vec<Map<u8>> = inputs.quantized.iter().map(map).collect();
    let real = |map: &Map<u8>| {
        let data = map
            .data
            .iter()
            .zip(base.feature_scales().iter().cycle())
            .map(|(&q, s)| f32::from(q) * s)
            .collect();
        Map { height: side, width: side, channels: map.channels, data }
    };
    let reals = integers.iter().map(real).collect();
    (integers, reals)
}

/// Returns the L2 distance relative to the norm of the second.
fn distance(found: &[Map<f32>], wanted: &[Map<f32>]) -> f64 {
    let both = found.iter().zip(wanted).flat_map(|(a, b)| a.data.iter().zip(&b.data));
    let (mut difference, mut length) = (0.0, 0.0);
    for (&a, &b) in both {
        difference += f64::from(a - b).powi(2);
        length += f64::from(b).powi(2);
    }
    (difference / length).sqrt()
}

#[test]
fn tails_are_extracted_by_name() {
    let model = onnx::int8_model(&calibrated(&small(), &Options::default(), 2));
    let taken = tail(&model, "block2").unwrap();
    assert_eq!(
        (taken.frozen, &*taken.layers[0].name, taken.layers[0].pool),
        (2, "block2_conv1", true)
    );
    assert_eq!(tail(&model, "block2_conv1").unwrap(), taken);
    assert_eq!(tail(&model, "block1_conv2").unwrap().frozen, 1);
    for (first, part) in [
        ("block1", "not a block or layer after the first"),
        ("block", "block2_conv1"),
        ("x", "\"x\""),
    ] {
        assert!(tail(&model, first).unwrap_err().to_string().contains(part), "{first}");
    }
    assert!(tail(b"no model", "block2").is_err());
}

#[test]
fn a_tail_is_extracted_trained_and_replaced() {
    let float = small();
    let model = onnx::int8_model(&calibrated(&float, &Options::default(), 2));
    let load =
        |bytes: &[u8]| Backbone::from_bytes(Path::new("int8"), bytes, Kernel::PORTABLE).unwrap();
    let base = load(&model);
    let mut taken = tail(&model, "block2").unwrap();

    // In f32 on the outputs of the frozen part it gives the features of the base, except for
    // rounding.
    let inputs = inputs_of(&float, &frames(8, 1));
    let (frozen, real) = features(&base.prefix(2), &inputs, 32);
    let (_, wanted) = features(&base, &inputs, 32);
    let through = |tail: &Tail| -> Vec<Map<f32>> {
        real.iter()
            .map(|map| {
                tail.layers.iter().fold(map.clone(), |map, layer| FloatConv::new(layer).run(&map))
            })
            .collect()
    };
    let error = distance(&through(&taken), &wanted);
    assert!(error < 0.01, "{error}");

    // As if trained: every feature changes, and some become larger.
    let layer = &mut taken.layers[0];
    let inner = 9 * layer.inputs;
    for (output, kernel) in layer.kernel.chunks_exact_mut(inner).enumerate() {
        let factor = 0.5 + output as f32 / 10.0;
        kernel.iter_mut().for_each(|w| *w *= factor);
        layer.bias[output] = layer.bias[output] * factor + 0.1;
    }
    let put = |tail: &Tail| {
        replace(
            &model,
            tail,
            frozen.clone(),
            &Options::default(),
            Kernel::PORTABLE,
            "fine-tuned",
            |_| Ok(()),
        )
        .unwrap()
    };
    let tuned_model = put(&taken);
    assert_eq!(tuned_model, put(&taken));
    let tuned = load(&tuned_model);
    let (_, found) = features(&tuned, &inputs, 32);
    let error = distance(&found, &through(&taken));
    assert!(error < 0.02, "{error}");
    assert!(distance(&found, &wanted) > 0.2);

    // The layers before are the same, in their tensors and in their outputs.
    assert_eq!(features(&tuned.prefix(2), &inputs, 32).0, frozen);
    let tensors = |bytes: &[u8]| {
        let graph = pb::ModelProto::decode(bytes).unwrap().graph.unwrap();
        graph
            .initializer
            .into_iter()
            .filter(|tensor| tensor.name.starts_with("block1"))
            .collect::<Vec<_>>()
    };
    assert_eq!(tensors(&tuned_model).len(), 16);
    assert_eq!(tensors(&tuned_model), tensors(&model));
    // The metadata describe the change.
    let property = |base: &Backbone, key: &str| base.metadata()[&format!("vgg_edge.{key}")].clone();
    assert_eq!(property(&tuned, "fine_tuned_from"), base.fingerprint().to_string());
    assert!(property(&tuned, "weights_source").ends_with("; fine-tuned"));
    assert_ne!(property(&tuned, "weights_sha256"), property(&base, "weights_sha256"));
    let bounds = property(&tuned, "accumulator_bounds");
    assert_eq!(
        bounds.split(',').take(2).collect::<Vec<_>>(),
        property(&base, "accumulator_bounds").split(',').take(2).collect::<Vec<_>>()
    );
    assert_eq!(bounds.split(',').count(), 3);
}
