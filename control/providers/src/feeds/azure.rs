//! Azure: the Retail Prices API, which needs no credentials.
//!
//! One list holds everything: Linux, Windows, spot, low priority, prices for developers and what is
//! paid in advance. What a row is says its type, the end of its `skuName` and its `productName`.

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Full;
use hyperion_placement::model::{CapacityType, Provider};
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::http::{Http, address, same_server};
use super::pages::{Latest, Pages, in_region};
use super::{Failure, Fetched, Key, Left, Offer};

/// Where the prices are.
pub const ENDPOINT: &str = "https://prices.azure.com/api/retail/prices";

/// The feed.
#[derive(Debug, Clone)]
pub struct Azure {
    http: Http,
    endpoint: String,
    regions: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    items: Vec<serde_json::Value>,
    #[serde(default)]
    next_page_link: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    currency_code: String,
    retail_price: f64,
    arm_region_name: String,
    arm_sku_name: String,
    #[serde(default)]
    product_name: String,
    sku_name: String,
    #[serde(default)]
    meter_name: String,
    unit_of_measure: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    effective_start_date: Option<Timestamp>,
    #[serde(default)]
    effective_end_date: Option<Timestamp>,
}

/// An offer, and since when it costs that.
type Since = (Option<Timestamp>, Offer);

impl Azure {
    /// Of these regions.
    #[must_use]
    pub fn new(http: Http, endpoint: &str, regions: Vec<String>) -> Self {
        Self {
            http,
            endpoint: endpoint.to_owned(),
            regions,
        }
    }

    /// Asks for the prices of all regions.
    pub async fn fetch(&self, now: Timestamp) -> Fetched {
        let mut fetched = Fetched::default();
        for region in &self.regions {
            if let Err(failure) = self.region(region, now, &mut fetched).await {
                fetched.failures.push(failure);
            }
        }
        fetched
    }

    async fn region(
        &self,
        region: &str,
        now: Timestamp,
        fetched: &mut Fetched,
    ) -> Result<(), Failure> {
        let what = format!("Azure Retail Prices of {region}");
        // The service takes values as they are written here and in no other case.
        let filter = format!(
            "serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq '{region}'"
        );
        let filter = utf8_percent_encode(&filter, NON_ALPHANUMERIC);
        let first = format!("{}?currencyCode=USD&$filter={filter}", self.endpoint);
        let first = address(&first, &what)?;
        let mut offers = Latest::new();
        let result = self
            .pages(&first, &what, |item| {
                let row = || item.to_string();
                match read(item, region, now) {
                    Ok((since, offer)) => offers.take(since, offer),
                    Err(left) => fetched.leave(left, row),
                }
            })
            .await;
        // What came before a failure counts.
        offers.add_to(fetched);
        result
    }

    async fn pages(
        &self,
        first: &Uri,
        what: &str,
        mut row: impl FnMut(&serde_json::Value),
    ) -> Result<(), Failure> {
        let mut pages = Pages::beginning_at(what, first.to_string());
        let mut uri = first.clone();
        loop {
            let request = Request::get(&uri)
                .body(Full::<Bytes>::default())
                .map_err(|e| pages.endless(e.to_string()))?;
            let body = self.http.send(request, what).await?;
            let page: Page = serde_json::from_slice(&body).map_err(|e| pages.malformed(e))?;
            page.items.iter().for_each(&mut row);
            let link = page.next_page_link.filter(|link| !link.is_empty());
            let next = link.map(|link| address(&link, what)).transpose()?;
            if let Some(link) = next.as_ref().filter(|link| !same_server(first, link)) {
                return Err(pages.endless(format!("the next page is said to be at {link}")));
            }
            pages.read(page.items.len(), next.as_ref().map(Uri::to_string))?;
            let Some(next) = next else { return Ok(()) };
            uri = next;
        }
    }
}

fn read(item: &serde_json::Value, region: &str, now: Timestamp) -> Result<Since, Left> {
    let row = Row::deserialize(item).map_err(|_| Left::Malformed)?;
    let capacity_type = sold_as(&row)?;
    if row.currency_code != "USD" {
        return Err(Left::Currency);
    }
    if row.unit_of_measure != "1 Hour" {
        return Err(Left::Malformed);
    }
    if row.effective_start_date.is_some_and(|at| at > now)
        || row.effective_end_date.is_some_and(|at| at <= now)
    {
        return Err(Left::NotInForce);
    }
    in_region(Provider::Azure, &row.arm_region_name, region)?;
    let key = Key {
        provider: Provider::Azure,
        instance_type: row.arm_sku_name,
        region: row.arm_region_name,
        zone: String::new(),
        capacity_type,
    };
    let offer = Offer::new(key, row.retail_price, now)?;
    Ok((row.effective_start_date, offer))
}

/// Spot or on demand, or why it is neither.
fn sold_as(row: &Row) -> Result<CapacityType, Left> {
    match row.kind.as_str() {
        "Consumption" => {}
        "DevTestConsumption" => return Err(Left::DevTest),
        "Reservation" => return Err(Left::Reservation),
        _ => return Err(Left::OtherProduct),
    }
    let product = &row.product_name;
    // " Win" at the end is how some of the newer series say it.
    if product.contains(" Windows") || product.ends_with(" Win") {
        return Err(Left::Windows);
    }
    if product.contains("Cloud Services") || product.contains("CloudServices") {
        return Err(Left::OtherProduct);
    }
    let says = |word: &str| row.sku_name.ends_with(word) || row.meter_name.ends_with(word);
    if says(" Low Priority") {
        return Err(Left::LowPriority);
    }
    Ok(if says(" Spot") {
        CapacityType::Spot
    } else {
        CapacityType::OnDemand
    })
}
