//! Which cloud a machine runs on, by what its firmware says. An edge device has other firmware or
//! none, so that nothing is ever asked of the network there.

use std::path::Path;

use super::Cloud;

/// Every machine of Azure has this asset tag, and no other Hyper-V has.
const AZURE_TAG: &str = "7783-7084-3265-9085-8269-3286-77";

/// The cloud of the machine whose sysfs is under `root`; none where the firmware names none.
#[must_use]
pub fn detect(root: &Path) -> Option<Cloud> {
    let says = |name: &str| {
        let path = root.join("sys/class/dmi/id").join(name);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().to_owned()
    };
    let vendor = says("sys_vendor");
    // Nitro machines name the vendor, those on Xen only have it in the BIOS version.
    if vendor == "Amazon EC2" || says("bios_version").ends_with(".amazon") {
        return Some(Cloud::Aws);
    }
    if says("product_name") == "Google Compute Engine" {
        return Some(Cloud::Gcp);
    }
    if vendor == "Microsoft Corporation" && says("chassis_asset_tag") == AZURE_TAG {
        return Some(Cloud::Azure);
    }
    None
}
