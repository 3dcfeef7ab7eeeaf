//! The accepted range of every setting.

use fechatter_core::config::{Faults, Validate};

use super::{Config, Upstream};
use crate::routes::{Class, RoutePatterns};

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        self.auth.validate(faults);
        self.nats.validate(faults);
        let (public, plain, admin) = (self.listen, self.redirect_listen, self.admin_listen);
        for (key, one, others) in [
            ("redirect_listen", plain, [public, public]),
            ("admin_listen", admin, [public, plain]),
        ] {
            // Port 0 stands for any free port, a different one each time.
            if one.port() != 0 && others.contains(&one) {
                faults.add(key, format_args!("{one} is taken by another listener"));
            }
        }
        self.validate_tls(faults);
        self.validate_upstreams(faults);
        self.validate_limits(faults);
        let classes = Class::ALL.map(|class| (class.as_str(), self.rate_limits.of(class)));
        let others = [
            ("workspace", self.rate_limits.workspace),
            ("refused", self.rate_limits.refused),
        ];
        for (name, limit) in classes.into_iter().chain(others) {
            faults.range(&format!("rate_limits.{name}.requests"), limit.requests, 1, 100_000_000);
            faults.range(
                &format!("rate_limits.{name}.window_seconds"),
                limit.window_seconds,
                1,
                86_400,
            );
        }
        self.validate_access_log(faults);
        if let Err(error) = observability::log_filter::check(&self.log.filter) {
            faults.add("log.filter", error);
        }
        faults.range("compression.level", self.compression.level, 0, 9);
        faults.range("compression.bytes_min", self.compression.bytes_min, 20, 1_000_000);
        faults.range("revocations_wait_seconds", self.revocations_wait_seconds, 0, 60);
        faults.range("threads", self.threads, 0, 1_024);
        faults.range("rate_limits.keys", self.rate_limits.keys, 100, 10_000_000);
        for origin in &self.cors.origins {
            if !crate::cors::is_origin(origin) {
                faults.add(
                    "cors.origins",
                    format_args!("{origin:?} is not an exact origin such as https://chat.example.org"),
                );
            }
        }
        for host in &self.hosts {
            if !crate::access_lists::is_host_name(host) {
                faults.add(
                    "hosts",
                    format_args!("{host:?} is not a host name such as chat.example.org or *.example.org"),
                );
            }
        }
        if let Some(folder) = self.acme_challenges.as_ref().filter(|folder| !folder.is_dir()) {
            faults.add("acme_challenges", format_args!("{} is no folder", folder.display()));
        }
        faults.range("cors.max_age_seconds", self.cors.max_age_seconds, 0, 86_400);
        faults.range("drain.delay_ms", self.drain.delay_ms, 0, 120_000);
        faults.range("drain.timeout_ms", self.drain.timeout_ms, 0, 3_600_000);
        faults.range("drain.stream_spread_ms", self.drain.stream_spread_ms, 0, 600_000);
    }
}

impl Config {
    fn validate_tls(&self, faults: &mut Faults) {
        faults.range("tls.reload_seconds", self.tls.reload_seconds, 1, 3_600);
        faults.range("tls.handshake_timeout_ms", self.tls.handshake_timeout_ms, 100, 60_000);
        faults.range("tls.sessions", self.tls.sessions, 0, 1_000_000);
        let mut complete = true;
        for (key, path) in [("tls.certificate", &self.tls.certificate), ("tls.key", &self.tls.key)] {
            if path.as_os_str().is_empty() {
                faults.add(
                    key,
                    "must be set; `gateway dev-certificate --dir D` makes a certificate for development",
                );
                complete = false;
            }
        }
        if complete && let Err(error) = crate::certificate::Certificates::load(&self.tls) {
            faults.add("tls.certificate", error);
        }
        if !self.tls.client_routes.is_empty() && self.tls.client_ca.is_none() {
            faults.add(
                "tls.client_routes",
                "needs tls.client_ca, the authorities of the certificates",
            );
        }
        for route in &self.tls.client_routes {
            if !RoutePatterns::new([route]).match_any() {
                faults.add(
                    "tls.client_routes",
                    format_args!("{route:?} is no route; the admin listener's /routes lists them"),
                );
            }
        }
        if let Some(authorities) = &self.tls.client_ca
            && let Err(error) = crate::certificate::authorities(authorities)
        {
            faults.add("tls.client_ca", error);
        }
    }

