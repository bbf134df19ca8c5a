//! A network of namespaces, so that processes of one machine can lose each other.
//!
//! Every place has a namespace with one address, and one link to a router, which has a
//! namespace of its own. Links stay up: what is cut is dropped by the router without a
//! word, in one direction or both, as a network that is broken does it. Nothing of this
//! is seen in the machine's own namespace.
//!
//! A namespace lasts as long as a process in it. One holds it that ends with its standard
//! input, which ends with the test, however that ends; what a test starts in it is killed
//! by the kernel when the thread ends that started it. So nothing is left behind.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::farm::skipped;

/// The router's address, as every place sees it.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 255, 254);

/// What this is called in `STEADING_REQUIRE`.
const REQUIRED_AS: &str = "netns";

/// A router, and the places around it.
#[derive(Debug)]
pub struct Network {
    router: Namespace,
    places: Mutex<Places>,
}

/// By name, the namespace and its address.
type Places = BTreeMap<String, (Namespace, Ipv4Addr)>;

/// A network namespace, as long as this is held.
#[derive(Debug)]
struct Namespace {
    holder: Child,
}

impl Network {
    /// A network without places; none where this machine allows none, which is printed.
    pub fn start() -> Option<Self> {
        let tried = if nix::unistd::geteuid().is_root() {
            Self::try_start()
        } else {
            Err("only root can make network namespaces".to_owned())
        };
        match tried {
            Ok(network) => Some(network),
            Err(why) => {
                skipped(REQUIRED_AS, &why);
                None
            }
        }
    }

    fn try_start() -> Result<Self, String> {
        let router = Namespace::make()?;
        router.run("echo 1 > /proc/sys/net/ipv4/ip_forward")?;
        let network = Self { router, places: Mutex::default() };
        // Everything that is needed later, once.
        for change in ["add", "del"] {
            network.drop_packets(change, &format!("from {ROUTER}"))?;
        }
        network.place("client")?;
        Ok(network)
    }

    /// The address of a place, which is made if it is new.
    pub fn address(&self, name: &str) -> Ipv4Addr {
        self.place(name).unwrap_or_else(|why| panic!("make the place {name}: {why}"))
    }

    /// A command that runs a program at a place, and in no case longer than the thread
    /// that starts it.
    pub fn command(&self, name: &str, program: &Path) -> Command {
        self.address(name);
        let places = self.places();
        let mut command = places[name].0.enter();
        command.args(["setpriv", "--pdeathsig", "KILL"]).arg(program);
        command
    }

    /// From now on, nothing that one says reaches the other.
    pub fn cut(&self, one: &str, other: &str) {
        self.change_both("add", one, other);
    }

    /// Undoes [`Network::cut`].
    pub fn heal(&self, one: &str, other: &str) {
        self.change_both("del", one, other);
    }

    /// From now on, the place hears nobody, and nobody hears it.
    pub fn isolate(&self, name: &str) {
        self.change_all("add", name);
    }

    /// Undoes [`Network::isolate`].
    pub fn rejoin(&self, name: &str) {
        self.change_all("del", name);
    }

    fn change_both(&self, change: &str, one: &str, other: &str) {
        let (one, other) = (self.address(one), self.address(other));
        self.change(change, &format!("from {one} to {other}"));
        self.change(change, &format!("from {other} to {one}"));
    }

    fn change_all(&self, change: &str, name: &str) {
        let address = self.address(name);
        self.change(change, &format!("from {address}"));
        self.change(change, &format!("to {address}"));
    }

    fn change(&self, change: &str, which: &str) {
        self.drop_packets(change, which).unwrap_or_else(|why| panic!("{change} {which}: {why}"));
    }

    fn drop_packets(&self, change: &str, which: &str) -> Result<(), String> {
        self.router.run(&format!("ip rule {change} {which} blackhole"))
    }

    fn place(&self, name: &str) -> Result<Ipv4Addr, String> {
        let mut places = self.places();
        if let Some((_, address)) = places.get(name) {
            return Ok(*address);
        }
        let number = places.len() + 1;
        let host = u8::try_from(number).map_err(|_| "too many places".to_owned())?;
        let address = Ipv4Addr::new(10, 77, 0, host);
        let namespace = Namespace::make()?;
        let pid = namespace.holder.id();
        self.router.run(&format!(
            "ip link add p{number} type veth peer name net0 netns {pid}
             ip address add {ROUTER}/32 dev p{number}
             ip link set p{number} up
             ip route add {address}/32 dev p{number}"
        ))?;
        namespace.run(&format!(
            "ip address add {address}/32 dev net0
             ip link set net0 up
             ip route add {ROUTER}/32 dev net0
             ip route add default via {ROUTER}"
        ))?;
        places.insert(name.to_owned(), (namespace, address));
        Ok(address)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Namespace {
    fn make() -> Result<Self, String> {
        let why = |error| format!("`unshare` cannot be run: {error}");
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-ec", "ip link set lo up; echo here; exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(why)?;
        let mut line = String::new();
        let said = holder.stdout.take().map(BufReader::new);
        said.ok_or("no output")?.read_line(&mut line).map_err(why)?;
        let namespace = Self { holder };
        match line.trim() {
            "here" => Ok(namespace),
            _ => Err("a network namespace with `lo` up cannot be made".to_owned()),
        }
    }

    /// The beginning of a command whose rest runs inside.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg("--");
        command
    }

    /// Runs a script inside, to its end.
    fn run(&self, script: &str) -> Result<(), String> {
        let out = self.enter().args(["sh", "-ec", script]).stdin(Stdio::null()).output();
        let out = out.map_err(|error| format!("`nsenter` cannot be run: {error}"))?;
        match out.status.success() {
            true => Ok(()),
            false => Err(format!("{}: {script}", String::from_utf8_lossy(&out.stderr).trim_end())),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its end is what is wanted: whatever is wrong with it, it is wrong already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_is_lost_without_a_word_and_heals() {
        let Some(network) = Network::start() else { return };
        for name in ["a", "b", "c"] {
            network.address(name);
        }
        check(&network, "ab ac ba bc ca cb");
        network.cut("a", "b");
        check(&network, "ac bc ca cb");
        network.isolate("c");
        check(&network, "");
        network.heal("a", "b");
        check(&network, "ab ba");
        network.rejoin("c");
        check(&network, "ab ac ba bc ca cb");
    }

    /// Asks from everywhere whether a connection comes about, refused or not, and compares.
    fn check(network: &Network, want: &str) {
        let names = ["a", "b", "c"];
        let pairs = names.iter().flat_map(|from| names.map(|to| (*from, to)));
        for (from, to) in pairs.filter(|(from, to)| from != to) {
            let wanted = want.split(' ').any(|pair| pair == format!("{from}{to}"));
            // Where an answer is wanted the machine may take its time.
            let patience = if wanted { "60" } else { "0.3" };
            assert_eq!(reaches(network, from, to, patience), wanted, "{from} to {to}");
        }
    }

    /// Nothing listens there: whoever is reached refuses at once, and what is cut is silent.
    fn reaches(network: &Network, from: &str, to: &str, patience: &str) -> bool {
        let script = format!("exec 3<>/dev/tcp/{}/1", network.address(to));
        let mut command = network.command(from, Path::new("timeout"));
        let ended = command.args([patience, "bash", "-c", &script]).stderr(Stdio::null()).status();
        ended.expect("timeout runs").code() != Some(124)
    }
}
