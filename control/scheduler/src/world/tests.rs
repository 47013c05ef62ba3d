use std::fs;
use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::*;

const CATALOG_HEADER: &str = "provider,region,zone,instance_type,vcpus,memory_gib,accelerator,\
accelerator_count,on_demand_usd_h,spot_usd_h,as_of,basis,spot_interruption_band\n";
const TRACE: &str = "spot/availability__1-node__aws-02-15-2023__us-east-1a_v100_1.json";

/// A directory with one file; a name in `.gz` is zipped.
fn with(file: &str, text: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    add(&dir, file, text);
    dir
}

fn add(dir: &TempDir, file: &str, text: &str) {
    let path: PathBuf = dir.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if file.ends_with(".gz") {
        let mut gz = GzEncoder::new(fs::File::create(path).unwrap(), Compression::fast());
        gz.write_all(text.as_bytes()).unwrap();
        gz.finish().unwrap();
    } else {
        fs::write(path, text).unwrap();
    }
}

fn catalog(rows: &str) -> TempDir {
    with(catalog::CATALOG, &format!("{CATALOG_HEADER}{rows}"))
}

/// The complaint about a directory, without the path of the directory.
fn complaint(dir: &TempDir) -> String {
    let error = World::load(dir.path()).unwrap_err().to_string();
    let root = dir.path().display().to_string();
    assert!(error.starts_with(&root), "{error}");
    error[root.len()..].trim_start_matches('/').to_owned()
}

fn loads(dir: &TempDir) -> (World, Vec<String>) {
    let (world, warnings) = World::load(dir.path()).unwrap();
    (world, warnings.iter().map(ToString::to_string).collect())
}

#[test]
fn the_builtin_world_has_regions_of_all_providers_and_both_splits() {
    let world = World::builtin();
    for provider in [Provider::Aws, Provider::Gcp, Provider::Azure] {
        assert!(world.regions.iter().any(|r| r.provider == provider));
    }
    assert!(world.regions.iter().filter(|r| r.held_out).count() >= 3);
    assert!(world.regions.iter().filter(|r| !r.held_out).count() >= 3);
    assert!(world.regions.iter().any(|r| r.place.0 == CONTROL_REGION));
}

#[test]
fn builtin_traces_have_the_published_shares() {
    for trace in World::builtin().traces {
        let share: f64 = match trace.zone.as_str() {
            "us-east-1a" => 0.167,
            "us-east-2a" => 0.759,
            "us-central1-a" => 1.0,
            _ => continue,
        };
        let got = trace.availability();
        assert!((got - share).abs() < 0.1, "{}: {got}", trace.name);
    }
}

