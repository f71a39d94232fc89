//! Plots as SVG, without anything from elsewhere.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
/// Room for the labels of the axes.
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 36.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 12.0;

/// Lines' colors: distinct also for those who see few.
const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

/// One line of a plot.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot's words.
pub(super) struct Labels<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// Names of the places 0, 1, … on the x axis; numbers if there are none.
    pub(super) places: Option<&'a [String]>,
}

/// A plot of some lines.
pub(super) fn plot(labels: &Labels<'_>, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_max = all().map(|point| point.0).fold(0.0, f64::max).max(1e-9);
    let y_max = round_up(all().map(|point| point.1).fold(0.0, f64::max).max(1e-9));
    let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * value / x_max;
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / y_max;
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(labels.title),
        escape(labels.title)
    );
    for part in 0..=4 {
        let value = y_max * f64::from(part) / 4.0;
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/><text class=\"y\" x=\"{2:.1}\" y=\"{3:.1}\">{4}</text>",
            WIDTH - RIGHT,
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
            short(value)
        );
    }
    for (at, name) in places(labels, x_max) {
        let _ = write!(
            svg,
            "<text class=\"x\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x(at),
            HEIGHT - BOTTOM + 16.0,
            escape(&name)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"x\" x=\"{:.1}\" y=\"{:.1}\">{}</text><text class=\"y\" transform=\"translate(14 {:.1}) rotate(-90)\" style=\"text-anchor:middle\">{}</text>",
        f64::midpoint(LEFT, WIDTH),
        HEIGHT - 4.0,
        escape(labels.x),
        HEIGHT / 2.0,
        escape(labels.y)
    );
    for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
        let points: Vec<_> =
            line.points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        let _ = write!(
            svg,
            "<polyline stroke=\"{color}\" points=\"{}\"><title>{}</title></polyline>",
            points.join(" "),
            escape(&line.name)
        );
        for point in &points {
            let (x, y) = point.split_once(',').unwrap_or_default();
            let _ = write!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"2.5\" fill=\"{color}\"/>");
        }
    }
    svg.push_str("</svg><ul>");
    for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
        let _ = write!(svg, "<li><span style=\"background:{color}\"></span>{}</li>", escape(&line.name));
    }
    svg.push_str("</ul></figure>");
    svg
}

/// Where the x axis is labeled, and with what.
fn places(labels: &Labels<'_>, x_max: f64) -> Vec<(f64, String)> {
    match labels.places {
        Some(names) => (0_u32..).zip(names).map(|(at, name)| (f64::from(at), name.clone())).collect(),
        None => (0..=4).map(|part| x_max * f64::from(part) / 4.0).map(|at| (at, short(at))).collect(),
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

fn short(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if value >= 10.0 || value == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Text in HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_and_text_is_escaped() {
        for (value, expected) in [(1.0, 1.0), (3.0, 5.0), (7.0, 10.0), (230.0, 500.0), (0.03, 0.05)] {
            assert!((round_up(value) - expected).abs() < 1e-9, "{value}");
        }
        let line = Line { name: "<a & b>".to_owned(), points: vec![(0.0, 1.0), (2.0, 3.0)] };
        let svg = plot(&Labels { title: "t", x: "x", y: "y", places: None }, &[line]);
        assert!(svg.contains("&lt;a &amp; b&gt;") && !svg.contains("<a &"), "{svg}");
    }
}
