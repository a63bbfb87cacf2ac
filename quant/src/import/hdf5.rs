//! Keras weights in HDF5: kernels as HWIO.
//!
//! | written by | kernel |
//! |---|---|
//! | Keras 1 and 2, `save_weights` and the published files | `block1_conv1/block1_conv1_W_1:0`, `block1_conv1/block1_conv1/kernel:0` |
//! | the same, `save` | below `model_weights/` |
//! | Keras 3, `save_weights` | `layers/conv2d_4/vars/0`, or `block2/layers/conv2d/vars/0` in nested models |
//!
//! What counts is where 3x3 kernels of rank 4 lie; the bias is their neighbor. Names say the order.

use hdf5_reader::group::Group;
use hdf5_reader::{Dataset, Hdf5File, OpenOptions};

use super::Content;
use crate::weights::{Found, Normalization, hwio_to_oihw};

/// Groups within groups, at most.
const MAX_DEPTH: usize = 12;
/// Groups and data sets, at most.
const MAX_OBJECTS: usize = 10_000;
/// Kernels that are loaded, at most; VGG16 has 13.
const MAX_KERNELS: usize = 64;
/// Values of a data set: twice the largest kernel.
const MAX_VALUES: u64 = 2 * 512 * 512 * 9;

/// A kernel and the bias beside it.
struct Convolution {
    path: String,
    order: Vec<Vec<(String, u64)>>,
    kernel: Dataset,
    bias: Option<Dataset>,
}

pub(super) fn read(bytes: Vec<u8>) -> Result<Content, String> {
    let unreadable =
        |e: hdf5_reader::error::Error| format!("not a readable HDF5 file (cut or damaged?): {e}");
    let options = OpenOptions::default()
        .with_max_read_bytes(4 * MAX_VALUES as usize)
        .with_max_chunk_bytes(4 * MAX_VALUES as usize);
    let file = Hdf5File::from_vec_with_options(bytes, options).map_err(unreadable)?;
    let mut convolutions = Vec::new();
    let mut objects = 0;
    collect(&file.root_group().map_err(unreadable)?, "", 0, &mut objects, &mut convolutions)?;
    if convolutions.len() > MAX_KERNELS {
        return Err(format!("not VGG16: {} convolutions, VGG16 has 13", convolutions.len()));
    }
    convolutions.sort_by(|a, b| a.order.cmp(&b.order));
    let found: Result<Vec<Found>, String> = convolutions.into_iter().map(load).collect();
    Ok(Content {
        found: found?,
        normalization: Some(Normalization::CAFFE),
        format: "Keras HDF5",
        source: None,
    })
}

fn collect(
    group: &Group,
    path: &str,
    depth: usize,
    objects: &mut usize,
    out: &mut Vec<Convolution>,
) -> Result<(), String> {
    let wrong = |e: hdf5_reader::error::Error| {
        format!("group /{path} cannot be read (cut or damaged?): {e}")
    };
    let (groups, datasets) = group.members().map_err(wrong)?;
    *objects += groups.len() + datasets.len();
    if depth > MAX_DEPTH || *objects > MAX_OBJECTS {
        return Err(format!(
            "not a file of weights: it has more than {MAX_OBJECTS} entries or is nested too deep"
        ));
    }
    let (kernels, others): (Vec<Dataset>, Vec<Dataset>) =
        datasets.into_iter().partition(|d| d.ndim() == 4 && d.shape()[0] > 1);
    // An optimizer's moments have the shapes of kernels too, but lie many in one group.
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

/// A path cut at slashes, each part into words and numbers, so that `conv2d_10` comes after
/// `conv2d_9` and `conv2d` before both.
fn natural(path: &str) -> Vec<Vec<(String, u64)>> {
    let cut = |part: &str| {
        let digits = part.bytes().rev().take_while(u8::is_ascii_digit).count().min(18);
        let (word, number) = part.split_at(part.len() - digits);
        (word.to_owned(), number.parse().unwrap_or(0))
    };
    path.split('/').map(|part| part.split('_').map(cut).collect()).collect()
}

fn load(convolution: Convolution) -> Result<Found, String> {
    let Convolution { path, kernel, bias, .. } = convolution;
    let bias = bias.ok_or_else(|| format!("{path} has no bias beside it"))?;
    let values = |dataset: &Dataset, what: &str| -> Result<Vec<f32>, String> {
        let count = dataset.num_elements().map_err(|e| format!("{what}: {e}"))?;
        if count > MAX_VALUES {
            return Err(format!("not VGG16: {what} has the shape {:?}", dataset.shape()));
        }
        let mut values = vec![0.0f32; count as usize];
        dataset
            .read_into(&mut values)
            .map_err(|e| format!("{what} cannot be read as float32: {e}"))?;
        Ok(values)
    };
    let shape: Vec<usize> = kernel.shape().iter().map(|&side| side.min(1 << 32) as usize).collect();
    let &[height, width, inputs, outputs] = &*shape else {
        return Err(format!("{path} is not of rank 4"));
    };
    if [outputs, inputs] == [3, 3] {
        return Err(format!(
            "{path} is {shape:?}: Theano's order of the dimensions; use the tf_dim_ordering file"
        ));
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
    fn names_sort_as_people_count() {
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
