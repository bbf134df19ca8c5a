//! A coordinator over mTLS, and members of its farm.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, SerialNumber};
use steading_coordinator::{Config, Coordinator, ObjectStore};
use steading_model::Role;
use steading_proto::tls::{self, Identity, IdentityFiles, JoinToken};
use steading_proto::v1;
use steading_proto::v1::identities_client::IdentitiesClient;
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

/// A story that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

pub(crate) struct Farm {
    pub(crate) dir: TempDir,
    pub(crate) coordinator: Arc<Coordinator>,
    pub(crate) endpoint: String,
    connect: mpsc::Sender<std::io::Result<DuplexStream>>,
    serving: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
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
        let coordinator = Arc::new(Coordinator::start(config).await.unwrap());
        let stop = CancellationToken::new();
        let mut serving = JoinSet::new();
        let (connect, accept) = mpsc::channel(16);
        let (server, shutdown) = (Arc::clone(&coordinator), stop.clone().cancelled_owned());
        serving.spawn(async move { server.serve(ReceiverStream::new(accept), shutdown).await });
        coordinator.secure().await.unwrap();
        let (server, shutdown) = (Arc::clone(&coordinator), stop.clone().cancelled_owned());
        serving.spawn(async move { server.serve_tls(listener, shutdown).await });
        Self { dir, coordinator, endpoint, connect, serving, stop }
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = soon("the end of serving", self.serving.join_next()).await {
            ended.unwrap().unwrap();
        }
        let coordinator = Arc::into_inner(self.coordinator).expect("nobody else holds it");
        soon("the end of the coordinator", coordinator.stop()).await.unwrap();
    }

    /// As somebody on the machine.
    pub(crate) fn here(&self) -> Channel {
        let connect = self.connect.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let connect = connect.clone();
            async move {
                let (here, there) = tokio::io::duplex(1 << 20);
                let refused = |_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
                connect.send(Ok(there)).await.map_err(refused)?;
                Ok::<_, std::io::Error>(TokioIo::new(here))
            }
        });
        Endpoint::from_static("http://memory").connect_with_connector_lazy(connector)
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
