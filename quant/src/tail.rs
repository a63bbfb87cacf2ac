//! The last layers of an int8 base, extracted in f32 for fine-tuning and replaced in integers; the
//! layers before them stay unchanged, byte for byte.

use prost::Message;
use sha2::{Digest, Sha256};
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;
use vgg_edge::Fingerprint;
use vgg_edge::kernels::Kernel;

use crate::float::Map;
use crate::quantize::{Options, QuantLayer, Sample, quantize_layers};
use crate::weights::FloatLayer;
use crate::{Error, Result};

/// The last layers of a base.
#[derive(Clone, Debug, PartialEq)]
pub struct Tail {
    /// The number of layers before them.
    pub frozen: usize,
    /// Scale of their input, which is u8 with zero point 0.
    pub input_scale: f32,
    /// The layers, whose weights are the integers times their scales. The output of the last one is
    /// the feature map in real units; between layers a channel may have its own units (cross-layer
    /// equalization), which commute with ReLU and pooling.
    pub layers: Vec<FloatLayer>,
}

/// An int8 base as an ONNX model.
struct Model(pb::ModelProto);

impl Model {
    fn parse(bytes: &[u8]) -> Result<Self> {
        pb::ModelProto::decode(bytes).map(Self).map_err(|e| wrong(format!("not ONNX ({e})")))
    }

    fn graph(&self) -> Result<&pb::GraphProto> {
        self.0.graph.as_ref().ok_or_else(|| wrong("it has no graph".into()))
    }

    /// The nodes of an operator, in order.
    fn nodes<'a>(&'a self, op: &'a str) -> Result<impl Iterator<Item = &'a pb::NodeProto>> {
        Ok(self.graph()?.node.iter().filter(move |node| node.op_type == op))
    }

    fn tensor(&self, node: &pb::NodeProto, operand: usize) -> Result<&pb::TensorProto> {
        let name = node.input.get(operand).map_or("", String::as_str);
        let found = self.graph()?.initializer.iter().find(|tensor| tensor.name == name);
        found.ok_or_else(|| wrong(format!("{} has no constant as operand {operand}", node.name)))
    }

    fn bytes(&self, node: &pb::NodeProto, operand: usize, kind: DataType) -> Result<&[u8]> {
        let tensor = self.tensor(node, operand)?;
        // All tensors of `host base quantize` have raw data. Those of other programs can be read,
        // but not replaced.
        if tensor.data_type != kind as i32
            || (tensor.raw_data.is_empty() && !tensor.dims.contains(&0))
        {
            return Err(wrong(format!(
                "operand {operand} of {} is not in the format of `host base quantize`",
                node.name
            )));
        }
        Ok(&tensor.raw_data)
    }

    fn floats(&self, node: &pb::NodeProto, operand: usize) -> Result<Vec<f32>> {
        let bytes = self.bytes(node, operand, DataType::Float)?;
        Ok(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    fn scale(&self, node: &pb::NodeProto, operand: usize) -> Result<f32> {
        let found = self.floats(node, operand)?;
        found.first().copied().ok_or_else(|| wrong(format!("{} lacks a scale", node.name)))
    }

    fn dequantize(&self) -> Result<&pb::NodeProto> {
        self.nodes("DequantizeLinear")?
            .last()
            .ok_or_else(|| wrong("it does not end in DequantizeLinear".into()))
    }

    fn put(&mut self, name: &str, raw_data: Vec<u8>) {
        let tensors = self.0.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
        for tensor in tensors.filter(|tensor| tensor.name == name) {
            tensor.raw_data.clone_from(&raw_data);
        }
    }

    fn property(&mut self, key: &str) -> &mut String {
        let key = format!("vgg_edge.{key}");
        let at =
            self.0.metadata_props.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
                self.0
                    .metadata_props
                    .push(pb::StringStringEntryProto { key, value: String::new() });
                self.0.metadata_props.len() - 1
            });
        &mut self.0.metadata_props[at].value
    }
}

fn wrong(reason: String) -> Error {
    Error::Int8Base(reason)
}

