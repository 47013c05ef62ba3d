//! Images between nodes of a site, and pins, against real containerds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod runtime_support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use hyperion_agent::peers::{self, PeerImages, PeersConfig, PeersHandle};
use hyperion_agent::runtime::{Cri, Export, ImageSource, import_image, import_oci_tar, pin_images};
use hyperion_link::Identity;
use hyperion_link::identity::{new_key, site_uri, spiffe_uri};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use runtime_support::fixture::{Fixture, desired, forever, key, pod};
use runtime_support::{BUSYBOX, Containerd, missing, shared};
use tokio_util::sync::{CancellationToken, DropGuard};

macro_rules! needs_containerd {
    () => {
        if let Some(reason) = missing() {
            println!("SKIPPED: {reason}");
            return;
        }
    };
}

/// The nodes `a` and `b` of one site.
fn identities() -> [Identity; 2] {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = params.self_signed(&key).unwrap().der().to_vec();
    let issuer = Issuer::new(params, key);
    ["a", "b"].map(|node| {
        let key_der = new_key().unwrap();
        let key = KeyPair::try_from(key_der.as_slice()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = [spiffe_uri("f", node), site_uri("f", "lab")]
            .map(|uri| SanType::URI(uri.try_into().unwrap()))
            .into();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Identity {
            node_id: node.to_owned(),
            site: "lab".to_owned(),
            key_der,
            chain_der: vec![certificate.der().to_vec(), ca.clone()],
        }
    })
}

fn start(identity: Identity, images: Cri) -> (PeersHandle, DropGuard) {
    let stop = CancellationToken::new();
    let config = PeersConfig {
        identity,
        listen: "127.0.0.1:0".parse().unwrap(),
        static_peers: Vec::new(),
        mdns: false,
        revoked: Vec::new(),
        control: "127.0.0.1:9".to_owned(),
        images: Some(images),
        policies: Arc::new(|_| None),
    };
    let (handle, mut events) = peers::start(config, stop.clone()).unwrap();
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    (handle, stop.drop_guard())
}

fn digest(containerd: &Containerd, image: &str) -> String {
    let listed = containerd.ctr(&["image", "ls", &format!("name=={image}")]);
    let listed = listed.unwrap();
    let line = listed.lines().find(|line| line.starts_with(image));
    let word = line.and_then(|line| line.split_whitespace().find(|w| w.starts_with("sha256:")));
    word.unwrap_or_default().to_owned()
}

#[tokio::test]
async fn an_image_that_only_a_peer_has_is_brought_and_run() {
    needs_containerd!();
    const IMAGE: &str = "localhost/only-b:1";
    let there = Containerd::start();
    there.import(IMAGE, &["/bin/sh"]);
    let f = Fixture::new(Arc::new(Containerd::start()), "peer-images");
    let [a, b] = identities();
    let (here, _stop_a) = start(a, f.cri.clone());
    let (peer, _stop_b) = start(b, Cri::new(there.socket()));
    here.set_addresses("b", vec![peer.local_addr().unwrap().to_string()]);
    let dir = f.containerd.dir.join("fetched");
    let holders = |image: &str| match image {
        // `gone` can't be reached: the next one is asked.
        IMAGE | "localhost/nobody:1" => vec!["gone".to_owned(), "b".to_owned()],
        _ => Vec::new(),
    };
    let source = PeerImages::new(here, f.cri.clone(), dir.clone(), Arc::new(holders));
    let source = Arc::new(source);

    let error = source.fetch("localhost/nobody:1").await.unwrap_err();
    assert!(error.contains("localhost/nobody:1"), "{error}");
    let error = source.fetch("localhost/unlisted:1").await.unwrap_err();
    assert!(error.contains("no node of the site"), "{error}");
    assert_eq!(digest(&f.containerd, IMAGE), "");

    // The supervisor finds it by itself.
    f.supervisor.set_image_source(source.clone());
    let key = key("web");
    let mut container = forever();
    container.image = IMAGE.to_owned();
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod(container))]);
    f.until_running(&key).await;
    assert_eq!(digest(&f.containerd, IMAGE), digest(&there, IMAGE));
    assert_ne!(digest(&there, IMAGE), "");
    assert_eq!(peer.stats().given, 1);

    // Asked again at once by many, nothing comes a second time.
    let asked = (0..5).map(|_| source.fetch(IMAGE));
    for result in futures::future::join_all(asked).await {
        result.unwrap();
    }
    assert_eq!(peer.stats().given, 1);
    let left = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(left, 0, "archives are left");
    f.finish().await;
}