#[test]
fn a_directory_that_is_not_there_is_refused() {
    let dir = TempDir::new().unwrap();
    let error = World::load(&dir.path().join("nowhere")).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[test]
fn an_empty_directory_is_refused_and_told_what_belongs_there() {
    let error = complaint(&TempDir::new().unwrap());
    assert!(error.contains("no data here"), "{error}");
    assert!(error.contains("catalog.csv"), "{error}");
}

#[test]
fn a_directory_of_other_files_is_as_good_as_empty() {
    let error = complaint(&with("notes.txt", "hello"));
    assert!(error.contains("no data here"), "{error}");
}

#[test]
fn what_is_missing_is_warned_of_and_the_builtin_stands_in() {
    let dir = with(requests::RUNTIMES, "runtime\n60\n7200\n");
    let (world, warnings) = loads(&dir);
    assert_eq!(world.runtimes, [60.0 / 3600.0, 2.0]);
    assert_eq!(world.quotes, World::builtin().quotes);
    for file in [
        catalog::CATALOG,
        network::RTT,
        network::THROUGHPUT,
        history::HISTORY,
        requests::ARRIVALS,
    ] {
        let named = |w: &&String| w.contains(file) && w.contains("missing");
        assert!(warnings.iter().any(|w| named(&w)), "{file}: {warnings:?}");
    }
}

#[test]
fn a_missing_column_is_named() {
    let header = CATALOG_HEADER.replace("spot_usd_h,", "");
    let error = complaint(&with(catalog::CATALOG, &header));
    assert_eq!(error, "catalog.csv: line 1: no column \"spot_usd_h\"");
}

#[test]
fn an_empty_file_has_no_column() {
    let error = complaint(&with(network::RTT, ""));
    assert!(error.ends_with("line 1: no column \"src\""), "{error}");
}

#[test]
fn wrong_prices_are_named_by_line_and_column() {
    let row = |price: &str| format!("aws,us-east-1,,g4dn.xlarge,4,16,T4,1,{price},,2026,list,\n");
    for (price, problem) in [
        ("-0.5", "-0.5 is negative"),
        ("NaN", "NaN is not finite"),
        ("inf", "inf is not finite"),
        ("cheap", "\"cheap\" is not a number"),
        ("", "is empty"),
    ] {
        let error = complaint(&catalog(&format!("{}{}", row("0.526"), row(price))));
        let expected = format!("catalog.csv: line 3: column on_demand_usd_h: {problem}");
        assert_eq!(error, expected);
    }
}

#[test]
fn wrong_words_of_the_catalog_are_named() {
    for (row, expected) in [
        (
            "ibm,x,,y,4,16,,0,1,,2026,list,",
            "column provider: unknown provider \"ibm\"",
        ),
        (
            "edge,x,,y,4,16,,0,1,,2026,list,",
            "column provider: edge sells nothing",
        ),
        (
            "aws,us-east-1,,y,0,16,,0,1,,2026,list,",
            "column vcpus: is zero",
        ),
        (
            "aws,us-east-1,,y,4,16,,2,1,,2026,list,",
            "column accelerator: is empty",
        ),
        (
            "aws,us-east-1,,y,4,16,T4,1e9,1,,2026,list,",
            "column accelerator_count: 1000000000 is more",
        ),
        (
            "aws,us-east-1,,y,4,16,,0,1,,2026,guess,",
            "column basis: \"guess\" is neither",
        ),
        (
            "aws,us-east-1,,y,4,16,,0,1,,2026,list,often",
            "column spot_interruption_band: unknown band",
        ),
        (
            "aws,us-east-1,,,4,16,,0,1,,2026,list,",
            "column instance_type: is empty",
        ),
    ] {
        let error = complaint(&catalog(&format!("{row}\n")));
        let expected = format!("catalog.csv: line 2: {expected}");
        assert!(error.starts_with(&expected), "{error}\nnot {expected}");
    }
}

#[test]
fn a_row_of_another_length_is_named() {
    let error = complaint(&catalog("aws,us-east-1\n"));
    assert_eq!(
        error,
        "catalog.csv: line 2: 2 fields where the header has 13"
    );
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let dir = catalog("");
    let mut bytes = CATALOG_HEADER.as_bytes().to_vec();
    bytes.extend(b"aws,\xff\xfe\n");
    fs::write(dir.path().join(catalog::CATALOG), bytes).unwrap();
    assert!(complaint(&dir).contains("UTF-8"));
}

#[test]
fn an_unknown_region_is_left_out_with_a_warning() {
    let dir = catalog(
        "azure,atlantis,,y,4,16,,0,1,,2026,list,\n\
         aws,us-east-1,,c5.2xlarge,8,16,,0,0.34,,2026,list,\n",
    );
    let (world, warnings) = loads(&dir);
    assert_eq!(world.quotes.len(), 1);
    let named = |w: &&String| w.contains("unknown regions") && w.contains("azure:atlantis");
    assert!(warnings.iter().any(|w| named(&w)), "{warnings:?}");
}

#[test]
fn episodes_can_be_drawn_from_one_offer() {
    use crate::scenario::{Scenario, Size, Split};
    for row in [
        "aws,us-east-1,,g4dn.xlarge,4,16,T4,1,0.526,0.2,2026,list,",
        "azure,eastus,,D8,8,32,,0,0.4,,2026,list,",
        "gcp,us-east1,us-east1-b,a3-ultragpu-8g,224,2952,H200,8,90,30,2026,list,",
    ] {
        let (world, warnings) = loads(&catalog(&format!("{row}\n")));
        assert!(
            warnings
                .iter()
                .any(|w| w.contains("share regions with training")),
            "{warnings:?}"
        );
        for seed in 0..10 {
            for split in [Split::Train, Split::Unseen] {
                let scenario = Scenario::draw(&world, seed, split, &Size::default());
                assert_eq!(scenario.check(), Ok(()), "{row} {split} {seed}");
            }
        }
    }
}

#[test]
fn a_catalog_whose_regions_nobody_measured_is_refused() {
    let error = complaint(&catalog("gcp,us-west8,,y,4,16,,0,1,,2026,list,\n"));
    assert!(
        error.contains("no region has both offers (catalog.csv) and round trips"),
        "{error}"
    );
}

#[test]
fn a_derived_price_is_no_quote_and_gives_way_to_one() {
    let dir = catalog(
        "aws,us-east-1,,g4dn.xlarge,4,16,T4,1,0.526,,2020-07,list,\n\
         aws,us-east-1,,g4dn.xlarge,4,16,T4,1,0.6,0.19,2025-06,derived,15-20%\n",
    );
    let (world, _) = loads(&dir);
    let quote = &world.quotes[0];
    assert_eq!((quote.on_demand, quote.on_demand_published), (0.526, true));
    assert_eq!((quote.spot, quote.spot_published), (Some(0.19), false));
    assert_eq!(quote.reclaim_rate, Some(0.175));
}

#[test]
fn gpus_attached_by_choice_make_different_machines() {
    let dir = catalog(
        "gcp,us-central1,us-central1-a,n1-highmem-8,8,52,T4,2,1,0.4,2026,list,\n\
         gcp,us-central1,us-central1-a,n1-highmem-8,8,52,V100,1,2,0.8,2026,list,\n",
    );
    let names: Vec<_> = loads(&dir)
        .0
        .quotes
        .into_iter()
        .map(|q| q.instance_type)
        .collect();
    assert_eq!(names, ["n1-highmem-8+1xV100", "n1-highmem-8+2xT4"]);
}

#[test]
fn parts_of_a_gpu_and_offers_without_a_price_are_left_out() {
    let dir = catalog(
        "azure,eastus,,NV6,6,55,A10,0.167,0.4,,2026,list,\n\
         azure,eastus,,D8,8,32,,0,0,,2026,list,\n\
         aws,us-east-1,,c5.2xlarge,8,16,,0,0.34,,2026,list,\n",
    );
    let (world, warnings) = loads(&dir);
    assert_eq!(world.quotes.len(), 1);
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("2 offers with a part of a GPU")),
        "{warnings:?}"
    );
}

