//! The program `hyperion`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hyperion_console::cli::main()
}
