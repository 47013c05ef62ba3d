use std::fs;

use hyperion_placement::policy::Network;
use hyperion_policy::{Card, PolicyFile};
use hyperion_scheduler::scenario::{Scenario, Size, Split};
use serde_json::json;

use super::train::{Args, config, episode};
use super::validation::{Best, Validation};
use super::*;

#[derive(Debug, Parser)]
struct Train {
    #[command(flatten)]
    args: Args,
}

fn args(more: &[&str]) -> Args {
    let words = ["train", "--out", "x"].iter().chain(more);
    Train::try_parse_from(words).unwrap().args
}

#[test]
fn a_settings_file_replaces_what_it_names_and_flags_go_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.json");
    let file = path.to_str().unwrap();
    let written = json!({ "seed": 7, "threads": 3, "epochs": 9 });
    fs::write(&path, written.to_string()).unwrap();
    let found = config(&args(&["--config", file])).unwrap();
    assert_eq!((found.seed, found.threads, found.epochs), (7, 3, 9));
    let plain = config(&args(&[])).unwrap();
    assert_eq!(plain.seed, 1);
    assert_eq!(found.learning_rate, plain.learning_rate);
    assert_eq!(found.kappa, plain.kappa);
    let flags = ["--config", file, "--seed", "8", "--threads", "2"];
    let found = config(&args(&flags)).unwrap();
    assert_eq!((found.seed, found.threads, found.epochs), (8, 2, 9));
    fs::write(&path, "{\"epoch\": 9}").unwrap();
    let error = format!("{:#}", config(&args(&["--config", file])).unwrap_err());
    assert!(
        error.contains("c.json") && error.contains("epoch"),
        "{error}"
    );
}

#[test]
fn who_begins_with_a_policy_learns_in_smaller_steps() {
    let (new, known) = (args(&[]), args(&["--init", "p"]));
    let (new, known) = (config(&new).unwrap(), config(&known).unwrap());
    assert!(known.learning_rate.from < new.learning_rate.from);
    assert!(known.averaging > 0.0 && known.critic_warmup > 0);
    assert!(config(&args(&["--rent=-1"])).is_err());
    assert!(config(&args(&["--neighbours=-1"])).is_err());
    assert!(config(&args(&["--minutes", "0"])).is_err());
    for share in ["--small=-0.1", "--small=1.1", "--small=NaN"] {
        let error = config(&args(&[share])).unwrap_err().to_string();
        assert!(error.contains("--small"), "{error}");
    }
    assert!(config(&args(&["--small", "1"])).is_ok());
    let both = ["train", "--out", "x", "--init", "p", "--resume"];
    assert!(Train::try_parse_from(both).is_err());
}

#[test]
fn a_share_of_the_episodes_is_small_and_all_are_of_training_worlds() {
    let world = World::builtin();
    let small = |e: &Scenario| e.horizon == Size::small().horizon;
    for seed in 0..4 {
        let drawn = |size: &Size| Scenario::draw(&world, seed, Split::Train, size);
        assert_eq!(episode(&world, seed, 0.0), drawn(&Size::default()));
        assert_eq!(episode(&world, seed, 1.0), drawn(&Size::small()));
    }
    let half: Vec<Scenario> = (0..40).map(|s| episode(&world, s, 0.5)).collect();
    let count = half.iter().filter(|e| small(e)).count();
    assert!((10..=30).contains(&count), "{count} of 40");
    assert!(half.iter().all(|e| !e.unseen));
    let more: Vec<Scenario> = (0..40).map(|s| episode(&world, s, 0.9)).collect();
    let still = half.iter().zip(&more).all(|(a, b)| !small(a) || small(b));
    assert!(still, "a larger share keeps those that were small");
    assert!(more.iter().filter(|e| small(e)).count() > count);
}

#[test]
fn in_validation_each_size_counts_alike() {
    let (world, network) = (World::builtin(), built_in().unwrap().network);
    let short = Size {
        horizon: 6.0,
        ..Size::small()
    };
    let sizes = [(Size::small(), 1), (short, 3)];
    let both = Validation::new(&world, &sizes, 1);
    let [one, other] = sizes.map(|size| Validation::new(&world, &[size], 1).reward(&network));
    assert_eq!(both.rewards(&network), [one, other]);
    assert_eq!(both.reward(&network), f64::midpoint(one, other));
    assert!((one - other).abs() > 1e-3, "else this shows nothing");
    let greedy = both.references().into_iter().find(|r| r.0 == "greedy");
    assert!(greedy.is_some_and(|(_, reward)| reward.is_finite()));
}

#[test]
fn a_better_policy_that_the_run_before_left_is_taken_and_a_worse_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.safetensors");
    let built_in = built_in().unwrap();
    let store = |network: &Network| {
        let card = Card {
            steps: 77,
            ..built_in.card.clone()
        };
        fs::write(
            &path,
            PolicyFile::write_safetensors(&card, network).unwrap(),
        )
        .unwrap();
    };
    let validation = Validation::new(&World::builtin(), &[(Size::small(), 1)], 1);
    let best = |network: &Network| Best {
        reward: validation.reward(network),
        network: network.clone(),
        steps: 5,
    };
    let mut poor = best(&Network::zeros());
    poor.recall(&path, &validation).unwrap();
    assert_eq!(poor.steps, 5, "there is none");
    store(&built_in.network);
    poor.recall(&path, &validation).unwrap();
    assert_eq!((poor.steps, &poor.network), (77, &built_in.network));
    store(&Network::zeros());
    let mut good = best(&built_in.network);
    good.recall(&path, &validation).unwrap();
    assert_eq!((good.steps, &good.network), (5, &built_in.network));
    fs::write(&path, "no policy").unwrap();
    let error = good.recall(&path, &validation).unwrap_err();
    assert!(format!("{error:#}").contains("p.safetensors"));
}

#[cfg(unix)]
#[test]
fn what_is_neither_file_nor_folder_is_named_and_links_to_files_are_read() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.csv"), "1").unwrap();
    fs::create_dir(dir.path().join("b")).unwrap();
    symlink(dir.path().join("a.csv"), dir.path().join("b/c.csv")).unwrap();
    let (names, hash) = fingerprint(dir.path()).unwrap();
    assert_eq!(names, ["a.csv", "b/c.csv"]);
    assert_eq!(hash.len(), 64);
    symlink(dir.path(), dir.path().join("b/loop")).unwrap();
    let error = fingerprint(dir.path()).unwrap_err().to_string();
    assert!(error.contains("b/loop is neither"), "{error}");
    fs::remove_file(dir.path().join("b/loop")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    assert!(
        fingerprint(dir.path())
            .unwrap_err()
            .to_string()
            .contains("neither")
    );
}
