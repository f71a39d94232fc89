//! Every route, in one table.

use axum::{
    Router,
    extract::Request,
    handler::Handler,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use http::{HeaderValue, Method, StatusCode, header};

use crate::{
    admin,
    app::App,
    bodies,
    client::{
        about::{self, About},
        account, account_data, appservice, delayed_events, devices, directory, ephemeral, events, filters,
        key_backup, keys, login, login_page, media, membership, moderation, old, openid, presence, profile,
        push_rules, pushers, register, relations, rendezvous, reporting, rooms, rtc, search, sliding_sync,
        spaces, summary, sync, third_party_ids, third_party_networks, threads, timeline, to_device,
        uia_fallback, user_directory, voip,
    },
    error::ApiError,
    federation, metrics,
};

/// The server's routes. Paths under `r0` and `unstable` are spelled as they are under `v3` here; see [`alias`].
pub fn router(app: App) -> Router {
    let routes = Router::new()
        .merge(about::routes(About::of(&app)))
        .merge(client_routes())
        .merge(sign_in_routes())
        .merge(federation::routes())
        .route("/_synapse/admin/v1/register", get(admin::register::nonce).post(admin::register::register))
        .route("/_matrix/federation/v1/openid/userinfo", get(openid::user_info))
        .fallback(unrecognized);
    polite(routes).layer(middleware::from_fn_with_state(app.clone(), metrics::count)).with_state(app)
}

/// The routes of a server that starts: what it says of itself. All else is up to `others`.
pub fn starting<T: 'static>(about: About, others: impl Handler<T, ()>) -> Router {
    polite(about::routes(about)).fallback(others)
}

/// An answer to whoever waited for longer than a server may take to start.
pub fn still_starting() -> Router {
    polite(Router::new().fallback(async || ApiError::starting()))
}

/// What goes for all routes.
fn polite<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(cors))
        .layer(middleware::from_fn(bodies::drain))
        .layer(middleware::from_fn(bodies::bound))
}

fn client_routes() -> Router<App> {
    let v3 = Router::new()
        .route("/login", get(login::login_types).post(login::login))
        .route("/logout", post(login::logout))
        .route("/logout/all", post(login::logout_all))
        .route("/refresh", post(login::refresh))
        .route("/register", post(register::register))
        .route("/register/available", get(register::available))
        .route("/account/whoami", get(login::whoami))
        .route("/sync", get(sync::sync))
        .route("/org.matrix.simplified_msc3575/sync", post(sliding_sync::sliding_sync))
        .route("/events", get(old::events))
        .route("/events/{event}", get(old::event))
        .route("/initialSync", get(old::initial_sync))
        .route("/createRoom", post(rooms::create_room))
        .route("/search", post(search::search))
        .route("/users/{user}/report", post(reporting::report_user))
        .route("/user_directory/search", post(user_directory::search))
        .route("/uk.half-shot.msc2666/user/mutual_rooms", get(user_directory::mutual_rooms_unstable))
        .route("/im.nheko.summary/summary/{room}", get(summary::unstable_room_summary))
        .route("/im.nheko.summary/rooms/{room}/summary", get(summary::unstable_room_summary))
        .route("/joined_rooms", get(membership::joined_rooms))
        .route("/join/{room}", post(membership::join_room_by_id_or_alias))
        .route("/knock/{room}", post(membership::knock_room))
        .route("/publicRooms", get(directory::get_public_rooms).post(directory::search_public_rooms))
        .route(
            "/directory/room/{alias}",
            get(directory::get_alias).put(directory::create_alias).delete(directory::delete_alias),
        )
        .route("/directory/list/appservice/{network}/{room}", put(third_party_networks::list_for_network))
        .route("/directory/list/room/{room}", get(directory::get_visibility).put(directory::set_visibility))
        .route("/voip/turnServer", get(voip::turn_server))
        .nest("/rooms/{room}", room_routes())
        .nest("/thirdparty", third_party_routes())
        .nest("/org.matrix.msc4140", delayed_routes())
        .route("/org.matrix.msc4143/rtc/transports", get(rtc::transports))
        .merge(relation_routes())
        .merge(thread_routes())
        .merge(account_routes())
        .merge(encryption_routes());
    let v1 = Router::new()
        .route("/login/get_token", post(login::login_token))
        .route("/appservice/{id}/ping", post(appservice::ping))
        .route("/register/m.login.registration_token/validity", get(register::token_validity))
        .route("/mutual_rooms", get(user_directory::mutual_rooms))
        .route("/admin/lock/{user}", get(moderation::get_lock).put(moderation::set_lock))
        .route("/admin/suspend/{user}", get(moderation::get_suspension).put(moderation::set_suspension))
        .route("/room_summary/{room}", get(summary::room_summary))
        .route("/rooms/{room}/timestamp_to_event", get(timeline::timestamp_to_event))
        .route("/rooms/{room}/threads", get(relations::threads))
        .route("/rooms/{room}/hierarchy", get(spaces::hierarchy))
        .merge(relation_routes());
    Router::new()
        .route(STABLE_SLIDING_SYNC, post(sliding_sync::stable_sync))
        .nest("/_matrix/client/v3", v3)
        .nest("/_matrix/client/v1", v1)
        .nest("/_matrix/client/v1/media", media_routes())
        .nest("/_matrix/media/v3", old_media_routes())
}

