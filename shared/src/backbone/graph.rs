//! The ONNX file in tract: our own builder for `QLinearConv`, and the pass that folds the chain
//! into one op.
//!
//! tract's own quantized convolution is left out because of its speed (`ARCHITECTURE.md`, Backbone
//! file); its parser, shape analysis and runtime are used. Only the three operators of a base are
//! registered: with all of ONNX the program for the device is four times as large.

use std::collections::BTreeMap;
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{MaxPool, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_hir::infer::*;
use tract_onnx::tract_hir::ops::cnn::HirMaxPool;
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};

use crate::kernels::algo::reference as naive;
use crate::kernels::{Arena, ConvLayer, Stack};

/// What the graph holds, once it has been read and checked.
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
    /// The graph as parsed, evaluated naively.
    #[cfg(test)]
    pub reference: TypedModel,
}

/// Parses an ONNX file and takes it apart.
pub(super) fn parse(mut bytes: &[u8]) -> TractResult<Parsed> {
    let mut onnx = Onnx::default();
    onnx.op_register.insert("QLinearConv", build_qlinear_conv);
    onnx.op_register.insert("MaxPool", build_max_pool);
    onnx.op_register.insert("DequantizeLinear", build_dequantize);
    let proto = onnx.proto_model_for_read(&mut bytes)?;
    for node in proto.graph.iter().flat_map(|graph| &graph.node) {
        ensure!(
            node.op_type != "Conv",
            "it is not quantized; make an int8 base of it with `host base quantize`"
        );
        ensure!(
            onnx.op_register.0.contains_key(&node.op_type),
            "{} is a {}, which a base does not hold",
            node.name,
            node.op_type
        );
    }
    super::proto::check(proto.graph.as_ref().context("it holds no graph")?)?;
    // Shapes of what lies between are computed; a file has no say in them.
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

/// The nodes of a graph on their only path.
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
    let mut layers: Vec<ConvLayer> = Vec::new();
    let mut input_scale = 0.0;
    let mut scales: Vec<f32> = Vec::new();
    let mut outlet = *input;
    loop {
        let [next] = &*model.node(outlet.node).outputs[outlet.slot].successors else {
            bail!(
                "after {} the graph forks or ends, which a base does not",
                model.node(outlet.node).name
            );
        };
        let node = model.node(next.node);
        let scale = scales.last().copied().unwrap_or_default();
        if let Some(conv) = node.op_as::<QuantConv>() {
            ensure!(
                layers.is_empty() || (conv.input_scale == scale && conv.layer.zero_point == 0),
                "{} does not take up the scale and the zero point 0 of the layer before",
                node.name
            );
            if let Some(before) = layers.last() {
                ensure!(
                    before.outputs == conv.layer.inputs,
                    "{} has the wrong number of inputs",
                    node.name
                );
            } else {
                input_scale = conv.input_scale;
            }
            scales.push(conv.output_scale);
            layers.push((*conv.layer).clone());
        } else if node.op_is::<MaxPool>() {
            match layers.last_mut() {
                Some(layer) if !layer.pool => layer.pool = true,
                _ => bail!("{} does not follow a convolution", node.name),
            }
        } else if let Some(Dequantize { scales: feature_scales }) = node.op_as::<Dequantize>() {
            let Some(last) = layers.last() else { bail!("the graph has no convolution") };
            // A scale for each channel gives `y_scale` of the last layer no meaning of its own:
            // channels were divided before.
            let feature_scales = match &feature_scales[..] {
                &[one] if one == scale => vec![one; last.outputs],
                [_] => bail!("{} does not take up the scale of the last layer", node.name),
                each if each.len() == last.outputs => each.to_vec(),
                each => {
                    bail!("{} has {} scales for {} channels", node.name, each.len(), last.outputs)
                }
            };
            ensure!(output.node == node.id, "the graph goes on after {}", node.name);
            return Ok(Chain { layers, input_scale, scales, feature_scales });
        } else {
            bail!("{} is a {}, which a base does not hold", node.name, node.op.name());
        }
        outlet = OutletId::new(next.node, 0);
    }
}

/// The whole base as one op: u8 `[n, 3, h, w]` to u8 `[n, h / 32, w / 32, 512]`, channels last.
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

/// A `QLinearConv` node, evaluated naively: the reference.
#[derive(Clone, Debug)]
struct QuantConv {
    layer: Arc<ConvLayer>,
    input_scale: f32,
    output_scale: f32,
}

