//! Latency by share of requests, as SVG.

use anyhow::anyhow;
use plotters::prelude::*;

use crate::report::{Report, Trend};

const SIZE: (u32, u32) = (900, 520);

/// Nines on the horizontal axis (`1` is p90, `2` p99), milliseconds on the vertical one.
pub fn latency(report: &Report) -> anyhow::Result<String> {
    let mut svg = String::new();
    draw(report, &mut svg).map_err(|error| anyhow!("cannot draw: {error}"))?;
    Ok(svg)
}

/// The lines of a trend, from zero.
pub fn trend(report: &Report, trend: &Trend) -> anyhow::Result<String> {
    let mut svg = String::new();
    draw_trend(report, trend, &mut svg).map_err(|error| anyhow!("cannot draw: {error}"))?;
    Ok(svg)
}

fn title(report: &Report) -> String {
    match &report.partial {
        Some(_) => format!("{} (partial)", report.mode),
        None => report.mode.clone(),
    }
}

fn draw_trend(report: &Report, trend: &Trend, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let points = || trend.lines.iter().flat_map(|(_, points)| points);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(1.0, f64::max) * 1.2;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title(report), ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc(&trend.over).y_desc(&trend.of).draw()?;
    for (number, (name, points)) in trend.lines.iter().enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}

fn draw(report: &Report, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let nines = |share: f64| -(1.0 - share).max(1e-6).log10();
    let lines: Vec<(&str, Vec<(f64, f64)>)> = report
        .series
        .iter()
        .filter(|series| series.done > 0)
        .map(|series| {
            let points = series
                .curve
                .iter()
                .map(|(share, ms)| (nines(*share), ms.max(0.01)))
                .collect();
            (series.name.as_str(), points)
        })
        .collect();
    let points = || lines.iter().flat_map(|(_, points)| points);
    let right = points().map(|point| point.0).fold(2.0, f64::max);
    let top = points().map(|point| point.1).fold(0.1, f64::max) * 1.5;
    let bottom = points().map(|point| point.1).fold(top, f64::min) / 1.5;

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title(report), ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, (bottom..top).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("share of requests that took no longer")
        .y_desc("ms")
        .x_label_formatter(&|nines| {
            format!("p{:.5}", 100.0 * (1.0 - 10_f64.powf(-nines)))
                .trim_end_matches(['0'])
                .trim_end_matches('.')
                .to_owned()
        })
        .y_label_formatter(&|ms| format!("{ms:.2}"))
        .draw()?;
    for (number, (name, points)) in lines.iter().enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}
