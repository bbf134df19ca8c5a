//! A coordinator over mTLS, and members of its farm.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, SerialNumber};
use steading_coordinator::{Config, Coordinator, ObjectStore};
use steading_model::Role;
use steading_proto::tls::{self, Identity, IdentityFiles, JoinToken};
use steading_proto::v1;
use steading_proto::v1::identities_client::IdentitiesClient;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::transport::Channel;

use crate::memory::Served;
pub(crate) use crate::memory::soon;

pub(crate) struct Farm {
    pub(crate) dir: TempDir,
    served: Served,
    pub(crate) endpoint: String,
}

impl Deref for Farm {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

impl Farm {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_, _| ()).await
    }

    /// One that others can join.
    pub(crate) async fn start_group() -> Self {
        Self::start_with(|config, endpoint| {
            config.advertise = Some(endpoint.to_owned());
            let origin = config.data_dir.with_file_name("origin");
            config.object_store = Some(ObjectStore::from_text(&origin.display().to_string()));
        })
        .await
    }

    async fn start_with(set: impl FnOnce(&mut Config, &str)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap());
        let mut config = Config::new(dir.path().join("coordinator"));
        // However full the disk is that tests run on.
        (config.disk_low_bytes, config.ballast_bytes) = (Some(0), 0);
        config.segment_bytes = 4 << 20;
        set(&mut config, &endpoint);
        let mut served = Served::new(Coordinator::start(config).await.unwrap());
        served.coordinator.secure().await.unwrap();
        let server = Arc::clone(&served.coordinator);
        let shutdown = served.stop.clone().cancelled_owned();
        served.serving.spawn(async move { server.serve_tls(listener, shutdown).await });
        Self { dir, served, endpoint }
    }

    pub(crate) async fn stop(self) {
        self.served.stop().await;
    }

    /// As somebody on the machine.
    pub(crate) fn here(&self) -> Channel {
        self.served.channel()
    }

    pub(crate) fn admin(&self) -> IdentitiesClient<Channel> {
        IdentitiesClient::new(self.here())
    }

    pub(crate) async fn token(&self, request: v1::CreateTokenRequest) -> JoinToken {
        let request = v1::CreateTokenRequest {
            uses: request.uses.max(1),
            ttl_ms: request.ttl_ms.max(60_000),
            ..request
        };
        let made = self.admin().create_token(request).await.unwrap().into_inner();
        made.token.parse().unwrap()
    }

    pub(crate) async fn token_for(&self, role: v1::Role) -> JoinToken {
        self.token(v1::CreateTokenRequest { role: role.into(), ..Default::default() }).await
    }

    pub(crate) fn member_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn join(
        &self,
        token: &JoinToken,
        name: &str,
        dir: &str,
    ) -> Result<Arc<Identity>, tls::EnrollError> {
        let endpoints = [self.endpoint.clone()];
        let joined = tls::join(&endpoints, token, name, &self.member_dir(dir), Vec::new()).await;
        joined.map(|joined| joined.identity)
    }

    pub(crate) async fn member(&self, role: v1::Role, name: &str) -> Arc<Identity> {
        let token = self.token_for(role).await;
        self.join(&token, name, name).await.unwrap()
    }

    pub(crate) fn channel(&self, identity: &Arc<Identity>) -> Channel {
        tls::channel(&self.endpoint, Arc::clone(identity)).unwrap()
    }

    /// Of a certificate that the farm's own CA signed, but in a way that it never would.
    pub(crate) fn forged(&self, id: &str, hours: (i64, i64)) -> Arc<Identity> {
        let ca = self.dir.path().join("coordinator").join("ca");
        let key = std::fs::read_to_string(ca.join("key.pem")).unwrap();
        let certificate = std::fs::read_to_string(ca.join("cert.pem")).unwrap();
        let issuer =
            Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key).unwrap()).unwrap();
        forged(self.dir.path(), &issuer, &certificate, id, hours)
    }

    /// Of another CA, that says the same of its owner. It believes this farm.
    pub(crate) fn foreign(&self, id: &str) -> Arc<Identity> {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        let ca = self.dir.path().join("coordinator").join("ca");
        let bundle = std::fs::read_to_string(ca.join("cert.pem")).unwrap();
        forged(self.dir.path(), &issuer, &bundle, id, (-1, 24))
    }
}

fn forged(
    dir: &Path,
    issuer: &Issuer<'_, KeyPair>,
    bundle: &str,
    id: &str,
    (from, to): (i64, i64),
) -> Arc<Identity> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from_slice(&key.public_key_raw()[1..17]));
    let now = std::time::SystemTime::now();
    let at = |hours: i64| {
        let off = Duration::from_secs(3600) * hours.unsigned_abs() as u32;
        if hours < 0 { now - off } else { now + off }
    };
    (params.not_before, params.not_after) = (at(from).into(), at(to).into());
    let files = IdentityFiles {
        key: key.serialize_pem(),
        certificates: params.signed_by(&key, issuer).unwrap().pem(),
        bundle: bundle.to_owned(),
        retired: String::new(),
    };
    let dir = tempfile::tempdir_in(dir).unwrap().keep().join("identity");
    files.create(&dir).unwrap();
    Identity::load(&dir).unwrap()
}

pub(crate) fn role(identity: &Identity) -> (Role, String) {
    let id = &identity.current().certified.id;
    (id.role(), id.id().to_owned())
}
