//! `GetProducts`: the price list. Each product is a JSON document inside a string.

use std::collections::BTreeMap;

use hyperion_placement::model::{CapacityType, Provider};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::{Call, LIST_REGION, Session};
use crate::feeds::pages::{Pages, in_region};
use crate::feeds::{Failure, Fetched, Key, Left, Offer};

const TARGET: &str = "AWSPriceListService.GetProducts";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Response {
    price_list: Vec<String>,
    #[serde(default)]
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Document {
    product: Product,
    #[serde(default)]
    terms: Terms,
}

#[derive(Debug, Deserialize)]
struct Product {
    attributes: Attributes,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attributes {
    #[serde(default)]
    instance_type: String,
    #[serde(default)]
    region_code: String,
    #[serde(default)]
    operating_system: String,
    #[serde(default)]
    tenancy: String,
    #[serde(default, rename = "preInstalledSw")]
    software: String,
    #[serde(default, rename = "capacitystatus")]
    capacity_status: String,
    /// `OnDemand`, or `CapacityBlock` for what is booked for a time; not in older documents.
    #[serde(default, rename = "marketoption")]
    market: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Terms {
    #[serde(default)]
    on_demand: BTreeMap<String, Term>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Term {
    #[serde(default)]
    effective_date: Option<Timestamp>,
    price_dimensions: BTreeMap<String, Dimension>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dimension {
    unit: String,
    price_per_unit: BTreeMap<String, String>,
}

/// Adds the on-demand prices of a region.
pub(super) async fn fetch(
    session: &Session<'_>,
    region: &str,
    now: Timestamp,
    fetched: &mut Fetched,
) -> Result<(), Failure> {
    let what = format!("AWS price list of {region}");
    let mut pages = Pages::new(&what);
    let mut token = None;
    loop {
        let body = session
            .call(Call {
                service: "pricing",
                region: LIST_REGION,
                headers: &[
                    ("content-type", "application/x-amz-json-1.1"),
                    ("x-amz-target", TARGET),
                ],
                body: question(region, token.as_deref()),
                what: &what,
            })
            .await?;
        let page: Response = serde_json::from_slice(&body).map_err(|e| pages.malformed(e))?;
        for text in &page.price_list {
            fetched.add(read(text, region, now), || text.clone());
        }
        token = pages.read(page.price_list.len(), page.next_token)?;
        if token.is_none() {
            return Ok(());
        }
    }
}

fn question(region: &str, token: Option<&str>) -> String {
    let filters: Vec<_> = [
        ("regionCode", region),
        ("operatingSystem", "Linux"),
        ("preInstalledSw", "NA"),
        ("capacitystatus", "Used"),
        ("tenancy", "Shared"),
    ]
    .iter()
    .map(|(field, value)| json!({"Type": "TERM_MATCH", "Field": field, "Value": value}))
    .collect();
    let mut question = json!({
        "ServiceCode": "AmazonEC2",
        "FormatVersion": "aws_v1",
        "MaxResults": 100,
        "Filters": filters,
    });
    if let Some(token) = token {
        question["NextToken"] = json!(token);
    }
    question.to_string()
}

fn read(text: &str, region: &str, now: Timestamp) -> Result<Offer, Left> {
    let document: Document = serde_json::from_str(text).map_err(|_| Left::Malformed)?;
    let about = document.product.attributes;
    match about.operating_system.as_str() {
        "Linux" => {}
        "Windows" => return Err(Left::Windows),
        _ => return Err(Left::OtherProduct),
    }
    if about.tenancy != "Shared" || about.software != "NA" || about.capacity_status != "Used" {
        return Err(Left::OtherProduct);
    }
    if about.market.is_some_and(|market| market != "OnDemand") {
        return Err(Left::OtherProduct);
    }
    in_region(Provider::Aws, &about.region_code, region)?;
    let on_demand = document.terms.on_demand;
    if on_demand.is_empty() {
        return Err(Left::Reservation);
    }
    // Terms are announced before they hold: the latest of those in force counts.
    let term = on_demand
        .values()
        .filter(|t| t.effective_date.is_none_or(|at| at <= now))
        .max_by_key(|t| t.effective_date)
        .ok_or(Left::NotInForce)?;
    let mut dimensions = term.price_dimensions.values();
    let (Some(dimension), None) = (dimensions.next(), dimensions.next()) else {
        return Err(Left::Malformed);
    };
    if dimension.unit != "Hrs" {
        return Err(Left::Malformed);
    }
    let price = dimension.price_per_unit.get("USD").ok_or(Left::Currency)?;
    let price = price.parse().map_err(|_| Left::Price)?;
    let key = Key {
        provider: Provider::Aws,
        instance_type: about.instance_type,
        region: about.region_code,
        zone: String::new(),
        capacity_type: CapacityType::OnDemand,
    };
    Offer::new(key, price, now)
}
