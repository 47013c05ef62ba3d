//! The window as a picture: prices, cost per hour, and what happened when.

use std::path::Path;

use anyhow::Result;
use hyperion_placement::model::Provider;
use hyperion_scheduler::eval::plot::{FONT, both};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::day::Day;
use super::meter::Meter;

const SIZE: (u32, u32) = (1000, 900);
const OURS: RGBColor = RGBColor(0, 114, 178);
const STATIC: RGBColor = RGBColor(90, 90, 90);
const MARKS: [RGBColor; 5] = [
    RGBColor(90, 90, 90),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(200, 0, 0),
];

/// A moment, by what happened.
pub(super) struct Marks {
    pub name: &'static str,
    pub hours: Vec<f64>,
}

/// Draws it to `base` with `.svg` and `.png`.
///
/// # Errors
/// Where a file can't be written, with its name.
pub(super) fn draw(
    base: &Path,
    title: &str,
    day: &Day,
    meter: &Meter,
    marks: &[Marks],
) -> Result<()> {
    both(
        base,
        SIZE,
        |area| panels(area, title, day, meter, marks),
        |area| panels(area, title, day, meter, marks),
    )
}

fn panels<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    day: &Day,
    meter: &Meter,
    marks: &[Marks],
) -> Result<()>
where
    B::ErrorType: 'static,
{
    area.fill(&WHITE)?;
    let area = area.titled(title, (FONT, 20))?;
    let parts = area.split_by_breakpoints::<i32, u32, _, _>([], [310, 640]);
    if let [above, middle, below] = &parts[..] {
        prices(above, day)?;
        costs(middle, day, meter)?;
        events(below, day, marks)?;
    }
    area.present()?;
    Ok(())
}

type Chart<'a, B> = ChartContext<'a, B, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn chart<'a, B: DrawingBackend>(
    area: &'a DrawingArea<B, Shift>,
    hours: f64,
    most: f64,
) -> Result<Chart<'a, B>>
where
    B::ErrorType: 'static,
{
    let chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(150)
        .build_cartesian_2d(0.0..hours, 0.0..most)?;
    Ok(chart)
}

/// A line that keeps each value until the next.
fn steps(points: &[(f64, f64)], end: f64) -> Vec<(f64, f64)> {
    let mut line = Vec::new();
    for (at, value) in points {
        if let Some((_, before)) = line.last().copied() {
            line.push((*at, before));
        }
        line.push((*at, *value));
    }
    if let Some((_, last)) = line.last().copied() {
        line.push((end, last));
    }
    line
}

fn colour(provider: Provider) -> RGBColor {
    match provider {
        Provider::Aws => RGBColor(230, 159, 0),
        Provider::Gcp => RGBColor(0, 114, 178),
        _ => RGBColor(0, 158, 115),
    }
}

/// Spot prices against those on demand.
fn prices<B: DrawingBackend>(area: &DrawingArea<B, Shift>, day: &Day) -> Result<()>
where
    B::ErrorType: 'static,
{
    let mut chart = chart(area, day.hours, 110.0)?;
    chart
        .configure_mesh()
        .y_desc("spot price, % of on demand")
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for provider in [Provider::Aws, Provider::Gcp, Provider::Azure] {
        let style = colour(provider).mix(0.6).stroke_width(1);
        let of = day
            .prices
            .iter()
            .filter(|(kind, _)| kind.spot && kind.provider == provider);
        for (at, (_, price)) in of.enumerate() {
            let points: Vec<(f64, f64)> = price
                .points
                .iter()
                .map(|(hour, usd)| (*hour, usd / price.on_demand * 100.0))
                .collect();
            let line = chart.draw_series(LineSeries::new(steps(&points, day.hours), style))?;
            if at == 0 {
                let solid = colour(provider).stroke_width(2);
                line.label(provider.as_str())
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], solid));
            }
        }
    }
    legend(&mut chart)
}

fn costs<B: DrawingBackend>(area: &DrawingArea<B, Shift>, day: &Day, meter: &Meter) -> Result<()>
where
    B::ErrorType: 'static,
{
    let most = meter.course.iter().map(|c| c.1.max(c.2));
    let most = most.fold(0.1, f64::max) * 1.1;
    let mut chart = chart(area, day.hours, most)?;
    chart
        .configure_mesh()
        .y_desc("USD per hour")
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let lines = [
        ("static us-east-1 on demand", STATIC, true),
        ("Hyperion", OURS, false),
    ];
    for (name, colour, fixed) in lines {
        let course = meter.course.iter();
        let points: Vec<(f64, f64)> = course
            .map(|(at, usd, of_fixed)| (*at, if fixed { *of_fixed } else { *usd }))
            .collect();
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(steps(&points, meter.now()), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    legend(&mut chart)
}

fn events<B: DrawingBackend>(area: &DrawingArea<B, Shift>, day: &Day, marks: &[Marks]) -> Result<()>
where
    B::ErrorType: 'static,
{
    let rows = marks.len() as f64;
    let mut chart = chart(area, day.hours, rows + 0.5)?;
    let name = |y: &f64| {
        // Rows stand at whole numbers, the first at the top.
        let row = (rows - y.round()) as usize;
        let whole = (y - y.round()).abs() < 0.01 && *y > 0.5;
        let mark = marks.get(row).filter(|_| whole);
        mark.map_or_else(String::new, |m| format!("{} ({})", m.name, m.hours.len()))
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(marks.len() + 1)
        .y_label_formatter(&name)
        .x_desc("hours of the window")
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (row, mark) in marks.iter().enumerate() {
        let top = rows - row as f64;
        let colour = MARKS.get(row % MARKS.len()).copied().unwrap_or(BLACK);
        let style = colour.stroke_width(1);
        chart.draw_series(
            mark.hours
                .iter()
                .map(|hour| PathElement::new([(*hour, top - 0.35), (*hour, top + 0.35)], style)),
        )?;
    }
    Ok(())
}

fn legend<'a, B>(chart: &mut Chart<'a, B>) -> Result<()>
where
    B: DrawingBackend + 'a,
    B::ErrorType: 'static,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 14))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixed::Fixed;
    use super::*;

    #[test]
    fn a_picture_is_written_even_of_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("day");
        let day = Day {
            hours: 24.0,
            ..Day::default()
        };
        let mut meter = Meter::new(Fixed::default());
        meter.advance(2.0);
        let marks = [Marks {
            name: "moves",
            hours: vec![1.0, 2.0],
        }];
        draw(&base, "title", &day, &meter, &marks).unwrap();
        for file in ["day.svg", "day.png"] {
            assert!(std::fs::metadata(dir.path().join(file)).unwrap().len() > 500);
        }
        let gone = dir.path().join("no/such/day");
        let error = draw(&gone, "title", &day, &meter, &marks).unwrap_err();
        assert!(format!("{error:#}").contains("day"), "{error:#}");
    }

    #[test]
    fn prices_hold_until_the_next() {
        let line = steps(&[(0.0, 1.0), (2.0, 3.0)], 4.0);
        assert_eq!(line, [(0.0, 1.0), (2.0, 1.0), (2.0, 3.0), (4.0, 3.0)]);
        assert!(steps(&[], 4.0).is_empty());
    }
}
