//! `tenantry image`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use futures_util::{Stream, StreamExt};
use indicatif::ProgressBar;
use reqwest::{Body, Method, Response};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::client::refusal;
use super::events::Events;
use super::failure::Failure;
use super::output::{bytes, cell, time};
use super::{Context, resolve};

/// Bytes read and sent at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks of a folder's archive that wait to be sent.
const CHUNKS_WAITING_MAX: usize = 4;

/// Images.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Import an image: a rootfs tar, an OCI layout or a docker archive, plain or compressed; or an OCI layout's folder
    #[command(
        after_help = "Examples:\n  tenantry image import rootfs.tar.gz --name crm\n  tenantry image import ./oci-layout --name crm:2"
    )]
    Import {
        /// The archive, or the folder
        source: PathBuf,
        /// What containers will name it by
        #[arg(long)]
        name: String,
    },
    /// List images
    #[command(visible_alias = "ls", after_help = "Example:\n  tenantry image list")]
    List,
    /// Delete an image
    #[command(visible_alias = "rm", after_help = "Example:\n  tenantry image delete crm")]
    Delete {
        /// Name or id
        image: String,
    },
}

const FIELDS: [&str; 6] = ["id", "name", "digest", "size", "config", "created_at"];

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let (client, out) = (&context.client, context.out);
    match command {
        Command::Import { source, name } => out.one(&import(context, &source, &name).await?, &FIELDS)?,
        Command::List => {
            let images = client.list("/images", "images", &[]).await?;
            out.list(
                "images",
                images,
                &[
                    ("NAME", |one| cell(&one["name"])),
                    ("ID", |one| cell(&one["id"])),
                    ("SIZE", |one| bytes(&one["size"])),
                    ("CREATED", |one| time(&one["created_at"])),
                ],
            )?;
        }
        Command::Delete { image } => {
            let id = resolve::image(context, &image).await?;
            out.one(&client.send(client.request(Method::DELETE, &format!("/images/{id}"))).await?, &["id"])?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What an import reads, and its size where that is known beforehand.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(u64),
    Folder,
}

fn source(path: &Path) -> Result<Source, Failure> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() && path.join("oci-layout").is_file() => Ok(Source::Folder),
        Ok(found) if found.is_dir() => Err(Failure::Usage(format!(
            "{} holds no OCI image layout (no file `oci-layout`); of a root filesystem's folder make a tar first",
            path.display()
        ))),
        Ok(found) if found.is_file() => Ok(Source::File(found.len())),
        Ok(_) => Err(Failure::Usage(format!("{} is neither a file nor a folder", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::Usage(format!(
            "there is no file or folder `{}`; registries are not spoken to yet: pull the image with another tool and save it to a file",
            path.display()
        ))),
        Err(error) => Err(Failure::Usage(format!("cannot read {}: {error}", path.display()))),
    }
}

async fn import(context: &Context, path: &Path, name: &str) -> anyhow::Result<Value> {
    let source = source(path)?;
    // Asked first: a refusal in the middle of an upload would only be seen as a broken connection.
    context.client.get("/images?limit=1").await?;
    let size = match source {
        Source::File(size) => Some(size),
        Source::Folder => None,
    };
    let bar = context.out.bar(size);
    bar.set_message("upload");
    let body = match source {
        Source::File(_) => {
            let file = tokio::fs::File::open(path).await.with_context(|| format!("cannot read {}", path.display()))?;
            Body::wrap_stream(counted(ReaderStream::with_capacity(file, CHUNK_BYTES), bar.clone()))
        }
        Source::Folder => Body::wrap_stream(counted(archive(path.to_owned()), bar.clone())),
    };
    let mut request = context.client.request(Method::POST, "/images").query(&[("name", name)]).body(body);
    request = request.header("accept", "text/event-stream").header("content-type", "application/octet-stream");
    if let Some(size) = size {
        request = request.header("content-length", size);
    }
    let response = context.client.send_raw(request).await?;
    let outcome = follow(response, &bar).await;
    bar.finish_and_clear();
    outcome
}

fn counted<T: AsRef<[u8]>>(
    chunks: impl Stream<Item = io::Result<T>>,
    bar: ProgressBar,
) -> impl Stream<Item = io::Result<T>> {
    chunks.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            bar.inc(chunk.as_ref().len() as u64);
        }
    })
}

