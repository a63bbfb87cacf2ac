//! The program; all of it is in the library, where the tests of hostile input reach it.

fn main() -> std::process::ExitCode {
    edge::main()
}