#[test]
fn the_advisor_fills_in_bands_and_derived_spot_prices() {
    let dir = catalog("aws,us-east-1,,g5.xlarge,4,16,A10G,1,1.0,,2026,list,\n");
    let advice = "region,instance_type,vcpus,memory_gib,saving_pct_vs_on_demand,\
                  interruption_band\nus-east-1,g5.xlarge,4,16,60,<5%\n";
    add(&dir, catalog::SPOT_ADVISOR, advice);
    let quote = loads(&dir).0.quotes.remove(0);
    assert_eq!(quote.reclaim_rate, Some(0.025));
    assert!((quote.spot.unwrap() - 0.4).abs() < 1e-9 && !quote.spot_published);
}

#[test]
fn an_impossible_saving_is_refused() {
    let dir = catalog("");
    let advice = "region,instance_type,saving_pct_vs_on_demand,interruption_band\na,b,130,<5%\n";
    add(&dir, catalog::SPOT_ADVISOR, advice);
    let error = complaint(&dir);
    assert!(
        error.contains("line 2: column saving_pct_vs_on_demand"),
        "{error}"
    );
}

#[test]
fn wrong_round_trips_are_named() {
    for (row, expected) in [
        (
            "aws:us-east-1,aws:us-west-2,-3",
            "line 2: column avg_rtt_ms: -3 is negative",
        ),
        (
            "aws:us-east-1,aws:us-west-2,nan",
            "line 2: column avg_rtt_ms: nan is not finite",
        ),
        (
            "us-east-1,aws:us-west-2,3",
            "line 2: column src: \"us-east-1\" is no region",
        ),
        (
            "aws:us-east-1,ibm:dallas,3",
            "line 2: column dst: unknown provider \"ibm\"",
        ),
    ] {
        let error = complaint(&with(network::RTT, &format!("src,dst,avg_rtt_ms\n{row}\n")));
        assert!(error.contains(expected), "{error}\nnot {expected}");
    }
}

