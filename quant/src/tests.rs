//! Weights written as other programs write them, and bases quantized from end to end.

use std::path::Path;

use hdf5_writer::{DatasetBuilder, Hdf5Builder, Hdf5Writer, WriteOptions};
use prost::Message;
use tract_onnx::pb;
use vgg_edge::kernels::Kernel;
use vgg_edge::{Backbone, Image};

use crate::calibrate::Method;
use crate::float::{FloatConv, Map};
use crate::import::{import, import_bytes};
use crate::quantize::{Inputs, Options, QuantBase, bounds, input, preprocess, quantize};
use crate::round::Rounding;
use crate::tail::{Tail, replace, tail};
use crate::weights::{FloatBase, FloatLayer, Normalization, VGG16};
use crate::{Error, onnx};
use vgg_edge::preprocess::Fit;

/// A stream of random numbers from -1 to 1.
struct Numbers(fastrand::Rng);

impl Numbers {
    fn next(&mut self) -> f32 {
        2.0 * self.0.f32() - 1.0
    }
}

fn chain(shape: &[(&str, usize, usize, bool)], seed: u32) -> FloatBase {
    let mut numbers = Numbers(fastrand::Rng::with_seed(seed.into()));
    let layers = shape.iter().map(|&(name, inputs, outputs, pool)| {
        // He's initialization, so that signals keep their size.
        let size = (6.0 / (9.0 * inputs as f32)).sqrt();
        FloatLayer {
            name: name.into(),
            inputs,
            outputs,
            kernel: (0..9 * inputs * outputs).map(|_| size * numbers.next()).collect(),
            bias: (0..outputs).map(|_| 0.5 * numbers.next()).collect(),
            pool,
        }
    });
    FloatBase {
        layers: layers.collect(),
        normalization: Normalization::CAFFE,
        source: "a test".into(),
    }
}

fn vgg16() -> FloatBase {
    chain(&VGG16, 7)
}

fn small() -> FloatBase {
    chain(
        &[
            ("block1_conv1", 3, 16, false),
            ("block1_conv2", 16, 24, true),
            ("block2_conv1", 24, 20, true),
        ],
        3,
    )
}

/// Inputs of 32 pixels.
fn inputs_of(base: &FloatBase, frames: &[Image]) -> Inputs {
    let quantizer = preprocess(base, 32, Fit::Stretch).quantizer();
    let mut inputs = Inputs::default();
    frames.iter().for_each(|frame| inputs.push(input(&quantizer, 32, frame)));
    inputs
}

fn frames(count: usize, seed: u32) -> Vec<Image> {
    let mut numbers = Numbers(fastrand::Rng::with_seed(seed.into()));
    let picture = |_| {
        let (a, b, c) = (numbers.next(), numbers.next(), numbers.next());
        let pixel = |at: usize| {
            let (x, y) = ((at / 3 % 40) as f32, (at / 120) as f32);
            let wave = (x * (0.3 + 0.2 * a) + y * 0.3 * b + (at % 3) as f32 * c).sin();
            (127.0 + 100.0 * wave + 20.0 * numbers.next()).clamp(0.0, 255.0) as u8
        };
        Image::new(40, 40, (0..4800).map(pixel).collect()).unwrap()
    };
    (0..count).map(picture).collect()
}

fn oihw_to_hwio(layer: &FloatLayer) -> Vec<f32> {
    let mut out = vec![0.0; layer.kernel.len()];
    for (at, &w) in layer.kernel.iter().enumerate() {
        let (output, channel, tap) = (at / (9 * layer.inputs), at / 9 % layer.inputs, at % 9);
        out[(tap * layer.inputs + channel) * layer.outputs + output] = w;
    }
    out
}

fn same(found: &FloatBase, wanted: &FloatBase) {
    assert_eq!(found.digest(), wanted.digest());
    assert!(found.layers == wanted.layers);
}

/// The groups of a layer in a Keras file, and its names of kernel and bias.
type Place = (Vec<String>, &'static str, &'static str);

