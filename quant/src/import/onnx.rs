//! ONNX graphs in f32 that start with the convolutions of VGG16, from tf2onnx, torch or this
//! program.

use std::collections::HashMap;
use std::path::{Component, Path};

use prost::Message;
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use vgg_edge::preprocess::{self, ChannelOrder};

use super::Content;
use crate::WeightsError;
use crate::weights::{Found, Normalization, VGG16};

type Result<T, E = WeightsError> = std::result::Result<T, E>;

pub(super) fn read(bytes: &[u8], directory: Option<&Path>) -> Result<Content> {
    let unknown = || {
        WeightsError::Format(
            "not a file of weights: known are Keras .h5 and .weights.h5, torchvision .safetensors, \
             and .onnx"
                .into(),
        )
    };
    let model = pb::ModelProto::decode(bytes).map_err(|_| unknown())?;
    let graph = model.graph.as_ref().filter(|graph| !graph.node.is_empty());
    let graph = graph.ok_or_else(unknown)?;
    let metadata: HashMap<&str, &str> = model
        .metadata_props
        .iter()
        .filter_map(|entry| Some((entry.key.strip_prefix("vgg_edge.")?, entry.value.as_str())))
        .collect();
    if graph.node.iter().any(|node| node.op_type == "QLinearConv") {
        return Err(WeightsError::Quantized);
    }
    let normalization = match () {
        () if metadata.contains_key("format") => Some(own(&metadata)?),
        () if model.producer_name.contains("tf2onnx") || model.producer_name.contains("keras") => {
            Some(Normalization::CAFFE)
        }
        () if model.producer_name.contains("torch") => Some(Normalization::TORCHVISION),
        () => None,
    };
    let found = Walk::new(graph, directory).run()?;
    let source = metadata.get("weights_source").map(|&source| source.to_owned());
    Ok(Content { found, normalization, format: "ONNX", source })
}

/// Reads the metadata that this program writes.
fn own(metadata: &HashMap<&str, &str>) -> Result<Normalization> {
    let wrong = |reason: String| WeightsError::Metadata(format!("metadata vgg_edge.{reason}"));
    let get =
        |key: &str| metadata.get(key).copied().ok_or_else(|| wrong(format!("{key} is missing")));
    let three = |key: &str| -> Result<[f32; 3]> {
        let text = get(key)?;
        preprocess::three(text)
            .filter(|v| v.iter().all(|v| v.is_finite()))
            .ok_or_else(|| wrong(format!("{key} is {text:?}")))
    };
    let order = get("channel_order")?;
    let normalization = Normalization {
        channel_order: ChannelOrder::from_name(order)
            .ok_or_else(|| wrong(format!("channel_order is {order:?}")))?,
        mean: three("mean")?,
        std: three("std")?,
    };
    normalization.check()?;
    Ok(normalization)
}

/// A walk along the only path of feature maps in a graph.
struct Walk<'a> {
    graph: &'a pb::GraphProto,
    directory: Option<&'a Path>,
    constants: HashMap<&'a str, &'a pb::TensorProto>,
    found: Vec<Found>,
    /// The tensor that holds the feature map.
    current: &'a str,
    /// Whether a ReLU followed the last convolution.
    rectified: bool,
    /// Whether a pooling followed the last convolution.
    pooled: bool,
}

impl<'a> Walk<'a> {
    fn new(graph: &'a pb::GraphProto, directory: Option<&'a Path>) -> Self {
        let mut constants: HashMap<&str, &pb::TensorProto> =
            graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        for node in &graph.node {
            let [output] = &*node.output else { continue };
            let tensor = match node.op_type.as_str() {
                "Constant" => {
                    node.attribute.iter().find(|a| a.name == "value").and_then(|a| a.t.as_ref())
                }
                "Identity" => {
                    node.input.first().and_then(|input| constants.get(input.as_str()).copied())
                }
                _ => None,
            };
            if let Some(tensor) = tensor {
                constants.insert(output, tensor);
            }
        }
        Self {
            graph,
            directory,
            constants,
            found: Vec::new(),
            current: "",
            rectified: true,
            pooled: false,
        }
    }