/// Under `v1`, and under `v3` for what [`alias`] makes of their former spelling.
fn relation_routes() -> Router<App> {
    let path = "/rooms/{room}/relations/{event}";
    Router::new()
        .route(path, get(relations::relations))
        .route(&format!("{path}/{{rel_type}}"), get(relations::relations_of_type))
        .route(&format!("{path}/{{rel_type}}/{{kind}}"), get(relations::relations_of_event_type))
}

fn third_party_routes() -> Router<App> {
    use third_party_networks::{locations, locations_of_alias, protocol, protocols, users, users_of_id};
    Router::new()
        .route("/protocols", get(protocols))
        .route("/protocol/{protocol}", get(protocol))
        .route("/location", get(locations_of_alias))
        .route("/location/{protocol}", get(locations))
        .route("/user", get(users_of_id))
        .route("/user/{protocol}", get(users))
}

fn delayed_routes() -> Router<App> {
    Router::new()
        .route("/rooms/{room}/delayed_event/{kind}/{txn}", put(delayed_events::put))
        .route("/delayed_events", get(delayed_events::list))
        .route("/delayed_events/{delay}", get(delayed_events::get).post(delayed_events::manage))
        .route("/delayed_events/{delay}/{action}", post(delayed_events::manage_by_path))
}

fn thread_routes() -> Router<App> {
    let subscription = "/io.element.msc4306/rooms/{room}/thread/{root}/subscription";
    let handlers = get(threads::subscription).put(threads::subscribe).delete(threads::unsubscribe);
    let changes = get(threads::changes);
    Router::new().route(subscription, handlers).route("/io.element.msc4308/thread_subscriptions", changes)
}

/// The page for clients that know no way to log in, and sessions for signing in with a QR code.
fn sign_in_routes() -> Router<App> {
    let page = "/_matrix/static/client/login";
    Router::new()
        .route(&format!("{page}/"), get(login_page::page))
        .route(&format!("{page}/login.js"), get(login_page::script))
        .route(&format!("{page}/style.css"), get(login_page::style))
        .route(RENDEZVOUS, post(rendezvous::create))
        .route(
            &format!("{RENDEZVOUS}/{{id}}"),
            get(rendezvous::read).put(rendezvous::update).delete(rendezvous::delete),
        )
}

/// Sliding sync, as it was accepted.
pub const STABLE_SLIDING_SYNC: &str = "/_matrix/client/v4/sync";

/// Sessions for signing in with a QR code, as [`alias`] spells their path.
const RENDEZVOUS: &str = "/_matrix/client/v3/org.matrix.msc4108/rendezvous";

fn media_routes() -> Router<App> {
    Router::new()
        .route("/config", get(media::config))
        .route("/download/{server}/{media}", get(media::download))
        .route("/download/{server}/{media}/{name}", get(media::download_as))
        .route("/thumbnail/{server}/{media}", get(media::thumbnail))
        .route("/preview_url", get(media::preview_url))
}

