//! Who a client is: by PROXY protocol, by certificate.

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::raw::{Raw, trusting};
use crate::support::{Setup, setup};

const GET: &[u8] = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_load_balancer_says_whose_connection_it_is() {
    let Setup { gateway, upstream, .. } = setup(&[("PROXY_PROTOCOL", "[\"127.0.0.0/8\"]")]).await;
    let mut version2 = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    version2.extend([0x21, 0x11, 0, 12, 192, 0, 2, 9, 198, 51, 100, 1, 0x15, 0xb3, 1, 187]);
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 443\r\n".to_vec(), "192.0.2.7"),
        (
            b"PROXY TCP6 2001:db8::7 2001:db8::1 5555 443\r\n".to_vec(),
            "2001:db8::7",
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (version2, "192.0.2.9"),
    ] {
        let mut tcp = TcpStream::connect(gateway.https).await.unwrap();
        tcp.write_all(&header).await.unwrap();
        let mut raw = Raw::over(tcp, trusting(&gateway, &[b"http/1.1"]), "localhost")
            .await
            .unwrap();
        raw.send(GET).await;
        assert_eq!(raw.answer().await.status(), Some(200));
        assert_eq!(upstream.requests().last().unwrap().field("x-forwarded-for"), client);
    }
    // From there it must come: without it the connection ends before the handshake.
    assert!(
        Raw::connect_with(&gateway, trusting(&gateway, &[b"http/1.1"]))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn anybody_elses_proxy_header_is_no_handshake() {
    let Setup { gateway, upstream, .. } = setup(&[("PROXY_PROTOCOL", "[\"192.0.2.0/24\"]")]).await;
    let mut tcp = TcpStream::connect(gateway.https).await.unwrap();
    tcp.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 443\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = tcp.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
    let mut raw = Raw::connect(&gateway).await;
    raw.send(GET).await;
    assert_eq!(raw.answer().await.status(), Some(200));
    assert_eq!(upstream.requests()[0].field("x-forwarded-for"), "127.0.0.1");
}

#[tokio::test]
async fn where_clients_need_certificates_none_gets_in_without() {
    let folder = tempfile::tempdir().unwrap();
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let file = folder.path().join("clients.pem");
    std::fs::write(&file, authority_pem).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["partner.example".to_owned()]).unwrap();
    let good = params.signed_by(&key, &issuer).unwrap().der().clone();
    let stranger = params.self_signed(&key).unwrap().der().clone();

    let Setup {
        gateway,
        upstream: _upstream,
        ..
    } = setup(&[("TLS__CLIENT_CA", file.to_str().unwrap())]).await;
    let with = |certificate| {
        let mut roots = rustls::RootCertStore::empty();
        let ca = rustls::pki_types::CertificateDer::from_pem_file(gateway.folder.path().join("ca.pem")).unwrap();
        roots.add(ca).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .unwrap()
    };
    for (name, config, served) in [
        ("good", with(good), true),
        ("of a stranger", with(stranger), false),
        ("none", trusting(&gateway, &[]), false),
    ] {
        // In TLS 1.3 a client learns of its refusal when it reads.
        let status = match Raw::connect_with(&gateway, config).await {
            Ok(mut raw) => {
                raw.send(GET).await;
                raw.answer().await.status()
            }
            Err(_) => None,
        };
        assert_eq!(status, served.then_some(200), "{name}");
    }
}
