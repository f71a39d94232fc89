//! Line plots and a matrix as SVG.

use std::fmt::Write;

/// How an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// Evenly, from 0.
    Linear,
    /// By powers of ten.
    Logarithmic,
}

/// One line.
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

/// A plot of lines.
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) x: (&'static str, Scale),
    pub(super) y: (&'static str, Scale),
    pub(super) series: Vec<Series>,
}

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;

/// Told apart with any kind of color vision, on white.
const COLORS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#000000"];

/// One axis: from values to places between 0 and 1.
struct Axis {
    scale: Scale,
    least: f64,
    most: f64,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64> + Clone) -> Self {
        let most = values.clone().fold(1.0, f64::max);
        match scale {
            Scale::Linear => Self { scale, least: 0.0, most: nice(most) },
            Scale::Logarithmic => {
                let least = values.fold(most, f64::min).max(1.0);
                let least = 10_f64.powf(least.log10().floor());
                let most = 10_f64.powf(most.log10().ceil()).max(least * 10.0);
                Self { scale, least, most }
            }
        }
    }

    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.least) / (self.most - self.least),
            Scale::Logarithmic => {
                (value.max(self.least) / self.least).log10() / (self.most / self.least).log10()
            }
        }
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => (0..=5).map(|step| self.most * f64::from(step) / 5.0).collect(),
            Scale::Logarithmic => {
                let mut ticks = vec![self.least];
                while let Some(last) = ticks.last()
                    && last * 10.0 <= self.most * 1.001
                {
                    ticks.push(last * 10.0);
                }
                ticks
            }
        }
    }
}

/// The next number above that is easy to read.
fn nice(most: f64) -> f64 {
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|nice| *nice >= most).unwrap_or(most)
}

impl Plot {
    /// The plot as SVG.
    pub(super) fn svg(&self) -> String {
        let points = self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(self.x.1, points.clone().map(|point| point.0));
        let y = Axis::new(self.y.1, points.map(|point| point.1));
        let to_x = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let to_y = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"15\" font-weight=\"bold\">{}</text>",
            self.title
        );
        for tick in x.ticks() {
            let (at, end) = (to_x(tick), HEIGHT - BOTTOM);
            let _ = write!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{end}\" stroke=\"#ddd\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                end + 18.0,
                label(tick)
            );
        }
        for tick in y.ticks() {
            let (at, end) = (to_y(tick), WIDTH - RIGHT);
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{end}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                label(tick)
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(WIDTH, LEFT),
            HEIGHT - 18.0,
            self.x.0,
            HEIGHT / 2.0,
            self.y.0
        );
        let mut legend = LEFT;
        for (series, color) in self.series.iter().zip(COLORS.iter().cycle()) {
            let line: Vec<_> =
                series.points.iter().map(|(px, py)| format!("{:.1},{:.1}", to_x(*px), to_y(*py))).collect();
            let _ = write!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\
                 <rect x=\"{legend}\" y=\"30\" width=\"12\" height=\"12\" fill=\"{color}\"/>\
                 <text x=\"{}\" y=\"41\">{}</text>",
                line.join(" "),
                legend + 17.0,
                series.name
            );
            legend += 35.0 + 6.6 * f64::from(u32::try_from(series.name.len()).unwrap_or(0));
        }
        svg + "</svg>\n"
    }
}

fn label(value: f64) -> String {
    if value >= 10.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// What went from each host to each other, the more the darker.
pub(super) fn matrix(links: &[(String, String, u64)]) -> String {
    let names: std::collections::BTreeSet<_> = links.iter().flat_map(|(from, to, _)| [from, to]).collect();
    let names: Vec<_> = names.into_iter().collect();
    let most = links.iter().map(|(_, _, count)| *count).max().unwrap_or(1).max(1);
    let place = |name: &String| {
        let place = names.iter().position(|known| *known == name).unwrap_or(0);
        60 * (u32::try_from(place).unwrap_or(0) + 1)
    };
    let size = 60 * (u32::try_from(names.len()).unwrap_or(0) + 1) + 10;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {size} {size}\" width=\"{size}\" \
         height=\"{size}\" font-family=\"sans-serif\" font-size=\"13\">\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/><text x=\"4\" y=\"16\">from ↓ to →</text>"
    );
    for name in &names {
        let at = place(name) + 30;
        let _ = write!(
            svg,
            "<text x=\"{at}\" y=\"50\" text-anchor=\"middle\">{name}</text>\
             <text x=\"50\" y=\"{}\" text-anchor=\"end\">{name}</text>",
            at + 4
        );
    }
    for (from, to, count) in links {
        let (x, y, shade) = (place(to), place(from), 100 - 70 * count / most);
        let ink = if shade < 55 { "#fff" } else { "#000" };
        let _ = write!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"58\" height=\"58\" fill=\"hsl(205 80% {shade}%)\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"{ink}\">{count}</text>",
            x + 29,
            y + 34
        );
    }
    svg + "</svg>\n"
}
