//! Where everything listens.

use super::Service;
use crate::ports;

/// The port of everything that listens.
#[derive(Debug, Clone)]
pub struct Ports {
    pub gateway: u16,
    pub redirect: u16,
    pub gateway_admin: u16,
    pub chat: u16,
    pub chat_admin: u16,
    pub notify: u16,
    pub notify_admin: u16,
    pub indexer: u16,
    pub indexer_admin: u16,
    pub postgres: u16,
    pub nats: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            gateway: 8443,
            redirect: 8080,
            gateway_admin: 9443,
            chat: 6688,
            chat_admin: 9688,
            notify: 6687,
            notify_admin: 9687,
            indexer: 6689,
            indexer_admin: 9689,
            postgres: 6432,
            nats: 6422,
        }
    }
}

impl Ports {
    /// Free ports for everything, for tests.
    pub fn free() -> anyhow::Result<Self> {
        Ok(Self {
            gateway: ports::free()?,
            redirect: ports::free()?,
            gateway_admin: ports::free()?,
            chat: ports::free()?,
            chat_admin: ports::free()?,
            notify: ports::free()?,
            notify_admin: ports::free()?,
            indexer: ports::free()?,
            indexer_admin: ports::free()?,
            postgres: ports::free()?,
            nats: ports::free()?,
        })
    }

    /// Each port with the option that sets it.
    pub fn named(&self) -> [(u16, &'static str); 11] {
        [
            (self.gateway, "--gateway-port"),
            (self.redirect, "--redirect-port"),
            (self.gateway_admin, "--gateway-admin-port"),
            (self.chat, "--chat-port"),
            (self.chat_admin, "--chat-admin-port"),
            (self.notify, "--notify-port"),
            (self.notify_admin, "--notify-admin-port"),
            (self.indexer, "--indexer-port"),
            (self.indexer_admin, "--indexer-admin-port"),
            (self.postgres, "--postgres-port"),
            (self.nats, "--nats-port"),
        ]
    }

    /// Admin port of a service.
    pub const fn admin(&self, service: Service) -> u16 {
        match service {
            Service::Chat => self.chat_admin,
            Service::Notify => self.notify_admin,
            Service::Indexer => self.indexer_admin,
            Service::Gateway => self.gateway_admin,
        }
    }
}

/// Where a second replica of a service listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Twin {
    pub service: Service,
    pub port: u16,
    pub admin_port: u16,
}

impl Twin {
    /// On free ports, for tests.
    pub fn free(service: Service) -> anyhow::Result<Self> {
        Ok(Self {
            service,
            port: ports::free()?,
            admin_port: ports::free()?,
        })
    }
}
