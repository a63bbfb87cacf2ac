//! Layers packed for a kernel, and the parameters of running one.

use std::sync::Arc;

use rayon::prelude::*;

use crate::kernels::isa::{Isa, Task};
use crate::kernels::layer::ConvLayer;
use crate::kernels::layout::{BLOCK, Map, SIGN_BIT, TAPS};

/// A layer with its weights in the order in which the kernel reads them. They are kept in that
/// order only, since they are most of the memory.
pub(super) struct PackedLayer {
    /// The layer, without its weights.
    pub layer: ConvLayer,
    /// The weights in the order of their algorithm.
    pub weights: Vec<i8>,
    /// Bias minus the contribution of the zero point (and of the 128 that dot products subtract
    /// from their inputs), in blocks.
    pub bias: Vec<[i32; BLOCK]>,
    /// Multipliers in blocks.
    pub multipliers: Vec<[f32; BLOCK]>,
    /// Combined with the bytes of the output by XOR: [`SIGN_BIT`] if the next layer reads i8, else
    /// 0.
    pub sign_flip: u8,
}

impl PackedLayer {
    /// Packs a layer. `weights` are its weights in the order of its algorithm; `signed_input` and
    /// `signed_output` say whether that algorithm and the one of the next layer read `q - 128`.
    pub fn new(
        mut layer: ConvLayer,
        weights: Vec<i8>,
        signed_input: bool,
        signed_output: bool,
    ) -> Self {
        let blocks = layer.outputs.div_ceil(BLOCK);
        // Outputs that pad the last block are 0.
        let mut bias = vec![[0; BLOCK]; blocks];
        let mut multipliers = vec![[1.0; BLOCK]; blocks];
        let subtracted = if signed_input { i32::from(SIGN_BIT) } else { 0 };
        for (output, filter) in layer.weights.chunks_exact(TAPS * layer.inputs).enumerate() {
            let sum: i32 = filter.iter().map(|&w| i32::from(w)).sum();
            // Modulo 2^32, like the sums: only the total needs to fit.
            let offset = sum.wrapping_mul(i32::from(layer.zero_point) - subtracted);
            bias[output / BLOCK][output % BLOCK] = layer.bias[output].wrapping_sub(offset);
            multipliers[output / BLOCK][output % BLOCK] = layer.multipliers[output];
        }
        layer.weights = Arc::default();
        let sign_flip = if signed_output { SIGN_BIT } else { 0 };
        Self { layer, weights, bias, multipliers, sign_flip }
    }

    /// Requantizes sums of neighboring pixels of block `block` into `out`, 16 bytes for each pixel;
    /// pooling follows.
    #[inline(always)]
    pub fn requantize_tile<I: Isa>(
        &self,
        isa: I,
        block: usize,
        sums: &[[i32; BLOCK]],
        out: &mut [u8],
    ) {
        isa.run(RequantizeTile {
            bias: &self.bias[block],
            multipliers: &self.multipliers[block],
            sign_flip: if self.layer.pool { 0 } else { self.sign_flip },
            sums,
            out,
        });
    }
}

/// See [`PackedLayer::requantize_tile`].
struct RequantizeTile<'a> {
    bias: &'a [i32; BLOCK],
    multipliers: &'a [f32; BLOCK],
    sign_flip: u8,
    sums: &'a [[i32; BLOCK]],
    out: &'a mut [u8],
}

impl Task for RequantizeTile<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { bias, multipliers, sign_flip, sums, out } = self;
        for (sums, out) in sums.iter().zip(out.as_chunks_mut().0) {
            let mut block = isa.requantize(sums, bias, multipliers);
            for q in &mut block {
                *q ^= sign_flip;
            }
            *out = block;
        }
    }
}

/// The input of a layer.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// The input of the stack: u8 `[image][channel][row][column]`.
    Planes(&'a [u8]),
    /// The output of a layer, laid out as [`Map`].
    Map(&'a [u8]),
}

/// The parameters of one run of a layer.
#[derive(Clone, Copy)]
pub(super) struct LayerRun<'a> {
    pub packed: &'a PackedLayer,
    /// Shape of the input.
    pub from: Map,
    /// Shape of the output.
    pub to: Map,
    /// Whether work is distributed over the rayon pool in which the run is called.
    pub parallel: bool,
}

impl LayerRun<'_> {
    /// Calls `work` with the index and the plane of each block of output channels in `out`.
    pub fn for_each_plane(&self, out: &mut [u8], work: impl Fn((usize, &mut [u8])) + Send + Sync) {
        self.for_each_chunk(out, self.to.plane_len(), work);
    }

    /// Calls `work` with the index and the values of each run of `len` values.
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        len: usize,
        work: impl Fn((usize, &mut [T])) + Send + Sync,
    ) {
        if self.parallel {
            data.par_chunks_exact_mut(len).enumerate().for_each(work);
        } else {
            data.chunks_exact_mut(len).enumerate().for_each(work);
        }
    }
}
