//! The binary `loadtest` against the real server, with sizes so small that they only show that it works.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Output;

use benches::report::Report;
use tests::Server;
use tokio::process::Command;

/// Enough for a few requests of each kind.
const SECONDS: &str = "0.3";

async fn loadtest(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(arguments).args(["--seconds", SECONDS]).kill_on_drop(true);
    command.output().await.expect("it runs")
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

/// Runs a profile and checks that every kind of request was made and answered.
async fn runs(server: &Server, more: &[&str], profile: &[&str], rows: usize) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let (json, html) = (folder.path().join("a.json"), folder.path().join("a.html"));
    let (url, pid) = (server.url(), server.pid().to_string());
    let files = ["--json", json.to_str().unwrap(), "--html", html.to_str().unwrap()];
    let arguments = [&["--url", &url, "--server-pid", &pid][..], &files, more, profile].concat();
    let output = loadtest(&arguments).await;
    assert!(output.status.success(), "{}", text(&output));
    let report = Report::load(&json).unwrap();
    assert!(report.rows.len() >= rows, "{}", text(&output));
    for row in &report.rows {
        assert!(row.count > 0 && row.failed == 0 && row.quantile(0.5) > 0.0, "{}", text(&output));
        assert!(text(&output).contains(&row.name));
    }
    assert!(report.usage.len() >= 2 && report.peak_mib().unwrap() > 1.0);
    let html = std::fs::read_to_string(html).unwrap();
    assert!(html.contains("<svg") && html.contains("Memory") && !html.contains("http://"), "{html}");
    report
}

#[tokio::test]
async fn rooms_are_written_and_paged() {
    let server = Server::start_with("").await;
    let sent = runs(&server, &[], &["one-room", "--senders", "2", "--members", "2"], 1).await;
    assert_eq!((sent.profile.as_str(), sent.parameters["senders"].as_str()), ("one-room", "2"));
    assert!(sent.cpu_ms_each().is_some() && sent.written_each().unwrap() > 100.0);
    let paced = runs(&server, &["--rate", "20"], &["many-rooms", "--rooms", "3"], 1).await;
    assert!(paced.rows[0].count <= 6, "20 per second for 0.3 s: {}", paced.rows[0].count);
    let secret = ["--shared-secret", "secret"];
    runs(&server, &secret, &["paging", "--readers", "2", "--messages", "8", "--page", "5"], 1).await;
}

#[tokio::test]
async fn members_get_what_is_sent() {
    let server = Server::start_with("").await;
    let report = runs(&server, &[], &["fan-out", "--members", "5", "--messages", "20"], 3).await;
    assert_eq!(report.rows[1].count, 5 * report.rows[0].count, "each message reaches each member");
    runs(&server, &[], &["day", "--users", "4", "--rooms", "3"], 4).await;
}

#[tokio::test]
async fn clients_sync_join_and_log_in() {
    let server = Server::start_with("").await;
    runs(&server, &[], &["initial-sync", "--rooms", "3"], 1).await;
    runs(&server, &[], &["incremental-sync", "--rooms", "3", "--changed", "2"], 1).await;
    runs(&server, &[], &["sliding-sync", "--rooms", "3", "--window", "2"], 2).await;
    runs(&server, &[], &["joins", "--users", "4", "--at-a-time", "2"], 1).await;
    runs(&server, &[], &["log-ins", "--users", "2"], 1).await;
}

#[tokio::test]
async fn users_of_another_server_join() {
    let (near, far) = tokio::join!(Server::start_federating(""), Server::start_federating(""));
    let other = ["--other-url", &far.url()];
    let profile = ["federated-join", "--members", "3", "--rooms", "2"];
    let report = runs(&near, &other, &profile, 2).await;
    assert_eq!(report.rows[1].count, 2);
}

#[tokio::test]
async fn a_sweep_starts_a_server_for_each_value_and_reports_compare() {
    let folder = tempfile::tempdir().unwrap();
    let (json, html) = (folder.path().join("sweep.json"), folder.path().join("sweep.html"));
    let binary = tests::binary().to_str().unwrap();
    let output = loadtest(&[
        "--sweep",
        "room_memory=1MiB,64MiB",
        "--server-binary",
        binary,
        "--json",
        json.to_str().unwrap(),
        "--html",
        html.to_str().unwrap(),
        "one-room",
        "--senders",
        "2",
    ])
    .await;
    assert!(output.status.success(), "{}", text(&output));
    let reports: Vec<(String, Report)> = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let values: Vec<_> = reports.iter().map(|(value, _)| value.as_str()).collect();
    assert_eq!(values, ["1MiB", "64MiB"]);
    assert!(reports.iter().all(|(_, report)| report.rows[0].count > 0 && report.rows[0].failed == 0));
    assert!(std::fs::read_to_string(html).unwrap().contains("64MiB"));
    let (a, b) = (folder.path().join("a.json"), folder.path().join("b.json"));
    reports[0].1.save(&a).unwrap();
    reports[1].1.save(&b).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    let output = command.arg("--compare").args([a, b]).output().await.unwrap();
    assert!(output.status.success() && text(&output).contains("B/A"), "{}", text(&output));
    assert!(text(&output).contains(&reports[0].1.rows[0].name));
}