/// Hands what is written on as chunks; the reader's end going away is an error of the writer.
struct Chunks(mpsc::Sender<io::Result<Vec<u8>>>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(Ok(bytes.to_vec())).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A folder as a tar, made while it is sent. An error breaks the upload off, so that no half of one is taken for a whole.
fn archive(folder: PathBuf) -> impl Stream<Item = io::Result<Vec<u8>>> {
    let (send, receive) = mpsc::channel(CHUNKS_WAITING_MAX);
    tokio::task::spawn_blocking(move || {
        let buffered = io::BufWriter::with_capacity(CHUNK_BYTES, Chunks(send.clone()));
        let mut tar = tar::Builder::new(buffered);
        tar.follow_symlinks(false);
        let written =
            tar.append_dir_all(".", &folder).and_then(|()| tar.into_inner()).and_then(|mut rest| rest.flush());
        if let Err(error) = written {
            let text = format!("cannot archive {}: {error}", folder.display());
            let _ = send.blocking_send(Err(io::Error::new(error.kind(), text)));
        }
    });
    futures_util::stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) })
}

/// Reads the events of an import until its `done` or `error`.
async fn follow(response: Response, bar: &ProgressBar) -> anyhow::Result<Value> {
    let mut chunks = response.bytes_stream();
    let mut events = Events::default();
    while let Some(chunk) = chunks.next().await {
        events.push(&chunk.context("the progress of the import broke off")?);
        while let Some((kind, data)) = events.next()? {
            match kind.as_str() {
                "done" => {
                    let mut answer: Value = serde_json::from_str(&data).context("the daemon's answer is not JSON")?;
                    return Ok(answer["data"].take());
                }
                "error" => return Err(refusal(0, &data).into()),
                "progress" => show(bar, &serde_json::from_str(&data).unwrap_or_default()),
                _ => {}
            }
        }
    }
    anyhow::bail!("the daemon ended before the import did")
}

fn show(bar: &ProgressBar, progress: &Value) {
    bar.set_message(cell(&progress["step"]));
    if let Some(total) = progress["total"].as_u64() {
        bar.set_length(total);
    }
    bar.set_position(progress["done"].as_u64().unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_file_or_a_folder_and_no_registry() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.tar");
        std::fs::write(&file, "abc").unwrap();
        assert_eq!(source(&file).unwrap(), Source::File(3));
        let error = source(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no OCI image layout"), "{error}");
        std::fs::write(folder.path().join("oci-layout"), "{}").unwrap();
        assert_eq!(source(folder.path()).unwrap(), Source::Folder);
        let error = source(Path::new("docker.io/library/nginx:1")).unwrap_err();
        assert!(error.to_string().contains("registries are not spoken to yet"));
    }

    #[tokio::test]
    async fn a_folder_is_sent_as_an_archive_of_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("blobs")).unwrap();
        std::fs::write(folder.path().join("blobs/x"), vec![7; 600_000]).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        let chunks: Vec<_> = archive(folder.path().to_owned()).collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.unwrap()).collect();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().display().to_string(), entry.size(), entry.header().entry_type().is_symlink())
            })
            .collect();
        found.sort();
        let names: Vec<_> =
            found.iter().map(|(name, ..)| name.trim_start_matches("./").trim_end_matches('/')).collect();
        assert_eq!(names, ["", "blobs", "blobs/x", "link"]);
        assert!(found.iter().any(|(_, size, _)| *size == 600_000) && found.iter().any(|(.., link)| *link));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_read_breaks_the_upload_off() {
        let chunks: Vec<_> = archive("/nonexistent/folder".into()).collect().await;
        assert!(chunks.last().unwrap().is_err());
    }
}