/// Extracts the layers from `first` on: the name of a layer (`block5_conv2`) or of a block
/// (`block5`).
///
/// # Errors
/// [`Error::Int8Base`] if there is no such layer, if no layer is left before it, or if the model is
/// not one that `host base quantize` writes.
pub fn tail(model: &[u8], first: &str) -> Result<Tail> {
    let model = Model::parse(model)?;
    let nodes: Vec<&pb::NodeProto> = model.nodes("QLinearConv")?.collect();
    let block = format!("{first}_");
    let frozen = nodes.iter().position(|node| node.name == first || node.name.starts_with(&block));
    let frozen = frozen.filter(|&at| at > 0).ok_or_else(|| {
        let names: Vec<&str> = nodes.iter().skip(1).map(|node| node.name.as_str()).collect();
        wrong(format!(
            "{first:?} is not a block or layer after the first; there are {}",
            names.join(", ")
        ))
    })?;
    let pooled: Vec<&str> =
        model.nodes("MaxPool")?.flat_map(|node| node.input.iter().map(String::as_str)).collect();
    let mut layers = Vec::with_capacity(nodes.len() - frozen);
    for node in &nodes[frozen..] {
        let weights = model.bytes(node, 3, DataType::Int8)?;
        let dims: Vec<usize> =
            model.tensor(node, 3)?.dims.iter().map(|&dim| dim as usize).collect();
        let scales = model.floats(node, 4)?;
        let bias = model.bytes(node, 8, DataType::Int32)?.as_chunks().0;
        let &[outputs, inputs, 3, 3] = &dims[..] else {
            return Err(wrong(format!("{} has a kernel of {dims:?}", node.name)));
        };
        if weights.len() != outputs * inputs * 9 || scales.len() != outputs || bias.len() != outputs
        {
            return Err(wrong(format!("the tensors of {} do not match", node.name)));
        }
        let input_scale = model.scale(node, 1)?;
        let kernel = weights
            .iter()
            .enumerate()
            .map(|(at, &w)| f32::from(w as i8) * scales[at / (9 * inputs)]);
        let bias = bias
            .iter()
            .zip(&scales)
            .map(|(&b, scale)| i32::from_le_bytes(b) as f32 * (input_scale * scale));
        layers.push(FloatLayer {
            name: node.name.clone(),
            inputs,
            outputs,
            kernel: kernel.collect(),
            bias: bias.collect(),
            pool: node.output.first().is_some_and(|output| pooled.contains(&output.as_str())),
        });
    }
    // The feature map has a scale for each channel.
    let scales = model.floats(model.dequantize()?, 1)?;
    if let (Some(last), Some(node)) = (layers.last_mut(), nodes.last()) {
        let unit = model.scale(node, 6)?;
        for (output, &scale) in scales.iter().enumerate().take(last.outputs) {
            let factor = scale / unit;
            last.kernel[output * 9 * last.inputs..][..9 * last.inputs]
                .iter_mut()
                .for_each(|w| *w *= factor);
            last.bias[output] *= factor;
        }
    }
    Ok(Tail { frozen, input_scale: model.scale(nodes[frozen], 1)?, layers })
}

/// Replaces the tail of a model by a trained one, quantized with `inputs`, the outputs of the
/// frozen part for calibration images. `how` is appended to the source of the weights in the
/// metadata. All other bytes stay.
///
/// # Errors
/// As [`tail`] and [`quantize`](crate::quantize::quantize).
pub fn replace(
    model: &[u8],
    tail: &Tail,
    inputs: Vec<Map<u8>>,
    options: &Options,
    kernel: Kernel,
    how: &str,
    progress: impl FnMut(&str) -> Result<()>,
) -> Result<Vec<u8>> {
    if inputs.is_empty() {
        return Err(Error::Calibration("there are no images".into()));
    }
    let parent = Fingerprint::of(model);
    let mut model = Model::parse(model)?;
    let real = |map: &Map<u8>| Map {
        height: map.height,
        width: map.width,
        channels: map.channels,
        data: map.data.iter().map(|&q| f32::from(q) * tail.input_scale).collect(),
    };
    let samples =
        inputs.into_iter().map(|map| Sample { real: real(&map), quantized: map }).collect();
    let (layers, scales) =
        quantize_layers(&tail.layers, samples, (tail.input_scale, 0), options, kernel, progress)?;

    let nodes: Vec<pb::NodeProto> =
        model.nodes("QLinearConv")?.skip(tail.frozen).cloned().collect();
    if nodes.len() != layers.len() {
        return Err(wrong(format!("{} layers cannot replace {}", layers.len(), nodes.len())));
    }
    for (node, layer) in nodes.iter().zip(&layers) {
        let floats =
            |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        model.put(&node.input[1], floats(&[layer.input_scale]));
        model.put(&node.input[3], layer.conv.weights.iter().map(|&w| w as u8).collect());
        model.put(&node.input[4], floats(&layer.weight_scales));
        model.put(&node.input[6], floats(&[layer.output_scale]));
        model.put(&node.input[8], layer.conv.bias.iter().flat_map(|b| b.to_le_bytes()).collect());
    }
    let scale = model.dequantize()?.input.get(1).cloned().unwrap_or_default();
    model.put(&scale, scales.iter().flat_map(|v| v.to_le_bytes()).collect());
    describe(&mut model, tail, &layers, parent, how);
    Ok(model.0.encode_to_vec())
}

/// Updates the metadata.
fn describe(model: &mut Model, tail: &Tail, layers: &[QuantLayer], parent: Fingerprint, how: &str) {
    let bounds = model.property("accumulator_bounds");
    let kept = bounds.split(',').take(tail.frozen).map(str::to_owned);
    let new = layers.iter().map(|layer| {
        let (low, high) = layer.bounds();
        format!("{}={low}..{high}", layer.conv.name)
    });
    *bounds = kept.chain(new).collect::<Vec<_>>().join(",");
    let mut hash = Sha256::new();
    hash.update(parent.0);
    for layer in &tail.layers {
        for values in [&layer.kernel, &layer.bias] {
            hash.update(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        }
    }
    *model.property("weights_sha256") = Fingerprint(hash.finalize().into()).to_string();
    *model.property("fine_tuned_from") = parent.to_string();
    let source = model.property("weights_source");
    *source = format!("{source}; {how}");
}