#[test]
fn both_directions_of_a_round_trip_are_averaged_and_a_zone_stands_for_its_region() {
    let dir = with(
        network::RTT,
        "src,dst,avg_rtt_ms\naws:us-east-1,gcp:us-central1-a,30\n\
         gcp:us-central1-a,aws:us-east-1,40\naws:us-east-1,aws:mars-1,5\n",
    );
    let (world, warnings) = loads(&dir);
    let place = |name: &str| Place(name.to_owned());
    let rtt = world
        .latency
        .rtt(&place("aws:us-east-1"), &place("gcp:us-central1"));
    assert_eq!(rtt, Some(35.0));
    assert!(
        warnings.iter().any(|w| w.contains("aws:mars-1")),
        "{warnings:?}"
    );
}

#[test]
fn throughput_is_taken_from_the_premium_network_alone() {
    let header = "src,src_tier,dst,dst_tier,gbps_recv\n";
    let rows = "aws:us-east-1,PREMIUM,aws:us-west-2,PREMIUM,4\n\
                aws:us-east-1,PREMIUM,aws:us-west-2,STANDARD,1\n";
    let (world, _) = loads(&with(network::THROUGHPUT, &format!("{header}{rows}")));
    assert_eq!(
        world.throughput.values().copied().collect::<Vec<_>>(),
        [4.0]
    );
    let bad = "aws:us-east-1,GOLD,aws:us-west-2,PREMIUM,4\n";
    let error = complaint(&with(network::THROUGHPUT, &format!("{header}{bad}")));
    assert!(
        error.contains("line 2: column src_tier: unknown tier \"GOLD\""),
        "{error}"
    );
}

#[test]
fn a_trace_is_read_without_its_first_tick() {
    let text = r#"{"metadata":{"gap_seconds":1800},"data":[0,2,1,0,1]}"#;
    let (world, _) = loads(&with(TRACE, text));
    let trace = &world.traces[0];
    assert_eq!(trace.up, [true, true, false, true]);
    assert_eq!(
        (trace.zone.as_str(), trace.accelerated),
        ("us-east-1a", true)
    );
    assert_eq!(trace.gap_hours, 0.5);
    assert!((trace.reclaims_per_hour - 1.0 / 1.5).abs() < 1e-9);
}

#[test]
fn wrong_traces_are_named() {
    for (text, expected) in [
        ("{", "line 1: EOF"),
        ("{\"data\":[0,1]}", "missing field `metadata`"),
        (
            "{\"metadata\":{\"gap_seconds\":30},\n\"data\":[0,NaN]}",
            "line 2: ",
        ),
        (
            r#"{"metadata":{"gap_seconds":0},"data":[0,1]}"#,
            "column metadata.gap_seconds",
        ),
        (
            r#"{"metadata":{"gap_seconds":-1},"data":[0,1]}"#,
            "column metadata.gap_seconds",
        ),
        (
            r#"{"metadata":{"gap_seconds":30},"data":[]}"#,
            "column data: fewer than two",
        ),
        (
            r#"{"metadata":{"gap_seconds":30},"data":[0,-1]}"#,
            "column data[1]: -1 is no",
        ),
    ] {
        let error = complaint(&with(TRACE, text));
        assert!(error.contains(expected), "{error}\nnot {expected}");
    }
}

#[test]
fn a_trace_whose_name_does_not_tell_its_zone_is_refused() {
    let text = r#"{"metadata":{"gap_seconds":30},"data":[0,1]}"#;
    let error = complaint(&with("spot/availability__somewhere.json", text));
    assert!(error.contains("does not tell the zone"), "{error}");
}

#[test]
fn prices_out_of_order_are_refused() {
    let header = "date,instance_type,region,on_demand_usd_h,spot_usd_h\n";
    for (rows, expected) in [
        (
            "2024-05-02,a,r,1,0.4\n2024-05-01,a,r,1,0.4\n",
            "line 3: column date: 2024-05-01 is before",
        ),
        (
            "2024-13-01,a,r,1,0.4\n",
            "line 2: column date: \"2024-13-01\" is no date",
        ),
        ("2024-05-01,a,r,1,0\n", "line 2: column spot_usd_h: is zero"),
        (
            "2024-05-01,a,r,-1,0.4\n",
            "line 2: column on_demand_usd_h: -1 is negative",
        ),
    ] {
        let error = complaint(&with(history::HISTORY, &format!("{header}{rows}")));
        assert!(error.contains(expected), "{error}\nnot {expected}");
    }
}

