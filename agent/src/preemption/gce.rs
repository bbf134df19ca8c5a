//! GCE's metadata server: what it says of this machine, and of its end.
//!
//! `instance/preempted` turns from FALSE to TRUE when a spot machine is taken away, and
//! `instance/maintenance-event` says TERMINATE_ON_HOST_MAINTENANCE where a machine is
//! stopped that cannot be moved. Each is asked for once as it is, and from then on with
//! `wait_for_change` and the tag of the last answer, so that no change is missed between
//! two questions. The server answers 503 while it is restarted, and may close the
//! connection at any time: it is asked again. An answer without its own header is not
//! its (a network that answers for everybody), and tells nothing.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Where it is unless GCE_METADATA_HOST says otherwise.
pub const HOST_DEFAULT: &str = "metadata.google.internal";

/// How long the server is to wait for a change, seconds.
const WAIT_S: u64 = 60;

/// How long one question may take beyond what the server is to wait.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Before the server is asked again that gave no answer.
const PAUSE: Duration = Duration::from_secs(1);

/// And one that has no such entry: a proxy that hides it, or another version.
const PAUSE_WITHOUT: Duration = Duration::from_secs(60);

/// Longest answer, bytes. A value takes a hundred.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Of the server's answers, and of what is asked.
const FLAVOR: &str = "Metadata-Flavor";

/// Waits for a notice. Returns which.
pub async fn noticed(host: &str) -> &'static str {
    tokio::select! {
        () = becomes(host, "instance/preempted", "TRUE") => "GCE: preempted",
        () = becomes(host, "instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE") => {
            "GCE: maintenance"
        }
    }
}

/// What a machine is: pool-independent facts for the agent's properties, and whether it
/// may be taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub zone: Option<String>,
    pub machine_type: Option<String>,
    pub spot: bool,
}

/// Asks what this machine is. What the server does not say is left out.
pub async fn machine(host: &str) -> Machine {
    let last = |answer: Option<Answer>| {
        let value = answer?.value;
        Some(value.rsplit('/').next().unwrap_or_default().to_owned())
    };
    let ask = |entry: &'static str| async move {
        match ask(host, entry, None).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(entry, %error, "the metadata server does not say");
                None
            }
        }
    };
    Machine {
        zone: last(ask("instance/zone").await),
        machine_type: last(ask("instance/machine-type").await),
        spot: last(ask("instance/scheduling/preemptible").await).as_deref() == Some("TRUE"),
    }
}

