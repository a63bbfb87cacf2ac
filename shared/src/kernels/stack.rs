//! A chain of layers over one arena: which algorithm each takes, pooling, and batches.

use super::{Algorithm, ConvLayer, Packed};
use crate::kernels::algo::direct::{self, Source};
use crate::kernels::algo::dot;
use crate::kernels::algo::winograd;
use crate::kernels::dispatch::Kernel;
use crate::kernels::isa::{AnyDot, AnyIsa, Isa, with_isa};
use crate::kernels::layout::{BLOCK, Map};

/// A chain of convolutions, packed for one kernel. Shared by threads; the memory of a run is in
/// [`Arena`].
pub struct Stack {
    layers: Vec<Packed>,
    kernel: Kernel,
    isa: AnyIsa,
    dot: Option<AnyDot>,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stack({} layers, {})", self.layers.len(), self.kernel.name())
    }
}

/// The memory of a run, kept between runs: nothing is allocated after the first of a size.
#[derive(Clone, Default)]
pub struct Arena {
    /// Feature maps, read and written in turn.
    maps: [Vec<u8>; 2],
    /// Output of a direct convolution before pooling.
    unpooled: Vec<u8>,
    /// Inputs of a direct convolution in i16.
    wide: Vec<i16>,
    /// Transformed inputs of some tiles.
    transformed: Vec<winograd::Inputs>,
    /// Inputs of a first layer that is computed by dot products.
    patches: dot::Patches,
}

