//! Checks of an ONNX file before tract parses it: tract trusts names, sizes and types more than a
//! hostile file deserves.

use std::collections::HashSet;

use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::{GraphProto, TensorProto, ValueInfoProto, type_proto};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

/// Maximum number of nodes of a graph; that of VGG16 has 19.
const MAX_NODES: usize = 1_000;

/// Maximum number of constants; each node has at most nine inputs.
const MAX_CONSTANTS: usize = 9 * MAX_NODES;

/// Maximum number of dimensions of a tensor.
const MAX_RANK: usize = 8;

/// Largest dimension of the input, in pixels or channels, that a graph may fix.
const MAX_SIDE: i64 = 1 << 16;

/// Checks that a graph is like that of a base: few nodes in the order of their execution, each
/// tensor produced once, complete constants of plain numbers, one input and one output.
pub(super) fn check(graph: &GraphProto) -> TractResult<()> {
    ensure!(
        graph.node.len() <= MAX_NODES,
        "it has {} nodes, more than {MAX_NODES}",
        graph.node.len()
    );
    ensure!(
        graph.initializer.len() <= MAX_CONSTANTS,
        "it has {} constants, more than {MAX_CONSTANTS}",
        graph.initializer.len()
    );
    ensure!(
        graph.sparse_initializer.is_empty(),
        "it has sparse constants, which a base does not contain"
    );
    let ([input], [output]) = (&*graph.input, &*graph.output) else {
        bail!("a base has one input and one output")
    };
    let mut known = HashSet::new();
    for tensor in &graph.initializer {
        check_tensor(tensor).with_context(|| format!("the constant {}", tensor.name))?;
        ensure!(
            known.insert(tensor.name.as_str()),
            "the constant {} is defined twice",
            tensor.name
        );
    }
    check_input(input)?;
    ensure!(known.insert(input.name.as_str()), "the input {} is also a constant", input.name);
    for node in &graph.node {
        ensure!(
            node.input.iter().all(|name| known.contains(name.as_str())),
            "node {} uses a tensor that no earlier node produces",
            node.name
        );
        let [output] = &*node.output else {
            bail!("node {} has {} outputs, not one", node.name, node.output.len())
        };
        ensure!(
            !output.is_empty() && known.insert(output.as_str()),
            "node {} produces {output:?}, which exists already",
            node.name
        );
        let nested = node.attribute.iter().any(|a| {
            a.g.is_some()
                || a.t.is_some()
                || a.sparse_tensor.is_some()
                || !a.graphs.is_empty()
                || !a.tensors.is_empty()
        });
        ensure!(!nested, "node {} has graphs or tensors as attributes", node.name);
    }
    let produced = graph.node.iter().any(|node| node.output.contains(&output.name));
    ensure!(produced, "no node produces the output {}", output.name);
    Ok(())
}

fn check_tensor(tensor: &TensorProto) -> TractResult<()> {
    ensure!(
        tensor.data_location.is_none_or(|place| place == DataLocation::Default as i32),
        "its data are in another file"
    );
    ensure!(
        tensor.dims.len() <= MAX_RANK,
        "it has {} dimensions, more than {MAX_RANK}",
        tensor.dims.len()
    );
    let count = tensor
        .dims
        .iter()
        .try_fold(1usize, |count, &side| count.checked_mul(usize::try_from(side).ok()?));
    let kind = DataType::try_from(tensor.data_type).ok();
    let (bytes, listed) = match kind {
        Some(DataType::Float) => (4, tensor.float_data.len()),
        Some(DataType::Int32) => (4, tensor.int32_data.len()),
        Some(DataType::Int8 | DataType::Uint8) => (1, tensor.int32_data.len()),
        _ => bail!("its data type ({}) does not occur in a base", tensor.data_type),
    };
    let raw = tensor.raw_data.len();
    let whole = if raw > 0 {
        count.and_then(|count| count.checked_mul(bytes)) == Some(raw)
    } else {
        count == Some(listed)
    };
    ensure!(
        whole,
        "its shape {:?} does not fit the {} values present",
        tensor.dims,
        if raw > 0 { raw / bytes } else { listed }
    );
    Ok(())
}

fn check_input(input: &ValueInfoProto) -> TractResult<()> {
    let Some(type_proto::Value::TensorType(tensor)) =
        input.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        bail!("the input {} has no type", input.name);
    };
    let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
    ensure!(dims.len() == 4, "the input {} is not [n, c, h, w]", input.name);
    for dim in dims {
        // A plain name only: tract would evaluate an expression.
        let plain = match &dim.value {
            Some(Dim::DimValue(side)) => (1..=MAX_SIDE).contains(side),
            Some(Dim::DimParam(name)) => {
                name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            }
            None => true,
        };
        ensure!(plain, "the input {} has an invalid dimension", input.name);
    }
    Ok(())
}
