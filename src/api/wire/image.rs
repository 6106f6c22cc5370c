//! Images on the wire.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::error::ApiError;
use crate::api::page::Pagination;
use crate::domain::Image;
use crate::lifecycle::ImportProgress;

/// Characters of an image's name, at most.
const IMAGE_NAME_CHARS_MAX: usize = 128;

/// An image.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ImageView {
    /// Its id.
    pub id: String,
    /// What containers name it by.
    pub name: String,
    /// `sha256:` of what it was imported from.
    pub digest: String,
    /// Bytes of its files.
    pub size: u64,
    /// How to run it.
    pub config: ImageConfigView,
    /// When it was imported.
    pub created_at: Timestamp,
    /// What of the archive was left out at its import; empty later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What an image says about running it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ImageConfigView {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the command where there is no entrypoint.
    pub cmd: Vec<String>,
    /// `KEY=value` texts.
    pub env: Vec<String>,
    /// Empty: root.
    pub user: String,
    /// Empty: `/`.
    pub working_dir: String,
    /// Ports such as `8080/tcp`.
    pub exposed_ports: Vec<String>,
}

impl From<&Image> for ImageView {
    fn from(image: &Image) -> Self {
        let config = image.config.clone();
        Self {
            id: image.id.to_string(),
            name: image.name.clone(),
            digest: image.digest.clone(),
            size: image.size.0,
            config: ImageConfigView {
                entrypoint: config.entrypoint,
                cmd: config.cmd,
                env: config.env,
                user: config.user,
                working_dir: config.working_dir,
                exposed_ports: config.exposed_ports,
            },
            created_at: image.created_at,
            warnings: Vec::new(),
        }
    }
}

/// A page of images.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageList {
    /// The images.
    pub images: Vec<ImageView>,
    /// Where they stand.
    pub pagination: Pagination,
}

/// How far an import has come: an SSE event's data.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProgressView {
    /// What is being done.
    pub step: String,
    /// Bytes read.
    pub done: u64,
    /// Bytes to read, where known.
    pub total: Option<u64>,
}

impl From<&ImportProgress> for ProgressView {
    fn from(progress: &ImportProgress) -> Self {
        Self { step: progress.step.clone(), done: progress.done.0, total: progress.total.map(|bytes| bytes.0) }
    }
}

/// Checks the name of an image to be imported: a letter or digit, then also `. _ - / :`.
///
/// # Errors
/// Another name.
pub fn image_name(text: String) -> Result<String, ApiError> {
    let fits = (1..=IMAGE_NAME_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if fits {
        Ok(text)
    } else {
        Err(crate::api::extract::wrong(
            "name",
            "1 to 128 of A-Z, a-z, 0-9, . _ - / and : are wanted, a letter or digit first",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_keep_to_their_alphabet() {
        for good in ["base", "crm-template", "org/app:1.2"] {
            assert!(image_name(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "-x", "/etc", "../x", "a b", "é", &"x".repeat(129)] {
            assert_eq!(image_name(bad.to_owned()).unwrap_err().field(), Some("name"), "{bad}");
        }
    }
}