impl PartialEq for QuantConv {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.layer, &other.layer)
    }
}

impl Eq for QuantConv {}

impl Op for QuantConv {
    fn name(&self) -> StaticName {
        "QuantConv".into()
    }

    op_as_typed_op!();
}

impl EvalOp for QuantConv {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let &[n, channels, h, w] = inputs[0].shape() else {
            bail!("the input is not [n, c, h, w]")
        };
        let input = inputs[0].try_as_plain_ram()?.as_slice::<u8>()?;
        let mut out = Vec::with_capacity(n * self.layer.outputs * h * w);
        for picture in input.chunks_exact(channels * h * w) {
            out.extend(naive::convolve(&self.layer, picture, h, w));
        }
        Ok(tvec!(Tensor::from_shape(&[n, self.layer.outputs, h, w], &out)?.into_tvalue()))
    }
}

impl TypedOp for QuantConv {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        ensure!(
            shape.len() == 4 && inputs[0].datum_type == u8::datum_type(),
            "the input is not u8 [n, c, h, w]"
        );
        ensure!(shape[1] == self.layer.inputs.to_dim(), "{} channels expected", self.layer.inputs);
        shape[1] = self.layer.outputs.to_dim();
        Ok(tvec!(u8::fact(&shape)))
    }

    as_op!();
}

/// The folded chain, run by the kernels of [`Stack`].
#[derive(Clone, Debug)]
struct ConvStack {
    stack: Arc<Stack>,
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl PartialEq for ConvStack {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.stack, &other.stack)
    }
}

impl Eq for ConvStack {}

impl Op for ConvStack {
    fn name(&self) -> StaticName {
        "ConvStack".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?}", self.stack)])
    }

    op_as_typed_op!();
}

impl EvalOp for ConvStack {
    not_out_of_plan!();

    fn state(&self, _ctx: &EvalContext) -> TractResult<Option<Box<dyn OpState>>> {
        Ok(Some(Box::new(ConvStackState::default())))
    }
}

impl TypedOp for ConvStack {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shape = inputs[0].shape.to_tvec();
        let pools = self.stack.layers().filter(|layer| layer.pool).count();
        let outputs = self.stack.output_shape(0, 0).0;
        let side = |mut dim: TDim| {
            for _ in 0..pools {
                dim /= 2;
            }
            dim
        };
        Ok(tvec!(u8::fact(&[
            shape[0].clone(),
            side(shape[2].clone()),
            side(shape[3].clone()),
            outputs.into()
        ])))
    }

    as_op!();
}

/// The arena of one runner.
#[derive(Clone, Default)]
struct ConvStackState(Arena);

impl std::fmt::Debug for ConvStackState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConvStackState")
    }
}

impl OpState for ConvStackState {
    fn eval(
        &mut self,
        _ctx: &EvalContext,
        op: &dyn Op,
        inputs: TVec<TValue>,
    ) -> TractResult<TVec<TValue>> {
        let op = op.downcast_ref::<ConvStack>().context("state of another op")?;
        let &[n, channels, h, w] = inputs[0].shape() else {
            bail!("the input is not [n, c, h, w]")
        };
        let input = inputs[0].try_as_plain_ram()?.as_slice::<u8>()?;
        let (outputs, height, width) = op.stack.output_shape(h, w);
        let mut out = Tensor::zero::<u8>(&[n, height, width, outputs])?;
        {
            let mut plain = out.try_as_plain_ram_mut()?;
            let result = plain.as_slice_mut::<u8>()?;
            ensure!(
                channels == op.stack.layers().next().map_or(0, |layer| layer.inputs),
                "{channels} channels"
            );
            match &op.pool {
                Some(pool) => pool.install(|| op.stack.run(&mut self.0, input, h, w, true, result)),
                None => op.stack.run(&mut self.0, input, h, w, false, result),
            }
        }
        Ok(tvec!(out.into_tvalue()))
    }

    fn reset_lanes(&mut self, _lanes: &[LaneId]) -> TractResult<()> {
        Ok(())
    }
}

