//! What lies where in a cluster's directory, and what is there before the components start.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cluster::ClusterOptions;
use crate::pki::{Authority, signing_keys, write_private};

/// The longest path of a Unix socket, in bytes (`sun_path` less its final zero).
const SOCKET_PATH_LIMIT: usize = 107;

/// Refuses a directory that etcd could not listen in.
pub fn check(directory: &Path) -> Result<()> {
    ensure!(
        etcd_socket(directory).as_os_str().len() <= SOCKET_PATH_LIMIT,
        "the path {} is too long for a Unix socket in it; set TMPDIR to a shorter one",
        directory.display()
    );
    Ok(())
}

/// Writes what the components read at their start.
pub fn prepare(directory: &Path, options: &ClusterOptions) -> Result<Authority> {
    let authority = Authority::create()?;
    authority.save(directory)?;
    let server = authority.server()?;
    write_private(&directory.join("server.crt"), &server.certificate)?;
    write_private(&directory.join("server.key"), &server.key)?;
    let (public, private) = signing_keys()?;
    write_private(&directory.join("accounts.pub"), &public)?;
    write_private(&directory.join("accounts.key"), &private)?;
    if let Some(policy) = options.audit.policy() {
        write_private(&directory.join("audit-policy.json"), &policy.to_string())?;
    }
    if let Some(source) = &options.etcd_data_from {
        copy_directory(source, &etcd_data(directory))?;
    }
    Ok(authority)
}

pub fn etcd_data(directory: &Path) -> PathBuf {
    directory.join("etcd")
}

pub fn etcd_socket(directory: &Path) -> PathBuf {
    directory.join("etcd.sock")
}

pub fn unix_url(path: &Path) -> String {
    format!("unix://{}", path.display())
}

pub fn fresh_directory(name: &str) -> PathBuf {
    let word: String = name
        .chars()
        .take(24)
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' })
        .collect();
    let user = nix::unistd::getuid();
    std::env::temp_dir().join(format!("backstep-testbed-{user}-{word}-{:08x}", rand::random::<u32>()))
}

/// Copies a directory of plain files and directories to `target`, which must not exist.
pub fn copy_directory(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir(target).with_context(|| format!("cannot make the directory {}", target.display()))?;
    let entries = fs::read_dir(source).with_context(|| format!("cannot read the directory {}", source.display()))?;
    for entry in entries {
        let entry = entry?;
        let copy = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &copy)?;
        } else {
            fs::copy(entry.path(), &copy).with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}