#[test]
fn changes_of_spot_prices_are_found_in_order_of_time() {
    let text = "date,instance_type,region,on_demand_usd_h,spot_usd_h\n\
                2024-05-01,a,r,1,0.4\n2024-05-03,a,r,1,0.2\n2024-05-04,a,r,2,0.2\n\
                2024-05-01,b,r,1,0.4\n2024-05-02,b,r,1,0.6\n";
    let (world, _) = loads(&with(history::HISTORY, text));
    let ratios: Vec<f64> = world.changes.iter().map(|c| c.ratio).collect();
    assert_eq!(ratios.len(), 2);
    assert!((ratios[0] - 1.5).abs() < 1e-9 && (ratios[1] - 0.5).abs() < 1e-9);
}

#[test]
fn requests_out_of_order_are_refused() {
    let header = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
    for (rows, expected) in [
        (
            "2023-11-16 18:17:04.0,1,1\n2023-11-16 18:17:03.9,1,1\n",
            "line 3: column TIMESTAMP: 2023-11-16 18:17:03.9 is before",
        ),
        (
            "yesterday,1,1\n",
            "line 2: column TIMESTAMP: \"yesterday\" is no time",
        ),
        (
            "2023-11-16 18:17:04,1,1\n2033-11-16 18:17:04,1,1\n",
            "line 3: column TIMESTAMP: 2033-11-16 18:17:04 is more than a year",
        ),
    ] {
        let error = complaint(&with(requests::ARRIVALS, &format!("{header}{rows}")));
        assert!(error.contains(expected), "{error}\nnot {expected}");
    }
}

#[test]
fn bursts_are_requests_per_minute_over_their_mean() {
    let text = "TIMESTAMP\n2023-11-16 18:00:00.5\n2023-11-16 18:00:30\n2023-11-16 18:00:59\n\
                2023-11-16 18:01:10.25\n";
    let (world, _) = loads(&with(requests::ARRIVALS, text));
    assert_eq!(world.bursts, [1.5, 0.5]);
}

#[test]
fn wrong_runtimes_are_named() {
    let error = complaint(&with(requests::RUNTIMES, "runtime\n5\n-5\n"));
    assert!(
        error.ends_with("line 3: column runtime: -5 is negative"),
        "{error}"
    );
}

#[test]
fn a_file_that_is_no_gzip_is_refused_by_name() {
    let dir = with(requests::RUNTIMES, "runtime\n5\n");
    let path = dir.path().join(requests::RUNTIMES);
    fs::write(&path, "runtime\n5\n").unwrap();
    assert!(complaint(&dir).starts_with(requests::RUNTIMES));
    let dir = with(requests::RUNTIMES, &"runtime\n5\n".repeat(1000));
    let path = dir.path().join(requests::RUNTIMES);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(complaint(&dir).starts_with(requests::RUNTIMES));
}

#[test]
#[ignore = "needs a data directory in HYPERION_DATA"]
fn the_data_directory_loads_and_every_episode_of_it_passes() {
    let dir = std::env::var_os("HYPERION_DATA").expect("HYPERION_DATA names a directory");
    let (world, warnings) = World::load(Path::new(&dir)).unwrap();
    for warning in &warnings {
        assert!(!warning.message.starts_with("missing"), "{warning}");
    }
    assert!(world.regions.len() > 50, "{}", world.regions.len());
    for split in [
        crate::scenario::Split::Train,
        crate::scenario::Split::Unseen,
    ] {
        for seed in 0..100 {
            for size in [
                crate::scenario::Size::default(),
                crate::scenario::Size::small(),
            ] {
                let scenario = crate::scenario::Scenario::draw(&world, seed, split, &size);
                assert_eq!(scenario.check(), Ok(()), "{split} {seed}");
            }
        }
    }
}
