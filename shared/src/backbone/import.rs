//! The builders that turn the ONNX operators of a base into those of `ops`, and check their
//! attributes and constants.

use std::sync::Arc;

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_hir::infer::*;
use tract_onnx::tract_hir::ops::cnn::HirMaxPool;
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};

use super::ops::{Dequantize, QuantConv};
use crate::kernels::ConvLayer;

/// `MaxPool` on import (ONNX operators, MaxPool-12): 2x2, stride 2, no padding, rounded down.
pub(super) fn build_max_pool(
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
        "{}: only 2x2 max pooling with stride 2 and no padding is supported",
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
/// one scale, or one for each channel.
#[derive(Clone, Debug)]
struct DequantizeLinear(String);

pub(super) fn build_dequantize(
    _ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    ensure!(
        node.input.len() == 3,
        "{}: unexpected number of inputs: {}",
        node.name,
        node.input.len()
    );
    ensure!(
        node.attribute.iter().all(|a| a.name != "axis" || matches!(a.i, 1 | -3)),
        "{}: the axis is not the channel axis",
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

pub(super) fn build_qlinear_conv(
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
            "{}: the attribute {} is not that of a 3x3 convolution with stride 1 and padding 1",
            node.name,
            attribute.name
        );
    }
    ensure!(
        node.attribute.iter().any(|a| a.name == "pads"),
        "{}: the attribute pads is missing: a base pads by 1",
        node.name
    );
    ensure!(
        matches!(node.input.len(), 8 | 9),
        "{}: unexpected number of inputs: {}",
        node.name,
        node.input.len()
    );
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
            "{}: {} scales of the weights for {outputs} outputs",
            self.name,
            weight_scales.len()
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
