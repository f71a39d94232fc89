//! Handlers of the server-server API, a file per chapter.

pub mod authentication;
pub mod devices;
pub mod events;
pub mod keys;
pub mod media;
pub mod membership;
pub mod origins;
pub mod query;
pub mod spaces;
pub mod third_party;
pub mod transactions;

use axum::{
    Router,
    routing::{get, post, put},
};

use crate::app::App;

/// The routes under `/_matrix/federation`.
pub fn routes() -> Router<App> {
    let v1 = Router::new()
        .route("/version", get(query::version))
        .route("/query/directory", get(query::directory))
        .route("/publicRooms", get(query::public_rooms).post(query::search_public_rooms))
        .route("/query/profile", get(query::profile))
        .route("/media/download/{media}", get(media::download))
        .route("/media/thumbnail/{media}", get(media::thumbnail))
        .route("/user/devices/{user}", get(devices::devices))
        .route("/user/keys/query", post(devices::query))
        .route("/user/keys/claim", post(devices::claim))
        .route("/send/{txn}", put(transactions::send))
        .route("/make_join/{room}/{user}", get(membership::make_join))
        .route("/make_leave/{room}/{user}", get(membership::make_leave))
        .route("/make_knock/{room}/{user}", get(membership::make_knock))
        .route("/send_join/{room}/{event}", put(membership::send_join_v1))
        .route("/send_leave/{room}/{event}", put(membership::send_leave_v1))
        .route("/send_knock/{room}/{event}", put(membership::send_knock))
        .route("/invite/{room}/{event}", put(membership::invite_v1))
        .route("/event/{event}", get(events::event))
        .route("/state/{room}", get(events::state))
        .route("/state_ids/{room}", get(events::state_ids))
        .route("/event_auth/{room}/{event}", get(events::event_auth))
        .route("/backfill/{room}", get(events::backfill))
        .route("/get_missing_events/{room}", post(events::missing_events))
        .route("/timestamp_to_event/{room}", get(events::timestamp_to_event))
        .route("/hierarchy/{room}", get(spaces::hierarchy))
        .route("/exchange_third_party_invite/{room}", put(third_party::exchange))
        .route("/3pid/onbind", put(third_party::bound));
    let v2 = Router::new()
        .route("/send_join/{room}/{event}", put(membership::send_join))
        .route("/send_leave/{room}/{event}", put(membership::send_leave))
        .route("/invite/{room}/{event}", put(membership::invite));
    Router::new()
        .nest("/_matrix/federation/v1", v1)
        .nest("/_matrix/federation/v2", v2)
        .route("/_matrix/key/v2/server", get(keys::server))
        // As older servers ask, which leave out the ID of a key but not the slash before it.
        .route("/_matrix/key/v2/server/", get(keys::server))
        .route("/_matrix/key/v2/server/{key}", get(keys::server))
        .route("/_matrix/key/v2/query", post(keys::query_many))
        .route("/_matrix/key/v2/query/{server}", get(keys::query))
}
