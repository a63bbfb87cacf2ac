//! torchvision's `vgg16` as safetensors: `features.N.weight` as OIHW and `features.N.bias`.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};

use super::Content;
use crate::WeightsError;
use crate::weights::{Found, Normalization};

pub(super) fn read(bytes: &[u8]) -> Result<Content, WeightsError> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| WeightsError::Format(format!("not a readable safetensors file: {e}")))?;
    let names = file.names();
    if let Some(name) = names.iter().find(|name| name.ends_with(".running_mean")) {
        return Err(WeightsError::NotVgg16(format!(
            "{name} belongs to a batch normalization (vgg16_bn or another network); \
             export it to ONNX, which folds it into the convolutions"
        )));
    }
    // Models that contain the network have a prefix before `features`.
    let mut kernels: BTreeMap<(String, usize), &str> = BTreeMap::new();
    for name in &names {
        let Some((start, number)) = name.strip_suffix(".weight").and_then(|n| n.rsplit_once('.'))
        else {
            continue;
        };
        let Ok(number) = number.parse() else { continue };
        if start == "features" || start.ends_with(".features") {
            kernels.insert((start.to_owned(), number), name);
        }
    }
    let prefixes: Vec<&String> = kernels.keys().map(|(prefix, _)| prefix).collect();
    if let (Some(first), Some(last)) = (prefixes.first(), prefixes.last())
        && first != last
    {
        return Err(WeightsError::Format(format!(
            "it holds more than one network: {first}.* and {last}.*"
        )));
    }
    if kernels.is_empty() {
        let some: Vec<&str> = names.iter().take(5).map(|name| &name[..]).collect();
        return Err(WeightsError::Format(format!(
            "not torchvision's VGG16: no features.N.weight; it has {}",
            some.join(", ")
        )));
    }
    let floats = |name: &str| -> Result<(Vec<usize>, Vec<f32>), WeightsError> {
        let tensor = file.tensor(name).map_err(|_| WeightsError::tensor(name, "it is missing"))?;
        if tensor.dtype() != Dtype::F32 {
            return Err(WeightsError::tensor(
                name,
                format!("it is {:?}, not F32; save the model in float32", tensor.dtype()),
            ));
        }
        let values =
            tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok((tensor.shape().to_vec(), values))
    };
    let mut found = Vec::with_capacity(kernels.len());
    for name in kernels.values() {
        let (shape, kernel) = floats(name)?;
        let stem = name.trim_end_matches(".weight");
        let (_, bias) = floats(&format!("{stem}.bias"))?;
        found.push(Found { name: stem.to_owned(), shape, kernel, bias });
    }
    Ok(Content {
        found,
        normalization: Some(Normalization::TORCHVISION),
        format: "safetensors",
        source: None,
    })
}
