//! What of a machine a step sees, and its key is made of.

/// Folders of PATH that every machine has, in the order in which a step searches them.
pub const SYSTEM_PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Further folders of PATH that only name parts of `/usr` again, or hold games.
pub(super) const SYSTEM_PATH_TOO: [&str; 2] = ["/usr/games", "/usr/local/games"];

/// What the package manager knows.
pub(super) const PACKAGES: [&str; 7] = [
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/var/lib/rpm/Packages",
    "/lib/apk/db/installed",
    "/usr/lib/apk/db/installed",
    "/var/lib/pacman/local",
];

/// Parts of the system that people change without the package manager.
pub(super) const SYSTEM_ROOTS: [&str; 4] =
    ["/usr/lib/gcc", "/usr/libexec/gcc", "/usr/local", "/opt"];

/// What programs read in `/etc`: names, and beginnings of names. All else there tells
/// one machine from another.
pub(super) const ETC: [&str; 14] = [
    "alternatives",
    "fonts",
    "gitconfig",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "magic",
    "maven",
    "mime.types",
    "os-release",
    "perl",
    "protocols",
    "services",
    "xml",
];
pub(super) const ETC_PREFIXES: [&str; 4] = ["java-", "python", "ImageMagick", "php"];
