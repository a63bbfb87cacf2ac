//! The backbone, or base: an ONNX file with the quantized convolutions of VGG16, run through tract.

mod graph;
mod import;
mod ops;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tract_onnx::prelude::*;

use crate::image::resize::Filter;
use crate::kernels::{Algorithm, Arena, Batch, ConvLayer, Kernel, Stack};
use crate::preprocess::{self, ChannelOrder, InputSpec};
use crate::{Error, Fingerprint, Result};

/// File name of the base that is shipped.
pub const FILE_NAME: &str = "vgg16-notop-int8.onnx";

/// The environment variable that names a base when no flag does.
pub const BASE_VARIABLE: &str = "VGG_EDGE_BASE";

/// Largest base file, in bytes.
pub const MAX_BYTES: u64 = 256 << 20;

/// A base that was read, checked, and packed for one kernel. It is cheap to share;
/// [`Backbone::runner`] returns an object that runs it.
pub struct Backbone {
    path: PathBuf,
    fingerprint: Fingerprint,
    contract: InputSpec,
    scales: Vec<f32>,
    feature_scales: Vec<f32>,
    metadata: BTreeMap<String, String>,
    stack: Arc<Stack>,
}

/// Finds a base when no flag names one: [`BASE_VARIABLE`], else [`FILE_NAME`] in `models/` of the
/// working directory, then in `models/` and `share/vgg-edge/` beside the program and in the
/// directories above it.
///
/// # Errors
/// [`Error::Base`] if there is none.
pub fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BASE_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let mut places = vec![Path::new("models").join(FILE_NAME)];
    if let Ok(program) = std::env::current_exe() {
        for dir in program.ancestors().skip(1).take(4) {
            places.push(dir.join("models").join(FILE_NAME));
            places.push(dir.join("share/vgg-edge").join(FILE_NAME));
        }
        places.extend(program.parent().map(|dir| dir.join(FILE_NAME)));
    }
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| Error::Base {
        path: places[0].clone(),
        reason: format!(
            "no such file, nor in the directories of the program; name it with --base or \
             {BASE_VARIABLE}"
        ),
    })
}

