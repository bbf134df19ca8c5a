//! Compiles our protos in pure Rust: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "steading/v1/pipelines.proto",
        "steading/v1/agents.proto",
        "steading/v1/replication.proto",
        "steading/v1/cluster.proto",
        "steading/v1/backup.proto",
        "steading/v1/join.proto",
        "steading/v1/fleet.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("steading.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
