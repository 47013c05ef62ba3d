//! `DescribeSpotPriceHistory`: with a start time of now it is the prices in force, by zone.

use hyperion_placement::model::{CapacityType, Provider};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{Call, Session, known_types};
use crate::feeds::pages::{Latest, Pages};
use crate::feeds::{Failure, Fetched, Key, Left, Offer};

/// What a form field may hold unescaped.
const FORM: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    spot_price_history_set: Set,
    #[serde(default)]
    next_token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Set {
    #[serde(default)]
    item: Vec<Row>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(default)]
    instance_type: String,
    #[serde(default)]
    product_description: String,
    #[serde(default)]
    spot_price: String,
    #[serde(default)]
    timestamp: String,
    #[serde(default)]
    availability_zone: String,
}

/// Adds the spot prices of a region.
pub(super) async fn fetch(
    session: &Session<'_>,
    region: &str,
    now: Timestamp,
    fetched: &mut Fetched,
) -> Result<(), Failure> {
    let what = format!("AWS spot prices of {region}");
    let mut offers = Latest::new();
    let result = pages(session, region, &what, now, |row| {
        match read(&row, region, now) {
            // A change that is yet to come is listed, too: the latest of those in force counts.
            Ok((at, offer)) => offers.take(at, offer),
            Err(left) => fetched.leave(left, || format!("{row:?}")),
        }
    })
    .await;
    offers.add_to(fetched);
    result
}

async fn pages(
    session: &Session<'_>,
    region: &str,
    what: &str,
    now: Timestamp,
    mut row: impl FnMut(Row),
) -> Result<(), Failure> {
    let mut pages = Pages::new(what);
    let mut token = None;
    loop {
        let body = session
            .call(Call {
                service: "ec2",
                region,
                headers: &[("content-type", "application/x-www-form-urlencoded")],
                body: form(now, token.as_deref()),
                what,
            })
            .await?;
        let page = parse(&body).map_err(|text| pages.malformed(text))?;
        let rows = page.spot_price_history_set.item;
        let count = rows.len();
        rows.into_iter().for_each(&mut row);
        token = pages.read(count, page.next_token)?;
        if token.is_none() {
            return Ok(());
        }
    }
}

fn form(now: Timestamp, token: Option<&str>) -> String {
    let start = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut fields = vec![
        ("Action".to_owned(), "DescribeSpotPriceHistory".to_owned()),
        ("Version".to_owned(), "2016-11-15".to_owned()),
        ("StartTime".to_owned(), start),
        ("ProductDescription.1".to_owned(), "Linux/UNIX".to_owned()),
        ("MaxResults".to_owned(), "1000".to_owned()),
        // A filter, and not `InstanceType`: that refuses types that a region has never heard of.
        ("Filter.1.Name".to_owned(), "instance-type".to_owned()),
    ];
    for (n, name) in known_types().enumerate() {
        fields.push((format!("Filter.1.Value.{}", n + 1), name.to_owned()));
    }
    if let Some(token) = token {
        fields.push(("NextToken".to_owned(), token.to_owned()));
    }
    let field =
        |(name, value): (String, String)| format!("{name}={}", utf8_percent_encode(&value, FORM));
    fields.into_iter().map(field).collect::<Vec<_>>().join("&")
}

fn parse(body: &[u8]) -> Result<Response, String> {
    let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
    quick_xml::de::from_str(text).map_err(|e| e.to_string())
}

fn read(row: &Row, region: &str, now: Timestamp) -> Result<(Timestamp, Offer), Left> {
    let product = row.product_description.as_str();
    if product.starts_with("Windows") {
        return Err(Left::Windows);
    }
    if product != "Linux/UNIX" && product != "Linux/UNIX (Amazon VPC)" {
        return Err(Left::OtherProduct);
    }
    let at: Timestamp = row.timestamp.parse().map_err(|_| Left::Malformed)?;
    if at > now {
        return Err(Left::NotInForce);
    }
    if row.availability_zone.is_empty() {
        return Err(Left::UnknownRegion);
    }
    let price = row.spot_price.parse().map_err(|_| Left::Price)?;
    let key = Key {
        provider: Provider::Aws,
        instance_type: row.instance_type.clone(),
        region: region.to_owned(),
        zone: row.availability_zone.clone(),
        capacity_type: CapacityType::Spot,
    };
    Ok((at, Offer::new(key, price, now)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_answer_is_none() {
        let whole = "<DescribeSpotPriceHistoryResponse><spotPriceHistorySet><item>\
            <instanceType>g5.xlarge</instanceType></item></spotPriceHistorySet>\
            <nextToken>abc</nextToken></DescribeSpotPriceHistoryResponse>";
        let page = parse(whole.as_bytes()).expect("an answer");
        assert_eq!(page.next_token.as_deref(), Some("abc"));
        assert_eq!(page.spot_price_history_set.item.len(), 1);
        for end in [10, 60, 100, whole.len() - 5] {
            assert!(parse(&whole.as_bytes()[..end]).is_err(), "{end}");
        }
        assert!(parse(b"<Response><Errors/></Response>").is_err());
        assert!(parse(b"{}").is_err());
        assert!(parse(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn a_form_names_what_is_known_and_escapes_the_token() {
        let now: Timestamp = "2026-05-20T10:00:00.5Z".parse().expect("a time");
        let text = form(now, Some("a/b=="));
        assert!(
            text.contains("StartTime=2026-05-20T10%3A00%3A00Z"),
            "{text}"
        );
        assert!(text.contains("Filter.1.Value.1=c5.2xlarge"), "{text}");
        assert!(text.ends_with("&NextToken=a%2Fb%3D%3D"), "{text}");
    }
}