impl Backbone {
    /// Reads a base file and packs it for the fastest kernel of this CPU. No environment variable
    /// is read; [`Backbone::load`] with [`Kernel::detect`] respects the override.
    ///
    /// # Errors
    /// As [`Backbone::load`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::load(path.as_ref(), Kernel::available().last().unwrap_or(Kernel::PORTABLE))
    }

    /// Reads a base file and packs it for `kernel`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Base`] if it is not ONNX, not a chain of 3x3 `QLinearConv` and 2x2
    /// `MaxPool`, could overflow, or lacks its input specification.
    pub fn load(path: &Path, kernel: Kernel) -> Result<Self> {
        Self::from_bytes(path, &crate::durable_fs::read_limited(path, MAX_BYTES)?, kernel)
    }

    /// As [`Backbone::load`], from the bytes of the file; `path` is for messages only.
    ///
    /// # Errors
    /// As [`Backbone::load`], except [`Error::Io`].
    pub fn from_bytes(path: &Path, bytes: &[u8], kernel: Kernel) -> Result<Self> {
        let wrong = |reason: String| Error::Base { path: path.to_owned(), reason };
        // CPUs without SHA-256 instructions, as in the Raspberry Pi up to 4, take as long for it as
        // for everything else, hence a thread.
        let (parsed, fingerprint) = std::thread::scope(|scope| {
            let digest = std::thread::Builder::new().name("digest".into());
            let digest = digest.spawn_scoped(scope, || Fingerprint::of(bytes));
            let parsed = graph::parse(bytes);
            let fingerprint = match digest {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                }
                Err(_) => Fingerprint::of(bytes),
            };
            (parsed, fingerprint)
        });
        let parsed = parsed.map_err(|e| wrong(chain(&e)))?;
        let contract = read_contract(&parsed).map_err(wrong)?;
        Ok(Self {
            path: path.to_owned(),
            fingerprint,
            contract,
            scales: parsed.scales,
            feature_scales: parsed.feature_scales,
            metadata: parsed.metadata,
            stack: Arc::new(Stack::new(parsed.layers, kernel)),
        })
    }

    /// Returns the first `layers` layers as a base, whose feature map is the output of the last of
    /// them: the frozen part when the other layers are trained again. Its fingerprint is derived
    /// from the fingerprint of this base and the number of layers.
    ///
    /// # Panics
    /// If `layers` is 0 or more than this base has.
    pub fn prefix(&self, layers: usize) -> Self {
        let all = self.layers_with_weights();
        assert!(0 < layers && layers <= all.len());
        let kept = &all[..layers];
        let pools = |layers: &[ConvLayer]| layers.iter().filter(|layer| layer.pool).count();
        let channels = kept[layers - 1].outputs;
        let feature_scales = match layers == all.len() {
            true => self.feature_scales.clone(),
            false => vec![self.scales[layers - 1]; channels],
        };
        Self {
            path: self.path.clone(),
            fingerprint: Fingerprint::of_parts([
                &self.fingerprint.0[..],
                &(layers as u64).to_le_bytes(),
            ]),
            contract: InputSpec {
                channels: channels as u32,
                stride: self.contract.stride >> (pools(&all) - pools(kept)),
                ..self.contract.clone()
            },
            scales: self.scales[..layers].to_vec(),
            feature_scales,
            metadata: self.metadata.clone(),
            stack: Arc::new(Stack::new(kept.to_vec(), self.stack.kernel())),
        }
    }

    /// The path of the file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The SHA-256 of the file.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The input specification: sizes, channel order, normalization and quantization.
    pub fn contract(&self) -> &InputSpec {
        &self.contract
    }

    /// The scale of each channel of the feature map: a feature is `q * scale`.
    pub fn feature_scales(&self) -> &[f32] {
        &self.feature_scales
    }

    /// The scales of the layers' outputs, in the order of [`Backbone::layers`]: one for each layer,
    /// for the last one for each channel.
    pub fn scales(&self) -> Vec<&[f32]> {
        let mut scales: Vec<&[f32]> = self.scales.iter().map(std::slice::from_ref).collect();
        if let Some(last) = scales.last_mut() {
            *last = &self.feature_scales;
        }
        scales
    }

    /// The file's `metadata_props`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The convolutions, in order, without their weights: these are stored once, in the order in
    /// which the kernel reads them.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &ConvLayer> {
        self.stack.layers()
    }

    /// The convolutions, in order, with their weights `[outputs, inputs, 3, 3]`, which are
    /// reordered at each call.
    pub fn layers_with_weights(&self) -> Vec<ConvLayer> {
        self.stack.layers_with_weights()
    }

    /// Measures the layers in `passes` passes over `inputs` (u8 `[images, 3, size, size]`) and
    /// returns the shortest time of each. Layers run one after the other, so each finds the caches
    /// as the one before leaves them. A first pass is not counted.
    ///
    /// # Panics
    /// If the length of `inputs` is not a whole number of images.
    pub fn time_layers(
        &self,
        pool: Option<&rayon::ThreadPool>,
        inputs: &[u8],
        size: u32,
        passes: u32,
    ) -> Vec<Duration> {
        let size = size as usize;
        let batch = Batch { planes: inputs, height: size, width: size };
        let (outputs, height, width) = self.stack.output_shape(size, size);
        let images = inputs.len() / (3 * size * size).max(1);
        let mut out = vec![0; images * outputs * height * width];
        let mut arena = Arena::default();
        let mut least = vec![Duration::MAX; self.stack.layers().len()];
        let parallel = pool.is_some();
        let mut run = || {
            for pass in 0..=passes {
                let mut start = Instant::now();
                self.stack.run_watched(&mut arena, batch, parallel, &mut out, &mut |layer| {
                    let end = Instant::now();
                    if pass > 0 {
                        least[layer] = least[layer].min(end - start);
                    }
                    start = end;
                });
            }
        };
        match pool {
            Some(pool) => pool.install(run),
            None => run(),
        }
        least
    }

    /// The algorithm that [`Backbone::kernel`] uses for each layer.
    pub fn algorithms(&self) -> impl ExactSizeIterator<Item = Algorithm> {
        self.stack.algorithms()
    }

    /// The kernel that runs the layers.
    pub fn kernel(&self) -> Kernel {
        self.stack.kernel()
    }

    /// Returns the number of multiplications for an input of `size` by `size` pixels.
    pub fn macs(&self, size: u32) -> u64 {
        let (mut height, mut width, mut macs) = (size as usize, size as usize, 0);
        for layer in self.layers() {
            macs += layer.macs(height, width);
            (height, width) = layer.output_size(height, width);
        }
        macs
    }

    /// Returns a runner of its own memory, on the threads of `pool` or on the calling thread.
    ///
    /// # Errors
    /// [`Error::Engine`].
    pub fn runner(&self, pool: Option<Arc<rayon::ThreadPool>>) -> Result<Runner> {
        let plan = graph::fold(self.stack.clone(), pool).map_err(engine)?;
        Ok(Runner { state: plan.spawn().map_err(engine)? })
    }
}

