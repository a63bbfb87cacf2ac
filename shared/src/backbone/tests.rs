//! Small generated bases, and the shipped one against the reference.

use std::path::Path;

use prost::Message;
use tract_onnx::pb;
use tract_onnx::prelude::*;

use super::*;
use crate::kernels::tests::Numbers;

/// An ONNX file of two convolutions, the first pooled: 3 to 5 to 4 channels.
struct Small {
    model: pb::ModelProto,
}

fn tensor(
    name: &str,
    dims: &[i64],
    data_type: pb::tensor_proto::DataType,
    raw_data: Vec<u8>,
) -> pb::TensorProto {
    pb::TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: data_type as i32,
        raw_data,
        ..Default::default()
    }
}

fn f32s(name: &str, dims: &[i64], values: &[f32]) -> pb::TensorProto {
    tensor(
        name,
        dims,
        pb::tensor_proto::DataType::Float,
        values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    )
}

fn ints(name: &str, values: &[i64]) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.into(),
        ints: values.to_vec(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ..Default::default()
    }
}

fn value(name: &str, kind: pb::tensor_proto::DataType, dims: &[Option<i64>]) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension};
    let dim = dims
        .iter()
        .enumerate()
        .map(|(axis, dim)| Dimension {
            value: Some(match dim {
                Some(size) => dimension::Value::DimValue(*size),
                None => dimension::Value::DimParam(format!("{name}{axis}")),
            }),
            ..Default::default()
        })
        .collect();
    let tensor = pb::type_proto::Tensor {
        elem_type: kind as i32,
        shape: Some(pb::TensorShapeProto { dim }),
    };
    pb::ValueInfoProto {
        name: name.into(),
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The input specification of [`Small`].
fn metadata() -> Vec<pb::StringStringEntryProto> {
    let metadata = [
        ("format", "1"),
        ("channel_order", "RGB"),
        ("mean", "0,0,0"),
        ("std", "1,1,1"),
        ("resize", "nearest"),
        ("size_multiple", "2"),
        ("size_min", "2"),
        ("size_max", "64"),
    ];
    let entry = |(key, value): &(&str, &str)| pb::StringStringEntryProto {
        key: format!("vgg_edge.{key}"),
        value: (*value).into(),
    };
    metadata.iter().map(entry).collect()
}

impl Small {
    fn new() -> Self {
        use pb::tensor_proto::DataType::{Float, Int8, Int32, Uint8};
        let mut numbers = Numbers::new(5);
        let mut graph = pb::GraphProto { name: "small".into(), ..Default::default() };
        let mut current = "x".to_owned();
        let channels = [3i64, 5, 4];
        for (index, scales) in [(1.5f32, 0.8f32), (0.8, 2.0)].into_iter().enumerate() {
            let name = format!("block{}_conv1", index + 1);
            let (inputs, outputs) = (channels[index], channels[index + 1]);
            let weights: Vec<u8> =
                (0..inputs * outputs * 9).map(|_| numbers.next() as u8).collect();
            let bias: Vec<u8> =
                (0..outputs).flat_map(|i| ((i * 900 - 1500) as i32).to_le_bytes()).collect();
            let weight_scales: Vec<f32> = (0..outputs).map(|i| 0.002 + 0.0005 * i as f32).collect();
            let zero = if index == 0 { 100 } else { 0 };
            graph.initializer.extend([
                f32s(&format!("{name}.xs"), &[], &[scales.0]),
                tensor(&format!("{name}.xz"), &[], Uint8, vec![zero]),
                tensor(&format!("{name}.w"), &[outputs, inputs, 3, 3], Int8, weights),
                f32s(&format!("{name}.ws"), &[outputs], &weight_scales),
                tensor(&format!("{name}.wz"), &[outputs], Int8, vec![0; outputs as usize]),
                f32s(&format!("{name}.ys"), &[], &[scales.1]),
                tensor(&format!("{name}.yz"), &[], Uint8, vec![0]),
                tensor(&format!("{name}.b"), &[outputs], Int32, bias),
            ]);
            let parts =
                ["xs", "xz", "w", "ws", "wz", "ys", "yz", "b"].map(|part| format!("{name}.{part}"));
            graph.node.push(pb::NodeProto {
                op_type: "QLinearConv".into(),
                name: name.clone(),
                input: [vec![current], parts.to_vec()].concat(),
                output: vec![name.clone()],
                attribute: vec![
                    ints("pads", &[1; 4]),
                    ints("kernel_shape", &[3, 3]),
                    ints("strides", &[1, 1]),
                ],
                ..Default::default()
            });
            current = name;
            if index == 0 {
                graph.node.push(pb::NodeProto {
                    op_type: "MaxPool".into(),
                    name: "block1_pool".into(),
                    input: vec![current],
                    output: vec!["block1_pool".into()],
                    attribute: vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])],
                    ..Default::default()
                });
                current = "block1_pool".into();
            }
        }
        graph.initializer.extend([f32s("s", &[], &[2.0]), tensor("z", &[], Uint8, vec![0])]);
        graph.node.push(pb::NodeProto {
            op_type: "DequantizeLinear".into(),
            name: "out".into(),
            input: vec![current, "s".into(), "z".into()],
            output: vec!["features".into()],
            ..Default::default()
        });
        graph.input.push(value("x", Uint8, &[None, Some(3), None, None]));
        graph.output.push(value("features", Float, &[None, Some(4), None, None]));
        let opset_import = vec![pb::OperatorSetIdProto { domain: String::new(), version: 13 }];
        let graph = Some(graph);
        Self {
            model: pb::ModelProto {
                ir_version: 8,
                graph,
                opset_import,
                metadata_props: metadata(),
                ..Default::default()
            },
        }
    }

    fn graph(&mut self) -> &mut pb::GraphProto {
        self.model.graph.as_mut().unwrap()
    }

    fn raw(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self
            .graph()
            .initializer
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .unwrap()
            .raw_data
    }

    fn load(&self) -> Result<Backbone> {
        Backbone::from_bytes(Path::new("small.onnx"), &self.model.encode_to_vec(), Kernel::PORTABLE)
    }

    /// The error of loading after a change; empty if there is none.
    fn refused(change: impl FnOnce(&mut Self)) -> String {
        let mut small = Self::new();
        change(&mut small);
        small.load().err().map_or_else(String::new, |e| e.to_string())
    }
}