/// Waits until the entry has this value.
async fn becomes(host: &str, entry: &str, value: &str) {
    let mut tag: Option<String> = None;
    loop {
        match ask(host, entry, tag.as_deref()).await {
            Ok(Some(answer)) if answer.value == value => return,
            // Without a tag a change could be missed, and a loop would not wait.
            Ok(Some(answer)) if answer.tag.is_none() => tokio::time::sleep(PAUSE).await,
            Ok(Some(answer)) => tag = answer.tag,
            Ok(None) => {
                tracing::debug!(entry, "the metadata server has no such entry");
                tokio::time::sleep(PAUSE_WITHOUT).await;
            }
            Err(error) => {
                tracing::debug!(entry, %error, "the metadata server gives no answer");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    value: String,
    tag: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no answer in time")]
    Slow,
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("status {0}")]
    Status(u16),
    #[error("this is not the metadata server")]
    Stranger,
    #[error("an answer that cannot be read")]
    Form,
}

/// Asks for the entry; with a tag, for the next value after that one. None: there is no
/// such entry.
async fn ask(host: &str, entry: &str, tag: Option<&str>) -> Result<Option<Answer>, AskError> {
    let wait = tag.map_or(Duration::ZERO, |_| Duration::from_secs(WAIT_S));
    let text = tokio::time::timeout(wait + ANSWER_MAX, exchange(host, entry, tag));
    let text = text.await.map_err(|_| AskError::Slow)??;
    read(&text)
}

async fn exchange(host: &str, entry: &str, tag: Option<&str>) -> Result<Vec<u8>, AskError> {
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(address).await?;
    let query = match tag {
        Some(tag) => format!("?wait_for_change=true&last_etag={tag}&timeout_sec={WAIT_S}"),
        None => String::new(),
    };
    // 1.0: the answer ends with the connection, and comes in one piece.
    let request = format!(
        "GET /computeMetadata/v1/{entry}{query} HTTP/1.0\r\nHost: {host}\r\n{FLAVOR}: Google\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut text).await?;
    Ok(text)
}

fn read(text: &[u8]) -> Result<Option<Answer>, AskError> {
    let text = std::str::from_utf8(text).map_err(|_| AskError::Form)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(AskError::Form)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status: u16 = status.and_then(|status| status.parse().ok()).ok_or(AskError::Form)?;
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let header = |name: &str| {
        let mut named = headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim())
    };
    match status {
        _ if header(FLAVOR) != Some("Google") => return Err(AskError::Stranger),
        200 => (),
        404 => return Ok(None),
        status => return Err(AskError::Status(status)),
    }
    // A connection that broke must not turn one word into another.
    let length = header("Content-Length").and_then(|length| length.parse::<usize>().ok());
    if length.is_some_and(|length| length != body.len()) {
        return Err(AskError::Form);
    }
    let plain = |tag: &&str| tag.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let tag = header("ETag").filter(plain).map(str::to_owned);
    Ok(Some(Answer { value: body.trim().to_owned(), tag }))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio::task::JoinSet;

    use super::*;

    /// The value and tag of the one entry that changes, and what to do first.
    #[derive(Clone)]
    struct Server {
        host: String,
        value: watch::Sender<&'static str>,
        /// Answers that come before the right ones.
        faults: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Server {
        async fn start(tasks: &mut JoinSet<()>, faults: &[&'static str]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = Self {
                host: listener.local_addr().unwrap().to_string(),
                value: watch::Sender::new("FALSE"),
                faults: Arc::new(Mutex::new(faults.to_vec())),
            };
            let serving = server.clone();
            tasks.spawn(async move {
                let mut calls = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    calls.spawn(serving.clone().answer(stream));
                }
            });
            server
        }

        async fn answer(self, mut stream: TcpStream) {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            assert!(request.contains("\r\nMetadata-Flavor: Google\r\n"), "{request}");
            let path = request.split(' ').nth(1).unwrap();
            let entry = path.strip_prefix("/computeMetadata/v1/instance/").unwrap();
            let fault = match entry.starts_with("preempted") {
                true => self.faults.lock().unwrap().pop(),
                false => None,
            };
            let body = match entry.split(['?', '/']).next().unwrap() {
                _ if fault.is_some() => fault.unwrap().to_owned(),
                "preempted" => {
                    let mut value = self.value.subscribe();
                    let seen = |value: &str| format!("last_etag=e{}", value.len());
                    // Holds the answer back until the value is another one.
                    let next = value.wait_for(|value| !entry.contains(&seen(value))).await;
                    let value: &str = next.as_deref().unwrap();
                    ok(value, &format!("e{}", value.len()))
                }
                "zone" => ok("projects/1/zones/us-central1-a", "z"),
                "machine-type" => ok("projects/1/machineTypes/e2-medium", "m"),
                "scheduling" => ok("TRUE\n", "s"),
                "maintenance-event" if !path.contains("wait") => ok("NONE", "n"),
                _ => std::future::pending().await,
            };
            stream.write_all(body.as_bytes()).await.unwrap();
        }
    }

    fn ok(value: &str, tag: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nETag: {tag}\r\nContent-Length: {}\r\n\r\n{value}",
            value.len()
        )
    }

    #[tokio::test]
    async fn a_machine_that_is_taken_away_is_noticed() {
        let mut tasks = JoinSet::new();
        let server = Server::start(&mut tasks, &[]).await;
        let noticed = noticed(&server.host);
        tokio::pin!(noticed);
        let asked = async {
            // Both the first question and the one that waits are there.
            while server.value.receiver_count() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            notice = &mut noticed => panic!("{notice} before anything changed"),
            () = asked => (),
        }
        server.value.send_replace("TRUE");
        assert_eq!(noticed.await, "GCE: preempted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stumbles_is_asked_again_and_a_stranger_is_not_believed() {
        let mut tasks = JoinSet::new();
        let faults = [
            "HTTP/1.1 503 Unavailable\r\nMetadata-Flavor: Google\r\n\r\nTRUE",
            // A network that answers for everybody.
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nTRUE",
            // Cut off.
            "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nContent-Length: 9\r\n\r\nTRUE",
            "",
        ];
        let server = Server::start(&mut tasks, &faults).await;
        server.value.send_replace("TRUE");
        assert_eq!(noticed(&server.host).await, "GCE: preempted");
        assert!(server.faults.lock().unwrap().is_empty(), "each was met");
    }

    #[tokio::test]
    async fn a_machine_is_what_its_server_says() {
        let mut tasks = JoinSet::new();
        let server = Server::start(&mut tasks, &[]).await;
        let want = Machine {
            zone: Some("us-central1-a".to_owned()),
            machine_type: Some("e2-medium".to_owned()),
            spot: true,
        };
        assert_eq!(machine(&server.host).await, want);
        assert_eq!(machine("127.0.0.1:1").await, Machine::default());
    }

    #[test]
    fn answers_follow_a_table() {
        let google = "\r\nMetadata-Flavor: Google";
        let table = [
            (format!("HTTP/1.1 200 OK{google}\r\nETag: a1\r\n\r\nFALSE\n"), "FALSE a1"),
            (format!("HTTP/1.1 200 OK{google}\r\nETag: a&b\r\n\r\nFALSE"), "FALSE -"),
            (format!("HTTP/1.1 404 Not Found{google}\r\n\r\n"), "none"),
            (format!("HTTP/1.1 500 Oops{google}\r\n\r\n"), "status 500"),
            ("HTTP/1.1 200 OK\r\n\r\nTRUE".to_owned(), "this is not the metadata server"),
            ("nonsense".to_owned(), "an answer that cannot be read"),
        ];
        for (text, want) in table {
            let got = match read(text.as_bytes()) {
                Ok(Some(answer)) => {
                    format!("{} {}", answer.value, answer.tag.as_deref().unwrap_or("-"))
                }
                Ok(None) => "none".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, want, "{text:?}");
        }
    }
}