impl std::fmt::Debug for Backbone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Backbone({}, {})", self.path.display(), self.fingerprint.short())
    }
}

/// Builds a pool of `threads` threads for [`Backbone::runner`]; `None` for at most 1.
///
/// # Errors
/// [`Error::Engine`] if threads cannot be started.
pub fn thread_pool(threads: usize) -> Result<Option<Arc<rayon::ThreadPool>>> {
    if threads <= 1 {
        return Ok(None);
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("base-{i}"))
        .build();
    pool.map(|pool| Some(Arc::new(pool))).map_err(|e| Error::Engine(e.to_string()))
}

/// Runs images through a base: a tract state with its memory.
pub struct Runner {
    state: TypedSimpleState,
}

impl Runner {
    /// Returns the feature map of one quantized input, u8 `[3, size, size]`: u8, channels last
    /// `[size / 32, size / 32, 512]`.
    ///
    /// # Errors
    /// [`Error::Engine`], also for an input of another length.
    pub fn features(&mut self, input: &[u8], size: u32) -> Result<Vec<u8>> {
        self.batch(input, 1, size)
    }

    /// As [`Runner::features`] for a batch of images, `[images, 3, size, size]` to `[images, size /
    /// 32, size / 32, 512]`. Small images take less time in a batch, since they share the
    /// transformed weights; the bits are the same.
    ///
    /// # Errors
    /// As [`Runner::features`].
    pub fn batch(&mut self, inputs: &[u8], images: usize, size: u32) -> Result<Vec<u8>> {
        let size = size as usize;
        let channels = inputs.len() / (images * size * size).max(1);
        let input = Tensor::from_shape(&[images, channels, size, size], inputs).map_err(engine)?;
        let outputs = self.state.run(tvec!(input.into_tvalue())).map_err(engine)?;
        let plain = outputs[0].try_as_plain_ram().map_err(engine)?;
        Ok(plain.as_slice::<u8>().map_err(engine)?.to_vec())
    }
}

fn engine(error: TractError) -> Error {
    Error::Engine(chain(&error))
}

/// An error and its causes in one line.
fn chain(error: &TractError) -> String {
    error.chain().map(|cause| cause.to_string().replace('\n', " ")).collect::<Vec<_>>().join(": ")
}

/// Reads `metadata_props` under `vgg_edge.`.
fn read_contract(parsed: &graph::Parsed) -> Result<InputSpec, String> {
    let get = |key: &str| {
        let value = parsed.metadata.get(&format!("vgg_edge.{key}"));
        value.map(String::as_str).ok_or_else(|| format!("metadata vgg_edge.{key} is missing"))
    };
    let invalid = |key: &str, value: &str| {
        format!("metadata vgg_edge.{key} is {value:?}, which is not a valid value")
    };
    let number =
        |key: &str| get(key).and_then(|v| v.trim().parse::<u32>().map_err(|_| invalid(key, v)));
    let three = |key: &str| -> Result<[f32; 3], String> {
        let text = get(key)?;
        preprocess::three(text)
            .filter(|v| v.iter().all(|v| v.is_finite()))
            .ok_or_else(|| invalid(key, text))
    };
    if number("format")? != 1 {
        return Err(format!("it has format {}, but this program reads format 1", get("format")?));
    }
    let order = get("channel_order")?;
    let resize = get("resize")?;
    let first = parsed.layers.first().ok_or("it has no layer")?;
    if first.inputs != 3 {
        return Err(format!("its first layer takes {} channels, not 3", first.inputs));
    }
    let std = three("std")?;
    if std.iter().any(|&s| s <= 0.0) {
        return Err(invalid("std", get("std")?));
    }
    let contract = InputSpec {
        channel_order: ChannelOrder::from_name(order)
            .ok_or_else(|| invalid("channel_order", order))?,
        mean: three("mean")?,
        std,
        scale: parsed.input_scale,
        zero_point: first.zero_point,
        resize: Filter::from_name(resize).ok_or_else(|| invalid("resize", resize))?,
        channels: parsed.layers.last().map_or(0, |layer| layer.outputs as u32),
        stride: 1 << parsed.layers.iter().filter(|layer| layer.pool).count().min(16),
        size_multiple: number("size_multiple")?,
        size_min: number("size_min")?,
        size_max: number("size_max")?,
    };
    let sane = contract.size_multiple > 0
        && contract.size_multiple.is_multiple_of(contract.stride)
        && contract.size_min >= contract.size_multiple
        && contract.size_max <= 4096;
    if sane {
        Ok(contract)
    } else {
        Err("its allowed input sizes contradict each other or its stride".into())
    }
}