/// The unfolded graph's answer, channels last and quantized.
fn reference(bytes: &[u8], input: &[u8], channels: usize, side: usize, scales: &[f32]) -> Vec<u8> {
    let parsed = graph::parse(bytes).unwrap();
    let plan = parsed.reference.into_runnable().unwrap();
    let input = Tensor::from_shape(&[1, channels, side, side], input).unwrap();
    let out = plan.run(tvec!(input.into_tvalue())).unwrap();
    let shape = out[0].shape().to_vec();
    let plain = out[0].try_as_plain_ram().unwrap();
    let planes = plain.as_slice::<f32>().unwrap();
    let pixels = shape[2] * shape[3];
    let value = |(i, scale): (usize, &f32)| {
        (planes[(i % shape[1]) * pixels + i / shape[1]] / scale).round() as u8
    };
    (0..planes.len()).zip(scales.iter().cycle()).map(value).collect()
}

#[test]
fn the_folded_graph_equals_the_parsed_one() {
    let small = Small::new();
    let base = small.load().unwrap();
    assert_eq!(
        (base.contract().channels, base.contract().stride, base.contract().zero_point),
        (4, 2, 100)
    );
    assert_eq!(base.feature_scales(), [2.0; 4]);
    let mut numbers = Numbers::new(9);
    for (side, pool) in [(2, None), (6, None), (14, thread_pool(2).unwrap())] {
        let input: Vec<u8> = (0..3 * side * side).map(|_| numbers.next() as u8).collect();
        let got = base.runner(pool).unwrap().features(&input, side as u32).unwrap();
        let expected = reference(&small.model.encode_to_vec(), &input, 3, side, &[2.0]);
        assert_eq!(got, expected, "{side}");
        assert!(got.iter().any(|&q| q > 0), "all zero proves nothing");
    }
}

#[test]
fn channels_of_the_feature_map_may_have_scales_of_their_own() {
    let set = |scales: &[f32], zero_points: &[u8]| {
        let mut small = Small::new();
        let graph = small.model.graph.as_mut().unwrap();
        graph.initializer.extend([
            f32s("each_s", &[scales.len() as i64], scales),
            tensor(
                "each_z",
                &[zero_points.len() as i64],
                pb::tensor_proto::DataType::Uint8,
                zero_points.to_vec(),
            ),
        ]);
        let dequantize = graph.node.last_mut().unwrap();
        dequantize.input[1..].clone_from_slice(&["each_s".into(), "each_z".into()]);
        small
    };
    let scales = [0.5, 1.0, 2.0, 4.0];
    let small = set(&scales, &[0; 4]);
    let base = small.load().unwrap();
    assert_eq!(base.feature_scales(), scales);
    assert_eq!(*base.scales().last().unwrap(), scales);
    let input: Vec<u8> = (0..3 * 36).map(|i| (i * 37 % 251) as u8).collect();
    let got = base.runner(None).unwrap().features(&input, 6).unwrap();
    assert_eq!(got, reference(&small.model.encode_to_vec(), &input, 3, 6, &scales));
    let refused = |scales: &[f32], zero_points: &[u8]| {
        set(scales, zero_points).load().unwrap_err().to_string()
    };
    assert!(refused(&[1.0; 3], &[0; 3]).contains("3 scales for 4 channels"));
    assert!(refused(&[1.0, 1.0, -1.0, 1.0], &[0; 4]).contains("not a positive number"));
    assert!(refused(&scales, &[0, 0, 1, 0]).contains("zero point"));
}

