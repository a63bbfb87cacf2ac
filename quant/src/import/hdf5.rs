//! Keras weights in HDF5: kernels as HWIO.
//!
//! - Keras 1 and 2, `save_weights` and the published files: `block1_conv1/block1_conv1_W_1:0` or
//!   `block1_conv1/block1_conv1/kernel:0`
//! - Keras 1 and 2, `save`: the same below `model_weights/`
//! - Keras 3, `save_weights`: `layers/conv2d_4/vars/0`, or `block2/layers/conv2d/vars/0` in nested
//!   models
//!
//! The reader searches for kernels of rank 4 with the bias in the same group. Names give the order.

use hdf5_reader::group::Group;
use hdf5_reader::{Dataset, Hdf5File, OpenOptions};

use super::Content;
use crate::WeightsError;
use crate::weights::{Found, Normalization, hwio_to_oihw};

/// Maximum depth of groups.
const MAX_DEPTH: usize = 12;
/// Maximum number of groups and data sets.
const MAX_OBJECTS: usize = 10_000;
/// Maximum number of kernels that are loaded; VGG16 has 13.
const MAX_KERNELS: usize = 64;
/// Maximum number of values of a data set: twice the largest kernel.
const MAX_VALUES: u64 = 2 * 512 * 512 * 9;

/// A kernel and the bias beside it.
struct Convolution {
    path: String,
    order: Vec<Vec<(String, u64)>>,
    kernel: Dataset,
    bias: Option<Dataset>,
}

pub(super) fn read(bytes: Vec<u8>) -> Result<Content, WeightsError> {
    let unreadable = |e: hdf5_reader::error::Error| {
        WeightsError::Format(format!("not a readable HDF5 file (truncated or damaged?): {e}"))
    };
    let options = OpenOptions::default()
        .with_max_read_bytes(4 * MAX_VALUES as usize)
        .with_max_chunk_bytes(4 * MAX_VALUES as usize);
    let file = Hdf5File::from_vec_with_options(bytes, options).map_err(unreadable)?;
    let mut convolutions = Vec::new();
    let mut objects = 0;
    collect(&file.root_group().map_err(unreadable)?, "", 0, &mut objects, &mut convolutions)?;
    if convolutions.len() > MAX_KERNELS {
        return Err(WeightsError::NotVgg16(format!(
            "{} convolutions, VGG16 has 13",
            convolutions.len()
        )));
    }
    convolutions.sort_by(|a, b| a.order.cmp(&b.order));
    let found: Result<Vec<Found>, WeightsError> = convolutions.into_iter().map(load).collect();
    Ok(Content {
        found: found?,
        normalization: Some(Normalization::CAFFE),
        format: "Keras HDF5",
        source: None,
    })
}

/// Collects the convolutions of a group and of the groups below it.
fn collect(
    group: &Group,
    path: &str,
    depth: usize,
    objects: &mut usize,
    out: &mut Vec<Convolution>,
) -> Result<(), WeightsError> {
    let wrong = |e: hdf5_reader::error::Error| {
        WeightsError::Format(format!("group /{path} cannot be read (truncated or damaged?): {e}"))
    };
    let (groups, datasets) = group.members().map_err(wrong)?;
    *objects += groups.len() + datasets.len();
    if depth > MAX_DEPTH || *objects > MAX_OBJECTS {
        return Err(WeightsError::Format(format!(
            "not a file of weights: it has more than {MAX_OBJECTS} entries or is nested too deep"
        )));
    }
    let (kernels, others): (Vec<Dataset>, Vec<Dataset>) =
        datasets.into_iter().partition(|d| d.ndim() == 4 && d.shape()[0] > 1);
    // The moments of an optimizer have the shapes of kernels too, but many are in one group.
    if let Ok([kernel]) = <[Dataset; 1]>::try_from(kernels) {
        let bias = others.into_iter().find(|d| d.ndim() == 1);
        out.push(Convolution {
            order: natural(path),
            path: format!("{path}/{}", kernel.name()),
            kernel,
            bias,
        });
    }
    for group in groups {
        let name = group.name();
        if depth == 0 && (name == "optimizer_weights" || name == "optimizer") {
            continue;
        }
        let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        collect(&group, &below, depth + 1, objects, out)?;
    }
    Ok(())
}

/// Splits a path at slashes, and each part into words and numbers, so that `conv2d_10` sorts after
/// `conv2d_9` and `conv2d` before both.
fn natural(path: &str) -> Vec<Vec<(String, u64)>> {
    let cut = |part: &str| {
        let digits = part.bytes().rev().take_while(u8::is_ascii_digit).count().min(18);
        let (word, number) = part.split_at(part.len() - digits);
        (word.to_owned(), number.parse().unwrap_or(0))
    };
    path.split('/').map(|part| part.split('_').map(cut).collect()).collect()
}

fn load(convolution: Convolution) -> Result<Found, WeightsError> {
    let Convolution { path, kernel, bias, .. } = convolution;
    let bias = bias.ok_or_else(|| WeightsError::tensor(&path, "it has no bias beside it"))?;
    let values = |dataset: &Dataset, what: &str| -> Result<Vec<f32>, WeightsError> {
        let wrong = |reason: String| WeightsError::tensor(what, reason);
        let count = dataset.num_elements().map_err(|e| wrong(e.to_string()))?;
        if count > MAX_VALUES {
            let shape = dataset.shape();
            return Err(WeightsError::NotVgg16(format!("{what} has the shape {shape:?}")));
        }
        let mut values = vec![0.0f32; count as usize];
        dataset
            .read_into(&mut values)
            .map_err(|e| wrong(format!("it cannot be read as float32: {e}")))?;
        Ok(values)
    };
    let shape: Vec<usize> = kernel.shape().iter().map(|&side| side.min(1 << 32) as usize).collect();
    let &[height, width, inputs, outputs] = &*shape else {
        return Err(WeightsError::tensor(path, "it is not of rank 4"));
    };
    if [outputs, inputs] == [3, 3] {
        let reason = format!(
            "its shape {shape:?} has Theano's order of the dimensions; use the tf_dim_ordering file"
        );
        return Err(WeightsError::tensor(path, reason));
    }
    let raw = values(&kernel, &path)?;
    let bias = values(&bias, &format!("the bias of {path}"))?;
    let shape = vec![outputs, inputs, height, width];
    let kernel = if [height, width] == [3, 3] { hwio_to_oihw(&raw, inputs, outputs) } else { raw };
    Ok(Found { name: path, shape, kernel, bias })
}

#[cfg(test)]
mod tests {
    use super::natural;

    #[test]
    fn keras_names_sort_by_number() {
        let mut names = [
            "layers/conv2d_10/vars",
            "layers/conv2d_9/vars",
            "layers/conv2d/vars",
            "layers/conv2d_1/vars",
        ];
        names.sort_by_key(|name| natural(name));
        assert_eq!(
            names,
            [
                "layers/conv2d/vars",
                "layers/conv2d_1/vars",
                "layers/conv2d_9/vars",
                "layers/conv2d_10/vars"
            ]
        );
        assert!(natural("block2_conv1/block2_conv1") < natural("block10_conv1/block10_conv1"));
        assert!(natural("x/99999999999999999999999") > natural("x/1"));
    }
}