    fn validate_access_log(&self, faults: &mut Faults) {
        let log = &self.access_log;
        faults.range("access_log.sample_percent", log.sample_percent, 0.0, 100.0);
        faults.range(
            "access_log.sample_refused_percent",
            log.sample_refused_percent,
            0.0,
            100.0,
        );
        faults.range("access_log.slow_ms", log.slow_ms, 1, 3_600_000);
        for route in &log.silent_routes {
            if !RoutePatterns::new([route]).match_any() {
                faults.add(
                    "access_log.silent_routes",
                    format_args!("{route:?} is no route; the admin listener's /routes lists them"),
                );
            }
        }
    }

    fn validate_upstreams(&self, faults: &mut Faults) {
        let upstreams = &self.upstreams;
        for (key, list) in [
            ("upstreams.chat", &upstreams.chat),
            ("upstreams.notify", &upstreams.notify),
            ("upstreams.indexer", &upstreams.indexer),
            ("upstreams.web", &upstreams.web),
        ] {
            if list.is_empty() && key != "upstreams.web" {
                faults.add(key, "must name at least one host:port");
            }
            for Upstream { address, weight } in list {
                if !crate::upstreams::is_authority(address) {
                    faults.add(key, format_args!("{address:?} is not host:port"));
                }
                faults.range(&format!("{key} weight of {address}"), *weight, 1, 1_000);
            }
        }
        faults.range(
            "upstreams.health_interval_ms",
            upstreams.health_interval_ms,
            100,
            60_000,
        );
        faults.range("upstreams.health_timeout_ms", upstreams.health_timeout_ms, 50, 30_000);
        faults.range("upstreams.connect_timeout_ms", upstreams.connect_timeout_ms, 50, 30_000);
        faults.range("upstreams.read_timeout_ms", upstreams.read_timeout_ms, 100, 300_000);
        faults.range(
            "upstreams.stream_read_timeout_ms",
            upstreams.stream_read_timeout_ms,
            1_000,
            3_600_000,
        );
        faults.range(
            "upstreams.streams_per_connection",
            upstreams.streams_per_connection,
            0,
            200,
        );
        faults.range("upstreams.idle_seconds", upstreams.idle_seconds, 1, 3_600);
        faults.range("upstreams.idle_connections", upstreams.idle_connections, 0, 100_000);
        faults.range("upstreams.requests_max", upstreams.requests_max, 1, 1_000_000);
        faults.range("upstreams.queue_requests", upstreams.queue_requests, 0, 100_000);
        faults.range("upstreams.queue_timeout_ms", upstreams.queue_timeout_ms, 0, 60_000);
        faults.range("upstreams.retry_percent", upstreams.retry_percent, 0, 100);
        faults.range("upstreams.break_after", upstreams.break_after, 1, 1_000);
        faults.range("upstreams.break_ms", upstreams.break_ms, 50, 60_000);
        faults.range("upstreams.slow_start_ms", upstreams.slow_start_ms, 0, 600_000);
    }

    fn validate_limits(&self, faults: &mut Faults) {
        let limits = &self.limits;
        faults.range("limits.uri_bytes", limits.uri_bytes, 256, 65_536);
        faults.range("limits.header_bytes", limits.header_bytes, 1_024, 262_144);
        faults.range("limits.header_fields", limits.header_fields, 10, 250);
        faults.range("limits.header_timeout_ms", limits.header_timeout_ms, 100, 120_000);
        faults.range("limits.body_timeout_ms", limits.body_timeout_ms, 100, 600_000);
        faults.range("limits.idle_seconds", limits.idle_seconds, 1, 3_600);
        faults.range("limits.write_seconds", limits.write_seconds, 1, 3_600);
        faults.range("limits.connections", limits.connections, 1, 1_000_000);
        faults.range(
            "limits.connections_per_address",
            limits.connections_per_address,
            1,
            1_000_000,
        );
        faults.range("limits.http2_streams", limits.http2_streams, 1, 1_000);
    }
}