#[test]
fn an_input_of_another_length_is_an_error() {
    let base = Small::new().load().unwrap();
    let mut runner = base.runner(None).unwrap();
    assert!(runner.features(&[0; 7], 4).is_err());
    assert!(runner.features(&[0; 2 * 16], 4).is_err());
    assert!(runner.features(&[0; 3 * 16], 4).is_ok());
}

#[test]
fn graphs_of_other_models_are_refused() {
    let refused = |message: &str, change: &dyn Fn(&mut Small)| {
        let text = Small::refused(change);
        assert!(
            text.starts_with("small.onnx: not a usable base: ") && text.contains(message),
            "{message:?}: {text}"
        );
    };
    refused("vgg_edge.mean is missing", &|s| {
        s.model.metadata_props.retain(|p| p.key != "vgg_edge.mean")
    });
    refused("vgg_edge.std is \"1,0,1\"", &|s| s.model.metadata_props[3].value = "1,0,1".into());
    refused("vgg_edge.channel_order is \"BRG\"", &|s| {
        s.model.metadata_props[1].value = "BRG".into()
    });
    refused("format 2", &|s| s.model.metadata_props[0].value = "2".into());
    refused("allowed input sizes", &|s| s.model.metadata_props[5].value = "3".into());
    refused("pads is not that", &|s| s.graph().node[0].attribute[0].ints = vec![0; 4]);
    refused("zero point of the output", &|s| *s.raw("block1_conv1.yz") = vec![3]);
    refused("zero points of the weights", &|s| *s.raw("block2_conv1.wz") = vec![0, 0, 1, 0]);
    refused("zero point 0 of the layer before", &|s| *s.raw("block2_conv1.xz") = vec![1]);
    refused("scale", &|s| *s.raw("block2_conv1.xs") = 0.9f32.to_le_bytes().to_vec());
    refused("not a positive number", &|s| {
        *s.raw("block1_conv1.ys") = f32::NAN.to_le_bytes().to_vec()
    });
    refused("can reach", &|s| *s.raw("block1_conv1.b") = i32::MAX.to_le_bytes().repeat(5));
    refused("only 2x2 max pooling", &|s| s.graph().node[1].attribute[0].ints = vec![3, 3]);
    refused("a base does not contain", &|s| {
        s.graph().node[3].op_type = "Relu".into();
        s.graph().node[3].input.truncate(1);
        s.graph().output[0] =
            value("features", pb::tensor_proto::DataType::Uint8, &[None, Some(4), None, None]);
    });
    assert!(Small::refused(|_| ()).is_empty());
}

#[test]
fn files_that_are_not_onnx_are_refused() {
    let good = Small::new().model.encode_to_vec();
    for bytes in [&b""[..], b"hello", &good[..good.len() / 2], &good[..good.len() - 1]] {
        assert!(matches!(
            Backbone::from_bytes(Path::new("x"), bytes, Kernel::PORTABLE),
            Err(Error::Base { .. })
        ));
    }
}

/// All 13 layers of the shipped base, on every kernel of this machine.
#[test]
fn the_shipped_base_equals_the_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(FILE_NAME);
    let bytes = std::fs::read(&path).unwrap();
    let mut numbers = Numbers::new(3);
    let input: Vec<u8> =
        (0..3 * 32 * 32).map(|i| (numbers.next() % 64) as u8 + (i / 24 % 190) as u8).collect();
    let mut expected = None;
    for kernel in Kernel::available() {
        let base = Backbone::from_bytes(&path, &bytes, kernel).unwrap();
        assert_eq!((base.layers().len(), base.macs(224)), (13, 15_346_630_656));
        let expected =
            expected.get_or_insert_with(|| reference(&bytes, &input, 3, 32, base.feature_scales()));
        assert!(expected.iter().filter(|&&q| q > 0).count() > 20, "all zero proves nothing");
        let got = base.runner(None).unwrap().features(&input, 32).unwrap();
        assert!(got == *expected, "{}", kernel.name());
    }
}

/// Feature maps that NumPy computed from the same file, independently of this code
/// (`tests/fixtures/golden`).
#[test]
fn the_shipped_base_gives_the_recorded_features() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let base =
        Backbone::load(&root.join("models").join(FILE_NAME), Kernel::detect().unwrap()).unwrap();
    let mut runner = base.runner(None).unwrap();
    for number in 0..3 {
        let read = |name: &str| {
            std::fs::read(root.join(format!("tests/fixtures/golden/{name}-{number}.bin"))).unwrap()
        };
        assert!(runner.features(&read("input"), 64).unwrap() == read("features"), "{number}");
    }
}