/// A Keras file; `place` gives each layer's groups and the names of kernel and bias.
fn keras(base: &FloatBase, place: impl Fn(usize, &str) -> Place) -> Vec<u8> {
    // A classifier, to be dropped.
    let top = DatasetBuilder::typed_data("fc1/fc1_W_1:0", vec![4, 2], &[0.5f32; 8]).unwrap();
    let mut builder = Hdf5Builder::new().dataset(top);
    for (index, layer) in base.layers.iter().enumerate() {
        let (groups, kernel, bias) = place(index, &layer.name);
        let (folder, outputs) = (groups.join("/"), layer.outputs as u64);
        let shape = vec![3, 3, layer.inputs as u64, outputs];
        let kernel =
            DatasetBuilder::typed_data(format!("{folder}/{kernel}"), shape, &oihw_to_hwio(layer))
                .unwrap();
        let bias =
            DatasetBuilder::typed_data(format!("{folder}/{bias}"), vec![outputs], &layer.bias)
                .unwrap();
        builder = builder.dataset(kernel).dataset(bias);
    }
    let plan = builder.into_plan().unwrap();
    Hdf5Writer::new(std::io::Cursor::new(Vec::new()), WriteOptions::default())
        .finish(plan)
        .unwrap()
        .into_inner()
}

#[test]
fn keras_files_of_all_kinds() {
    let base = vgg16();
    let file = |place: &dyn Fn(usize, &str) -> Place| {
        import_bytes(Path::new("w.h5"), keras(&base, place), None).unwrap()
    };
    // Keras 1 and 2, a saved model, Keras 3, and Keras 3 with a model for each block.
    let found = file(&|_, name| (vec![name.to_owned(), name.to_owned()], "kernel:0", "bias:0"));
    same(&found, &base);
    assert_eq!(found.normalization, Normalization::CAFFE);
    same(
        &file(&|_, name| {
            (vec!["model_weights".into(), name.into(), name.into()], "kernel:0", "bias:0")
        }),
        &base,
    );
    let counted =
        |index: usize| if index == 0 { "conv2d".to_owned() } else { format!("conv2d_{index}") };
    same(&file(&|i, _| (vec!["layers".into(), counted(i), "vars".into()], "0", "1")), &base);
    let nested = |i: usize, name: &str| {
        let number: usize = name[11..].parse().unwrap();
        let _ = i;
        (vec![name[..6].to_owned(), "layers".into(), counted(number - 1), "vars".into()], "0", "1")
    };
    same(&file(&nested), &base);
}

#[test]
fn a_file_that_h5py_wrote() {
    // The layout of the published file (superblock 0, symbol tables); fill values instead of data
    // keep it small.
    let bytes = include_bytes!("../fixtures/keras_notop.h5");
    let base = import_bytes(Path::new("keras_notop.h5"), bytes.to_vec(), None).unwrap();
    assert_eq!(base.parameters(), 14_714_688);
    // make_fixture.py: the first kernel counts up in HWIO; the others are filled with the number of
    // their layer.
    let first = &base.layers[0];
    assert_eq!(first.kernel[..3], [0.0, 192.0, 384.0]);
    assert_eq!(first.kernel[9], 64.0);
    assert_eq!(first.bias[5], 5.0);
    assert!(
        base.layers
            .iter()
            .enumerate()
            .skip(1)
            .all(|(i, l)| l.kernel.iter().all(|&w| w == i as f32))
    );
}

fn torch(base: &FloatBase, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<f32>)>)) -> Vec<u8> {
    let places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28];
    let mut tensors = vec![("classifier.0.weight".to_owned(), vec![2, 4], vec![f32::NAN; 8])];
    for (layer, place) in base.layers.iter().zip(places) {
        tensors.push((
            format!("features.{place}.weight"),
            vec![layer.outputs, layer.inputs, 3, 3],
            layer.kernel.clone(),
        ));
        tensors.push((format!("features.{place}.bias"), vec![layer.outputs], layer.bias.clone()));
    }
    change(&mut tensors);
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (
            name.clone(),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)
                .unwrap(),
        )
    });
    safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
}

#[test]
fn torchvision_files() {
    let base = vgg16();
    let found = import_bytes(Path::new("w"), torch(&base, |_| {}), None).unwrap();
    same(&found, &base);
    assert_eq!(found.normalization, Normalization::TORCHVISION);
    // A part of a larger model, and a choice of another pre-processing.
    let prefixed =
        torch(&base, |tensors| tensors.iter_mut().for_each(|t| t.0 = format!("encoder.{}", t.0)));
    let found = import_bytes(Path::new("w"), prefixed, Some(Normalization::TUTORIAL)).unwrap();
    same(&found, &base);
    assert_eq!(found.normalization, Normalization::TUTORIAL);
}

/// The ONNX file of a base, changed.
fn exported(base: &FloatBase, change: impl Fn(&mut pb::ModelProto)) -> Vec<u8> {
    let mut model = pb::ModelProto::decode(&*onnx::float_model(base)).unwrap();
    model.metadata_props.clear();
    change(&mut model);
    model.encode_to_vec()
}

