use super::*;

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
