use super::*;

fn load(text: &str, environment: &[(&str, &str)], flags: Flags) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ganglion.toml");
    std::fs::write(&path, text).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(&Flags { config: Some(path), ..flags }, environment)
}

#[test]
fn without_anything_there_are_defaults() {
    let config = Config::load(&Flags::default(), std::iter::empty()).unwrap();
    assert_eq!(config.server_name, "localhost");
    assert_eq!(config.listen.client, [SocketAddr::from(([127, 0, 0, 1], 8008))]);
    assert!(!config.registration.enabled && config.federation.enabled.is_none());
    assert!(config.without_effect().is_empty());
}

#[test]
fn flags_beat_the_environment_and_that_the_file() {
    let text = "server_name = 'file.example'\n[storage]\nbackend = 'fjall'\n[actors]\nroom_memory = '1 MiB'";
    let environment = [
        ("GANGLION__SERVER_NAME", "environment.example"),
        ("GANGLION__REGISTRATION__ENABLED", "true"),
        ("GANGLION__REGISTRATION__TOKENS", "['sesame', 'two']"),
        ("OTHER", "ignored"),
    ];
    let flags = Flags { server_name: Some("flag.example".to_owned()), ..Flags::default() };
    let config = load(text, &environment, flags).unwrap();
    assert_eq!(config.server_name, "flag.example");
    assert_eq!(config.storage.backend, Backend::Fjall);
    assert_eq!(config.actors.room_memory, Size(1 << 20));
    assert!(config.registration.enabled);
    assert_eq!(config.registration.tokens.len(), 2);
    assert!(!format!("{config:?}").contains("sesame"), "a secret is shown");
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    for (text, expected) in [
        ("[registration]\nenabeld = true", "registration.enabled"),
        ("sever_name = 'x'", "server_name"),
        ("[actor]\nroom_memory = '1 MiB'", "actors.room_memory"),
        ("[storage]\nback_end = 'sled'", "storage.backend"),
    ] {
        match load(text, &[], Flags::default()) {
            Err(ConfigError::UnknownKey { nearest, .. }) => assert_eq!(nearest, expected, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    let wrong = load("", &[("GANGLION__STORAGE__BACKENDS", "sled")], Flags::default());
    assert!(matches!(wrong, Err(ConfigError::UnknownKey { .. })));
}

#[test]
fn paths_are_relative_to_the_file() {
    let text = "data_dir = 'data'\n[federation]\nextra_ca = ['ca.pem']\n[listen]\ntls = ['127.0.0.1:8448']";
    let config = load(text, &[], Flags::default()).unwrap();
    assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("data"));
    assert!(config.federation.extra_ca[0].is_absolute());
    assert_eq!(config.without_effect(), ["listen.tls"]);
}

#[test]
fn what_is_not_to_be_had_is_refused() {
    let name = "server_name = 'a.example'\n";
    for (text, expected) in [
        ("[appservices]\nregistrations = ['irc.yaml']", None),
        ("[tls]\nacme = {}", None),
        ("[tls]\nacme = { contact = 'alice@a.example', domains = ['a.example', 'matrix.a.example'] }", None),
        ("[tls]\nacme = { domains = ['1.2.3.4'] }", Some("no domain name")),
        ("[tls]\nacme = { domains = ['a.example:8448'] }", Some("no domain name")),
        ("[tls]\nacme = { domains = ['*.a.example'] }", Some("no domain name")),
        ("[tls]\ncertificate = 'a.pem'", Some("tls.private_key")),
        ("[tls]\nprivate_key = 'b.pem'", Some("tls.certificate")),
        ("[tls]\ncertificate = 'a.pem'\nprivate_key = 'b.pem'", None),
        ("[actors]\nbacklog_max = 0", Some("actors.backlog_max")),
        ("[matrix_rtc]\ntransports = [{ livekit_service_url = 'https://a.example' }]", Some("a `type`")),
        ("[matrix_rtc]\ntransports = [{ type = 'livekit' }]", Some("livekit_service_url")),
        (
            "[[matrix_rtc.transports]]\ntype = 'livekit'\nlivekit_service_url = 'a.example'",
            Some("livekit_service_url"),
        ),
        ("[[matrix_rtc.transports]]\ntype = 'org.example.pigeons'\nspeed = 3", None),
        (
            "[well_known.client_extra]\n'm.homeserver' = { base_url = 'https://b.example' }",
            Some("m.homeserver"),
        ),
        ("[well_known.client_extra]\nm.identity_server = {}", Some("quoted")),
        (
            "[well_known.client_extra]\n'org.matrix.msc4143.rtc_foci' = []\n[matrix_rtc]\n\
             transports = [{ type = 'x' }]",
            Some("matrix_rtc.transports"),
        ),
        ("[retention]\ninterval = '0s'", Some("retention.interval")),
        ("[server_notices]\navatar_url = 'https://a.example/a.png'", Some("server_notices.avatar_url")),
        ("[server_notices]\navatar_url = 'mxc://a.example/a'", None),
        ("[tls]\nacme = {}\ncertificate = 'a.pem'\nprivate_key = 'b.pem'", Some("exclude each other")),
    ] {
        match (load(&format!("{name}{text}"), &[], Flags::default()), expected) {
            (Ok(_), None) => {}
            (Err(ConfigError::Unusable(reason)), Some(expected)) => {
                assert!(reason.contains(expected), "{reason}");
            }
            (other, _) => panic!("{text}: {other:?}"),
        }
    }
    let nameless = load("[tls]\nacme = {}", &[], Flags::default());
    assert!(matches!(nameless, Err(ConfigError::Unusable(_))), "localhost gets no certificate");
    let misspelled = load("[tls]\nacme = { domain = ['a.example'] }", &[], Flags::default());
    assert!(matches!(misspelled, Err(ConfigError::UnknownKey { nearest: "tls.acme.domains", .. })));
}

#[test]
fn clients_settings_have_any_keys_and_values() {
    let name = "GANGLION__WELL_KNOWN__CLIENT_EXTRA";
    let values = "{ 'org.example.a' = { list = [1, true, 'x'], table = {} }, 'm.tile_server' = {} }";
    let expected = serde_json::json!({
        "org.example.a": { "list": [1, true, "x"], "table": {} }, "m.tile_server": {},
    });
    let text = format!("[well_known]\nclient_extra = {values}");
    for config in [load(&text, &[], Flags::default()), load("", &[(name, values)], Flags::default())] {
        let config = config.unwrap();
        assert_eq!(serde_json::Value::Object(config.well_known.client_extra.clone()), expected);
        assert_eq!(config.without_effect(), ["well_known.client_extra"]);
    }
    let deeper = load("", &[("GANGLION__WELL_KNOWN__CLIENT_EXTRA__A", "1")], Flags::default());
    assert!(matches!(deeper, Err(ConfigError::UnknownKey { .. })));
}

#[test]
fn every_key_is_documented() {
    let book = include_str!("../../../docs/configuration.md");
    for key in KEYS {
        assert!(book.contains(&format!("`{key}`")), "docs/configuration.md lacks {key}");
    }
}