fn node(op: &str, input: &[&str], output: &str) -> pb::NodeProto {
    pb::NodeProto {
        op_type: op.into(),
        name: format!("a_{op}"),
        input: input.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

#[test]
fn onnx_files_of_exporters() {
    let base = vgg16();
    let own = onnx::float_model(&base);
    let found = import_bytes(Path::new("w"), own.clone(), None).unwrap();
    assert_eq!(found, base);
    assert_eq!(onnx::float_model(&found), own);

    // tf2onnx: channels last at first, a classifier at the end, one bias as a node of its own.
    let tf = exported(&base, |model| {
        model.producer_name = "tf2onnx".into();
        let graph = model.graph.as_mut().unwrap();
        graph.node[0].input[0] = "nchw".into();
        graph.node.insert(0, node("Transpose", &["x"], "nchw"));
        let bias = graph.node[1].input.pop().unwrap();
        graph.node[1].output[0] = "unbiased".into();
        let sums = graph.node[2].input[0].clone();
        graph.node.insert(2, node("Add", &["unbiased", &bias], &sums));
        graph.node.push(node("Flatten", &["block5_pool"], "flat"));
        graph.node.push(node("MatMul", &["flat", "dense"], "scores"));
    });
    let found = import_bytes(Path::new("w"), tf, None).unwrap();
    same(&found, &base);
    assert_eq!(found.normalization, Normalization::CAFFE);

    // torch: weights in a file beside the model.
    let folder = tempfile::tempdir().unwrap();
    let bytes = exported(&base, |model| {
        model.producer_name = "pytorch".into();
        let mut data = vec![0u8; 16];
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            let entry =
                |key: &str, value: String| pb::StringStringEntryProto { key: key.into(), value };
            tensor.external_data = vec![
                entry("location", "vgg.data".into()),
                entry("offset", data.len().to_string()),
                entry("length", tensor.raw_data.len().to_string()),
            ];
            tensor.data_location = Some(pb::tensor_proto::DataLocation::External as i32);
            data.append(&mut tensor.raw_data);
        }
        std::fs::write(folder.path().join("vgg.data"), data).unwrap();
    });
    let path = folder.path().join("vgg.onnx");
    std::fs::write(&path, &bytes).unwrap();
    let found = import(&path, None).unwrap();
    same(&found, &base);
    assert_eq!(found.normalization, Normalization::TORCHVISION);
    let outside = String::from_utf8_lossy(&bytes).contains("vgg.data");
    assert!(outside);
}

fn refused(bytes: Vec<u8>) -> String {
    import_bytes(Path::new("the-file"), bytes, None).unwrap_err().to_string()
}

#[test]
fn what_is_not_vgg16_is_named() {
    let base = vgg16();
    // Of no known format.
    assert!(refused(vec![]).contains("not a file of weights"));
    assert!(refused(b"hello, world, this is text".to_vec()).contains("not a file of weights"));
    assert!(refused(b"PK\x03\x04...".to_vec()).contains("zip archive"));
    // Cut short, anywhere.
    let mut tiny = base.clone();
    tiny.layers.truncate(2);
    let whole = keras(&tiny, |_, name| (vec![name.into()], "kernel:0", "bias:0"));
    for length in [9, 50, 300, whole.len() / 2, whole.len() - 1] {
        let words = refused(whole[..length].to_vec());
        assert!(words.contains("the-file") && !words.contains('\n'), "{words}");
    }
    let whole = torch(&tiny, |_| {});
    assert!(refused(whole[..whole.len() - 1].to_vec()).contains("safetensors"));
    // Too few, of other shapes, not finite.
    assert!(refused(torch(&tiny, |_| {})).contains("2 convolutions"));
    let nan = torch(&base, |tensors| tensors[3].2[5] = f32::NAN);
    let words = refused(nan);
    assert!(words.contains("features.2: its kernel holds a value that is not finite"), "{words}");
    let wide = torch(&base, |tensors| tensors[1].1 = vec![64, 3, 1, 9]);
    assert!(
        refused(wide).contains(
            "features.0 has a kernel of [64, 3, 1, 9] where block1_conv1 has [64, 3, 3, 3]"
        )
    );
    let normalized = torch(&base, |tensors| tensors[1].0 = "features.1.running_mean".into());
    assert!(refused(normalized).contains("batch normalization"));
    let unbiased = torch(&base, |tensors| drop(tensors.remove(2)));
    assert!(refused(unbiased).contains("features.0.bias is missing"));
    let theano = {
        let mut first = base.clone();
        (first.layers[0].inputs, first.layers[0].outputs) = (3, 3);
        first.layers.truncate(1);
        first.layers[0].kernel.truncate(81);
        first.layers[0].bias.truncate(3);
        keras(&first, |_, name| (vec![name.into()], "kernel:0", "bias:0"))
    };
    assert!(refused(theano).contains("Theano"));

    // Graphs of other kinds. A residual network first.
    let residual = exported(&base, |model| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let add = node("Add", &["block1_conv1.sums", "x"], "joined");
        nodes[1].input[0] = "joined".into();
        nodes.insert(1, add);
    });
    assert!(refused(residual).contains("residual"));
    let strided = exported(&base, |model| {
        let attributes = &mut model.graph.as_mut().unwrap().node[0].attribute;
        attributes.iter_mut().find(|a| a.name == "strides").unwrap().ints = vec![2, 2];
    });
    assert!(refused(strided).contains("block1_conv1 has strides"));
    let unpooled = exported(&base, |model| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let at = nodes.iter().position(|n| n.op_type == "MaxPool").unwrap();
        nodes.remove(at);
        nodes[at].input[0] = "block1_conv2".into();
    });
    assert!(refused(unpooled).contains("no max pooling between block1_conv2 and block2_conv1"));
    let normalized = exported(&base, |model| {
        model.graph.as_mut().unwrap().node[1] =
            node("BatchNormalization", &["block1_conv1.sums"], "block1_conv1");
    });
    assert!(
        refused(normalized)
            .contains("a BatchNormalization (a_BatchNormalization) follows block1_conv1")
    );
    let half = exported(&base, |model| model.graph.as_mut().unwrap().initializer[0].data_type = 10);
    assert!(refused(half).contains("not float32"));
    let outside = exported(&base, |model| {
        let tensor = &mut model.graph.as_mut().unwrap().initializer[0];
        tensor.data_location = Some(1);
        tensor.external_data = vec![pb::StringStringEntryProto {
            key: "location".into(),
            value: "../../etc/passwd".into(),
        }];
    });
    assert!(refused(outside).contains("outside the folder"));
    // Nothing says how pictures are pre-processed.
    let anonymous = exported(&base, |model| model.producer_name.clear());
    assert!(refused(anonymous).contains("--preprocess"));
}

