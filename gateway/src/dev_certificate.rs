//! A certificate for development: a local CA that signs one certificate and is then unable to sign another.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// Validity of both certificates; browsers refuse leaves that live longer than 398 days.
const VALID_FOR: Duration = Duration::days(397);
/// Made again when less than this is left.
const RENEW_WITHIN: Duration = Duration::days(14);

/// The three files.
#[derive(Debug)]
pub struct Files {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Whether they were made just now.
    pub fresh: bool,
}

/// Makes `ca.pem`, `cert.pem` and `key.pem` in `dir` for `localhost`, `127.0.0.1` and `::1`, unless good ones are there.
///
/// The CA's key is never written: whoever trusts `ca.pem` trusts this one certificate and nothing else.
pub fn ensure(dir: &Path) -> anyhow::Result<Files> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let mut files = Files {
        ca: dir.join("ca.pem"),
        certificate: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        fresh: false,
    };
    if is_good(&files) {
        return Ok(files);
    }
    let (ca, leaf, key) = make()?;
    write(&files.ca, &ca, 0o644)?;
    write(&files.key, &key, 0o600)?;
    write(&files.certificate, &leaf, 0o644)?;
    files.fresh = true;
    Ok(files)
}

fn is_good(files: &Files) -> bool {
    let limit = (OffsetDateTime::now_utc() + RENEW_WITHIN).unix_timestamp();
    let lasts = |path: &Path| crate::certificate::expiry(path).is_ok_and(|at| at > limit);
    let pair = crate::config::Tls {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        ..Default::default()
    };
    lasts(&files.ca) && lasts(&files.certificate) && crate::certificate::Certificates::load(&pair).is_ok()
}

fn make() -> anyhow::Result<(String, String, String)> {
    let now = OffsetDateTime::now_utc();
    let between = |params: &mut CertificateParams| {
        params.not_before = now - Duration::hours(1);
        params.not_after = now + VALID_FOR;
    };
    let mut ca = CertificateParams::default();
    between(&mut ca);
    ca.distinguished_name
        .push(DnType::CommonName, "Fechatter development CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let issuer = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

    let mut leaf = CertificateParams::new(vec!["localhost".to_owned()])?;
    between(&mut leaf);
    leaf.distinguished_name.push(DnType::CommonName, "localhost");
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        leaf.subject_alt_names.push(SanType::IpAddress(address));
    }
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &issuer)?;
    Ok((issuer.pem(), leaf.pem(), key.serialize_pem()))
}

/// Writes beside the target and renames, so that a reader sees the old file or the new one.
fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let beside = path.with_extension("pem.new");
    let said = || format!("cannot write {}", path.display());
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(said),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .with_context(said)?;
    file.write_all(text.as_bytes()).with_context(said)?;
    file.sync_all().with_context(said)?;
    std::fs::rename(&beside, path).with_context(said)
}

/// What a person does with the files.
pub fn instructions(files: &Files) -> String {
    let ca = files.ca.display();
    let state = if files.fresh { "made" } else { "found, still valid" };
    format!(
        "Development certificate for localhost, 127.0.0.1 and ::1 ({state}):\n\
         \x20 {certificate}\n\
         \x20 {key}\n\
         Trust it for one command:   curl --cacert {ca} https://localhost:8443/health\n\
         Trust it on Debian:         sudo cp {ca} /usr/local/share/ca-certificates/fechatter-dev.crt && sudo update-ca-certificates\n\
         Trust it in a browser:      import {ca} as a certificate authority for web sites\n\
         Its CA's key was thrown away: nothing else can be signed with it.\n",
        certificate = files.certificate.display(),
        key = files.key.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_made_once_and_again_when_broken() {
        crate::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let first = ensure(dir.path()).unwrap();
        assert!(first.fresh);
        let mode = std::fs::metadata(&first.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let certificate = std::fs::read(&first.certificate).unwrap();

        let second = ensure(dir.path()).unwrap();
        assert!(!second.fresh);
        assert_eq!(std::fs::read(&second.certificate).unwrap(), certificate);

        std::fs::write(&second.key, "not a key").unwrap();
        assert!(ensure(dir.path()).unwrap().fresh);
        assert_ne!(std::fs::read(&second.certificate).unwrap(), certificate);
    }
}
