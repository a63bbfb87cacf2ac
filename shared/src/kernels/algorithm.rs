//! The algorithms by name: where each is exact, and in which order it reads weights.

use std::sync::Arc;

use crate::kernels::algo::{direct, dot, winograd};
use crate::kernels::isa::Dot;
use crate::kernels::layer::ConvLayer;

/// How the sums of a layer are computed. All algorithms give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// Direct convolution in i16.
    Direct,
    /// Direct convolution by dot products of four i8.
    Dot,
    /// Winograd's F(4x4, 3x3) in integers.
    Winograd,
}

impl Algorithm {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Dot => "dot",
            Self::Winograd => "winograd",
        }
    }

    /// Returns whether the algorithm, with the dot products `D`, gives the exact sums of the layer
    /// at `index` of a chain.
    pub(super) fn is_exact_for<D: Dot>(self, index: usize, layer: &ConvLayer) -> bool {
        match self {
            Self::Direct => true,
            Self::Dot if index == 0 => D::EXISTS && dot::is_exact_for_first(layer),
            Self::Dot => D::EXISTS && dot::is_exact_for(layer),
            // It reads whole blocks of channels, as the layer before writes them.
            Self::Winograd => index > 0 && winograd::is_exact_for(layer),
        }
    }
}

/// What decides the order of a layer's packed weights.
#[derive(Clone, Copy)]
pub(super) struct WeightOrder {
    pub algorithm: Algorithm,
    /// As `Isa::PAIRS`.
    pub pairs: bool,
    /// Whether the layer is the first of its chain.
    pub first: bool,
}

/// Evaluates an expression with the weight layout of a layer under its own type.
macro_rules! with_weight_layout {
    ($order:expr, $layer:expr, $layout:ident => $body:expr) => {{
        let (order, inputs, outputs): (WeightOrder, _, _) = ($order, $layer.inputs, $layer.outputs);
        match order.algorithm {
            Algorithm::Direct => {
                let $layout = direct::weight_layout(inputs, outputs, order.pairs);
                $body
            }
            Algorithm::Dot if order.first => {
                let $layout = dot::first_weight_layout(inputs, outputs);
                $body
            }
            Algorithm::Dot => {
                let $layout = dot::weight_layout(inputs, outputs);
                $body
            }
            Algorithm::Winograd => {
                let $layout = winograd::weight_layout(inputs, outputs, order.pairs);
                $body
            }
        }
    }};
}

impl WeightOrder {
    /// Reorders the weights of a layer.
    pub fn pack(self, layer: &ConvLayer) -> Vec<i8> {
        with_weight_layout!(self, layer, layout => layout.pack(&layer.weights))
    }

    /// Reorders packed weights of a layer back to `[outputs, inputs, 3, 3]`.
    pub fn unpack(self, layer: &ConvLayer, packed: &[i8]) -> Arc<[i8]> {
        with_weight_layout!(self, layer, layout => layout.unpack(packed))
    }
}
