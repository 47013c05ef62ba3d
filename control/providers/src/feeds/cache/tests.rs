use hyperion_placement::model::{CapacityType, Provider};

use super::*;
use crate::feeds::Key;

fn offers(price: f64) -> Vec<Offer> {
    let key = Key {
        provider: Provider::Aws,
        instance_type: "g5.xlarge".to_owned(),
        region: "us-east-1".to_owned(),
        zone: "us-east-1a".to_owned(),
        capacity_type: CapacityType::Spot,
    };
    let seen = "2026-05-20T10:00:00Z".parse().expect("a time");
    vec![Offer::new(key, price, seen).expect("an offer")]
}

#[test]
fn what_was_stored_is_loaded() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(&dir.path().join("a/b")).expect("a cache");
    assert_eq!(cache.load(Feed::Aws).expect("no file"), []);
    cache.store(Feed::Aws, &offers(0.5)).expect("a disk");
    cache.store(Feed::Aws, &offers(0.6)).expect("a disk");
    assert_eq!(cache.load(Feed::Aws).expect("a file"), offers(0.6));
    assert_eq!(cache.load(Feed::Gcp).expect("no file"), []);
}

#[test]
fn a_damaged_file_is_moved_aside_and_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(dir.path()).expect("a cache");
    cache.store(Feed::Aws, &offers(0.5)).expect("a disk");
    let path = dir.path().join("prices-aws");
    let whole = std::fs::read(&path).expect("a file");
    let mut flipped = whole.clone();
    flipped[whole.len() - 20] ^= 1;
    let later = String::from_utf8_lossy(&whole).replacen(" 1 ", " 2 ", 1);
    for (bytes, says) in [
        (whole[..whole.len() / 2].to_vec(), "its sum does not match"),
        (flipped, "its sum does not match"),
        (later.into_bytes(), "version \"2\" is not known"),
        (Vec::new(), "no first line"),
        (b"hello\n[]".to_vec(), "it is no file of prices"),
        (vec![0xff; 100], "valid UTF-8"),
    ] {
        std::fs::write(&path, &bytes).expect("a disk");
        let damaged = cache.load(Feed::Aws).expect_err("damage");
        assert!(damaged.to_string().contains(says), "{damaged}");
        assert!(damaged.to_string().contains("prices-aws"), "{damaged}");
        let aside = damaged.aside.expect("a place");
        assert_eq!(std::fs::read(aside).expect("a file"), bytes);
        assert_eq!(cache.load(Feed::Aws).expect("no file"), []);
    }
    cache.store(Feed::Aws, &offers(0.5)).expect("a disk");
    assert_eq!(cache.load(Feed::Aws).expect("a file"), offers(0.5));
}

#[test]
fn a_store_that_is_cut_short_leaves_the_one_before() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(dir.path()).expect("a cache");
    cache.store(Feed::Aws, &offers(0.5)).expect("a disk");
    std::fs::write(dir.path().join("prices-aws.new"), "hyperion-pri").expect("a disk");
    assert_eq!(cache.load(Feed::Aws).expect("a file"), offers(0.5));
    cache.store(Feed::Aws, &offers(0.6)).expect("a disk");
    assert_eq!(cache.load(Feed::Aws).expect("a file"), offers(0.6));
}
