//! Generates the Rust code of the messages in the `.proto` files beside this folder.

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=../agent/v1/agent.proto");
    println!("cargo::rerun-if-changed=../peer/v1/peer.proto");
    prost_build::compile_protos(&["agent/v1/agent.proto", "peer/v1/peer.proto"], &[".."])
}
