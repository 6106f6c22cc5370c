//! An import from one end to the other. Nothing here decides what a member may do; see [`super::layer`].

use std::io::Read;
use std::path::Path;

use super::error::{ImageError, io_error};
use super::inside::Inside;
use super::layer::Unpacker;
use super::oci::{self, Choice, Descriptor, DockerEntry, ImageDocument, Index, Manifest};
use super::source::{self, Source, Store, Stretch, digest_of};
use super::stream::{Hashed, MAGIC_BYTES, Packing, Told};
use super::tarball::{TarError, TarReader};
use super::{INDEX_DEPTH_MAX, ImageLimits, Progress, Step, Unpacked};
use crate::domain::{Bytes, ImageConfig, UserIds};

/// Bytes of the image's `/etc/passwd` and `/etc/group` that are read.
const PASSWD_BYTES_MAX: u64 = 4 << 20;

/// One layer to unpack.
#[derive(Debug)]
struct Layer {
    /// Its name in the store.
    name: String,
    /// How it is called in errors.
    shown: String,
    /// Digest and size as stored, where they are known.
    stored: Option<Descriptor>,
    /// Digest as unpacked.
    diff_id: String,
}

/// Unpacks the image in `source` (a file or a folder) into `rootfs`, an empty subvolume. Blocking; for minutes, with a large image.
///
/// # Errors
/// The image is damaged, hostile, for another machine, or past a bound; or the pool is full. The rootfs then holds a part of
/// it: the caller deletes the subvolume.
pub fn unpack(
    source: &Path,
    rootfs: &Path,
    limits: &ImageLimits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked, ImageError> {
    let inside = Inside::open(rootfs).map_err(|e| io_error("open", rootfs, e))?;
    let tell = &mut |read, total| progress(Progress { step: Step::Inspect, read, total });
    let unpacked = match source::open(source, limits, tell)? {
        Source::Layout(store) => {
            let descriptor = find_manifest(&store)?;
            let manifest: Manifest = store.blob(&descriptor.digest, descriptor.size)?;
            let document: ImageDocument = store.blob(&manifest.config.digest, manifest.config.size)?;
            let layers = oci_layers(&manifest, &document, limits)?;
            unpack_layers(&inside, &store, &layers, &document, descriptor.digest.to_string(), limits, progress)
        }
        Source::Docker(store) => {
            let (document, digest, names) = docker_image(&store)?;
            let layers = docker_layers(names, &document, limits)?;
            unpack_layers(&inside, &store, &layers, &document, digest, limits, progress)
        }
        Source::Rootfs { file, packing, length } => {
            let tell = &mut |read| {
                progress(Progress { step: Step::Layer { number: 1, of: 1 }, read, total: length });
            };
            let name = source.display().to_string();
            let mut unpacker = Unpacker::new(&inside, limits);
            let mut packed = Hashed::new(Told { inner: Stretch::whole(&file), tell, read: 0 });
            stream_layer(&mut unpacker, &mut packed, packing, &name, false)?;
            let (digest, _) = packed.finish().map_err(|e| io_error("read", source, e))?;
            Ok(finish(unpacker, ImageConfig::default(), digest, 1))
        }
    }?;
    let ids = resolve_user(&inside, &unpacked.config.user)?;
    Ok(Unpacked { config: ImageConfig { ids, ..unpacked.config }, ..unpacked })
}

fn finish(unpacker: Unpacker<'_>, config: ImageConfig, digest: String, layers: usize) -> Unpacked {
    let (size, entries) = (Bytes(unpacker.bytes), unpacker.entries);
    Unpacked { config, digest, size, entries, layers, warnings: unpacker.into_warnings() }
}

/// Follows indexes to the one manifest that is for this machine.
fn find_manifest(store: &Store) -> Result<Descriptor, ImageError> {
    let mut name = "index.json".to_owned();
    let mut index: Index = oci::parse(&name, &store.document(&name)?)?;
    for _ in 0..INDEX_DEPTH_MAX {
        match oci::choose(&name, &index, oci::architecture())? {
            Choice::Manifest(descriptor) => return Ok(descriptor),
            Choice::Index(descriptor) => {
                index = store.blob(&descriptor.digest, descriptor.size)?;
                name = descriptor.digest.to_string();
            }
        }
    }
    Err(ImageError::TooLarge { what: "a depth of nested indexes", member: name, max: INDEX_DEPTH_MAX as u64 })
}

fn check_layer_count(document: &str, count: usize, limits: &ImageLimits) -> Result<(), ImageError> {
    let max = limits.layers as u64;
    let over = || ImageError::TooLarge { what: "a number of layers", member: document.to_owned(), max };
    if count > limits.layers { Err(over()) } else { Ok(()) }
}

fn oci_layers(manifest: &Manifest, document: &ImageDocument, limits: &ImageLimits) -> Result<Vec<Layer>, ImageError> {
    let config = manifest.config.digest.as_str();
    check_layer_count(config, manifest.layers.len(), limits)?;
    let diff_ids = document.diff_ids(config, manifest.layers.len())?;
    let layer = |(descriptor, diff_id): (&Descriptor, &oci::Digest)| {
        oci::check_layer_type(descriptor)?;
        Ok(Layer {
            name: descriptor.digest.path(),
            shown: descriptor.digest.to_string(),
            stored: Some(descriptor.clone()),
            diff_id: diff_id.to_string(),
        })
    };
    manifest.layers.iter().zip(diff_ids).map(layer).collect()
}

/// Config, its digest, and the layers' names of a docker archive.
fn docker_image(store: &Store) -> Result<(ImageDocument, String, Vec<String>), ImageError> {
    let document = "manifest.json";
    let mut entries: Vec<DockerEntry> = oci::parse(document, &store.document(document)?)?;
    let (Some(entry), true) = (entries.pop(), entries.is_empty()) else {
        let problem = "it does not hold exactly one image; save one alone".to_owned();
        return Err(ImageError::Document { document: document.to_owned(), problem });
    };
    let bytes = store.document(&entry.config)?;
    let digest = digest_of(&bytes);
    // `<digest>.json`, or since docker 25 `blobs/sha256/<digest>`.
    let stem = entry.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json").to_owned();
    if stem.len() == 64 && digest != format!("sha256:{stem}") {
        return Err(ImageError::Digest { expected: format!("sha256:{stem}"), found: digest });
    }
    Ok((oci::parse(&entry.config, &bytes)?, digest, entry.layers))
}

/// A docker archive holds no digests of its layers as stored, but the config has those of what they unpack to.
fn docker_layers(names: Vec<String>, image: &ImageDocument, limits: &ImageLimits) -> Result<Vec<Layer>, ImageError> {
    check_layer_count("manifest.json", names.len(), limits)?;
    let diff_ids = image.diff_ids("manifest.json", names.len())?;
    let layer = |(name, diff_id): (String, &oci::Digest)| Layer {
        shown: super::error::shown(name.as_bytes()),
        name,
        stored: None,
        diff_id: diff_id.to_string(),
    };
    Ok(names.into_iter().zip(diff_ids).map(layer).collect())
}

fn unpack_layers(
    inside: &Inside,
    store: &Store,
    layers: &[Layer],
    document: &ImageDocument,
    digest: String,
    limits: &ImageLimits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked, ImageError> {
    let mut total = 0u64;
    for layer in layers {
        let (_, size) = store.open(&layer.name)?;
        if let Some(descriptor) = layer.stored.as_ref().filter(|descriptor| descriptor.size != size) {
            let expected = descriptor.size;
            return Err(ImageError::Size { blob: layer.shown.clone(), expected, found: size });
        }
        total = total.saturating_add(size);
    }
    let mut unpacker = Unpacker::new(inside, limits);
    let mut before = 0;
    for (at, layer) in layers.iter().enumerate() {
        let step = Step::Layer { number: at + 1, of: layers.len() };
        let tell = &mut |read| progress(Progress { step, read: before + read, total });
        before += unpack_layer(&mut unpacker, store, layer, tell)?;
    }
    Ok(finish(unpacker, document.config(), digest, layers.len()))
}

/// Unpacks one layer and holds its digests; how many bytes it has as stored.
fn unpack_layer(
    unpacker: &mut Unpacker<'_>,
    store: &Store,
    layer: &Layer,
    tell: &mut dyn FnMut(u64),
) -> Result<u64, ImageError> {
    let read_error = |e| io_error("read", Path::new(&layer.name), e);
    let mut first = [0; MAGIC_BYTES];
    let filled = read_up_to(&mut store.open(&layer.name)?.0, &mut first).map_err(read_error)?;
    let packing = Packing::of(&first[..filled]);
    if let Packing::Other(name) = packing {
        return Err(ImageError::Unsupported(format!("layer {} is packed with {name}", layer.shown)));
    }
    let (stream, _) = store.open(&layer.name)?;
    let mut packed = Hashed::new(Told { inner: stream, tell, read: 0 });
    let diff_id = stream_layer(unpacker, &mut packed, packing, &layer.shown, true)?;
    let (stored, size) = packed.finish().map_err(read_error)?;
    if let Some(descriptor) = layer.stored.as_ref().filter(|descriptor| descriptor.digest.as_str() != stored) {
        return Err(ImageError::Digest { expected: descriptor.digest.to_string(), found: stored });
    }
    if layer.diff_id != diff_id {
        return Err(ImageError::Digest { expected: layer.diff_id.clone(), found: diff_id });
    }
    Ok(size)
}

/// Unpacks a packed tar stream; the digest of it once unpacked.
fn stream_layer(
    unpacker: &mut Unpacker<'_>,
    packed: impl Read,
    packing: Packing,
    blob: &str,
    whiteouts: bool,
) -> Result<String, ImageError> {
    let damaged = |source| ImageError::Damaged {
        blob: blob.to_owned(),
        member: "its beginning or end".to_owned(),
        source: TarError::Read(source),
    };
    let stream = packing.unpack(packed).map_err(damaged)?;
    let mut tar = TarReader::new(Hashed::new(stream));
    unpacker.apply(&mut tar, blob, whiteouts)?;
    tar.into_inner().finish_bounded().map_err(damaged)
}

fn read_up_to(stream: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn resolve_user(inside: &Inside, user: &str) -> Result<UserIds, ImageError> {
    let text = |path: &'static str| {
        // What a hostile image has there instead of a file counts as nothing: numbers still work.
        let bytes = inside.read(Path::new(path), PASSWD_BYTES_MAX).ok().flatten().unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    UserIds::resolve(user, &text("etc/passwd"), &text("etc/group")).map_err(ImageError::User)
}
