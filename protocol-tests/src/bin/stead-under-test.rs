//! `stead`, as this crate's tests start it.

fn main() -> std::process::ExitCode {
    stead::main()
}