    fn run(mut self) -> Result<Vec<Found>> {
        for node in &self.graph.node {
            let input = node.input.first().map_or("", String::as_str);
            let (Some(output), op) = (node.output.first(), node.op_type.as_str()) else { continue };
            let starts = self.found.is_empty() && op == "Conv";
            // The operands of a sum may be in either order.
            let joins = op == "Add" && node.input.iter().any(|input| *input == self.current);
            if !starts && (self.found.is_empty() || (input != self.current && !joins)) {
                continue;
            }
            let last = self.found.len() == VGG16.len();
            match op {
                "Conv" if last && self.rectified => return self.finish(),
                "Conv" => self.convolution(node)?,
                "Add" if !self.rectified => self.bias(node)?,
                "Relu" => self.rectified = true,
                "Clip" if self.is_relu(node) => self.rectified = true,
                "MaxPool" => self.pooling(node)?,
                "Identity" | "Dropout" | "Transpose" | "Cast" => {}
                _ if last => return self.finish(),
                _ => {
                    let after = self.found.last().map_or("", |found| found.name.as_str());
                    return Err(not_vgg16(format!("a {op} ({}) follows {after}", node.name)));
                }
            }
            self.current = output;
        }
        self.finish()
    }

    fn finish(self) -> Result<Vec<Found>> {
        if let (13, Some(last)) = (self.found.len(), self.found.last()) {
            if !self.rectified {
                return Err(not_vgg16(format!("no ReLU after {}", last.name)));
            }
            if !self.pooled {
                return Err(not_vgg16(format!("no 2x2 max pooling after {}", last.name)));
            }
        }
        Ok(self.found)
    }

    fn convolution(&mut self, node: &'a pb::NodeProto) -> Result<()> {
        let name = if node.name.is_empty() { node.output[0].clone() } else { node.name.clone() };
        self.check_before(&name)?;
        check_attributes(node, &name)?;
        let tensor = self
            .constant(node, 1)
            .ok_or_else(|| WeightsError::tensor(&name, "its weights are not constant"))?;
        let shape = shape(tensor)?;
        // The shape describes a first convolution of another size better.
        if !is_padded(node) && shape.ends_with(&[3, 3]) {
            return Err(not_vgg16(format!("{name} has no padding")));
        }
        let kernel = self.floats(tensor, &name)?;
        let outputs = shape.first().copied().unwrap_or(0);
        let bias = match node.input.get(2).filter(|input| !input.is_empty()) {
            Some(_) => {
                let tensor = self.constant(node, 2);
                let constant = tensor
                    .ok_or_else(|| WeightsError::tensor(&name, "its bias is not constant"))?;
                self.floats(constant, &name)?
            }
            None => vec![0.0; outputs],
        };
        self.found.push(Found { name, shape, kernel, bias });
        if self.found.len() > VGG16.len() {
            return Err(not_vgg16(format!("a 14th convolution, {}", self.found[13].name)));
        }
        (self.rectified, self.pooled) = (false, false);
        Ok(())
    }

    /// Checks the nodes between the last convolution and the one called `name`.
    fn check_before(&self, name: &str) -> Result<()> {
        let Some(before) = self.found.last() else { return Ok(()) };
        if !self.rectified {
            return Err(not_vgg16(format!("no ReLU between {} and {name}", before.name)));
        }
        if VGG16.get(self.found.len() - 1).is_some_and(|expected| expected.3 != self.pooled) {
            let what = if self.pooled { "a max pooling" } else { "no max pooling" };
            return Err(not_vgg16(format!("{what} between {} and {name}", before.name)));
        }
        Ok(())
    }