/// Uploads, and the endpoints that [`media_routes`] superseded.
fn old_media_routes() -> Router<App> {
    Router::new()
        .route("/create", post(media::create))
        .route("/upload", post(media::upload))
        .route("/upload/{server}/{media}", put(media::upload_to))
        .route("/config", get(media::config))
        .route("/download/{server}/{media}", get(media::old_download))
        .route("/download/{server}/{media}/{name}", get(media::old_download_as))
        .route("/thumbnail/{server}/{media}", get(media::old_thumbnail))
        .route("/preview_url", get(media::preview_url))
}

fn account_routes() -> Router<App> {
    let user = Router::new()
        .route("/filter", post(filters::create_filter))
        .route("/filter/{filter}", get(filters::get_filter))
        .route("/openid/request_token", post(openid::request_token))
        .route("/account_data/{kind}", get(account_data::get_global).put(account_data::set_global))
        .route(
            "/rooms/{room}/account_data/{kind}",
            get(account_data::get_of_room).put(account_data::set_of_room),
        )
        .route("/rooms/{room}/tags", get(account_data::get_tags))
        .route("/rooms/{room}/tags/{tag}", put(account_data::set_tag).delete(account_data::delete_tag));
    let rule = Router::new()
        .route("/", get(push_rules::get_rule).put(push_rules::set_rule).delete(push_rules::delete_rule))
        .route("/enabled", get(push_rules::get_enabled).put(push_rules::set_enabled))
        .route("/actions", get(push_rules::get_actions).put(push_rules::set_actions));
    Router::new()
        .route("/account/password", post(account::change_password))
        .route("/account/deactivate", post(account::deactivate))
        .route("/account/3pid", get(third_party_ids::list).post(third_party_ids::add_from_identity_server))
        .route("/account/3pid/add", post(third_party_ids::add))
        .route("/account/3pid/bind", post(third_party_ids::bind))
        .route("/account/3pid/delete", post(third_party_ids::remove))
        .route("/account/3pid/unbind", post(third_party_ids::remove))
        .route("/account/3pid/email/requestToken", post(third_party_ids::add_email))
        .route("/account/3pid/msisdn/requestToken", post(third_party_ids::add_phone))
        .route("/account/password/email/requestToken", post(third_party_ids::password_email))
        .route("/account/password/msisdn/requestToken", post(third_party_ids::password_phone))
        .route("/register/email/requestToken", post(third_party_ids::register_email))
        .route("/register/msisdn/requestToken", post(third_party_ids::register_phone))
        .route("/auth/{kind}/fallback/web", get(uia_fallback::page).post(uia_fallback::submit))
        .route("/admin/whois/{user}", get(moderation::whois))
        .route("/capabilities", get(account::capabilities))
        .route("/devices", get(devices::get_devices))
        .route(
            "/devices/{device}",
            get(devices::get_device).put(devices::update_device).delete(devices::delete_device),
        )
        .route("/delete_devices", post(devices::delete_devices))
        .route("/profile/{user}", get(profile::get_profile))
        .route(
            "/profile/{user}/{field}",
            get(profile::get_field).put(profile::set_field).delete(profile::delete_field),
        )
        .route("/presence/{user}/status", get(presence::get_presence).put(presence::set_presence))
        .route("/pushers", get(pushers::get_pushers))
        .route("/pushers/set", post(pushers::set_pusher))
        .route("/notifications", get(pushers::notifications))
        .route("/pushrules/", get(push_rules::get_all))
        .route("/pushrules", get(push_rules::get_all))
        .route("/pushrules/global/", get(push_rules::get_global))
        .route("/pushrules/global", get(push_rules::get_global))
        .nest("/pushrules/global/{kind}/{rule}", rule)
        .nest("/user/{user}", user)
}

