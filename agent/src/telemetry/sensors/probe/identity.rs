//! What a board is: model, chip, serial number, release, mode of power.

use crate::telemetry::sensors::board::Found;
use crate::telemetry::sensors::files::{Files, name_of};

const MODEL: &str = "/proc/device-tree/model";
const COMPATIBLE: &str = "/proc/device-tree/compatible";
const SERIAL: &str = "/proc/device-tree/serial-number";
const RELEASE: &str = "/etc/nv_tegra_release";
/// Written by NVIDIA's tool for modes of power, from the first time that one is set.
const MODE: &str = "/var/lib/nvpmodel/status";
const MODES: &str = "/etc/nvpmodel.conf";

pub fn find(files: &Files, found: &mut Found) {
    found.fact("board_model", files.name(MODEL), &[MODEL]);
    let soc = files.text(COMPATIBLE).and_then(|t| soc(&t));
    found.fact("board_soc", soc, &[COMPATIBLE]);
    found.fact("board_serial", files.name(SERIAL), &[SERIAL]);
    let release = files.text(RELEASE).and_then(|t| release(&t));
    found.fact("l4t_release", release, &[RELEASE]);
    let mode = files.text(MODE).and_then(|t| mode(&t));
    found.fact("power_mode_id", mode.map(|id| id.to_string()), &[MODE]);
    let name = mode.and_then(|id| mode_name(&files.text(MODES)?, id));
    found.fact("power_mode", name, &[MODE, MODES]);
}

/// The chip, among the names that the device tree has for a board: the last, most general one.
fn soc(compatible: &str) -> Option<String> {
    let mut names = compatible.split('\0').filter(|name| !name.is_empty());
    let chip = names.next_back()?.rsplit(',').next()?;
    name_of(chip)
}

/// `36.4.3` of `# R36 (release), REVISION: 4.3, GCID: …`.
fn release(text: &str) -> Option<String> {
    let line = text.lines().next()?;
    let (_, rest) = line.split_once("# R")?;
    let major: u32 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    let (_, rest) = rest.split_once("REVISION:")?;
    let revision = rest.split(',').next()?.trim();
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    (revision.len() <= 16 && revision.split('.').all(digits)).then(|| format!("{major}.{revision}"))
}

/// `2` of `pmode:0002`.
fn mode(text: &str) -> Option<u16> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix("pmode:"))?;
    line.trim().split_ascii_whitespace().next()?.parse().ok()
}

/// The name of a mode: `< POWER_MODEL ID=2 NAME=MODE_15W >`.
fn mode_name(modes: &str, id: u16) -> Option<String> {
    let mut lines = modes.lines().map(str::trim);
    let line = lines.find(|line| {
        let mut words = line.split_ascii_whitespace();
        let ours = |w: &str| w.strip_prefix("ID=").and_then(|n| n.parse().ok()) == Some(id);
        line.starts_with('<') && line.contains("POWER_MODEL") && words.any(ours)
    })?;
    let mut words = line.split_ascii_whitespace();
    name_of(words.find_map(|w| w.strip_prefix("NAME="))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_or_left_out() {
        let text =
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n";
        assert_eq!(release(text).as_deref(), Some("36.4.3"));
        for bad in [
            "",
            "# R36",
            "# R36 (release), REVISION: , GCID",
            "R x REVISION: 1",
            "# Rx REVISION: 1",
        ] {
            assert_eq!(release(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_mode_of_power_has_a_number_and_a_name() {
        assert_eq!(mode("pmode:0002 fmode:fanNull\n"), Some(2));
        assert_eq!(
            (mode(""), mode("pmode:"), mode("pmode:-1")),
            (None, None, None)
        );
        let modes = "# < POWER_MODEL ID=2 NAME=NO >\n< POWER_MODEL ID=12 NAME=A >\n< POWER_MODEL ID=2 NAME=MODE_15W >\n";
        assert_eq!(mode_name(modes, 2).as_deref(), Some("MODE_15W"));
        assert_eq!(mode_name(modes, 3), None);
    }

    #[test]
    fn the_chip_is_the_last_name_of_the_board() {
        let tree = "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0";
        assert_eq!(soc(tree).as_deref(), Some("tegra234"));
        assert_eq!((soc(""), soc("\0\0")), (None, None));
    }
}
