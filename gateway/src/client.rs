//! The client-server API, a file per chapter.

pub mod account;
pub mod account_data;
pub mod devices;
pub mod directory;
pub mod ephemeral;
pub mod events;
pub mod filters;
pub mod login;
pub mod media;
pub mod membership;
pub mod old;
pub mod openid;
pub mod presence;
pub mod profile;
pub mod push_rules;
pub mod register;
pub mod relations;
pub mod rooms;
pub mod sliding_sync;
pub mod spaces;
pub mod summary;
pub mod sync;
pub mod timeline;
pub mod user_directory;
pub mod well_known;
