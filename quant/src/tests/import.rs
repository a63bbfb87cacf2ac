//! Weights in the formats of other programs.

use std::path::Path;

use hdf5_writer::{DatasetBuilder, Hdf5Builder, Hdf5Writer, WriteOptions};
use prost::Message;
use tract_onnx::pb;

use super::vgg16;
use crate::import::{import, import_bytes};
use crate::onnx;
use crate::weights::{FloatBase, FloatLayer, Normalization};

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
type Location = (Vec<String>, &'static str, &'static str);

/// Returns a Keras file; `location` gives each layer's groups and the names of kernel and bias.
fn keras(base: &FloatBase, location: impl Fn(usize, &str) -> Location) -> Vec<u8> {
    // A classifier, to be dropped.
    let top = DatasetBuilder::typed_data("fc1/fc1_W_1:0", vec![4, 2], &[0.5f32; 8]).unwrap();
    let mut builder = Hdf5Builder::new().dataset(top);
    for (index, layer) in base.layers.iter().enumerate() {
        let (groups, kernel, bias) = location(index, &layer.name);
        let (group, outputs) = (groups.join("/"), layer.outputs as u64);
        let shape = vec![3, 3, layer.inputs as u64, outputs];
        let kernel =
            DatasetBuilder::typed_data(format!("{group}/{kernel}"), shape, &oihw_to_hwio(layer))
                .unwrap();
        let bias =
            DatasetBuilder::typed_data(format!("{group}/{bias}"), vec![outputs], &layer.bias)
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
fn keras_files_of_all_versions_are_imported() {
    let base = vgg16();
    let file = |location: &dyn Fn(usize, &str) -> Location| {
        import_bytes(Path::new("w.h5"), keras(&base, location), None).unwrap()
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
fn a_keras_file_of_h5py_is_imported() {
    // The layout of the published file (superblock 0, symbol tables); fill values instead of data
    // keep it small.
    let bytes = include_bytes!("../../fixtures/keras_notop.h5");
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
    let indices = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28];
    let mut tensors = vec![("classifier.0.weight".to_owned(), vec![2, 4], vec![f32::NAN; 8])];
    for (layer, index) in base.layers.iter().zip(indices) {
        tensors.push((
            format!("features.{index}.weight"),
            vec![layer.outputs, layer.inputs, 3, 3],
            layer.kernel.clone(),
        ));
        tensors.push((format!("features.{index}.bias"), vec![layer.outputs], layer.bias.clone()));
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
fn torchvision_files_are_imported() {
    let base = vgg16();
    let found = import_bytes(Path::new("w"), torch(&base, |_| {}), None).unwrap();
    same(&found, &base);
    assert_eq!(found.normalization, Normalization::TORCHVISION);
    // A part of a larger model, and an override of the preprocessing.
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
fn onnx_files_of_exporters_are_imported() {
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
    let directory = tempfile::tempdir().unwrap();
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
        std::fs::write(directory.path().join("vgg.data"), data).unwrap();
    });
    let path = directory.path().join("vgg.onnx");
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
fn files_without_vgg16_have_their_own_errors() {
    let base = vgg16();
    // Not a known format.
    assert!(refused(vec![]).contains("not a file of weights"));
    assert!(refused(b"hello, world, this is text".to_vec()).contains("not a file of weights"));
    assert!(refused(b"PK\x03\x04...".to_vec()).contains("zip archive"));
    // Truncated anywhere.
    let mut tiny = base.clone();
    tiny.layers.truncate(2);
    let whole = keras(&tiny, |_, name| (vec![name.into()], "kernel:0", "bias:0"));
    for length in [9, 50, 300, whole.len() / 2, whole.len() - 1] {
        let message = refused(whole[..length].to_vec());
        assert!(message.contains("the-file") && !message.contains('\n'), "{message}");
    }
    let whole = torch(&tiny, |_| {});
    assert!(refused(whole[..whole.len() - 1].to_vec()).contains("safetensors"));
    // Too few, of other shapes, not finite.
    assert!(refused(torch(&tiny, |_| {})).contains("2 convolutions"));
    let nan = torch(&base, |tensors| tensors[3].2[5] = f32::NAN);
    let message = refused(nan);
    assert!(
        message.contains("features.2: its kernel holds a value that is not finite"),
        "{message}"
    );
    let wide = torch(&base, |tensors| tensors[1].1 = vec![64, 3, 1, 9]);
    assert!(
        refused(wide).contains(
            "features.0 has a kernel of [64, 3, 1, 9] where block1_conv1 has [64, 3, 3, 3]"
        )
    );
    let normalized = torch(&base, |tensors| tensors[1].0 = "features.1.running_mean".into());
    assert!(refused(normalized).contains("batch normalization"));
    let unbiased = torch(&base, |tensors| drop(tensors.remove(2)));
    assert!(refused(unbiased).contains("features.0.bias: it is missing"));
    let theano = {
        let mut first = base.clone();
        (first.layers[0].inputs, first.layers[0].outputs) = (3, 3);
        first.layers.truncate(1);
        first.layers[0].kernel.truncate(81);
        first.layers[0].bias.truncate(3);
        keras(&first, |_, name| (vec![name.into()], "kernel:0", "bias:0"))
    };
    assert!(refused(theano).contains("Theano"));
}

#[test]
fn onnx_graphs_of_other_networks_have_their_own_errors() {
    let base = vgg16();
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
    assert!(refused(outside).contains("outside the directory"));
    // The file does not say how images are preprocessed.
    let anonymous = exported(&base, |model| model.producer_name.clear());
    assert!(refused(anonymous).contains("--preprocess"));
}

/// A short version of the targets in `fuzz/`: damaged files are refused in one line, without a
/// panic.
#[test]
fn damaged_weight_files_are_refused() {
    let mut tiny = vgg16();
    tiny.layers.truncate(1);
    let whole = include_bytes!("../../fixtures/keras_notop.h5").to_vec();
    let seeds = [
        keras(&tiny, |_, name| (vec![name.into()], "kernel:0", "bias:0")),
        torch(&tiny, |_| {}),
        exported(&tiny, |_| {}),
    ];
    let mut random = fastrand::Rng::with_seed(1);
    let mut next = move |below: usize| random.usize(..below.max(1));
    let mut refused = 0;
    for case in 0..3000 {
        // A whole VGG16 that survives takes a while to read.
        let mut bytes =
            if case % 60 == 0 { whole.clone() } else { seeds[case % seeds.len()].clone() };
        // Headers are at the start; damage there reaches most code.
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
    // Some files of VGG16 survive; the others have one layer and are always refused.
    assert!((2950..3000).contains(&refused), "{refused}");
}