fn grow(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

impl Stack {
    /// Packs `layers` for `kernel`.
    ///
    /// # Panics
    /// If the layers do not follow each other or were not checked ([`ConvLayer::check`]).
    pub fn new(layers: Vec<ConvLayer>, kernel: Kernel) -> Self {
        // Twice as many multiplications a cycle as `smlal` against a quarter of them:
        // `BENCHMARKS.md`.
        let best = if kernel == Kernel::Sdot { Algorithm::Dot } else { Algorithm::Winograd };
        let choose = |(index, layer): (usize, &ConvLayer)| {
            let holds = |algorithm: &Algorithm| Self::holds(*algorithm, kernel, index, layer);
            [best, Algorithm::Winograd].into_iter().find(holds).unwrap_or(Algorithm::Direct)
        };
        let algorithms: Vec<_> = layers.iter().enumerate().map(choose).collect();
        Self::with_algorithms(layers, kernel, &algorithms)
    }

    /// Whether `algorithm` gives the exact sums of the layer at `index` of a chain.
    pub(super) fn holds(
        algorithm: Algorithm,
        kernel: Kernel,
        index: usize,
        layer: &ConvLayer,
    ) -> bool {
        match algorithm {
            Algorithm::Direct => true,
            Algorithm::Dot if index == 0 => {
                dot::holds_patches(layer) && AnyDot::new(kernel).is_some()
            }
            // They take whole blocks of channels from the layer before.
            Algorithm::Dot => layer.zero_point == 0 && AnyDot::new(kernel).is_some(),
            Algorithm::Winograd => index > 0 && winograd::holds(layer),
        }
    }

    pub(super) fn with_algorithms(
        layers: Vec<ConvLayer>,
        kernel: Kernel,
        algorithms: &[Algorithm],
    ) -> Self {
        assert!(
            layers
                .windows(2)
                .all(|pair| pair[0].outputs == pair[1].inputs && pair[1].zero_point == 0)
        );
        assert!(layers.iter().all(|layer| layer.check().is_ok()));
        let numbered = layers.iter().enumerate().zip(algorithms);
        assert!(
            numbered
                .into_iter()
                .all(|((index, layer), &algorithm)| Self::holds(algorithm, kernel, index, layer))
        );
        let (isa, dot) = (AnyIsa::new(kernel), AnyDot::new(kernel));
        let pairs = with_isa!(isa, isa => pairs(isa));
        let pack = |(index, (layer, &algorithm)): (usize, (ConvLayer, &Algorithm))| {
            let flip = if algorithms.get(index + 1) == Some(&Algorithm::Dot) { 128 } else { 0 };
            Packed::new(layer, algorithm, pairs, index == 0, flip)
        };
        let layers = layers.into_iter().zip(algorithms).enumerate().map(pack).collect();
        Self { layers, kernel, isa, dot }
    }

    /// The kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The layers, in order, without their weights, which are packed.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &ConvLayer> {
        self.layers.iter().map(|packed| &packed.layer)
    }

    /// The layers, in order, as they were before they were packed.
    pub fn unpacked(&self) -> Vec<ConvLayer> {
        self.layers.iter().map(Packed::unpacked).collect()
    }

    /// How each layer is computed.
    pub fn algorithms(&self) -> impl ExactSizeIterator<Item = Algorithm> {
        self.layers.iter().map(|packed| packed.algorithm)
    }

    /// Channels, height and width of the output.
    pub fn output_shape(&self, height: usize, width: usize) -> (usize, usize, usize) {
        let (height, width) =
            self.layers().fold((height, width), |(h, w), layer| layer.output_size(h, w));
        (self.layers.last().map_or(0, |packed| packed.layer.outputs), height, width)
    }

    /// Runs a batch of pictures: `input` is `[pictures, inputs, height, width]`, the result
    /// `[pictures, height, width, outputs]` (channels last), both u8.
    ///
    /// With `parallel`, work is shared out over the rayon pool in which it is called; without, it
    /// makes no task at all.
    ///
    /// # Panics
    /// If `input` or `out` have other lengths.
    pub fn run(
        &self,
        arena: &mut Arena,
        input: &[u8],
        height: usize,
        width: usize,
        parallel: bool,
        out: &mut [u8],
    ) {
        self.run_watched(arena, input, height, width, parallel, out, &mut |_| ());
    }

    /// As [`Stack::run`]; `done` is called after each layer with its index.
    #[allow(clippy::too_many_arguments, reason = "as `run`")]
    pub(crate) fn run_watched(
        &self,
        arena: &mut Arena,
        input: &[u8],
        height: usize,
        width: usize,
        parallel: bool,
        out: &mut [u8],
        done: &mut dyn FnMut(usize),
    ) {
        let Some(first) = self.layers.first() else { return };
        let pictures = input.len() / (first.layer.inputs * height * width).max(1);
        assert_eq!(input.len(), pictures * first.layer.inputs * height * width);
        let (outputs, out_height, out_width) = self.output_shape(height, width);
        assert_eq!(out.len(), pictures * outputs * out_height * out_width);

        let mut from = Map { pictures, height, width, channels: first.layer.inputs };
        let Arena { maps: [source, target], unpooled, wide, transformed, patches } = arena;
        let (mut source, mut target) = (source, target);
        for (index, packed) in self.layers.iter().enumerate() {
            let (height, width) = packed.layer.output_size(from.height, from.width);
            let to = Map { pictures, height, width, channels: packed.layer.outputs };
            let written = grow(target, to.len());
            match packed.algorithm {
                Algorithm::Winograd => {
                    let read = &source[..from.len()];
                    with_isa!(self.isa, isa => winograd::convolve(isa, packed, transformed, read, from, parallel, written, to));
                }
                Algorithm::Direct | Algorithm::Dot => {
                    let read = if index == 0 {
                        Source::Planes(input)
                    } else {
                        Source::Map(&source[..from.len()])
                    };
                    let flat = Map { height: from.height, width: from.width, ..to };
                    let sums =
                        if packed.layer.pool { grow(unpooled, flat.len()) } else { &mut *written };
                    match (self.dot, &read) {
                        (Some(dot), read) if packed.algorithm == Algorithm::Dot => {
                            with_isa!(self.isa, isa => dot.convolve(isa, packed, patches, read, from, parallel, sums, flat));
                        }
                        _ => {
                            with_isa!(self.isa, isa => direct::convolve(isa, packed, wide, &read, from, parallel, sums, flat));
                        }
                    }
                    if packed.layer.pool {
                        let planes = unpooled
                            .chunks_exact(flat.plane())
                            .zip(written.chunks_exact_mut(to.plane()));
                        planes.for_each(|(input, out)| {
                            direct::max_pool(input, flat, out, to, packed.flip)
                        });
                    }
                }
            }
            done(index);
            from = to;
            std::mem::swap(&mut source, &mut target);
        }
        store(&source[..from.len()], from, out);
    }
}

fn pairs<I: Isa>(_: I) -> bool {
    I::PAIRS
}

/// A map to channels last.
fn store(map: &[u8], from: Map, out: &mut [u8]) {
    if out.is_empty() {
        return;
    }
    let row = from.width * from.channels;
    for (index, out) in out.chunks_exact_mut(row).enumerate() {
        let (picture, y) = (index / from.height, index % from.height);
        for block in 0..from.blocks() {
            let lanes = BLOCK.min(from.channels - block * BLOCK);
            let at = from.start(block, picture) + from.at(y + 1, 1);
            for (x, values) in map[at..][..from.width * BLOCK].chunks_exact(BLOCK).enumerate() {
                out[x * from.channels + block * BLOCK..][..lanes].copy_from_slice(&values[..lanes]);
            }
        }
    }
}
