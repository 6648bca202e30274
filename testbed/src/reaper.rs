//! What makes sure that nothing outlives the owner of a cluster: a process of its own that holds a pipe from the owner,
//! and when that pipe closes — however the owner ended — kills the cluster's process group and removes its directory.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Leads the process group that components join; ends with the owner, and is killed with the group.
const ANCHOR: &str = "trap '' INT HUP; read -r _";

/// `$1` the process group, `$2` the directory. Signals of the owner's terminal must not end it before its work is done.
const REAPER: &str = r#"
trap '' INT HUP TERM
umask 077
mkdir -- "$2" || exit 1
echo ready
while read -r _; do :; done
tries=0
kill -s KILL -- "-$1" 2>/dev/null
rm -rf -- "$2" 2>/dev/null
while [ -e "$2" ] && [ "$tries" -lt 100 ]; do
  tries=$((tries + 1)); sleep 0.05
  kill -s KILL -- "-$1" 2>/dev/null
  rm -rf -- "$2" 2>/dev/null
done
"#;

/// The directory and the process group of one cluster; both are gone after [`Reaper::finish`] or after the owner's end.
pub struct Reaper {
    directory: PathBuf,
    group: i32,
    anchor: Child,
    process: Child,
    /// Kept open for as long as the cluster is wanted.
    pipe: Option<ChildStdin>,
}

impl Reaper {
    /// Makes `directory` (which must not exist) and an empty process group.
    pub fn start(directory: &Path) -> Result<Self> {
        let shell = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", script, "testbed-reaper"])
                .current_dir("/")
                .process_group(0);
            command.stdin(Stdio::piped()).stderr(Stdio::inherit());
            command
        };
        let mut anchor = shell(ANCHOR)
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run /bin/sh")?;
        let group = i32::try_from(anchor.id()).context("a process id is out of bounds")?;
        let spawned = shell(REAPER)
            .arg(anchor.id().to_string())
            .arg(directory)
            .stdout(Stdio::piped())
            .spawn();
        let mut process = match spawned {
            Ok(process) => process,
            Err(error) => {
                end(&mut anchor);
                return Err(error).context("cannot run /bin/sh");
            }
        };
        let mut answer = String::new();
        if let Some(output) = process.stdout.take() {
            // Either a line or the end of the script, so this does not wait for long.
            BufReader::new(output)
                .read_line(&mut answer)
                .context("cannot hear the reaper")?;
        }
        if answer.trim() != "ready" {
            end(&mut anchor);
            let _ = process.wait();
            bail!(
                "cannot make the directory {}: it exists, or its parent cannot be written",
                directory.display()
            );
        }
        let pipe = process.stdin.take();
        Ok(Self {
            directory: directory.to_owned(),
            group,
            anchor,
            process,
            pipe,
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process group that components are started in.
    pub fn group(&self) -> i32 {
        self.group
    }

    /// Kills what is left of the group and removes the directory; returns when both are gone.
    pub fn finish(&mut self) {
        if self.pipe.take().is_some() {
            let _ = self.process.wait();
            end(&mut self.anchor);
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.finish();
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
