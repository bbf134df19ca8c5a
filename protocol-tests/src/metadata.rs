//! A small server that answers as GCE's metadata server does: entries with tags, and
//! `wait_for_change`, which holds an answer back until the entry is another one.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Longest request, bytes.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// One machine's server. Dropping it ends every answer that is held back.
#[derive(Debug)]
pub struct Metadata {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Said {
    preempted: bool,
    /// Somebody waits for the machine's end.
    asked: bool,
    stopped: bool,
}

impl Metadata {
    /// Starts the server of a spot machine that nobody takes away yet.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let serving = std::thread::spawn(move || {
            let mut answers = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.said().stopped {
                    break;
                }
                let shared = Arc::clone(&serving);
                answers.push(std::thread::spawn(move || shared.answer(stream)));
            }
            for answer in answers {
                let _ = answer.join();
            }
        });
        Self { address, shared, serving: Some(serving) }
    }

    /// `HOST:PORT`, as GCE_METADATA_HOST has it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Whether somebody waits to be told of the machine's end.
    pub fn is_asked(&self) -> bool {
        self.shared.said().asked
    }

    /// The machine is taken away.
    pub fn preempt(&self) {
        self.shared.change(|said| said.preempted = true);
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.shared.change(|said| said.stopped = true);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

impl Shared {
    fn said(&self) -> Said {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Answers one request. An agent that is gone is no error.
    fn answer(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        let mut bytes = [0; 1024];
        while !request.ends_with(b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
            match stream.read(&mut bytes) {
                Ok(len) if len > 0 => request.extend_from_slice(&bytes[..len]),
                Ok(_) | Err(_) => return,
            }
        }
        let request = String::from_utf8_lossy(&request);
        let path = request.split(' ').nth(1).unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let value = match path.strip_prefix("/computeMetadata/v1/instance/") {
            Some("preempted") => match self.preempted(query) {
                true => "TRUE",
                false => "FALSE",
            },
            Some("maintenance-event") => {
                self.hold_while(query, "last_etag=NONE", |said| said.stopped);
                "NONE"
            }
            Some("scheduling/preemptible") => "TRUE",
            Some("zone") => "projects/1/zones/us-central1-a",
            Some("machine-type") => "projects/1/machineTypes/e2-medium",
            _ => return,
        };
        let tag = value.rsplit('/').next().unwrap_or_default().replace('-', "");
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nETag: {tag}\r\n\
             Content-Length: {}\r\n\r\n{value}",
            value.len()
        );
    }

    fn preempted(&self, query: &str) -> bool {
        let waits = query.contains("last_etag=FALSE");
        self.change(|said| said.asked |= waits);
        self.hold_while(query, "last_etag=FALSE", |said| said.preempted || said.stopped);
        self.said().preempted
    }

    /// Where the one who asks has the present value: until it is another one.
    fn hold_while(&self, query: &str, known: &str, over: impl Fn(&Said) -> bool) {
        if !query.contains(known) {
            return;
        }
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(said, |said| !over(said)));
    }
}
