//! `host`: trains classifiers on the frozen, quantized VGG16 base.

use std::process::ExitCode;

fn main() -> ExitCode {
    host::cli::main()
}
