//! Import of the convolutions of a VGG16 from the files of other programs.
//!
//! | file | from | preprocessing |
//! |---|---|---|
//! | `.h5` | Keras 1 and 2, with or without top, and whole saved models | caffe |
//! | `.weights.h5` | Keras 3 | caffe |
//! | `.safetensors` | torchvision (`features.N.weight`) | torchvision |
//! | `.onnx` | tf2onnx (caffe), torch (torchvision), this program (as written in it) | |
//!
//! The content of a file decides its format, not its name. A classifier on top is dropped.

mod hdf5;
mod onnx;
mod safetensors;

use std::path::Path;

use crate::weights::{FloatBase, Normalization, assemble};
use crate::{Error, Result, WeightsError};

/// Maximum length of a file, in bytes: VGG16 with its top has 553 MB.
const MAX_BYTES: u64 = 1 << 30;

/// The parsed content of a file.
struct Content {
    found: Vec<crate::weights::Found>,
    normalization: Option<Normalization>,
    format: &'static str,
    /// The origin of the weights, if the file names it.
    source: Option<String>,
}

/// Reads the weights in a file. `normalization` overrides that of the format.
///
/// # Errors
/// [`Error::Shared`] if the file cannot be read, [`Error::Weights`] if it is not VGG16,
/// [`Error::NoPreprocess`] if neither the file nor `normalization` says how images are
/// preprocessed.
pub fn import(path: &Path, normalization: Option<Normalization>) -> Result<FloatBase> {
    let bytes = vgg_edge::durable_fs::read_limited(path, MAX_BYTES)?;
    import_bytes(path, bytes, normalization)
}

/// As [`import`], from the bytes of the file. `path` is used in messages, and to find the external
/// data of ONNX models.
///
/// # Errors
/// As [`import`], without those of reading.
pub fn import_bytes(
    path: &Path,
    bytes: Vec<u8>,
    normalization: Option<Normalization>,
) -> Result<FloatBase> {
    let wrong = |reason: WeightsError| Error::Weights { path: path.to_owned(), reason };
    let content = read(path, bytes).map_err(wrong)?;
    let layers = assemble(content.found).map_err(wrong)?;
    let mut base = FloatBase {
        layers,
        normalization: Normalization::CAFFE,
        source: content.source.unwrap_or_else(|| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            format!("{} file {name}", content.format)
        }),
    };
    let canonical = base.is_canonical();
    if canonical && !base.source.contains("Visual Geometry Group") {
        let credit = "VGG16, Simonyan and Zisserman 2014, Visual Geometry Group, Oxford, CC BY 4.0";
        base.source = format!("{credit}; from {}", base.source);
    }
    // The original weights are known, in any file format.
    let known = canonical.then_some(Normalization::CAFFE);
    base.normalization = normalization
        .or(content.normalization)
        .or(known)
        .ok_or_else(|| Error::NoPreprocess { path: path.to_owned() })?;
    Ok(base)
}

fn read(path: &Path, bytes: Vec<u8>) -> Result<Content, WeightsError> {
    if bytes.starts_with(b"\x89HDF\r\n\x1a\n") {
        hdf5::read(bytes)
    } else if bytes.starts_with(b"PK\x03\x04") {
        Err(WeightsError::Format(
            "a zip archive (PyTorch .pt or .pth, Keras .keras, a wheel): save the weights as \
             .safetensors (safetensors.torch.save_model) or .weights.h5 (model.save_weights), or \
             unpack it"
                .into(),
        ))
    } else if bytes.get(8) == Some(&b'{') {
        safetensors::read(&bytes)
    } else {
        onnx::read(&bytes, path.parent())
    }
}