fn calibrated(base: &FloatBase, options: &Options, threads: usize) -> QuantBase {
    let inputs = || vec![inputs_of(base, &frames(12, 1))];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| quantize(base, inputs(), options, Kernel::Portable, |_| Ok(()))).unwrap()
}

fn relative_error(float: &FloatBase, base: &QuantBase) -> f64 {
    let bytes = onnx::int8_model(base);
    let loaded = Backbone::from_bytes(Path::new("int8"), &bytes, Kernel::Portable).unwrap();
    let layers = loaded.unpacked_layers();
    let inputs = inputs_of(float, &frames(6, 99));
    let reports =
        crate::compare::compare(float, &layers, &loaded.scales(), &inputs, Kernel::Portable)
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
        // However channels were stretched, the features mean the same.
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
fn bounds_are_reached_and_not_passed() {
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
fn pictures_that_do_not_serve_are_refused() {
    let base = small();
    let run = |base: &FloatBase, frames: &[Image]| {
        let inputs = vec![inputs_of(base, frames)];
        quantize(base, inputs, &Options::default(), Kernel::Portable, |_| Ok(()))
    };
    assert!(run(&base, &[]).unwrap_err().to_string().contains("no pictures"));
    let black = Image::new(8, 8, vec![0; 192]).unwrap();
    let words = run(&base, &[black.clone(), black]).unwrap_err().to_string();
    assert!(words.contains("all of 2 pictures are of a single color"), "{words}");
    // One picture is few, but enough to compute with.
    run(&base, &frames(1, 4)).unwrap();
    // A layer that is never above 0.
    let mut dead = base.clone();
    dead.layers[1].bias = vec![-1e6; 24];
    let words = run(&dead, &frames(2, 4)).unwrap_err().to_string();
    assert!(words.contains("block1_conv2") && words.contains("output above 0"), "{words}");
    // A bias that no 32 bits hold.
    let mut huge = base;
    huge.layers[2].kernel.iter_mut().for_each(|w| *w *= 1e-20);
    huge.layers[2].bias[0] = 1e3;
    assert!(
        matches!(run(&huge, &frames(2, 4)), Err(Error::Layer { layer, .. }) if layer == "block2_conv1")
    );
}

#[test]
fn the_f32_convolution_is_the_plain_one() {
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

/// A bounded run of what `fuzz/` does at length: damaged files are refused in one line, without a
/// panic.
#[test]
fn damaged_files_are_refused() {
    let mut tiny = vgg16();
    tiny.layers.truncate(1);
    let whole = include_bytes!("../fixtures/keras_notop.h5").to_vec();
    let seeds = [
        keras(&tiny, |_, name| (vec![name.into()], "kernel:0", "bias:0")),
        torch(&tiny, |_| {}),
        exported(&tiny, |_| {}),
    ];
    let mut random = fastrand::Rng::with_seed(1);
    let mut next = move |below: usize| random.usize(..below.max(1));
    let mut refused = 0;
    for case in 0..3000 {
        // What survives of a whole VGG16 takes a while to read.
        let mut bytes =
            if case % 60 == 0 { whole.clone() } else { seeds[case % seeds.len()].clone() };
        // Headers lie at the start; damage there goes deepest.
        let reach = if next(4) == 0 { bytes.len() } else { bytes.len().min(4096) };
        for _ in 0..1 + next(6) {
            let at = next(reach.min(bytes.len()));
            match next(4) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][next(6)],
                2 => {
                    let length = [2, 4, 8][next(3)].min(bytes.len() - at);
                    let value =
                        [0u64, 1, u64::MAX, i64::MAX as u64, u64::from(u32::MAX), 1 << 31][next(6)];
                    bytes[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
                }
                _ if next(8) == 0 => bytes.truncate(at + 1),
                _ => bytes[at] = next(256) as u8,
            }
        }
        if let Err(e) = import_bytes(Path::new("damaged"), bytes, None) {
            assert!(!e.to_string().contains('\n'), "{e}");
            refused += 1;
        }
    }
    // Of the files of VGG16 some survive; the others have one layer and are always refused.
    assert!((2950..3000).contains(&refused), "{refused}");
}

/// The feature maps of a base for some inputs, in integers and in real units.
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

/// L2 distance relative to the length of the second.
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
fn a_tail_is_taken_out_trained_and_put_back() {
    let float = small();
    let model = onnx::int8_model(&calibrated(&float, &Options::default(), 2));
    let load =
        |bytes: &[u8]| Backbone::from_bytes(Path::new("int8"), bytes, Kernel::Portable).unwrap();
    let base = load(&model);
    let mut taken = tail(&model, "block2").unwrap();
    assert_eq!(
        (taken.frozen, &*taken.layers[0].name, taken.layers[0].pool),
        (2, "block2_conv1", true)
    );
    assert_eq!(tail(&model, "block2_conv1").unwrap(), taken);
    assert_eq!(tail(&model, "block1_conv2").unwrap().frozen, 1);
    for (first, words) in
        [("block1", "no block or layer after the first"), ("block", "block2_conv1"), ("x", "\"x\"")]
    {
        assert!(tail(&model, first).unwrap_err().to_string().contains(words), "{first}");
    }
    assert!(tail(b"no model", "block2").is_err());

    // In f32 on the frozen part's outputs it gives the features of the base, but for their
    // rounding.
    let inputs = inputs_of(&float, &frames(8, 1));
    let (frozen, real) = features(&base.truncated(2), &inputs, 32);
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

    // Trained, as it were: features of which some are larger and none as it was.
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
            Kernel::Portable,
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

    // What stands before is the same, in its tensors and in what it gives.
    assert_eq!(features(&tuned.truncated(2), &inputs, 32).0, frozen);
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
    // And the file says what it is.
    let said = |base: &Backbone, key: &str| base.metadata()[&format!("vgg_edge.{key}")].clone();
    assert_eq!(said(&tuned, "fine_tuned_from"), base.fingerprint().to_string());
    assert!(said(&tuned, "weights_source").ends_with("; fine-tuned"));
    assert_ne!(said(&tuned, "weights_sha256"), said(&base, "weights_sha256"));
    let bounds = said(&tuned, "accumulator_bounds");
    assert_eq!(
        bounds.split(',').take(2).collect::<Vec<_>>(),
        said(&base, "accumulator_bounds").split(',').take(2).collect::<Vec<_>>()
    );
    assert_eq!(bounds.split(',').count(), 3);
}
