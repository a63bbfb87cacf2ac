//! A chain of layers over one arena: the choice of an algorithm for each, pooling, and batches.

use crate::kernels::algo::{direct, dot, winograd};
use crate::kernels::algorithm::{Algorithm, WeightOrder};
use crate::kernels::dispatch::{Kernel, Visitor};
use crate::kernels::isa::{Dot, Isa};
use crate::kernels::layer::ConvLayer;
use crate::kernels::layout::{BLOCK, InputPanel, Map};
use crate::kernels::packed::{LayerRun, PackedLayer, Source};

/// A chain of convolutions, packed for one kernel. It is shared by threads; the memory of a run is
/// in [`Arena`].
pub struct Stack {
    layers: Vec<StackLayer>,
    kernel: Kernel,
}

struct StackLayer {
    packed: PackedLayer,
    order: WeightOrder,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stack({} layers, {})", self.layers.len(), self.kernel.name())
    }
}

/// The memory of a run, kept between runs: after the first run of a size nothing is allocated.
#[derive(Clone, Default)]
pub struct Arena {
    /// Feature maps, read and written in turn.
    maps: [Vec<u8>; 2],
    scratch: Scratch,
}

/// The memory of a layer.
#[derive(Clone, Default)]
struct Scratch {
    /// Output of a direct convolution before pooling.
    unpooled: Vec<u8>,
    /// Inputs of a direct convolution in i16.
    wide: Vec<i16>,
    /// Transformed inputs of some tiles.
    transformed: Vec<InputPanel>,
    /// Inputs of a first layer that is computed by dot products.
    patches: dot::Patches,
}

/// A batch of inputs of a [`Stack`]: u8 `[images, channels, height, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The values; their number gives the number of images.
    pub planes: &'a [u8],
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

fn grow(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

impl Stack {
    /// Packs `layers` for `kernel`, with the fastest algorithm that is exact for each layer.
    ///
    /// # Panics
    /// If the layers do not fit together or do not pass [`ConvLayer::check`].
    pub fn new(layers: Vec<ConvLayer>, kernel: Kernel) -> Self {
        let algorithms = kernel.visit(ChooseAlgorithms(&layers));
        Self::with_algorithms(layers, kernel, &algorithms)
    }

    /// Packs `layers` for `kernel`, with the given algorithms.
    ///
    /// # Panics
    /// As [`Stack::new`], and if an algorithm is not exact for its layer.
    pub(super) fn with_algorithms(
        layers: Vec<ConvLayer>,
        kernel: Kernel,
        algorithms: &[Algorithm],
    ) -> Self {
        assert!(
            layers
                .windows(2)
                .all(|pair| pair[0].outputs == pair[1].inputs && pair[1].zero_point == 0),
            "layers fit together"
        );
        assert!(layers.iter().all(|layer| layer.check().is_ok()), "layers are checked");
        for (index, (layer, &algorithm)) in layers.iter().zip(algorithms).enumerate() {
            assert!(kernel.visit(IsExactFor { algorithm, index, layer }), "algorithms are exact");
        }
        let pairs = kernel.visit(Pairs);
        let is_dot = |index: usize| algorithms.get(index) == Some(&Algorithm::Dot);
        let pack = |(index, (layer, &algorithm)): (usize, (ConvLayer, &Algorithm))| {
            let order = WeightOrder { algorithm, pairs, first: index == 0 };
            let weights = order.pack(&layer);
            let packed = PackedLayer::new(layer, weights, is_dot(index), is_dot(index + 1));
            StackLayer { packed, order }
        };
        let layers = layers.into_iter().zip(algorithms).enumerate().map(pack).collect();
        Self { layers, kernel }
    }

    /// The kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The layers, in order, without their weights, which are packed.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &ConvLayer> {
        self.layers.iter().map(|layer| &layer.packed.layer)
    }

    /// The layers, in order, with their weights, which are reordered at each call.
    pub fn layers_with_weights(&self) -> Vec<ConvLayer> {
        let with_weights = |StackLayer { packed, order }: &StackLayer| ConvLayer {
            weights: order.unpack(&packed.layer, &packed.weights),
            ..packed.layer.clone()
        };
        self.layers.iter().map(with_weights).collect()
    }

    /// The algorithm of each layer.
    pub fn algorithms(&self) -> impl ExactSizeIterator<Item = Algorithm> {
        self.layers.iter().map(|layer| layer.order.algorithm)
    }

    /// Returns channels, height and width of the output for an input of `height` by `width` pixels.
    pub fn output_shape(&self, height: usize, width: usize) -> (usize, usize, usize) {
        let (height, width) =
            self.layers().fold((height, width), |(h, w), layer| layer.output_size(h, w));
        (self.layers().last().map_or(0, |layer| layer.outputs), height, width)
    }

    /// Runs a batch of images. The result is u8 `[images, height, width, outputs]` (channels last).
    ///
    /// With `parallel`, work is distributed over the rayon pool in which it is called; without, no
    /// task is spawned.
    ///
    /// # Panics
    /// If the batch is not a whole number of images, or the length of `out` does not fit.
    pub fn run(&self, arena: &mut Arena, batch: Batch, parallel: bool, out: &mut [u8]) {
        self.run_watched(arena, batch, parallel, out, &mut |_| ());
    }

    /// As [`Stack::run`]; `done` is called after each layer with its index.
    pub(crate) fn run_watched(
        &self,
        arena: &mut Arena,
        batch: Batch,
        parallel: bool,
        out: &mut [u8],
        done: &mut dyn FnMut(usize),
    ) {
        let Batch { planes, height, width } = batch;
        let Some(channels) = self.layers().next().map(|layer| layer.inputs) else { return };
        let images = planes.len() / (channels * height * width).max(1);
        assert_eq!(planes.len(), images * channels * height * width);
        let (outputs, out_height, out_width) = self.output_shape(height, width);
        assert_eq!(out.len(), images * outputs * out_height * out_width);

        let mut from = Map { images, height, width, channels };
        let Arena { maps: [source, target], scratch } = arena;
        let (mut source, mut target) = (source, target);
        for (index, StackLayer { packed, order }) in self.layers.iter().enumerate() {
            let (height, width) = packed.layer.output_size(from.height, from.width);
            let to = Map { images, height, width, channels: packed.layer.outputs };
            let input = if index == 0 {
                Source::Planes(planes)
            } else {
                Source::Map(&source[..from.len()])
            };
            self.kernel.visit(RunLayer {
                algorithm: order.algorithm,
                run: LayerRun { packed, from, to, parallel },
                scratch,
                input,
                out: grow(target, to.len()),
            });
            done(index);
            from = to;
            std::mem::swap(&mut source, &mut target);
        }
        store(&source[..from.len()], from, out);
    }
}

