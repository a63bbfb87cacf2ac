//! tract's own time on an ONNX base: `cargo run --release -- MODEL.onnx [SIZE] [RUNS]`.
//!
//! Takes an f32 base of `host base import`, or an int8 one (whose `QLinearConv` tract runs itself
//! here). One thread.

use std::time::Instant;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;

fn main() -> TractResult<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("a model");
    let mut number = |default| args.next().and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let (size, runs): (usize, usize) = (number(64), number(20));
    let mut model = tract_onnx::onnx().model_for_path(&path)?;
    let kind = model.input_fact(0)?.datum_type.concretize().unwrap_or(f32::datum_type());
    model.set_input_fact(0, InferenceFact::dt_shape(kind, [1, 3, size, size]))?;
    let model = model.into_optimized()?.into_runnable()?;
    let input = Tensor::zero::<f32>(&[1, 3, size, size])?.cast_to_dt(kind)?.into_owned();
    let mut least = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        model.run(tvec!(input.clone().into_tvalue()))?;
        least = least.min(start.elapsed().as_secs_f64() * 1e3);
    }
    println!("{path}: {least:.2} ms, the least of {runs}");
    Ok(())
}
