//! Region -> geography.

use hyperion_placement::model::{Geography, Provider};

/// First match wins, so exceptions (London is not in the EU) stand before their continent.
const AWS: &[(&str, Geography)] = &[
    ("us-", Geography::Us),
    ("ca-", Geography::Ca),
    ("sa-", Geography::Sa),
    ("mx-", Geography::Sa),
    ("eu-west-2", Geography::Uk),
    ("eu-central-2", Geography::Ch),
    ("eu-", Geography::Eu),
    ("me-", Geography::Me),
    ("il-", Geography::Me),
    ("af-", Geography::Af),
    ("ap-south-", Geography::In),
    ("ap-southeast-2", Geography::Au),
    ("ap-southeast-4", Geography::Au),
    ("ap-southeast-6", Geography::Au),
    ("ap-", Geography::Ap),
    ("cn-", Geography::Cn),
];

const GCP: &[(&str, Geography)] = &[
    ("us-", Geography::Us),
    ("northamerica-south", Geography::Sa),
    ("northamerica-northeast", Geography::Ca),
    ("southamerica-", Geography::Sa),
    ("europe-west2", Geography::Uk),
    ("europe-west6", Geography::Ch),
    ("europe-", Geography::Eu),
    ("me-", Geography::Me),
    ("africa-", Geography::Af),
    ("asia-south1", Geography::In),
    ("asia-south2", Geography::In),
    ("asia-", Geography::Ap),
    ("australia-", Geography::Au),
];

/// Azure's names carry no continent prefix, so they are listed.
const AZURE: &[(Geography, &[&str])] = &[
    (
        Geography::Us,
        &[
            "centralus",
            "eastus",
            "eastus2",
            "northcentralus",
            "southcentralus",
            "westcentralus",
            "westus",
            "westus2",
            "westus3",
        ],
    ),
    (Geography::Ca, &["canadacentral", "canadaeast"]),
    (
        Geography::Sa,
        &[
            "brazilsouth",
            "brazilsoutheast",
            "chilecentral",
            "mexicocentral",
        ],
    ),
    (
        Geography::Eu,
        &[
            "austriaeast",
            "belgiumcentral",
            "denmarkeast",
            "francecentral",
            "francesouth",
            "germanynorth",
            "germanywestcentral",
            "italynorth",
            "northeurope",
            "polandcentral",
            "spaincentral",
            "swedencentral",
            "westeurope",
        ],
    ),
    (Geography::Uk, &["uksouth", "ukwest"]),
    (Geography::Ch, &["switzerlandnorth", "switzerlandwest"]),
    (Geography::No, &["norwayeast", "norwaywest"]),
    (
        Geography::Me,
        &["israelcentral", "qatarcentral", "uaecentral", "uaenorth"],
    ),
    (Geography::Af, &["southafricanorth", "southafricawest"]),
    (
        Geography::In,
        &[
            "centralindia",
            "jioindiacentral",
            "jioindiawest",
            "southindia",
            "westindia",
        ],
    ),
    (
        Geography::Ap,
        &[
            "eastasia",
            "indonesiacentral",
            "japaneast",
            "japanwest",
            "koreacentral",
            "koreasouth",
            "malaysiawest",
            "southeastasia",
        ],
    ),
    (
        Geography::Au,
        &[
            "australiacentral",
            "australiacentral2",
            "australiaeast",
            "australiasoutheast",
            "newzealandnorth",
        ],
    ),
];

/// Geography of a region; none for one that is not known, which then satisfies no geography
/// constraint.
#[must_use]
pub fn geography(provider: Provider, region: &str) -> Option<Geography> {
    let by_prefix = |table: &[(&str, Geography)]| {
        table
            .iter()
            .find(|(prefix, _)| region.starts_with(prefix))
            .map(|(_, g)| *g)
    };
    match provider {
        Provider::Aws => by_prefix(AWS),
        Provider::Gcp if region == "europe-west10" || region == "europe-west12" => {
            Some(Geography::Eu)
        }
        Provider::Gcp => by_prefix(GCP),
        Provider::Azure => AZURE
            .iter()
            .find(|(_, names)| names.contains(&region))
            .map(|(g, _)| *g),
        Provider::Edge => None,
    }
}