/// Chooses the fastest exact algorithm for each layer of a chain.
struct ChooseAlgorithms<'a>(&'a [ConvLayer]);

impl Visitor for ChooseAlgorithms<'_> {
    type Output = Vec<Algorithm>;

    fn visit<I: Isa, D: Dot>(self, _: I, _: D) -> Vec<Algorithm> {
        // On Cortex-A76 `sdot` takes half the time of Winograd's `smlal`, which needs a quarter of
        // the multiplications: `docs/benchmarks.md`.
        let best = if D::PREFERRED { Algorithm::Dot } else { Algorithm::Winograd };
        let choose = |(index, layer): (usize, &ConvLayer)| {
            [best, Algorithm::Winograd]
                .into_iter()
                .find(|algorithm| algorithm.is_exact_for::<D>(index, layer))
                .unwrap_or(Algorithm::Direct)
        };
        self.0.iter().enumerate().map(choose).collect()
    }
}

/// Returns whether the kernel has the algorithm, and it is exact for the layer at `index` of a
/// chain.
pub(super) struct IsExactFor<'a> {
    pub algorithm: Algorithm,
    pub index: usize,
    pub layer: &'a ConvLayer,
}

impl Visitor for IsExactFor<'_> {
    type Output = bool;

    fn visit<I: Isa, D: Dot>(self, _: I, _: D) -> bool {
        self.algorithm.is_exact_for::<D>(self.index, self.layer)
    }
}

/// Returns [`Isa::PAIRS`].
struct Pairs;

impl Visitor for Pairs {
    type Output = bool;

    fn visit<I: Isa, D: Dot>(self, _: I, _: D) -> bool {
        I::PAIRS
    }
}

/// Runs one layer, with pooling.
struct RunLayer<'a> {
    algorithm: Algorithm,
    run: LayerRun<'a>,
    scratch: &'a mut Scratch,
    input: Source<'a>,
    out: &'a mut [u8],
}

impl Visitor for RunLayer<'_> {
    type Output = ();

    fn visit<I: Isa, D: Dot>(self, isa: I, dot: D) {
        let Self { algorithm, run, scratch, input, out } = self;
        let Scratch { unpooled, wide, transformed, patches } = scratch;
        if let (Algorithm::Winograd, Source::Map(map)) = (algorithm, input) {
            return winograd::convolve(isa, &run, transformed, map, out);
        }
        let LayerRun { packed, from, to, .. } = run;
        let flat = LayerRun { to: Map { height: from.height, width: from.width, ..to }, ..run };
        let sums = if packed.layer.pool { grow(unpooled, flat.to.len()) } else { &mut *out };
        if D::EXISTS && algorithm == Algorithm::Dot {
            dot::convolve((isa, dot), &flat, patches, input, sums);
        } else {
            direct::convolve(isa, &flat, wide, input, sums);
        }
        if packed.layer.pool {
            let planes = unpooled.chunks_exact(flat.to.plane_len());
            for (input, out) in planes.zip(out.chunks_exact_mut(to.plane_len())) {
                direct::max_pool(input, flat.to, out, to, packed.sign_flip);
            }
        }
    }
}

/// Copies a map to channels last, `[image][row][column][channel]`.
fn store(map: &[u8], from: Map, out: &mut [u8]) {
    if out.is_empty() {
        return;
    }
    let row = from.width * from.channels;
    for (index, out) in out.chunks_exact_mut(row).enumerate() {
        let (image, y) = (index / from.height, index % from.height);
        for block in 0..from.blocks() {
            let lanes = BLOCK.min(from.channels - block * BLOCK);
            let at = from.start(block, image) + from.at(y + 1, 1);
            for (x, values) in map[at..][..from.width * BLOCK].chunks_exact(BLOCK).enumerate() {
                out[x * from.channels + block * BLOCK..][..lanes].copy_from_slice(&values[..lanes]);
            }
        }
    }
}
