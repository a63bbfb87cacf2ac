//! `host summary`: the layers of the base, as Keras prints them.

use anyhow::Result;
use serde_json::json;
use vgg_edge_cli::terminal::print_line;

use crate::cli::options::BaseOptions;

/// Print the layers of the base with shapes and parameters, as Keras does
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: BaseOptions,

    /// Height and width of the input in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let base = args.base.load()?;
    base.contract().check_size(args.size)?;
    let (mut height, mut width) = (args.size as usize, args.size as usize);
    // Name, type, output shape, number of parameters.
    let mut rows = vec![("input".to_owned(), "InputLayer", [height, width, 3], 0)];
    for layer in base.layers() {
        let parameters = 9 * layer.inputs * layer.outputs + layer.outputs;
        rows.push((layer.name.clone(), "Conv2D", [height, width, layer.outputs], parameters));
        if layer.pool {
            (height, width) = layer.output_size(height, width);
            let block = layer.name.split('_').next().unwrap_or(&layer.name);
            rows.push((format!("{block}_pool"), "MaxPooling2D", [height, width, layer.outputs], 0));
        }
    }
    let total: usize = rows.iter().map(|row| row.3).sum();
    if args.json {
        let layers: Vec<_> = rows
            .iter()
            .map(|(name, kind, shape, parameters)| {
                json!({"name": name, "type": kind, "output_shape": shape, "parameters": parameters})
            })
            .collect();
        print_line(json!({
            "layers": layers,
            "parameters": total,
            "macs": base.macs(args.size),
            "fingerprint": base.fingerprint().to_string(),
        }))?;
        return Ok(());
    }
    print_line(format_args!("{:28} {:24} {:>12}", "Layer (type)", "Output Shape", "Param #"))?;
    for (name, kind, [h, w, c], parameters) in &rows {
        let (layer, shape) = (format!("{name} ({kind})"), format!("(None, {h}, {w}, {c})"));
        print_line(format_args!("{layer:28} {shape:24} {:>12}", grouped(*parameters)))?;
    }
    print_line(format_args!("Total params: {}", grouped(total)))?;
    print_line("Trainable params: 0 (the base is frozen)")?;
    print_line(format_args!(
        "Multiply-accumulates at {0}x{0}: {1:.3} G",
        args.size,
        base.macs(args.size) as f64 / 1e9
    ))?;
    print_line(format_args!("Backbone: {} ({})", base.path().display(), base.fingerprint()))?;
    Ok(())
}

/// Formats a number with thousands separators, as Keras does.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_grouped() {
        assert_eq!(super::grouped(0), "0");
        assert_eq!(super::grouped(1792), "1,792");
        assert_eq!(super::grouped(14_714_688), "14,714,688");
    }
}
