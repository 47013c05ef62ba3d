//! Serves the API until Ctrl-C: `serve DATA_DIR KUBECONFIG_OUT [ADDRESS]`.

use std::collections::BTreeMap;

use hyperion_embedded::{EmbeddedConfig, start};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: serve DATA_DIR KUBECONFIG_OUT [ADDRESS]";
    let data_dir = arguments.next().ok_or(usage)?.into();
    let kubeconfig_out = Some(arguments.next().ok_or(usage)?.into());
    let address = arguments.next();
    let server = start(EmbeddedConfig {
        data_dir,
        api_addr: address.as_deref().unwrap_or("127.0.0.1:0").parse()?,
        kubeconfig_out,
        service_proxies: BTreeMap::new(),
    })
    .await?;
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
