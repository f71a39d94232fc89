//! A room's event graph as SVG: time runs down, each server has a column, forks show as crossing edges.

use std::{collections::BTreeMap, fmt::Write};

use storage::schema::Standing;

use crate::invariant::Side;

const COLUMN: u32 = 150;
const ROW: u32 = 26;
const MARGIN: u32 = 60;

/// The graph as one server knows it.
pub(super) fn svg(side: &Side) -> String {
    let mut events: Vec<_> = side.graph.values().flatten().collect();
    events
        .sort_by_key(|event| (event.pdu.depth(), event.pdu.origin_server_ts(), event.pdu.event_id().clone()));
    let servers: std::collections::BTreeSet<_> =
        events.iter().map(|event| event.pdu.sender().server_name().to_owned()).collect();
    let columns: BTreeMap<_, u32> = servers.into_iter().zip(0..).collect();
    let places: BTreeMap<_, _> = (0..)
        .zip(&events)
        .map(|(row, event)| {
            let column = columns.get(event.pdu.sender().server_name()).copied().unwrap_or(0);
            (event.pdu.event_id().clone(), (MARGIN + COLUMN * column, MARGIN + ROW * row))
        })
        .collect();
    let width = MARGIN + COLUMN * u32::try_from(columns.len()).unwrap_or(1) + 60;
    let height = 2 * MARGIN + ROW * u32::try_from(events.len()).unwrap_or(1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
    );
    for (server, column) in &columns {
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"24\" font-weight=\"bold\">{server}</text>",
            MARGIN + COLUMN * column
        );
    }
    for event in &events {
        let Some((x, y)) = places.get(event.pdu.event_id()) else { continue };
        for (to_x, to_y) in event.pdu.prev_events().iter().filter_map(|prev| places.get(prev)) {
            let _ = write!(svg, "<line x1=\"{x}\" y1=\"{y}\" x2=\"{to_x}\" y2=\"{to_y}\" stroke=\"#888\"/>");
        }
    }
    for event in &events {
        let Some((x, y)) = places.get(event.pdu.event_id()) else { continue };
        let color = match event.standing {
            Standing::Accepted if event.pdu.state_key().is_some() => "#0072b2",
            Standing::Accepted => "#009e73",
            Standing::SoftFailed => "#e69f00",
            Standing::Rejected | Standing::Outlier => "#d55e00",
        };
        let kind = event.pdu.kind().trim_start_matches("m.room.");
        let _ = write!(
            svg,
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"5\" fill=\"{color}\"><title>{}</title></circle>\
             <text x=\"{}\" y=\"{}\">{kind}</text>",
            event.pdu.event_id(),
            x + 9,
            y + 4
        );
    }
    let legend =
        [("state", "#0072b2"), ("message", "#009e73"), ("soft-failed", "#e69f00"), ("rejected", "#d55e00")];
    for ((name, color), place) in legend.into_iter().zip(0..) {
        let x = MARGIN + 110 * place;
        let y = height - 20;
        let _ = write!(
            svg,
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"5\" fill=\"{color}\"/><text x=\"{}\" y=\"{}\">{name}</text>",
            x + 9,
            y + 4
        );
    }
    svg + "</svg>\n"
}
