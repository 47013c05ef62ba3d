use std::path::Path;

use super::*;

fn args(data: &Path) -> Args {
    Args {
        data: data.to_owned(),
        speed: 60.0,
        hours: 24.0,
        day: None,
        nodes: 60,
        workloads: 10,
        seed: 1,
        policy: None,
        plot: None,
    }
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    for bad in ["0", "-1", "NaN", "inf", "601", "fast", ""] {
        assert!(speed(bad).unwrap_err().contains("1 to 600"), "{bad}");
    }
    for bad in ["0", "NaN", "1e9"] {
        assert!(hours(bad).unwrap_err().contains("0.1 to 168"), "{bad}");
    }
    assert_eq!((speed("60"), hours("0.5")), (Ok(60.0), Ok(0.5)));
}

#[test]
fn data_that_can_not_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &Args| format!("{:#}", run(args).unwrap_err());
    let missing = refused(&args(&dir.path().join("no")));
    assert!(
        missing.contains("--data") && missing.contains("/no"),
        "{missing}"
    );
    let empty = refused(&args(dir.path()));
    assert!(empty.contains("catalog.csv"), "{empty}");
    let catalog = dir.path().join("catalog.csv");
    let head = "provider,region,zone,instance_type,vcpus,memory_gib,accelerator,accelerator_count,\
                on_demand_usd_h,spot_usd_h,as_of,basis,spot_interruption_band\n";
    std::fs::write(
        &catalog,
        format!("{head}aws,us-east-1,,c5.2xlarge,8,16,,0,cheap,0.1,2026,list,\n"),
    )
    .unwrap();
    let wrong = refused(&args(dir.path()));
    assert!(
        wrong.contains("line 2") && wrong.contains("on_demand_usd_h"),
        "{wrong}"
    );
    // Prices, but none of the clusters' machines.
    std::fs::write(
        &catalog,
        format!("{head}aws,us-west-2,,x9.large,8,16,,0,0.3,0.1,2026,list,\n"),
    )
    .unwrap();
    let none = refused(&args(dir.path()));
    assert!(none.contains("no prices"), "{none}");
    // No price of the day that is asked for.
    std::fs::write(
        &catalog,
        format!("{head}gcp,europe-west4,,n2-standard-8,8,32,,0,0.4,0.1,2026,list,\n"),
    )
    .unwrap();
    let mut of_day = args(dir.path());
    of_day.day = Some(Date::constant(2019, 1, 1));
    let no_day = refused(&of_day);
    assert!(no_day.contains("--day 2019-01-01"), "{no_day}");
    std::fs::create_dir(dir.path().join("spot")).unwrap();
    std::fs::write(
        dir.path().join("spot/gcp_price_history.csv"),
        "date,instance_type,region,on_demand_usd_h,spot_usd_h\n\
         2024-01-01,n2-standard-8,europe-west4,0.4,0.1\n\
         2024-03-01,n2-standard-8,europe-west4,0.4,0.2\n",
    )
    .unwrap();
    let no_day = refused(&of_day);
    assert!(no_day.contains("2024-01-01 to 2024-03-01"), "{no_day}");
}

