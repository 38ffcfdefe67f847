//! What a connection's identity may do, asked before each request.

use std::sync::Arc;
use std::time::Instant;

use genie_transport::auth::{Channel, Identity, Refused};
use genie_transport::connection::Peer;
use genie_transport::wire::{PutRequest, PutTarget, RemoteError, Request, ResidencyCode};

use crate::core::Core;

impl Core {
    /// Whether whom `peer` speaks for may ask this.
    pub(crate) fn permit(&self, peer: &Arc<Peer>, request: &Request<'_>, now: Instant) -> Result<(), RemoteError> {
        let rights = peer.identity().rights();
        if !rights.upload_weights && uploads_weight(request) {
            let message =
                "this token may use weights but not upload any: ask for those that are there, or have it changed";
            return Err(self.forbid(peer, message, now));
        }
        match names_device(request) {
            Some(device) => self.permit_device(peer, device, now),
            None => Ok(()),
        }
    }

    /// Whether whom `peer` speaks for may use this device, if there is one.
    pub(crate) fn permit_device(&self, peer: &Arc<Peer>, device: u16, now: Instant) -> Result<(), RemoteError> {
        let rights = peer.identity().rights();
        if rights.devices.is_none() {
            return Ok(());
        }
        let name = self.device(device)?.info().name;
        if rights.has_device(&name) {
            return Ok(());
        }
        let message =
            format!("this token may not use device {device} ({name}): `genie devices` lists those that it may");
        Err(self.forbid(peer, &message, now))
    }

    fn forbid(&self, peer: &Arc<Peer>, message: &str, now: Instant) -> RemoteError {
        let guard = &self.config.settings.guard;
        guard.refuse(Refused::Forbidden, &Channel::default(), peer.identity().name(), message, now)
    }
}

/// The name that a tensor has among all tenants': each has names of its own.
pub(crate) fn scoped(identity: &Identity, name: &str) -> String {
    // Neither tokens' names nor fingerprints hold the character between the two.
    format!("{}\0{name}", tenant(identity))
}

/// Who somebody is among all tenants. Nobody is called "": that is all whom nobody asked.
pub(crate) fn tenant(identity: &Identity) -> &str {
    if identity.is_same(&Identity::ANYONE) { "" } else { identity.name() }
}

/// Whose name it is, of one that [`scoped`] made.
pub(crate) fn owner_of(scoped: &str) -> &str {
    scoped.split_once('\0').map_or("", |(owner, _)| owner)
}

fn uploads_weight(request: &Request<'_>) -> bool {
    matches!(request, Request::Put(PutRequest { target: PutTarget::New { residency: ResidencyCode::Weight, .. }, .. }))
}

fn names_device(request: &Request<'_>) -> Option<u16> {
    match request {
        Request::Put(PutRequest { target: PutTarget::New { device, .. }, .. })
        | Request::Copy { device, .. }
        | Request::Offer { device, .. }
        | Request::OfferSet { device, .. }
        | Request::Define { device, .. }
        | Request::DefineKnown { device, .. } => Some(*device),
        _ => None,
    }
}
