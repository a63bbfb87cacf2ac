//! The operators of a base in tract: those of the parsed graph, which are the reference, and the
//! folded chain, which runs the kernels.

use std::sync::Arc;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

use crate::kernels::algo::reference;
use crate::kernels::{Arena, Batch, ConvLayer, Stack};

/// A `QLinearConv` node, evaluated by the reference.
#[derive(Clone, Debug)]
pub(super) struct QuantConv {
    pub layer: Arc<ConvLayer>,
    pub input_scale: f32,
    pub output_scale: f32,
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
        for image in input.chunks_exact(channels * h * w) {
            out.extend(reference::convolve(&self.layer, image, h, w));
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
pub(super) struct ConvStack {
    pub stack: Arc<Stack>,
    /// Threads to run on; the calling thread if `None`.
    pub pool: Option<Arc<rayon::ThreadPool>>,
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

/// The memory of one runner.
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
            let batch = Batch { planes: input, height: h, width: w };
            match &op.pool {
                Some(pool) => pool.install(|| op.stack.run(&mut self.0, batch, true, result)),
                None => op.stack.run(&mut self.0, batch, false, result),
            }
        }
        Ok(tvec!(out.into_tvalue()))
    }

    fn reset_lanes(&mut self, _lanes: &[LaneId]) -> TractResult<()> {
        Ok(())
    }
}

/// A `DequantizeLinear` node: u8 `[n, c, h, w]` to f32, times one scale or the scale of the
/// channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dequantize {
    pub scales: Arc<[f32]>,
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