/// `MaxPool` on import (ONNX operators, MaxPool-12): 2x2, stride 2, no padding, rounded down.
fn build_max_pool(
    _ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let ints = |name: &str| node.attribute.iter().find(|a| a.name == name).map(|a| &*a.ints);
    let plain = node.attribute.iter().all(|attribute| match attribute.name.as_str() {
        "pads" => attribute.ints.iter().all(|&pad| pad == 0),
        "dilations" => attribute.ints.iter().all(|&dilation| dilation == 1),
        "ceil_mode" | "storage_order" => attribute.i == 0,
        "auto_pad" => matches!(&*attribute.s, b"NOTSET" | b"VALID"),
        _ => true,
    });
    ensure!(
        ints("kernel_shape") == Some(&[2, 2])
            && ints("strides") == Some(&[2, 2])
            && plain
            && node.output.len() == 1,
        "{}: only 2x2 max pooling with stride 2 and no padding is known",
        node.name
    );
    let spec = PoolSpec::new(
        DataFormat::NCHW,
        tvec![2, 2],
        PaddingSpec::Valid,
        Some(tvec![1, 1]),
        Some(tvec![2, 2]),
        0,
        0,
    );
    Ok((expand(HirMaxPool::new(spec, None)), vec![]))
}

/// `DequantizeLinear` on import (ONNX operators, DequantizeLinear-13): u8 with the zero point 0;
/// one scale, or one a channel.
#[derive(Clone, Debug)]
struct DequantizeLinear(String);

fn build_dequantize(
    _ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    ensure!(node.input.len() == 3, "{}: {} inputs", node.name, node.input.len());
    ensure!(
        node.attribute.iter().all(|a| a.name != "axis" || matches!(a.i, 1 | -3)),
        "{}: the axis is not that of the channels",
        node.name
    );
    Ok((expand(DequantizeLinear(node.name.clone())), vec![]))
}

impl Expansion for DequantizeLinear {
    fn name(&self) -> StaticName {
        "DequantizeLinear".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 3)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, u8::datum_type())?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&inputs[0].shape, &outputs[0].shape)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let constants = Constants { model, inputs, name: &self.0 };
        let (scales, zero_points) = (constants.scales(1)?, constants.tensor(2)?);
        let zero_points = zero_points.try_as_plain_ram()?;
        ensure!(
            zero_points.as_slice::<u8>()?.iter().all(|&zero| zero == 0),
            "{}: a zero point is not 0",
            self.0
        );
        model.wire_node(prefix, Dequantize { scales: scales.into() }, &inputs[..1])
    }
}

/// u8 `[n, c, h, w]` to f32: times the scale, or the scale of the channel.
#[derive(Clone, Debug, PartialEq)]
struct Dequantize {
    scales: Arc<[f32]>,
}

impl Eq for Dequantize {}

impl Op for Dequantize {
    fn name(&self) -> StaticName {
        "Dequantize".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Dequantize {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let shape = inputs[0].shape();
        let &[_, channels, h, w] = shape else { bail!("the input is not [n, c, h, w]") };
        let of = |channel: usize| self.scales[channel.min(self.scales.len() - 1)];
        let values = inputs[0].try_as_plain_ram()?;
        let values = values.as_slice::<u8>()?.iter().enumerate();
        let real: Vec<f32> =
            values.map(|(at, &q)| f32::from(q) * of(at / (h * w) % channels)).collect();
        Ok(tvec!(Tensor::from_shape(shape, &real)?.into_tvalue()))
    }
}

impl TypedOp for Dequantize {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(
            inputs[0].rank() == 4 && inputs[0].datum_type == u8::datum_type(),
            "the input is not u8 [n, c, h, w]"
        );
        Ok(tvec!(f32::fact(inputs[0].shape.to_tvec())))
    }

    as_op!();
}

/// The constant inputs of a node.
struct Constants<'a> {
    model: &'a TypedModel,
    inputs: &'a [OutletId],
    name: &'a str,
}

impl Constants<'_> {
    fn tensor(&self, index: usize) -> TractResult<Arc<Tensor>> {
        let fact = self.model.outlet_fact(self.inputs[index])?;
        fact.konst
            .clone()
            .with_context(|| format!("{}: input {index} is not a constant", self.name))
    }

    fn scale(&self, index: usize) -> TractResult<f32> {
        match self.scales(index)?[..] {
            [scale] => Ok(scale),
            ref scales => bail!("{}: {} scales at input {index}, not one", self.name, scales.len()),
        }
    }

    fn scales(&self, index: usize) -> TractResult<Vec<f32>> {
        let tensor = self.tensor(index)?;
        let scales = tensor.try_as_plain_ram()?.as_slice::<f32>()?.to_vec();
        ensure!(!scales.is_empty(), "{}: no scale at input {index}", self.name);
        if let Some(wrong) = scales.iter().find(|scale| !scale.is_normal() || **scale < 0.0) {
            bail!("{}: the scale {wrong} at input {index} is not a positive number", self.name);
        }
        Ok(scales)
    }

    fn zero_point(&self, index: usize) -> TractResult<u8> {
        match self.tensor(index)?.try_as_plain_ram()?.as_slice::<u8>()? {
            [value] => Ok(*value),
            _ => bail!("{}: the zero point at input {index} is not one u8", self.name),
        }
    }
}

