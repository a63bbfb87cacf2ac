//! Bases as ONNX, opset 13: in f32 (Conv, Relu, MaxPool) and in int8 (QLinearConv, MaxPool,
//! DequantizeLinear).
//!
//! The same base gives the same bytes. `models/README.md` lists tensors and metadata.

use prost::Message;
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;
use vgg_edge::preprocess::InputSpec;

use crate::quantize::QuantBase;
use crate::weights::{FloatBase, contract};

/// Returns the f32 base: `f32[n, 3, h, w] -> f32[n, 512, h / 32, w / 32]`.
pub fn float_model(base: &FloatBase) -> Vec<u8> {
    let mut graph = Graph::new("vgg16-notop-f32");
    for layer in &base.layers {
        let (outputs, inputs) = (layer.outputs as i64, layer.inputs as i64);
        let kernel =
            graph.floats(&format!("{}.w", layer.name), &[outputs, inputs, 3, 3], &layer.kernel);
        let bias = graph.floats(&format!("{}.b", layer.name), &[outputs], &layer.bias);
        let sums = format!("{}.sums", layer.name);
        graph.node(
            "Conv",
            &layer.name,
            vec![graph.current.clone(), kernel, bias],
            &sums,
            convolution(),
        );
        graph.node("Relu", &format!("{}.relu", layer.name), vec![sums], &layer.name, vec![]);
        if layer.pool {
            let name = pool_name(&layer.name);
            graph.node("MaxPool", &name, vec![layer.name.clone()], &name, pooling());
        }
    }
    let contract = base.contract();
    let mut properties = properties(&contract);
    properties.push(("weights_source", base.source.clone()));
    properties.push(("weights_sha256", base.digest().to_string()));
    graph.finish(DataType::Float, contract.channels, properties)
}

/// Returns the int8 base: `u8[n, 3, h, w] -> f32[n, 512, h / 32, w / 32]`.
pub fn int8_model(base: &QuantBase) -> Vec<u8> {
    let mut graph = Graph::new("vgg16-notop-int8");
    for layer in &base.layers {
        let conv = &layer.conv;
        let (outputs, inputs) = (conv.outputs as i64, conv.inputs as i64);
        let part = |part: &str| format!("{}.{part}", conv.name);
        let ints = conv.weights.iter().map(|&w| w as u8).collect();
        let operands = vec![
            graph.current.clone(),
            graph.floats(&part("x_scale"), &[], &[layer.input_scale]),
            graph.tensor(&part("x_zero_point"), &[], DataType::Uint8, vec![conv.zero_point]),
            graph.tensor(&part("w"), &[outputs, inputs, 3, 3], DataType::Int8, ints),
            graph.floats(&part("w_scale"), &[outputs], &layer.weight_scales),
            graph.tensor(&part("w_zero_point"), &[outputs], DataType::Int8, vec![0; conv.outputs]),
            graph.floats(&part("y_scale"), &[], &[layer.output_scale]),
            graph.tensor(&part("y_zero_point"), &[], DataType::Uint8, vec![0]),
            {
                let bytes = conv.bias.iter().flat_map(|b| b.to_le_bytes()).collect();
                graph.tensor(&part("b"), &[outputs], DataType::Int32, bytes)
            },
        ];
        graph.node("QLinearConv", &conv.name, operands, &conv.name, convolution());
        if conv.pool {
            let name = pool_name(&conv.name);
            graph.node("MaxPool", &name, vec![conv.name.clone()], &format!("{name}_q"), pooling());
        }
    }
    let output = base.layers.last().map_or_else(String::new, |layer| {
        if layer.conv.pool {
            pool_name(&layer.conv.name)
        } else {
            format!("{}.real", layer.conv.name)
        }
    });
    let channels = base.feature_scales.len();
    // `axis` defaults to 1, the channels.
    let operands = vec![
        graph.current.clone(),
        graph.floats(&format!("{output}.scale"), &[channels as i64], &base.feature_scales),
        graph.tensor(
            &format!("{output}.zero_point"),
            &[channels as i64],
            DataType::Uint8,
            vec![0; channels],
        ),
    ];
    graph.node("DequantizeLinear", &format!("{output}_dequantize"), operands, &output, vec![]);
    let pools = base.layers.iter().filter(|layer| layer.conv.pool).count();
    let outputs = base.layers.last().map_or(0, |layer| layer.conv.outputs);
    let contract = contract(&base.normalization, pools, outputs);
    let mut properties = properties(&contract);
    let bounds = base
        .layers
        .iter()
        .map(|l| (&l.conv.name, l.bounds()))
        .map(|(name, (low, high))| format!("{name}={low}..{high}"));
    properties.push(("accumulator_bounds", bounds.collect::<Vec<_>>().join(",")));
    properties.push(("weights_source", base.source.clone()));
    properties.push(("weights_sha256", base.weights_digest.to_string()));
    properties.push(("quantisation", base.how.clone()));
    graph.finish(DataType::Uint8, contract.channels, properties)
}