fn encryption_routes() -> Router<App> {
    let backup = || get(key_backup::get_keys).put(key_backup::put_keys).delete(key_backup::delete_keys);
    let dehydrated = "/org.matrix.msc3814.v1/dehydrated_device";
    Router::new()
        .route("/keys/upload", post(keys::upload))
        .route("/keys/query", post(keys::query))
        .route("/keys/claim", post(keys::claim))
        .route("/keys/changes", get(keys::changes))
        .route("/keys/device_signing/upload", post(keys::device_signing_upload))
        .route("/keys/signatures/upload", post(keys::signatures_upload))
        .route("/sendToDevice/{kind}/{txn}", put(to_device::send))
        .route("/room_keys/version", get(key_backup::latest_version).post(key_backup::create_version))
        .route(
            "/room_keys/version/{version}",
            get(key_backup::get_version).put(key_backup::update_version).delete(key_backup::delete_version),
        )
        .route("/room_keys/keys", backup())
        .route("/room_keys/keys/{room}", backup())
        .route("/room_keys/keys/{room}/{session}", backup())
        .route(
            dehydrated,
            get(to_device::dehydrated).put(to_device::dehydrate).delete(to_device::delete_dehydrated),
        )
        .route(
            &format!("{dehydrated}/{{device}}/events"),
            get(to_device::get_dehydrated_events).post(to_device::dehydrated_events),
        )
}

fn room_routes() -> Router<App> {
    Router::new()
        .route("/join", post(membership::join_room_by_id))
        .route("/invite", post(membership::invite_user))
        .route("/leave", post(membership::leave_room))
        .route("/forget", post(membership::forget_room))
        .route("/kick", post(membership::kick_user))
        .route("/ban", post(membership::ban_user))
        .route("/unban", post(membership::unban_user))
        .route("/upgrade", post(rooms::upgrade_room))
        .route("/send/{kind}/{txn}", put(events::send_message))
        .route("/redact/{event}/{txn}", put(events::redact))
        .route("/state", get(events::get_state))
        .route("/state/{kind}", get(events::get_state_event).put(events::send_state))
        .route("/state/{kind}/", get(events::get_state_event).put(events::send_state))
        .route("/state/{kind}/{key}", get(events::get_state_event).put(events::send_state))
        .route("/event/{event}", get(events::get_event))
        .route("/initialSync", get(old::room_initial_sync))
        .route("/members", get(events::get_members))
        .route("/joined_members", get(events::joined_members))
        .route("/messages", get(timeline::get_messages))
        .route("/context/{event}", get(timeline::get_context))
        .route("/aliases", get(directory::room_aliases))
        .route("/receipt/{kind}/{event}", post(ephemeral::create_receipt))
        .route("/read_markers", post(ephemeral::set_read_marker))
        .route("/typing/{user}", put(ephemeral::set_typing))
        .route("/report", post(reporting::report_room))
        .route("/report/{event}", post(reporting::report_event))
}

/// Stable paths under their former spellings, by the part that differs.
///
/// `r0` was the version of all stable paths before v1.1 of the specification.
///
/// Media IDs in advance are `v1` only, and the oldest spelling of everything else of media is `v1` too.
const ALIASES: [(&str, &str); 5] = [
    // Aliases of rooms.
    ("/_matrix/client/unstable/org.matrix.msc2432/", "/_matrix/client/v3/"),
    ("/_matrix/client/r0/", "/_matrix/client/v3/"),
    ("/_matrix/client/unstable/", "/_matrix/client/v3/"),
    ("/_matrix/media/r0/", "/_matrix/media/v3/"),
    ("/_matrix/media/v1/", "/_matrix/media/v3/"),
];

/// Rewrites former spellings of a request's path, before it is routed.
pub fn alias(mut request: Request) -> Request {
    let path = request.uri().path();
    let Some((old, new)) = ALIASES.iter().find(|(old, _)| path.starts_with(old)) else { return request };
    let rewritten = format!("{new}{}", &path[old.len()..]);
    let rewritten = match request.uri().query() {
        Some(query) => format!("{rewritten}?{query}"),
        None => rewritten,
    };
    if let Ok(uri) = rewritten.parse() {
        *request.uri_mut() = uri;
    }
    request
}

async fn unrecognized() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "there is no such endpoint")
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", "the endpoint has no such method")
}

/// Spec: client-server API, "Web Browser Clients".
async fn cors(request: Request, next: Next) -> Response {
    let is_rendezvous = request.uri().path().starts_with(RENDEZVOUS);
    let mut response = if request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS"),
    );
    let allowed = if is_rendezvous {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("ETag"));
        "X-Requested-With, Content-Type, Authorization, If-Match, If-None-Match"
    } else {
        "X-Requested-With, Content-Type, Authorization"
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    response
}