#[test]
fn prices_are_the_historys_in_the_window_and_quotes_with_jumps_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let head = "provider,region,zone,instance_type,vcpus,memory_gib,accelerator,accelerator_count,\
                on_demand_usd_h,spot_usd_h,as_of,basis,spot_interruption_band\n";
    std::fs::write(
        dir.path().join("catalog.csv"),
        format!(
            "{head}gcp,europe-west4,,n2-standard-8,8,32,,0,0.5,0.3,2026,list,\n\
             aws,us-east-1,,c5.2xlarge,8,16,,0,0.34,0.1,2026,list,\n\
             aws,us-east-1,use1-az1,g5.xlarge,4,16,A10G,1,1.0,0.9,2026,list,\n\
             aws,us-east-1,use1-az4,g5.xlarge,4,16,A10G,1,1.0,0.5,2026,list,\n"
        ),
    )
    .unwrap();
    std::fs::create_dir(dir.path().join("spot")).unwrap();
    std::fs::write(
        dir.path().join("spot/gcp_price_history.csv"),
        "date,instance_type,region,on_demand_usd_h,spot_usd_h\n\
         2024-01-01,n2-standard-8,europe-west4,0.4,0.1\n\
         2024-03-01,n2-standard-8,europe-west4,0.4,0.2\n",
    )
    .unwrap();
    let (world, _) = day::read(dir.path()).unwrap();
    let script = Script::new(&args(dir.path()), &world).unwrap();
    let day = &script.day;
    assert_eq!(day.date, Some(Date::constant(2024, 3, 1)));
    let price = |zone: &str, kind: &str, spot: bool| {
        let found = day
            .prices
            .iter()
            .find(|(k, _)| k.zone == zone && k.instance_type == kind && k.spot == spot);
        found.unwrap_or_else(|| panic!("{zone} {kind}")).1
    };
    let n2 = price("europe-west4-a", "n2-standard-8", true);
    assert_eq!(n2.points, [(0.0, 0.1), (12.0, 0.2)]);
    assert_eq!(
        (n2.at(0.0), n2.at(11.9), n2.at(12.0), n2.at(99.0)),
        (0.1, 0.1, 0.2, 0.2)
    );
    assert_eq!(n2.between(11.0, 13.0), (0.1, 0.2));
    assert_eq!(n2.origin, Origin::History);
    // The first zone's id is taken for the first letter, and so on.
    assert_eq!(price("us-east-1a", "g5.xlarge", true).at(0.0), 0.9);
    assert_eq!(price("us-east-1b", "g5.xlarge", true).at(0.0), 0.5);
    assert_eq!(price("us-east-1a", "g5.xlarge", false).points, [(0.0, 1.0)]);
    for price in day.prices.values() {
        let never_above = price.points.iter().all(|(_, usd)| *usd <= price.on_demand);
        assert!(never_above && price.points[0].0 == 0.0, "{price:?}");
    }
    // Of all others there is no price: they are left out.
    assert!(!day.unknown.is_empty());
    assert!(
        script
            .known
            .values()
            .all(|k| day.prices.contains_key(&k.kind))
    );
    let file = day.file(12.5);
    assert!(
        file.contains("gcp,europe-west4,europe-west4-a,n2-standard-8,spot,0.2\n"),
        "{file}"
    );
    assert!(
        file.contains("aws,us-east-1,us-east-1a,g5.xlarge,on-demand,1\n"),
        "{file}"
    );
}

#[test]
fn jobs_that_have_ended_and_replicas_without_a_place_are_no_violations() {
    use serde_json::json;
    let workload = |name: &str, replicas: u64| {
        json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "replicas": replicas, "policy": { "maxHourlyCost": 1.0 }, "template": {} },
        })
    };
    let placement = |of: &str, phase: &str| {
        json!({
            "metadata": { "namespace": "default" },
            "spec": { "workload": of, "replica": 0, "node": "eks.n" },
            "status": { "phase": phase },
        })
    };
    let mut world = check::World {
        workloads: vec![workload("job", 1), workload("half", 2), workload("none", 3)],
        placements: vec![placement("job", "Succeeded"), placement("half", "Running")],
        ..check::World::default()
    };
    assert_eq!(for_the_checker(&mut world), 1 + 3);
    assert_eq!(world.workloads.len(), 2);
    let [only] = &world.placements[..] else {
        panic!("{:?}", world.placements)
    };
    assert_eq!(text(only, "/spec/workload"), "half");
    // What is really wrong is still found.
    let wrong = check::violations(&world);
    assert!(
        wrong.iter().any(|line| line.contains("does not exist")),
        "{wrong:?}"
    );
    assert!(
        !wrong
            .iter()
            .any(|line| line.contains("replicas have a place")),
        "{wrong:?}"
    );
}
