use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use steading_model::{Role, SpiffeId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::accept::STRANGERS_MAX;
use super::connect::connect;
use super::*;

const CLUSTER: &str = "c0ffee";

#[tokio::test]
async fn each_end_knows_the_other() {
    let farm = Farm::new();
    let server = farm.member("spiffe://c0ffee/coordinator/1");
    let client = farm.member("spiffe://c0ffee/agent/a");
    let peer = meet(&server, &client).await.unwrap();
    assert_eq!(peer.certified.unwrap().id.to_string(), "spiffe://c0ffee/agent/a");
}

#[tokio::test]
async fn who_is_no_member_is_turned_away() {
    let (farm, other) = (Farm::new(), Farm::new());
    let server = farm.member("spiffe://c0ffee/coordinator/1");
    let agent = "spiffe://c0ffee/agent/a";
    // Another CA signed it, though the client believes the server.
    refused(&server, &farm.identity(other.leaf(agent, DAY))).await;
    // It is over, or not yet.
    refused(&server, &farm.identity(farm.leaf(agent, (-48, -24)))).await;
    refused(&server, &farm.identity(farm.leaf(agent, (24, 48)))).await;
    // Of another cluster under the same CA. It would not believe the server either.
    refused(&server, &farm.identity(farm.leaf("spiffe://beef/agent/a", DAY))).await;
}

#[tokio::test]
async fn only_a_coordinator_of_the_cluster_is_believed_to_be_one() {
    let (farm, other) = (Farm::new(), Farm::new());
    let client = farm.member("spiffe://c0ffee/agent/a");
    refused(&farm.member("spiffe://c0ffee/agent/b"), &client).await;
    refused(&farm.member("spiffe://c0ffee/admin/b"), &client).await;
    refused(&other.member("spiffe://c0ffee/coordinator/1"), &client).await;
    let over = farm.identity(farm.leaf("spiffe://c0ffee/coordinator/1", (-48, -24)));
    refused(&over, &client).await;
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told_from_another_farm() {
    let (farm, other) = (Farm::new(), Farm::new());
    let coordinator = "spiffe://c0ffee/coordinator/1";
    for (server, is_another, want) in [
        (farm.identity(farm.leaf(coordinator, (24, 48))), false, "compare the clocks"),
        (farm.identity(farm.leaf(coordinator, (-48, -24))), false, "compare the clocks"),
        (other.member(coordinator), true, "no coordinator of this farm"),
    ] {
        let client = farm.member("spiffe://c0ffee/agent/a");
        let (listener, endpoint) = listen().await;
        let mut accepted = pin!(accept(listener, server));
        let channel = channel(&format!("https://{endpoint}"), client).unwrap();
        let mut asked = crate::v1::join_client::JoinClient::new(channel);
        let failed = tokio::select! {
            answer = asked.get_bundle(crate::v1::GetBundleRequest {}) => answer.unwrap_err(),
            _ = accepted.next() => unreachable!("nobody believes it"),
        };
        assert_eq!(is_stranger(&failed), is_another, "{failed:?}");
        let said = enroll::explain(failed);
        assert!(said.message().contains(want), "{said}");
    }
}

#[tokio::test]
async fn a_client_follows_a_chain_that_a_server_does_not() {
    let farm = Farm::new();
    let second = farm.second_ca();
    let coordinator = "spiffe://c0ffee/coordinator/2";
    let mut server = second.files(second.leaf(coordinator, DAY));
    server.certificates += &second.ca.pem();
    server.bundle = farm.ca.pem();
    let server = stored(&server);
    let client = farm.member("spiffe://c0ffee/agent/a");
    meet(&server, &client).await.unwrap();

    let mut agent = second.files(second.leaf("spiffe://c0ffee/agent/b", DAY));
    agent.certificates += &second.ca.pem();
    agent.bundle = farm.ca.pem();
    refused(&server, &stored(&agent)).await;

    // A CA that is to be believed no more.
    let mut wary = farm.files(farm.leaf("spiffe://c0ffee/agent/a", DAY));
    wary.retired = second.ca.pem();
    refused(&server, &stored(&wary)).await;
}

#[tokio::test]
async fn a_reload_takes_effect_at_the_next_connection_and_a_broken_one_never() {
    let farm = Farm::new();
    let server = farm.member("spiffe://c0ffee/coordinator/1");
    let files = farm.files(farm.leaf("spiffe://c0ffee/agent/a", DAY));
    let client = stored(&files);
    let first = meet(&server, &client).await.unwrap().certified.unwrap();

    let renewed = farm.sign("spiffe://c0ffee/agent/a", DAY, &key(&files)).pem();
    IdentityFiles::replace(client.dir(), &renewed, &files.bundle, "").unwrap();
    assert_eq!(meet(&server, &client).await.unwrap().certified.unwrap().serial, first.serial);
    client.reload().unwrap();
    let second = meet(&server, &client).await.unwrap().certified.unwrap();
    assert_ne!(second.serial, first.serial);

    let others = farm.leaf("spiffe://c0ffee/agent/b", DAY).0.pem();
    for broken in [others.as_str(), "", "-----BEGIN CERTIFICATE-----\n!", &farm.ca.pem()] {
        IdentityFiles::replace(client.dir(), broken, &files.bundle, "").unwrap();
        client.reload().unwrap_err();
    }
    IdentityFiles::replace(client.dir(), &renewed, "", "").unwrap();
    client.reload().unwrap_err();
    assert_eq!(meet(&server, &client).await.unwrap().certified.unwrap().serial, second.serial);
}

#[tokio::test]
async fn who_joins_knows_the_farm_by_the_key_of_its_ca() {
    let (farm, other) = (Farm::new(), Farm::new());
    let mut files = farm.files(farm.leaf("spiffe://c0ffee/coordinator/1", DAY));
    files.certificates += &farm.ca.pem();
    let server = stored(&files);
    let pin = SpkiHash::of(farm.ca.der()).unwrap();
    assert_eq!(pin.to_string().parse(), Ok(pin));
    assert!(pinned(&server, pin).await.unwrap().certified.is_none());
    pinned(&server, SpkiHash::of(other.ca.der()).unwrap()).await.unwrap_err();
    // The hash of the server's own key is no CA's.
    let leaf = CertificateDer::from(pem(&files.certificates));
    pinned(&server, SpkiHash::of(&leaf).unwrap()).await.unwrap_err();
    // An agent must not stand in for a coordinator.
    let mut files = farm.files(farm.leaf("spiffe://c0ffee/agent/a", DAY));
    files.certificates += &farm.ca.pem();
    pinned(&stored(&files), pin).await.unwrap_err();
}

#[tokio::test]
async fn a_connection_ends_when_its_peer_is_cut_off() {
    let farm = Farm::new();
    let server = farm.member("spiffe://c0ffee/coordinator/1");
    let client = farm.member("spiffe://c0ffee/agent/a");
    let (listener, endpoint) = listen().await;
    let mut accepted = pin!(accept(listener, server));
    let config = Arc::clone(&client.current().client);
    let (connection, dialled) = tokio::join!(accepted.next(), connect(&endpoint, config));
    let (mut connection, _dialled) = (connection.unwrap().unwrap(), dialled.unwrap());
    connection.peer().close.cancel();
    let error = connection.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn many_without_a_certificate_leave_room_for_members() {
    let farm = Farm::new();
    let mut files = farm.files(farm.leaf("spiffe://c0ffee/coordinator/1", DAY));
    files.certificates += &farm.ca.pem();
    let (listener, endpoint) = listen().await;
    let mut accepted = pin!(accept(listener, stored(&files)));
    let stranger = connect::pinned_config(SpkiHash::of(farm.ca.der()).unwrap()).unwrap();
    let member = farm.member("spiffe://c0ffee/agent/a").current();
    let mut open = Vec::new();
    for number in 0..=STRANGERS_MAX {
        let config = if number == 1 { &member.client } else { &stranger };
        let dialled = connect(&endpoint, Arc::clone(config));
        let (connection, dialled) = tokio::join!(accepted.next(), dialled);
        open.push((connection.unwrap().unwrap(), dialled.unwrap()));
        assert!(!open[0].0.peer().close.is_cancelled(), "after {number}");
    }
    let dialled = connect(&endpoint, stranger);
    let (connection, _dialled) = tokio::join!(accepted.next(), dialled);
    assert!(!connection.unwrap().unwrap().peer().close.is_cancelled());
    let cut: Vec<bool> = open.iter().map(|(open, _)| open.peer().close.is_cancelled()).collect();
    assert_eq!(cut.iter().position(|cut| *cut), Some(0));
    assert_eq!(cut.iter().filter(|cut| **cut).count(), 1);
}

#[test]
fn a_key_that_others_can_read_is_none() {
    use std::os::unix::fs::PermissionsExt as _;
    let farm = Farm::new();
    let client = farm.member("spiffe://c0ffee/agent/a");
    let key = client.dir().join("key.pem");
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(key.clone()), mode(client.dir().to_owned())), (0o600, 0o700));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Identity::load(client.dir()).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn a_certificate_with_two_names_is_nobodys() {
    let farm = Farm::new();
    let key = KeyPair::generate().unwrap();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let (one, two) = (uri("spiffe://c0ffee/agent/a"), uri("spiffe://c0ffee/admin/a"));
    for (names, want) in [
        (vec![], CertificateError::Uris(0)),
        (vec![one.clone(), two], CertificateError::Uris(2)),
        (vec![one.clone(), one], CertificateError::Uris(2)),
    ] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let leaf = params.signed_by(&key, &farm.ca).unwrap();
        assert_eq!(Certified::read(leaf.der()), Err(want));
    }
}

#[test]
fn an_endpoint_has_one_spelling() {
    for (endpoint, want) in [
        ("https://farm.example:7000", Some("farm.example:7000")),
        ("https://10.0.0.7:7000/", Some("10.0.0.7:7000")),
        ("https://[::1]:7000", Some("[::1]:7000")),
        ("http://farm.example:7000", None),
        ("https://farm.example", None),
        ("https://farm.example:70000", None),
        ("https://a:b@farm.example:7000", None),
        ("https://farm.example:7000/x", None),
        ("https://:7000", None),
        ("farm.example:7000", None),
    ] {
        assert_eq!(authority(endpoint).ok().as_deref(), want, "{endpoint}");
    }
}

/// From and to, hours from now.
type Hours = (i64, i64);
const DAY: Hours = (-1, 24);

/// One CA, and leaves that it signs.
struct Farm {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Farm {
    fn new() -> Self {
        let params = ca_params();
        Self { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn second_ca(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { ca: CertifiedIssuer::signed_by(ca_params(), key, &self.ca).unwrap() }
    }

    fn sign(&self, id: &str, (from, to): Hours, key: &KeyPair) -> Certificate {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.subject_alt_names.push(SanType::DnsName(SERVER_NAME.try_into().unwrap()));
        // rcgen makes it of the key, and a renewed certificate is of the same.
        let serial = SpkiHash::of_key(KeyPair::generate().unwrap().public_key_raw());
        params.serial_number = Some(SerialNumber::from_slice(&serial.0[..16]));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = std::time::SystemTime::now();
        let at = |hours: i64| {
            let hour = std::time::Duration::from_secs(3600);
            let off = hour * hours.unsigned_abs() as u32;
            if hours < 0 { now - off } else { now + off }
        };
        (params.not_before, params.not_after) = (at(from).into(), at(to).into());
        params.signed_by(key, &self.ca).unwrap()
    }

    fn leaf(&self, id: &str, hours: Hours) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (self.sign(id, hours, &key), key)
    }

    fn files(&self, (leaf, key): (Certificate, KeyPair)) -> IdentityFiles {
        IdentityFiles {
            key: key.serialize_pem(),
            certificates: leaf.pem(),
            bundle: self.ca.pem(),
            retired: String::new(),
        }
    }

    fn identity(&self, leaf: (Certificate, KeyPair)) -> Arc<Identity> {
        stored(&self.files(leaf))
    }

    fn member(&self, id: &str) -> Arc<Identity> {
        let identity = self.identity(self.leaf(id, DAY));
        assert_eq!(identity.current().certified.id.cluster(), CLUSTER);
        let parsed: SpiffeId = id.parse().unwrap();
        assert!(Role::ALL.contains(&parsed.role()));
        identity
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // Two CAs of one name would be tried for each other's certificates.
    let name = KeyPair::generate().unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, SpkiHash::of_key(name.public_key_raw()).to_string());
    params
}

fn key(files: &IdentityFiles) -> KeyPair {
    KeyPair::from_pem(&files.key).unwrap()
}

fn pem(text: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(text.as_bytes()).unwrap().to_vec()
}

fn stored(files: &IdentityFiles) -> Arc<Identity> {
    let dir: PathBuf = tempfile::tempdir().unwrap().keep();
    let dir = dir.join("identity");
    files.create(&dir).unwrap();
    Identity::load(&dir).unwrap()
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    (listener, endpoint)
}

async fn refused(server: &Arc<Identity>, client: &Arc<Identity>) {
    meet(server, client).await.unwrap_err();
}

/// The client connects and the server says a byte: whom it sees.
async fn meet(server: &Arc<Identity>, client: &Arc<Identity>) -> std::io::Result<Peer> {
    let config = Arc::clone(&client.current().client);
    met(server, |endpoint| async move { connect(&endpoint, config).await?.read_u8().await }).await
}

async fn pinned(server: &Arc<Identity>, pin: SpkiHash) -> std::io::Result<Peer> {
    let config = connect::pinned_config(pin).unwrap();
    met(server, |endpoint| async move { connect(&endpoint, config).await?.read_u8().await }).await
}

async fn met<F: Future<Output = std::io::Result<u8>>>(
    server: &Arc<Identity>,
    client: impl FnOnce(String) -> F,
) -> std::io::Result<Peer> {
    let (listener, endpoint) = listen().await;
    let mut accepted = pin!(accept(listener, Arc::clone(server)));
    let mut seen = None;
    let serve = async {
        loop {
            let mut connection = accepted.next().await.unwrap().unwrap();
            connection.write_u8(1).await.unwrap();
            connection.flush().await.unwrap();
            seen = Some((connection.peer().clone(), connection));
        }
    };
    let said = tokio::select! {
        said = client(endpoint) => said,
        () = serve => unreachable!(),
    };
    said.map(|_| seen.unwrap().0)
}