#[tokio::test]
async fn an_export_is_an_archive_as_the_import_takes_it() {
    needs_containerd!();
    let containerd = shared();
    let cri = Cri::new(containerd.socket());
    let export = Export::open(&cri, BUSYBOX).await.unwrap();
    let announced = export.bytes();
    let mut archive = Vec::new();
    let mut pieces = std::pin::pin!(export.pieces());
    while let Some(piece) = pieces.next().await {
        archive.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(archive.len() as u64, announced);
    let path: PathBuf = containerd.dir.join("export.tar");
    std::fs::write(&path, archive).unwrap();
    let names = import_oci_tar(&cri, &path).await.unwrap();
    assert_eq!(names, [BUSYBOX]);
    // What ctr makes of it is the same.
    containerd
        .ctr(&["image", "import", path.to_str().unwrap()])
        .unwrap();

    // An archive that a peer sends must hold what was asked for.
    let wrong = import_image(cri.clone(), path.clone(), "localhost/other:1".to_owned()).await;
    let wrong = wrong.unwrap_err().to_string();
    assert!(wrong.contains("not localhost/other:1"), "{wrong}");
    let by_digest = format!("localhost/busybox@sha256:{}", "0".repeat(64));
    let wrong = import_image(cri.clone(), path.clone(), by_digest).await;
    assert!(wrong.is_err());
    import_image(cri.clone(), path, BUSYBOX.to_owned())
        .await
        .unwrap();

    let missing = Export::open(&cri, "localhost/missing:1").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    let names = cri.image_names().await.unwrap();
    assert!(names.contains(&BUSYBOX.to_owned()), "{names:?}");
}

fn labels(containerd: &Containerd, image: &str) -> String {
    let listed = containerd.ctr(&["image", "ls", &format!("name=={image}")]);
    let listed = listed.unwrap();
    let line = listed.lines().find(|line| line.starts_with(image));
    line.and_then(|line| line.split_whitespace().last())
        .unwrap_or_default()
        .to_owned()
}

async fn until_labels(containerd: &Containerd, image: &str, wanted: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !wanted(&labels(containerd, image)) {
        assert!(Instant::now() < deadline, "{}", labels(containerd, image));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn images_of_desired_replicas_are_pinned_and_those_pins_only_are_taken_back() {
    needs_containerd!();
    const OTHER: &str = "localhost/theirs:1";
    let f = Fixture::new(Arc::new(Containerd::start()), "pins");
    f.containerd.import(OTHER, &["/bin/sh"]);
    f.containerd
        .ctr(&["image", "label", OTHER, "io.cri-containerd.pinned=pinned"])
        .unwrap();
    let pinned = "io.cri-containerd.pinned=pinned";
    let key = key("web");
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod(forever()))]);
    f.until_running(&key).await;
    until_labels(&f.containerd, BUSYBOX, |l| {
        l.contains(pinned) && l.contains("hyperion.io/pinned=true")
    })
    .await;
    // CRI says so too, which is what a garbage collector asks.
    f.supervisor.set_desired(Vec::new());
    until_labels(&f.containerd, BUSYBOX, |l| {
        !l.contains(pinned) && !l.contains("hyperion.io/pinned")
    })
    .await;
    assert!(labels(&f.containerd, OTHER).contains(pinned));

    // Theirs stays theirs also where we need it meanwhile; what is not here is no error.
    let needed = BTreeSet::from([OTHER.to_owned(), "localhost/missing:1".to_owned()]);
    pin_images(&f.cri, &needed).await.unwrap();
    pin_images(&f.cri, &BTreeSet::new()).await.unwrap();
    assert!(labels(&f.containerd, OTHER).contains(pinned));
    f.finish().await;
}
