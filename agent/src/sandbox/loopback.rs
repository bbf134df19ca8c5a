//! Brings the loopback interface of a new network namespace up.

use std::io::IoSlice;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, socket,
};

use super::{SandboxError, system};

// From linux/rtnetlink.h, linux/netlink.h and linux/if.h.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
/// The loopback interface is the first of every network namespace.
const LOOPBACK: i32 = 1;
/// Of `nlmsghdr`, and of `ifinfomsg`, bytes.
const HEADER_BYTES: usize = 16;

/// Over netlink, because the older way is an ioctl.
pub(super) fn up() -> Result<(), SandboxError> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .map_err(system("cannot open a netlink socket"))?;
    let request = request();
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(&request)],
        &[],
        MsgFlags::empty(),
        Some(&NetlinkAddr::new(0, 0)),
    )
    .map_err(system("cannot ask for loopback"))?;

    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())
        .map_err(system("no answer about loopback"))?;
    match refusal(&answer[..length]) {
        None => Ok(()),
        Some(errno) => Err(SandboxError::System {
            what: "cannot bring loopback up",
            source: std::io::Error::from_raw_os_error(errno),
        }),
    }
}

fn request() -> Vec<u8> {
    let mut message = Vec::with_capacity(2 * HEADER_BYTES);
    message.extend_from_slice(&(2 * HEADER_BYTES as u32).to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes()); // sequence
    message.extend_from_slice(&0u32.to_ne_bytes()); // to the kernel
    message.extend_from_slice(&[0, 0, 0, 0]); // family, padding, type
    message.extend_from_slice(&LOOPBACK.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes()); // flags
    message.extend_from_slice(&IFF_UP.to_ne_bytes()); // which flags change
    message
}

/// The errno of an answer that says no.
fn refusal(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(answer.get(HEADER_BYTES..HEADER_BYTES + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR && error != 0).then_some(-error)
}
