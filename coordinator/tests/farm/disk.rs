//! A coordinator whose disk runs full.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use steading_coordinator::Config;
use steading_proto::v1::Conclusion::Success;
use tonic::Code;

use crate::ONE;
use crate::support::{Agent, Farm, ended};

/// Below this a disk is low, bytes; below an eighth of it critical.
const LOW: u64 = 24 << 20;

#[tokio::test]
async fn a_full_disk_refuses_submissions_and_lets_what_runs_end() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path()) else { return };
    let farm = Farm::start_with(config(dir.path())).await;
    let mut agent = Agent::join(&farm, "a").await;
    let run = farm.submit("r1", ONE).await;
    let offer = agent.offer().await;
    let lease = agent.accept(&offer).await;

    disk.fill_up_to(LOW / 2);
    let refused = farm.pipelines().submit(farm.request("r2", ONE)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("disk is nearly full"), "{refused}");
    agent.complete(lease, farm.put_result(&[])).await.unwrap();
    assert_eq!(ended(&farm.run(run).await).1, Success);
    farm.stop().await;

    // Not a byte is left but what the ballast takes.
    disk.fill_up_to(0);
    assert!(dir.path().join("ballast").exists());
    let farm = Farm::start_with(config(dir.path())).await;
    assert!(!dir.path().join("ballast").exists());
    assert_eq!(ended(&farm.run(run).await).1, Success);
    disk.free();
    farm.submit("r2", ONE).await;
    farm.stop().await;
}

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.disk_low_bytes = Some(LOW);
    config.ballast_bytes = 12 << 20;
    config
}

/// A disk in memory.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(dir: &'a Path) -> Option<Self> {
        let mounted = mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=96m"));
        match mounted {
            Ok(()) => Some(Self(dir)),
            Err(why) => {
                eprintln!("skipped: no small disk can be mounted ({why}), which root may");
                None
            }
        }
    }

    /// Until so many bytes are free.
    fn fill_up_to(&self, free: u64) {
        let mut file =
            File::options().append(true).create(true).open(self.0.join("filler")).unwrap();
        let piece = [7; 64 << 10];
        loop {
            let stat = nix::sys::statvfs::statvfs(self.0).unwrap();
            if stat.blocks_available() * stat.fragment_size() <= free {
                return;
            }
            if file.write(&piece).is_err() {
                return;
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}
