//! Writing the objects of a snapshot where other tools can read them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    pin::pin,
};

use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::Value;

use super::{
    Class, Error, Result,
    contents::{Contents, failed, hide_secret_values},
};
use crate::{
    domain::object::secret,
    repository::{KindHeader, ManifestReader},
};

/// Contents read at once; their order stays.
const READ_AHEAD: usize = 8;

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One YAML document an object.
    Yaml,
    /// JSON.
    Json,
}

/// Where objects are written.
pub enum Target<'a> {
    /// A directory that does not exist or is empty; one file an object, one folder a kind.
    Directory(PathBuf),
    /// A tar archive that does not exist, with the same files.
    Tar(PathBuf),
    /// One stream: YAML documents, or one JSON `List`.
    Stream(&'a mut (dyn Write + Send)),
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Objects.
    pub objects: u64,
    /// Secrets whose values were replaced by `<hidden>`.
    pub hidden: u64,
    /// Secrets of which the snapshot itself holds only fingerprints.
    pub fingerprints: u64,
}

/// Why writing stopped.
#[derive(Debug)]
pub enum Failure {
    /// The snapshot cannot be read.
    Ops(Error),
    /// The target cannot be written.
    Io(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ops(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Writes every object of the manifest in identity order; `done` is called with the number written so far.
///
/// Files and archives appear whole or not at all. They can be read by their owner alone when they hold Secret values.
pub async fn export(
    contents: &Contents,
    manifest: &ManifestReader,
    target: Target<'_>,
    format: Format,
    reveal: bool,
    mut done: impl FnMut(u64),
) -> Result<Written, Failure> {
    let mut sink = Sink::open(target, format)?;
    let mut written = Written::default();
    let outcome = async {
        let objects = manifest
            .entries()
            .map_err(|e| failed(&e))
            .map(|next| async {
                let (kind, entry) = next?;
                let object = contents.object(&kind, &entry).await?;
                Ok::<_, Error>((kind, entry.name, object))
            })
            .buffered(READ_AHEAD);
        let mut objects = pin!(objects);
        while let Some((kind, name, mut object)) = objects.try_next().await? {
            if secret::is_secret(&object) {
                written.fingerprints += u64::from(holds_fingerprints(&object));
                written.hidden += u64::from(!reveal && hide_secret_values(&mut object));
            }
            sink.write(&kind, &name, &object)?;
            written.objects += 1;
            done(written.objects);
        }
        Ok::<_, Failure>(())
    }
    .await;
    match outcome {
        Ok(()) => sink.finish()?,
        Err(failure) => {
            sink.abandon();
            return Err(failure);
        }
    }
    Ok(written)
}

fn holds_fingerprints(object: &Value) -> bool {
    let mut values = object["data"].as_object().into_iter().flatten();
    values.any(|(_, value)| value.as_str().is_some_and(secret::is_fingerprint))
}

enum Sink<'a> {
    Directory {
        partial: PathBuf,
        target: PathBuf,
        format: Format,
    },
    Tar {
        archive: Box<tar::Builder<BufWriter<File>>>,
        partial: PathBuf,
        target: PathBuf,
        format: Format,
    },
    Stream {
        out: &'a mut (dyn Write + Send),
        format: Format,
        first: bool,
    },
}

fn taken(path: &Path, why: &str) -> Error {
    Error::new(Class::Refused, format!("{} is not written over", path.display()))
        .because(why)
        .fix("name another place, or remove it first")
}

fn partial(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    target.with_file_name(name)
}

/// A new file that only its owner can read.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

impl<'a> Sink<'a> {
    fn open(target: Target<'a>, format: Format) -> Result<Self, Failure> {
        match target {
            Target::Stream(out) => Ok(Self::Stream {
                out,
                format,
                first: true,
            }),
            Target::Directory(target) => {
                if let Ok(mut entries) = fs::read_dir(&target) {
                    if entries.next().is_some() {
                        return Err(taken(&target, "the directory is not empty").into());
                    }
                } else if target.symlink_metadata().is_ok() {
                    return Err(taken(&target, "it exists and is no directory").into());
                }
                let partial = partial(&target);
                fs::create_dir(&partial).map_err(|e| unwritable(&partial, &e))?;
                Ok(Self::Directory {
                    partial,
                    target,
                    format,
                })
            }
            Target::Tar(target) => {
                if target.symlink_metadata().is_ok() {
                    return Err(taken(&target, "it exists").into());
                }
                let partial = partial(&target);
                let file = private(&partial).map_err(|e| unwritable(&partial, &e))?;
                Ok(Self::Tar {
                    archive: Box::new(tar::Builder::new(BufWriter::new(file))),
                    partial,
                    target,
                    format,
                })
            }
        }
    }

    fn write(&mut self, kind: &KindHeader, name: &str, object: &Value) -> Result<(), Failure> {
        match self {
            Self::Stream {
                out,
                format: Format::Yaml,
                first,
            } => {
                if !std::mem::take(first) {
                    out.write_all(b"---\n")?;
                }
                out.write_all(render(Format::Yaml, object)?.as_bytes())?;
            }
            Self::Stream {
                out,
                format: Format::Json,
                first,
            } => {
                let start: &[u8] = if std::mem::take(first) { LIST_START } else { b",\n" };
                out.write_all(start)?;
                serde_json::to_writer(&mut **out, object).map_err(io::Error::from)?;
            }
            Self::Directory { partial, format, .. } => {
                let (folder, file) = path(kind, name, *format)?;
                let folder = partial.join(folder);
                fs::create_dir_all(&folder)?;
                private(&folder.join(file))?.write_all(render(*format, object)?.as_bytes())?;
            }
            Self::Tar { archive, format, .. } => {
                let (folder, file) = path(kind, name, *format)?;
                let text = render(*format, object)?;
                let mut header = tar::Header::new_gnu();
                header.set_size(text.len() as u64);
                header.set_mode(0o600);
                archive.append_data(&mut header, format!("{folder}/{file}"), text.as_bytes())?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stream { out, format, first } => {
                if format == Format::Json {
                    if first {
                        out.write_all(LIST_START)?;
                    }
                    out.write_all(b"\n]}\n")?;
                }
                out.flush()?;
            }
            Self::Directory { partial, target, .. } => {
                // An empty directory may be there; renaming a directory replaces it.
                fs::rename(&partial, &target).map_err(|e| unwritable(&target, &e))?;
            }
            Self::Tar {
                archive,
                partial,
                target,
                ..
            } => {
                archive
                    .into_inner()?
                    .into_inner()
                    .map_err(io::IntoInnerError::into_error)?
                    .sync_all()?;
                fs::rename(&partial, &target).map_err(|e| unwritable(&target, &e))?;
            }
        }
        Ok(())
    }

    /// Removes what was written so far; a failure to do so is not worth more than the first one.
    fn abandon(self) {
        match self {
            Self::Stream { .. } => {}
            Self::Directory { partial, .. } => drop(fs::remove_dir_all(partial)),
            Self::Tar { partial, .. } => drop(fs::remove_file(partial)),
        }
    }
}

const LIST_START: &[u8] = b"{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\n";

fn unwritable(path: &Path, error: &io::Error) -> Error {
    let fix = match error.kind() {
        io::ErrorKind::AlreadyExists => "another export is at work there, or was interrupted: remove it and try again",
        io::ErrorKind::NotFound => "create the directory that it goes into",
        _ => "name a place that you may write",
    };
    Error::new(Class::Refused, format!("{} cannot be written", path.display()))
        .because(error.to_string())
        .fix(fix)
}

fn render(format: Format, object: &Value) -> Result<String, Error> {
    match format {
        Format::Yaml => super::yaml::to_string(object),
        Format::Json => serde_json::to_string_pretty(object)
            .map(|text| text + "\n")
            .map_err(|e| Error::internal(format!("an object cannot be written as JSON: {e}"))),
    }
}

/// `deployments.apps/web.yaml`. Names come from a store that others may write, so nothing may lead out of the target.
fn path(kind: &KindHeader, name: &str, format: Format) -> Result<(String, String), Error> {
    let plain = |text: &str| !text.is_empty() && !text.starts_with('.') && !text.contains(['/', '\\', '\0']);
    let folder = if kind.group.is_empty() {
        kind.plural.clone()
    } else {
        format!("{}.{}", kind.plural, kind.group)
    };
    if !plain(&folder) || !plain(name) {
        return Err(Error::new(
            Class::Corrupt,
            format!("the manifest names an object that cannot exist: {folder:?} {name:?}"),
        ));
    }
    let suffix = match format {
        Format::Yaml => "yaml",
        Format::Json => "json",
    };
    Ok((folder, format!("{name}.{suffix}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(group: &str, plural: &str) -> KindHeader {
        KindHeader {
            group: group.into(),
            version: "v1".into(),
            kind: "Thing".into(),
            plural: plural.into(),
            component: "Configuration".into(),
            namespaced: true,
        }
    }

    #[test]
    fn names_that_lead_out_of_the_target_are_refused() {
        for name in ["..", "../x", "a/b", "", "a\\b", ".hidden"] {
            assert_eq!(
                path(&kind("", "things"), name, Format::Yaml).unwrap_err().class,
                Class::Corrupt,
                "{name}"
            );
        }
        assert!(path(&kind("../x", ".."), "a", Format::Yaml).is_err());
        let (folder, file) = path(&kind("rbac.authorization.k8s.io", "roles"), "system:x", Format::Json).unwrap();
        assert_eq!(
            (folder.as_str(), file.as_str()),
            ("roles.rbac.authorization.k8s.io", "system:x.json")
        );
    }

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("out");
        let mut sink = Sink::open(Target::Directory(target.clone()), Format::Yaml).unwrap();
        sink.write(&kind("", "things"), "a", &json!({"a": 1})).unwrap();
        assert!(!target.exists());
        sink.finish().unwrap();
        assert_eq!(fs::read_to_string(target.join("things/a.yaml")).unwrap(), "a: 1\n");
        let Err(Failure::Ops(error)) = Sink::open(Target::Directory(target.clone()), Format::Yaml).map(drop) else {
            panic!("wrote over a directory that is not empty");
        };
        assert_eq!(error.class, Class::Refused);
        let other = home.path().join("other");
        Sink::open(Target::Directory(other.clone()), Format::Yaml)
            .unwrap()
            .abandon();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_archive_holds_the_same_files_for_its_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("out.tar");
        let mut sink = Sink::open(Target::Tar(target.clone()), Format::Json).unwrap();
        sink.write(&kind("x", "things"), "a", &json!({"a": 1})).unwrap();
        sink.finish().unwrap();
        let mut archive = tar::Archive::new(File::open(&target).unwrap());
        let paths: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().into_owned())
            .collect();
        assert_eq!(paths, [PathBuf::from("things.x/a.json")]);
    }

    #[test]
    fn streams_are_documents_or_one_list() {
        let objects = [json!({"a": 1}), json!({"b": 2})];
        let write = |format, count: usize| {
            let mut out = Vec::new();
            let mut sink = Sink::open(Target::Stream(&mut out), format).unwrap();
            for object in &objects[..count] {
                sink.write(&kind("", "things"), "a", object).unwrap();
            }
            sink.finish().unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(write(Format::Yaml, 2), "a: 1\n---\nb: 2\n");
        let list: Value = serde_json::from_str(&write(Format::Json, 2)).unwrap();
        assert_eq!(list["items"], json!(objects));
        let none: Value = serde_json::from_str(&write(Format::Json, 0)).unwrap();
        assert_eq!(none["items"], json!([]));
    }
}
