//! Generates the Rust code of the services; the messages are those of `hyperion-wire`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::MessageCodec")
        .extern_path(".agent.v1", "::hyperion_wire::agent_v1")
        .compile_protos(&["agent/v1/agent.proto"], &["."])
}