/// `QLinearConv` on import (ONNX operators, QLinearConv-10).
#[derive(Clone, Debug)]
struct QLinearConv {
    name: String,
    has_bias: bool,
}

fn build_qlinear_conv(
    _ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    for attribute in &node.attribute {
        let fits = match attribute.name.as_str() {
            "kernel_shape" => attribute.ints == [3, 3],
            "pads" => attribute.ints == [1, 1, 1, 1],
            "strides" | "dilations" => attribute.ints == [1, 1],
            "group" => attribute.i == 1,
            "auto_pad" => attribute.s == b"NOTSET",
            _ => true,
        };
        ensure!(
            fits,
            "{}: {} is not that of a 3x3 convolution with stride 1 and padding 1",
            node.name,
            attribute.name
        );
    }
    ensure!(
        node.attribute.iter().any(|a| a.name == "pads"),
        "{}: no pads: a base pads by 1",
        node.name
    );
    ensure!(matches!(node.input.len(), 8 | 9), "{}: {} inputs", node.name, node.input.len());
    Ok((expand(QLinearConv { name: node.name.clone(), has_bias: node.input.len() == 9 }), vec![]))
}

impl Expansion for QLinearConv {
    fn name(&self) -> StaticName {
        "QLinearConv".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 8 + usize::from(self.has_bias))?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, u8::datum_type())?;
        s.equals(&inputs[3].datum_type, i8::datum_type())?;
        s.equals(&outputs[0].datum_type, u8::datum_type())?;
        s.equals(&inputs[0].rank, 4)?;
        s.equals(&inputs[3].rank, 4)?;
        s.equals(&outputs[0].rank, 4)?;
        s.equals(&inputs[0].shape[1], &inputs[3].shape[1])?;
        s.equals(&outputs[0].shape[0], &inputs[0].shape[0])?;
        s.equals(&outputs[0].shape[1], &inputs[3].shape[0])?;
        s.equals(&outputs[0].shape[2], &inputs[0].shape[2])?;
        s.equals(&outputs[0].shape[3], &inputs[0].shape[3])?;
        s.equals(&inputs[3].shape[2], TDim::from(3))?;
        s.equals(&inputs[3].shape[3], TDim::from(3))?;
        Ok(())
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let constants = Constants { model, inputs, name: &self.name };
        let (input_scale, output_scale) = (constants.scale(1)?, constants.scale(6)?);
        ensure!(
            constants.zero_point(7)? == 0,
            "{}: the zero point of the output is not 0",
            self.name
        );
        let weights = constants.tensor(3)?;
        let &[outputs, channels, 3, 3] = weights.shape() else {
            bail!("{}: weights are not [o, i, 3, 3]", self.name)
        };
        ensure!(
            constants
                .tensor(5)?
                .try_as_plain_ram()?
                .as_slice::<i8>()?
                .iter()
                .all(|&zero| zero == 0),
            "{}: zero points of the weights are not 0",
            self.name
        );
        let weight_scales = constants.tensor(4)?;
        let weight_scales = weight_scales.try_as_plain_ram()?;
        let weight_scales = weight_scales.as_slice::<f32>()?;
        ensure!(
            weight_scales.len() == 1 || weight_scales.len() == outputs,
            "{}: scales of the weights",
            self.name
        );
        let bias = if self.has_bias {
            constants.tensor(8)?.try_as_plain_ram()?.as_slice::<i32>()?.to_vec()
        } else {
            vec![0; outputs]
        };
        let layer = ConvLayer {
            name: self.name.clone(),
            inputs: channels,
            outputs,
            weights: Arc::from(weights.try_as_plain_ram()?.as_slice::<i8>()?),
            bias,
            zero_point: constants.zero_point(2)?,
            multipliers: (0..outputs)
                .map(|output| {
                    input_scale * weight_scales[output.min(weight_scales.len() - 1)] / output_scale
                })
                .collect(),
            pool: false,
        };
        layer.check()?;
        let op = QuantConv { layer: Arc::new(layer), input_scale, output_scale };
        model.wire_node(prefix, op, &[inputs[0]])
    }
}
