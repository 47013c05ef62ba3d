//! Generates the Rust code of the `.proto` files in this folder.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::MessageCodec")
        .compile_protos(&["agent/v1/agent.proto"], &["."])
}
