//! The whole platform, driven as clients drive it: through the TLS gateway, nothing mocked.

mod authorisation;
mod client;
mod collector;
mod collector_away;
mod coverage;
mod dashboards;
mod flow;
mod passing;
mod probe;
mod reconcile;
mod rules;
mod session;
mod trace;

use std::time::Duration;

use dev::platform::{Platform, Service};

use crate::client::Client;

/// Runs an asynchronous flow against a platform.
pub fn drive<T>(flow: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(flow),
        Err(error) => panic!("no runtime: {error}"),
    }
}

#[test]
fn a_message_travels_to_another_screen_and_into_search() {
    let platform = Platform::temporary(&[]).unwrap();
    let report = drive(flow::conversation(&Client::new(&platform).unwrap())).unwrap();
    println!(
        "on screen after {:?}, found after {:?}",
        report.delivered_after, report.found_after
    );
    assert!(report.delivered_after < Duration::from_secs(2), "{report:?}");
    assert!(report.found_after < Duration::from_secs(5), "{report:?}");
}

#[test]
fn the_flow_fails_at_the_step_of_the_service_that_is_missing() {
    for (service, step) in [
        (Service::Chat, "sign up"),
        (Service::Notify, "events"),
        (Service::Indexer, "search"),
        (Service::Gateway, "sign up"),
    ] {
        let platform = Platform::temporary(&[service]).unwrap();
        let error = drive(flow::conversation(&Client::new(&platform).unwrap())).unwrap_err();
        assert!(
            error.starts_with(step),
            "without {} the flow fails at {step}, not: {error}",
            service.binary()
        );
    }
}

#[test]
fn it_works_again_after_each_process_was_killed() {
    let mut platform = Platform::temporary(&[]).unwrap();
    let client = Client::new(&platform).unwrap();
    drive(flow::conversation(&client)).unwrap();
    for service in Service::ALL {
        platform.kill(service);
        platform.start_service(service).unwrap();
        platform.wait_until_ready(service).unwrap();
    }
    let postgres = platform.postgres().unwrap();
    postgres.kill();
    postgres.restart().unwrap();
    let nats = platform.nats().unwrap();
    nats.kill();
    nats.restart().unwrap();
    drive(async {
        client.until_healthy().await.unwrap();
        flow::conversation(&client).await.unwrap();
    });
}

#[test]
fn who_cannot_serve_without_the_database_is_not_ready_without_it() {
    let mut platform = Platform::temporary(&[]).unwrap();
    let status = |platform: &Platform, service| {
        let port = platform.ports().admin(service);
        dev::http::request(port, "GET", "/ready", None, None).map_or(0, |answer| answer.status)
    };
    let until = |platform: &Platform, service, wanted| {
        let what = format!("/ready of {service:?} to be {wanted}");
        let reached = || (status(platform, service) == wanted).then_some(());
        dev::wait::until_ready(Duration::from_secs(30), &what, reached).unwrap();
    };
    platform.postgres().unwrap().kill();
    for service in [Service::Chat, Service::Indexer] {
        until(&platform, service, 503);
    }
    // Live streams of users who are known go on.
    assert_eq!(status(&platform, Service::Notify), 200);
    platform.postgres().unwrap().restart().unwrap();
    for service in Service::ALL {
        until(&platform, service, 200);
    }
}
