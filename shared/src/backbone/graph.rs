//! The ONNX file in tract: parsing, the checks of its chain of convolutions, and the pass that
//! folds the chain into one op.
//!
//! tract's own quantized convolution is not used because of its speed (`docs/design.md`,
//! Backbone); its parser, shape analysis and runtime are. Only the three operators of a base are
//! registered: with all of ONNX the program for the device is four times as large.

use std::collections::BTreeMap;
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::MaxPool;

use super::ops::{ConvStack, Dequantize, QuantConv};
use super::{import, validate};
use crate::kernels::{ConvLayer, Stack};

/// The contents of a graph that has been parsed and checked.
pub(super) struct Parsed {
    /// The chain of convolutions.
    pub layers: Vec<ConvLayer>,
    /// Scale of the quantized input.
    pub input_scale: f32,
    /// Scale of each layer's output.
    pub scales: Vec<f32>,
    /// Scale of each channel of the feature map.
    pub feature_scales: Vec<f32>,
    /// The file's `metadata_props`.
    pub metadata: BTreeMap<String, String>,
    /// The graph as parsed, evaluated by the reference.
    #[cfg(test)]
    pub reference: TypedModel,
}

/// Parses an ONNX file and extracts its contents.
pub(super) fn parse(mut bytes: &[u8]) -> TractResult<Parsed> {
    let mut onnx = Onnx::default();
    onnx.op_register.insert("QLinearConv", import::build_qlinear_conv);
    onnx.op_register.insert("MaxPool", import::build_max_pool);
    onnx.op_register.insert("DequantizeLinear", import::build_dequantize);
    let proto = onnx.proto_model_for_read(&mut bytes)?;
    for node in proto.graph.iter().flat_map(|graph| &graph.node) {
        ensure!(
            node.op_type != "Conv",
            "it is not quantized; quantize it with `host base quantize`"
        );
        ensure!(
            onnx.op_register.0.contains_key(&node.op_type),
            "{} is a {}, which a base does not contain",
            node.name,
            node.op_type
        );
    }
    validate::check(proto.graph.as_ref().context("it has no graph")?)?;
    // Shapes of intermediate tensors are computed, whatever the file declares.
    onnx.ignore_value_info = true;
    let model = onnx.model_for_proto_model(&proto)?;
    drop(proto);
    let mut metadata = BTreeMap::new();
    for (key, value) in &model.properties {
        if let Some(key) = key.strip_prefix("onnx.metadata_props.") {
            metadata
                .insert(key.to_owned(), value.try_as_plain_ram()?.to_scalar::<String>()?.clone());
        }
    }
    let reference = model.into_typed()?;
    let chain = walk(&reference)?;
    Ok(Parsed {
        layers: chain.layers,
        input_scale: chain.input_scale,
        scales: chain.scales,
        feature_scales: chain.feature_scales,
        metadata,
        #[cfg(test)]
        reference,
    })
}

/// The nodes of a graph, in order.
#[derive(Default)]
struct Chain {
    layers: Vec<ConvLayer>,
    input_scale: f32,
    scales: Vec<f32>,
    feature_scales: Vec<f32>,
}

/// Follows the only path from the input to the output.
fn walk(model: &TypedModel) -> TractResult<Chain> {
    let ([input], [output]) = (model.input_outlets()?, model.output_outlets()?) else {
        bail!("a base has one input and one output");
    };
    ensure!(model.outlet_fact(*input)?.datum_type == u8::datum_type(), "the input is not u8");
    let mut chain = Chain::default();
    let mut outlet = *input;
    loop {
        let [next] = &*model.node(outlet.node).outputs[outlet.slot].successors else {
            bail!(
                "the output of {} must have one consumer: a base is a single chain",
                model.node(outlet.node).name
            );
        };
        let node = model.node(next.node);
        if let Some(conv) = node.op_as::<QuantConv>() {
            chain.push(&node.name, conv)?;
        } else if node.op_is::<MaxPool>() {
            match chain.layers.last_mut() {
                Some(layer) if !layer.pool => layer.pool = true,
                _ => bail!("{} does not follow a convolution", node.name),
            }
        } else if let Some(dequantize) = node.op_as::<Dequantize>() {
            chain.feature_scales = chain.feature_scales(&node.name, &dequantize.scales)?;
            ensure!(output.node == node.id, "the graph continues after {}", node.name);
            return Ok(chain);
        } else {
            bail!("{} is a {}, which a base does not contain", node.name, node.op.name());
        }
        outlet = OutletId::new(next.node, 0);
    }
}

impl Chain {
    /// Appends a convolution, which must fit the layer before it.
    fn push(&mut self, name: &str, conv: &QuantConv) -> TractResult<()> {
        if let (Some(before), Some(&scale)) = (self.layers.last(), self.scales.last()) {
            ensure!(
                conv.input_scale == scale && conv.layer.zero_point == 0,
                "the input of {name} does not have the scale and the zero point 0 of the layer \
                 before"
            );
            ensure!(
                before.outputs == conv.layer.inputs,
                "{name} has {} input channels, the layer before has {} outputs",
                conv.layer.inputs,
                before.outputs
            );
        } else {
            self.input_scale = conv.input_scale;
        }
        self.scales.push(conv.output_scale);
        self.layers.push((*conv.layer).clone());
        Ok(())
    }

    /// The scale of each channel of the feature map, from the scales of the last node.
    fn feature_scales(&self, name: &str, scales: &[f32]) -> TractResult<Vec<f32>> {
        let (Some(last), Some(&scale)) = (self.layers.last(), self.scales.last()) else {
            bail!("the graph has no convolution")
        };
        // With a scale for each channel, `y_scale` of the last layer has no meaning of its own:
        // its channels were divided by those scales.
        match scales {
            &[one] if one == scale => Ok(vec![one; last.outputs]),
            [_] => bail!("{name} does not have the scale of the last layer"),
            each if each.len() == last.outputs => Ok(each.to_vec()),
            each => bail!("{name} has {} scales for {} channels", each.len(), last.outputs),
        }
    }
}

/// Builds a model of one op: u8 `[n, 3, h, w]` to u8 `[n, h / 32, w / 32, 512]`, channels last.
pub(super) fn fold(
    stack: Arc<Stack>,
    pool: Option<Arc<rayon::ThreadPool>>,
) -> TractResult<Arc<TypedRunnableModel>> {
    let mut model = TypedModel::default();
    let inputs = stack.layers().next().map_or(0, |layer| layer.inputs);
    let [n, h, w] = ["n", "h", "w"].map(|name| TDim::from(model.symbols.new_with_prefix(name)));
    let source = model.add_source("x", u8::fact(&[n, inputs.into(), h, w]))?;
    let output = model.wire_node("base", ConvStack { stack, pool }, &[source])?;
    model.select_output_outlets(&output)?;
    model.into_runnable()
}
