//! For whom a service acts, and the user of its own.
//!
//! Spec: application service API, "Identity assertion".

use std::sync::Arc;

use ruma::{OwnedDeviceId, OwnedUserId};
use storage::{StoreError, schema};

use super::Service;
use crate::{
    homeserver::Homeserver,
    session::{NewAccount, Requester, Restriction, SessionError},
};

/// Why a service may not act as it wants to.
#[derive(Debug, thiserror::Error)]
pub enum AssertionError {
    /// The user is none of its.
    #[error("the user is in no namespace of this application service")]
    Foreign,
    /// The user has no account (any more).
    #[error("the application service has not registered this user")]
    NotRegistered,
    /// The user has no such device.
    #[error("the user has no such device")]
    UnknownDevice,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Homeserver {
    /// Who a service's request comes from: the user whom it names, or else its own, with or without a device.
    pub async fn assert_identity(
        &self,
        service: &Arc<Service>,
        user_id: Option<OwnedUserId>,
        device_id: Option<OwnedDeviceId>,
    ) -> Result<Requester, AssertionError> {
        let user_id = user_id.unwrap_or_else(|| service.sender.clone());
        if !service.has_user(&user_id) {
            return Err(AssertionError::Foreign);
        }
        let (account, has_device) = if let Some(data) = self.session_shared().data(&user_id) {
            let has_device = device_id.as_ref().is_none_or(|id| data.device(id).is_some());
            (data.account().clone(), has_device)
        } else {
            let account = self.storage().get(&schema::ACCOUNTS, &user_id).await?;
            let account = account.ok_or(AssertionError::NotRegistered)?;
            let has_device = match &device_id {
                Some(id) => self.storage().get(&schema::DEVICES, &(&user_id, id)).await?.is_some(),
                None => true,
            };
            (account, has_device)
        };
        if account.is_deactivated {
            return Err(AssertionError::NotRegistered);
        }
        if !has_device {
            return Err(AssertionError::UnknownDevice);
        }
        let restriction = Restriction::of(&account);
        Ok(Requester { user_id, device_id, is_guest: false, restriction, service: Some(service.clone()) })
    }

    /// Makes the accounts of the services' own users, who need no password.
    pub(crate) async fn register_senders(&self) {
        for service in self.services().iter() {
            let user_id = service.sender.clone();
            let new = NewAccount { user_id, password_hash: None, is_guest: false, is_admin: false };
            match self.make_account(new).await {
                Ok(()) | Err(SessionError::UserInUse) => {}
                Err(error) => {
                    tracing::error!(service = service.id, %error, "an application service's user has no account");
                }
            }
        }
    }
}