    /// Returns an operand of a node, if it is constant.
    fn constant(&self, node: &pb::NodeProto, operand: usize) -> Option<&'a pb::TensorProto> {
        self.constants.get(node.input.get(operand)?.as_str()).copied()
    }

    /// Adds a bias that is a node of its own.
    fn bias(&mut self, node: &'a pb::NodeProto) -> Result<()> {
        let constant =
            node.input.iter().find_map(|input| self.constants.get(input.as_str()).copied());
        let Some(tensor) = constant else {
            return Err(not_vgg16(format!(
                "{} adds two feature maps (a residual network?)",
                node.name
            )));
        };
        let values = self.floats(tensor, &node.name)?;
        let found = self
            .found
            .last_mut()
            .ok_or_else(|| not_vgg16("an Add before the first convolution".into()))?;
        let wide = shape(tensor)?.iter().filter(|&&side| side != 1).count() > 1;
        if wide || values.len() != found.bias.len() {
            return Err(not_vgg16(format!("{} adds a tensor that is not a bias", node.name)));
        }
        found.bias.iter_mut().zip(values).for_each(|(bias, value)| *bias += value);
        Ok(())
    }

    fn pooling(&mut self, node: &pb::NodeProto) -> Result<()> {
        let ints = |name: &str| node.attribute.iter().find(|a| a.name == name).map(|a| &*a.ints);
        let plain = node.attribute.iter().all(|a| match a.name.as_str() {
            "pads" => a.ints.iter().all(|&pad| pad == 0),
            "dilations" => a.ints.iter().all(|&d| d == 1),
            "ceil_mode" => a.i == 0,
            "auto_pad" => matches!(&*a.s, b"NOTSET" | b"VALID"),
            _ => true,
        });
        if ints("kernel_shape") != Some(&[2, 2])
            || ints("strides") != Some(&[2, 2])
            || !plain
            || self.pooled
        {
            return Err(not_vgg16(format!(
                "{} is not a single 2x2 max pooling with stride 2",
                node.name
            )));
        }
        self.pooled = true;
        Ok(())
    }

    /// Whether a Clip has the lower limit 0 and no upper limit.
    fn is_relu(&self, node: &pb::NodeProto) -> bool {
        let value = |index: usize| {
            let name = node.input.get(index).filter(|name| !name.is_empty())?;
            self.floats(self.constants.get(name.as_str())?, name).ok()?.first().copied()
        };
        value(1) == Some(0.0)
            && value(2).is_none_or(|high| high >= f32::MAX)
            && node.input.len() > 1
    }

    fn floats(&self, tensor: &pb::TensorProto, name: &str) -> Result<Vec<f32>> {
        let wrong = |reason: String| WeightsError::tensor(name, reason);
        if tensor.data_type != DataType::Float as i32 {
            return Err(wrong(format!(
                "a tensor that is not float32 ({}); export the model in float32",
                tensor.name
            )));
        }
        let count: usize = shape(tensor)?
            .iter()
            .try_fold(1usize, |n, &side| n.checked_mul(side))
            .ok_or_else(|| wrong("the tensor is too large".into()))?;
        let external;
        let raw = if tensor.data_location() == DataLocation::External {
            external = self.external(tensor, name)?;
            &external
        } else {
            &tensor.raw_data
        };
        let values: Vec<f32> = if raw.is_empty() {
            tensor.float_data.clone()
        } else {
            raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        if values.len() != count || !raw.len().is_multiple_of(4) {
            return Err(wrong(format!("{} values, but its shape has {count}", values.len())));
        }
        Ok(values)
    }

    /// Reads weights from a file beside the model, as torch's exporter writes them.
    fn external(&self, tensor: &pb::TensorProto, name: &str) -> Result<Vec<u8>> {
        use std::io::{Read, Seek, SeekFrom};
        let wrong = |reason: String| WeightsError::tensor(name, reason);
        let get = |key: &str| {
            tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str())
        };
        let number = |key: &str| {
            let value = get(key).map(str::parse::<u64>).transpose();
            value.map_err(|_| wrong(format!("the {key} of its external data is not a number")))
        };
        let location = get("location").map(Path::new);
        let location =
            location.ok_or_else(|| wrong("its external data have no location".into()))?;
        let shown = location.display();
        let directory = self.directory.ok_or_else(|| wrong(format!("its data are in {shown}")))?;
        if !location.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(wrong(format!(
                "its data are outside the directory of the model, in {shown}"
            )));
        }
        let path = directory.join(location);
        let length = number("length")?.unwrap_or(u64::MAX).min(super::MAX_BYTES);
        let offset = number("offset").ok().flatten().unwrap_or(0);
        let mut bytes = Vec::new();
        std::fs::File::open(&path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(offset))?;
                file.take(length).read_to_end(&mut bytes)
            })
            .map_err(|e| wrong(format!("its data in {} cannot be read: {e}", path.display())))?;
        Ok(bytes)
    }
}

/// Checks that the attributes of a Conv are those of VGG16's.
fn check_attributes(node: &pb::NodeProto, name: &str) -> Result<()> {
    for attribute in &node.attribute {
        let ones = attribute.ints.iter().all(|&i| i == 1);
        let fits = match attribute.name.as_str() {
            "pads" | "strides" | "dilations" => ones,
            "group" => attribute.i == 1,
            "auto_pad" => matches!(&*attribute.s, b"NOTSET" | b"SAME_UPPER" | b"SAME_LOWER"),
            _ => true,
        };
        if !fits {
            return Err(not_vgg16(format!(
                "{name} has {} other than those of a 3x3 convolution with stride 1 and padding 1",
                attribute.name
            )));
        }
    }
    Ok(())
}

/// Whether the attributes of a Conv include padding.
fn is_padded(node: &pb::NodeProto) -> bool {
    node.attribute.iter().any(|a| match a.name.as_str() {
        "pads" => a.ints.len() == 4,
        "auto_pad" => a.s.starts_with(b"SAME"),
        _ => false,
    })
}

fn not_vgg16(reason: String) -> WeightsError {
    WeightsError::NotVgg16(reason)
}

fn shape(tensor: &pb::TensorProto) -> Result<Vec<usize>> {
    let sides: Result<Vec<usize>, _> =
        tensor.dims.iter().map(|&side| usize::try_from(side)).collect();
    sides.map_err(|_| WeightsError::tensor(&tensor.name, "it has a negative size"))
}
