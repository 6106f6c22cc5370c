//! The documents of an image: what they hold, and the choice of a manifest. All of it is pure.
//!
//! Names are those of the OCI image spec; docker's documents are the same but for media types, and `manifest.json`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::ImageError;
use crate::domain::ImageConfig;

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// Layers, but for what stands behind: how they are packed is told from their first bytes, and held by the diff id.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// `sha256:` and 64 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

impl Digest {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where an image layout keeps the blob.
    pub fn path(&self) -> String {
        format!("blobs/{}", self.0.replacen(':', "/", 1))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        let lower_hex = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if digits.len() == 64 && lower_hex {
            return Ok(Self(text));
        }
        let shown: String = text.chars().take(80).collect();
        Err(format!("`{shown}` is not a digest: sha256: and 64 hex digits are wanted"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Index {
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// An entry of docker's `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerEntry {
    pub config: String,
    pub layers: Vec<String>,
}

/// The image's config document.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ImageDocument {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<ConfigDocument>,
    rootfs: RootfsDocument,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RootfsDocument {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigDocument {
    user: String,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: String,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

/// What a descriptor of an index leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    Index(Descriptor),
    Manifest(Descriptor),
}

/// Reads one document, naming it in the error.
pub fn parse<T: DeserializeOwned>(document: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Json { document: document.to_owned(), source })
}

/// This machine's architecture in the words of the OCI specs (which are Go's).
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Chooses the one descriptor of an index that is for this machine.
pub fn choose(document: &str, index: &Index, architecture: &str) -> Result<Choice, ImageError> {
    let fits = |entry: &&Descriptor| {
        entry.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == architecture)
    };
    let known = |entry: &&Descriptor| kind_of(entry).is_some();
    let images = || index.manifests.iter().filter(known);
    let fitting: Vec<&Descriptor> = images().filter(fits).collect();
    // One that says what it is for goes before one that says nothing.
    let exact: Vec<&Descriptor> = fitting.iter().copied().filter(|entry| entry.platform.is_some()).collect();
    let candidates = if exact.is_empty() { fitting } else { exact };
    let mut candidates = candidates.into_iter();
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => kind_of(only).ok_or_else(|| no_image(document)),
        (Some(first), Some(second)) if first.digest == second.digest => {
            kind_of(first).ok_or_else(|| no_image(document))
        }
        (Some(_), Some(_)) => {
            let problem = "it holds several images; save one of them alone".to_owned();
            Err(ImageError::Document { document: document.to_owned(), problem })
        }
        (None, _) if images().next().is_none() => Err(no_image(document)),
        (None, _) => {
            let platforms = images().filter_map(|entry| entry.platform.as_ref());
            let found: Vec<String> = platforms.take(8).map(|p| format!("{}/{}", p.os, p.architecture)).collect();
            Err(ImageError::Platform { wanted: format!("linux/{architecture}"), found: found.join(", ") })
        }
    }
}

fn kind_of(entry: &Descriptor) -> Option<Choice> {
    let media_type = entry.media_type.as_str();
    if INDEX_TYPES.contains(&media_type) {
        Some(Choice::Index(entry.clone()))
    } else if MANIFEST_TYPES.contains(&media_type) {
        Some(Choice::Manifest(entry.clone()))
    } else {
        None
    }
}

fn no_image(document: &str) -> ImageError {
    ImageError::Document { document: document.to_owned(), problem: "it names no image manifest".to_owned() }
}

/// Whether a layer's media type is one that is a tar, packed or not.
pub fn check_layer_type(layer: &Descriptor) -> Result<(), ImageError> {
    let known = LAYER_TYPES.iter().any(|known| {
        let rest = layer.media_type.strip_prefix(known);
        matches!(rest, Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
    });
    if known {
        return Ok(());
    }
    let media_type: String = layer.media_type.chars().take(128).collect();
    Err(ImageError::Unsupported(format!("layer {} is of the type `{media_type}`, which is no tar layer", layer.digest)))
}

impl ImageDocument {
    /// The layers' digests once unpacked, if there are as many as layers and the image is for this machine.
    pub fn diff_ids(&self, document: &str, layers: usize) -> Result<&[Digest], ImageError> {
        let foreign = |wanted: &str, found: &str| !found.is_empty() && found != wanted;
        if foreign("linux", &self.os) || foreign(architecture(), &self.architecture) {
            let wanted = format!("linux/{}", architecture());
            return Err(ImageError::Platform { wanted, found: format!("{}/{}", self.os, self.architecture) });
        }
        if self.rootfs.diff_ids.len() == layers {
            return Ok(&self.rootfs.diff_ids);
        }
        let problem = format!("it has {} diff_ids for {layers} layers", self.rootfs.diff_ids.len());
        Err(ImageError::Document { document: document.to_owned(), problem })
    }

    /// How to run the image; the user is not resolved yet.
    pub fn config(&self) -> ImageConfig {
        let config = self.config.clone().unwrap_or_default();
        ImageConfig {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            user: config.user,
            ids: crate::domain::UserIds::default(),
            working_dir: config.working_dir,
            exposed_ports: config.exposed_ports.unwrap_or_default().into_keys().collect(),
            stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
            labels: config.labels.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(digit: char, platform: Option<(&str, &str)>) -> Descriptor {
        Descriptor {
            media_type: MANIFEST_TYPES[0].into(),
            digest: Digest(format!("sha256:{}", digit.to_string().repeat(64))),
            size: 1,
            platform: platform.map(|(os, arch)| Platform { architecture: arch.into(), os: os.into() }),
        }
    }

    fn chosen(manifests: Vec<Descriptor>) -> Result<Choice, ImageError> {
        choose("index.json", &Index { manifests }, "amd64")
    }

    #[test]
    fn the_manifest_for_this_machine_is_chosen() {
        let amd64 = entry('a', Some(("linux", "amd64")));
        let attestation = entry('c', Some(("unknown", "unknown")));
        let arm64 = entry('b', Some(("linux", "arm64")));
        let all = vec![arm64.clone(), attestation, amd64.clone(), entry('d', None)];
        assert_eq!(chosen(all).unwrap(), Choice::Manifest(amd64));
        assert_eq!(chosen(vec![entry('d', None)]).unwrap(), Choice::Manifest(entry('d', None)));
        let wrong = chosen(vec![arm64]).unwrap_err();
        assert_eq!(wrong.to_string(), "the image is for linux/arm64, and this machine is linux/amd64");
    }

    #[test]
    fn several_images_or_none_are_refused() {
        assert!(matches!(chosen(vec![entry('a', None), entry('b', None)]), Err(ImageError::Document { .. })));
        assert!(matches!(chosen(vec![]), Err(ImageError::Document { .. })));
        assert!(chosen(vec![entry('a', None), entry('a', None)]).is_ok(), "one image of two names");
        let other = Descriptor { media_type: "application/x-helm".into(), ..entry('a', None) };
        assert!(matches!(chosen(vec![other]), Err(ImageError::Document { .. })));
    }

    #[test]
    fn a_digest_cannot_name_another_path() {
        for text in ["", "sha256:", "sha256:../../../../etc/passwd", "sha512:00", &format!("sha256:{}", "A".repeat(64))]
        {
            assert!(Digest::try_from(text.to_owned()).is_err(), "{text}");
        }
        let digest = Digest::try_from(format!("sha256:{}", "ab".repeat(32))).unwrap();
        assert_eq!(digest.path(), format!("blobs/sha256/{}", "ab".repeat(32)));
    }

    #[test]
    fn layer_types_are_told_from_others() {
        let layer = |media_type: &str| Descriptor { media_type: media_type.into(), ..entry('a', None) };
        for good in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            check_layer_type(&layer(good)).unwrap();
        }
        for bad in ["", "application/vnd.oci.image.layer.v1.tar+encrypted", "text/plain"] {
            assert!(check_layer_type(&layer(bad)).is_err(), "{bad}");
        }
    }
}