/// Returns `block5_pool` for `block5_conv3`, as in Keras.
fn pool_name(layer: &str) -> String {
    match layer.split_once("_conv") {
        Some((block, _)) => format!("{block}_pool"),
        None => format!("{layer}_pool"),
    }
}

/// Returns the input settings as metadata; scale and zero point are tensors.
fn properties(contract: &InputSpec) -> Vec<(&'static str, String)> {
    let three = |values: [f32; 3]| values.map(|v| v.to_string()).join(",");
    vec![
        ("format", "1".into()),
        ("channel_order", contract.channel_order.name().into()),
        ("mean", three(contract.mean)),
        ("std", three(contract.std)),
        ("resize", contract.resize.name().into()),
        ("size_multiple", contract.size_multiple.to_string()),
        ("size_min", contract.size_min.to_string()),
        ("size_max", contract.size_max.to_string()),
    ]
}

fn attribute(name: &str, values: &[i64]) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.into(),
        ints: values.to_vec(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ..Default::default()
    }
}

fn convolution() -> Vec<pb::AttributeProto> {
    vec![
        attribute("dilations", &[1, 1]),
        pb::AttributeProto {
            name: "group".into(),
            i: 1,
            r#type: pb::attribute_proto::AttributeType::Int as i32,
            ..Default::default()
        },
        attribute("kernel_shape", &[3, 3]),
        attribute("pads", &[1, 1, 1, 1]),
        attribute("strides", &[1, 1]),
    ]
}

fn pooling() -> Vec<pb::AttributeProto> {
    vec![attribute("kernel_shape", &[2, 2]), attribute("strides", &[2, 2])]
}

/// A chain of nodes under construction.
struct Graph {
    proto: pb::GraphProto,
    /// The input of the next node.
    current: String,
    output: String,
}

impl Graph {
    fn new(name: &str) -> Self {
        let proto = pb::GraphProto { name: name.into(), ..Default::default() };
        Self { proto, current: "x".into(), output: String::new() }
    }

    fn tensor(
        &mut self,
        name: &str,
        dims: &[i64],
        data_type: DataType,
        raw_data: Vec<u8>,
    ) -> String {
        let tensor = pb::TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: data_type as i32,
            raw_data,
            ..Default::default()
        };
        self.proto.initializer.push(tensor);
        name.into()
    }

    fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) -> String {
        self.tensor(
            name,
            dims,
            DataType::Float,
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        )
    }

    fn node(
        &mut self,
        op: &str,
        name: &str,
        input: Vec<String>,
        output: &str,
        attribute: Vec<pb::AttributeProto>,
    ) {
        self.proto.node.push(pb::NodeProto {
            op_type: op.into(),
            name: name.into(),
            input,
            output: vec![output.into()],
            attribute,
            ..Default::default()
        });
        self.current = output.into();
        self.output = output.into();
    }

    fn finish(
        mut self,
        input: DataType,
        channels: u32,
        properties: Vec<(&'static str, String)>,
    ) -> Vec<u8> {
        self.proto.input = vec![value("x", input, ["n", "", "h", "w"], 3)];
        self.proto.output =
            vec![value(&self.output, DataType::Float, ["n", "", "h32", "w32"], channels.into())];
        let model = pb::ModelProto {
            ir_version: 8,
            producer_name: "vgg-edge".into(),
            opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: 13 }],
            graph: Some(self.proto),
            metadata_props: properties
                .into_iter()
                .map(|(key, value)| pb::StringStringEntryProto {
                    key: format!("vgg_edge.{key}"),
                    value,
                })
                .collect(),
            ..Default::default()
        };
        model.encode_to_vec()
    }
}

/// Describes a tensor `kind [n, channels, h, w]`, with symbols for all but the channels.
fn value(name: &str, kind: DataType, symbols: [&str; 4], channels: i64) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension};
    let dim = symbols
        .iter()
        .map(|symbol| Dimension {
            value: Some(if symbol.is_empty() {
                dimension::Value::DimValue(channels)
            } else {
                dimension::Value::DimParam((*symbol).into())
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
