//! Log-ins with passwords.

use anyhow::Result;

use super::Context;
use crate::Measurement;

pub(super) async fn run(
    context: &Context,
    users: usize,
    ready: &mut (dyn FnMut() + Send),
) -> Result<Vec<Measurement>> {
    let users = context.users("user", users.max(1)).await?;
    ready();
    let measured = context.repeat("log in", users, |user, _, _| async move { user.log_in().await });
    Ok(vec![measured.await?])
}
