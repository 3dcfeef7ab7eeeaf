//! Protocols, resumption, and certificates that change while connections are open.

use std::sync::Arc;

use rustls::{HandshakeKind, ProtocolVersion};

use crate::support::raw::{Raw, trusting};
use crate::support::{eventually, setup};

#[tokio::test]
async fn the_protocol_is_negotiated_and_sessions_resume() {
    let setup = setup(&[]).await;
    for (alpn, chosen) in [
        (&[&b"h2"[..], b"http/1.1"][..], &b"h2"[..]),
        (&[b"http/1.1"], b"http/1.1"),
    ] {
        let raw = Raw::connect_with(&setup.gateway, trusting(&setup.gateway, alpn))
            .await
            .unwrap();
        assert_eq!(raw.stream.get_ref().1.alpn_protocol(), Some(chosen));
        assert_eq!(
            raw.stream.get_ref().1.protocol_version(),
            Some(ProtocolVersion::TLSv1_3)
        );
    }
    assert!(
        Raw::connect_with(&setup.gateway, trusting(&setup.gateway, &[b"spdy/3"]))
            .await
            .is_err()
    );

    let config = trusting(&setup.gateway, &[b"http/1.1"]);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        // The clone shares the session store.
        let mut raw = Raw::connect_with(&setup.gateway, config.clone()).await.unwrap();
        raw.send(b"GET /health/simple HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await;
        assert_eq!(raw.answer().await.status(), Some(200));
        kinds.push(raw.stream.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
}

#[tokio::test]
async fn a_swapped_certificate_is_used_and_open_connections_stay() {
    let setup = setup(&[("TLS__RELOAD_SECONDS", "1")]).await;
    let old_trust = trusting(&setup.gateway, &[b"http/1.1"]);
    let mut open = Raw::connect_with(&setup.gateway, old_trust.clone()).await.unwrap();

    // A bad pair first: the old certificate stays.
    let folder = setup.gateway.folder.path();
    std::fs::write(folder.join("key.pem"), "not a key").unwrap();
    eventually("the bad pair to be noticed", async || {
        setup.gateway.log().contains("not usable").then_some(())
    })
    .await;
    assert!(Raw::connect_with(&setup.gateway, old_trust.clone()).await.is_ok());

    gateway::dev_certificate::ensure(folder).unwrap();
    let new_trust = Arc::new(trusting(&setup.gateway, &[b"http/1.1"]));
    eventually("the new certificate", async || {
        Raw::connect_with(&setup.gateway, (*new_trust).clone()).await.ok()
    })
    .await;
    assert!(
        Raw::connect_with(&setup.gateway, trusting_only_full(old_trust))
            .await
            .is_err(),
        "the old one is gone"
    );

    open.send(b"GET /health/simple HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    assert_eq!(open.answer().await.status(), Some(200));
}

#[tokio::test]
async fn the_certificate_is_chosen_by_server_name() {
    let other = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["other.example".to_owned(), "*.wild.example".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let (pem, key_pem) = (other.path().join("cert.pem"), other.path().join("key.pem"));
    std::fs::write(&pem, certificate.pem()).unwrap();
    std::fs::write(&key_pem, key.serialize_pem()).unwrap();
    let additional = format!("[{{certificate={pem:?},key={key_pem:?}}}]");
    let setup = setup(&[("TLS__ADDITIONAL", &additional)]).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    for (name, trusted) in [
        ("other.example", true),
        ("a.wild.example", true),
        ("a.b.wild.example", false),
        ("localhost", false),
    ] {
        let answer = Raw::connect_as(&setup.gateway, config.clone(), name).await;
        assert_eq!(answer.is_ok(), trusted, "{name}");
    }
    assert!(
        Raw::connect_with(&setup.gateway, trusting(&setup.gateway, &[]))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_certificate_swapped_under_load_fails_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        ("TLS__RELOAD_SECONDS", "1"),
        ("RATE_LIMITS__READ", "{requests=1000000,window_seconds=1}"),
    ];
    let setup = setup(&settings).await;
    // One authority for all certificates, so that clients trust each of them.
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(params, authority_key);
    let swap = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = names.signed_by(&key, &issuer).unwrap();
        let place = setup.gateway.folder.path();
        for (name, text) in [("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())] {
            std::fs::write(folder.path().join(name), text).unwrap();
            std::fs::rename(folder.path().join(name), place.join(name)).unwrap();
        }
    };
    let reloads = || setup.gateway.log().matches("certificates reloaded").count();
    swap();
    eventually("the first certificate of our authority", async || {
        (reloads() == 1).then_some(())
    })
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let config = trusting_only_full(config);
    let mut served = 0;
    for round in 2..5 {
        swap();
        while reloads() < round {
            let mut raw = Raw::connect_with(&setup.gateway, config.clone()).await.unwrap();
            raw.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .await;
            assert_eq!(raw.answer().await.status(), Some(200));
            served += 1;
        }
    }
    assert!(served > 10, "{served}");
}

/// The same trust without remembered sessions, which need no certificate.
fn trusting_only_full(mut config: rustls::ClientConfig) -> rustls::ClientConfig {
    config.resumption = rustls::client::Resumption::disabled();
    config
}
