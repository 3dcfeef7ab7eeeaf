//! Who a client is: by PROXY protocol, by certificate.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::raw::{Raw, trusting};
use crate::support::{Gateway, Setup, setup};

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

/// Certificates of clients: the authority's file, a good one, one of a stranger, and their key.
struct Certificates {
    folder: tempfile::TempDir,
    key: rcgen::KeyPair,
    good: CertificateDer<'static>,
    stranger: CertificateDer<'static>,
}

fn certificates() -> Certificates {
    let folder = tempfile::tempdir().unwrap();
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    std::fs::write(folder.path().join("clients.pem"), authority_pem).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["partner.example".to_owned()]).unwrap();
    let good = params.signed_by(&key, &issuer).unwrap().der().clone();
    let stranger = params.self_signed(&key).unwrap().der().clone();
    Certificates {
        folder,
        key,
        good,
        stranger,
    }
}

impl Certificates {
    fn authority(&self) -> String {
        self.folder.path().join("clients.pem").display().to_string()
    }

    /// A client that brings this certificate.
    fn client(&self, gateway: &Gateway, certificate: &CertificateDer<'static>) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(gateway.folder.path().join("ca.pem")).unwrap())
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key.serialize_pem().as_bytes()).unwrap();
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.clone()], key)
            .unwrap()
    }
}

#[tokio::test]
async fn only_clients_of_some_routes_need_certificates_where_that_is_configured() {
    let certificates = certificates();
    let authority = certificates.authority();
    let settings = [
        ("TLS__CLIENT_CA", &*authority),
        ("TLS__CLIENT_ROUTES", "[\"/openapi.json\", \"/api/workspace*\"]"),
    ];
    let Setup {
        gateway,
        upstream,
        issuer,
    } = setup(&settings).await;
    let token = issuer.token(7);
    let get = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n")
    };
    let good = certificates.client(&gateway, &certificates.good);
    let none = trusting(&gateway, &[]);
    for (name, config, path, status) in [
        ("none", &none, "/api/me", 200),
        ("none", &none, "/openapi.json", 403),
        ("none", &none, "/api/workspace/invitations", 403),
        ("good", &good, "/openapi.json", 200),
        // By a resumed session, which brings no certificate again.
        ("good", &good, "/api/workspace", 200),
        ("good", &good, "/api/me", 200),
    ] {
        let mut raw = Raw::connect_with(&gateway, config.clone()).await.unwrap();
        raw.send(get(path).as_bytes()).await;
        let answer = raw.answer().await;
        assert_eq!(answer.status(), Some(status), "{name} {path}: {}", answer.text());
        if status == 403 {
            assert_eq!(answer.body()["code"], "forbidden");
        }
    }
    let reached = upstream.requests().len();
    assert_eq!(reached, 4);
    // One that is not good is not as good as none.
    let stranger = certificates.client(&gateway, &certificates.stranger);
    let answer = match Raw::connect_with(&gateway, stranger).await {
        Ok(mut raw) => {
            raw.send(get("/api/me").as_bytes()).await;
            raw.answer().await.status()
        }
        Err(_) => None,
    };
    assert_eq!(answer, None);
}

#[tokio::test]
async fn where_clients_need_certificates_none_gets_in_without() {
    let certificates = certificates();
    let authority = certificates.authority();
    let Setup {
        gateway,
        upstream: _upstream,
        ..
    } = setup(&[("TLS__CLIENT_CA", &authority)]).await;
    for (name, config, served) in [
        ("good", certificates.client(&gateway, &certificates.good), true),
        (
            "of a stranger",
            certificates.client(&gateway, &certificates.stranger),
            false,
        ),
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
