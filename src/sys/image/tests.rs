//! Whole imports: what has to work, and every attack that we know of. Archives are made here, byte by byte where the tar crate
//! would refuse to write what an attacker would.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;
use tar::EntryType;

use super::source::digest_of;
use super::*;

/// One member to write.
struct Entry {
    path: Vec<u8>,
    kind: EntryType,
    link: Vec<u8>,
    data: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    size: Option<u64>,
    xattrs: Vec<(String, Vec<u8>)>,
}

fn entry(path: &str, kind: EntryType) -> Entry {
    let mode = if kind == EntryType::Directory { 0o755 } else { 0o644 };
    let path = path.as_bytes().to_vec();
    Entry { path, kind, link: vec![], data: vec![], mode, owner: (0, 0), size: None, xattrs: vec![] }
}

fn file(path: &str, data: impl AsRef<[u8]>) -> Entry {
    Entry { data: data.as_ref().to_vec(), ..entry(path, EntryType::Regular) }
}

fn dir(path: &str) -> Entry {
    entry(path, EntryType::Directory)
}

fn symlink(path: &str, target: &str) -> Entry {
    Entry { link: target.as_bytes().to_vec(), ..entry(path, EntryType::Symlink) }
}

fn hard_link(path: &str, target: &str) -> Entry {
    Entry { link: target.as_bytes().to_vec(), ..entry(path, EntryType::Link) }
}

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        if !entry.xattrs.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &entry.xattrs {
                let rest = key.len() + value.len() + 3;
                let length = (rest..).find(|length| *length == rest + length.to_string().len()).unwrap();
                records.extend_from_slice(format!("{length} {key}=").as_bytes());
                records.extend_from_slice(value);
                records.push(b'\n');
            }
            push(&mut bytes, b"pax", EntryType::XHeader, b"", &records, records.len() as u64, (0o644, (0, 0)));
        }
        let size = entry.size.unwrap_or(entry.data.len() as u64);
        push(&mut bytes, &entry.path, entry.kind, &entry.link, &entry.data, size, (entry.mode, entry.owner));
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

fn push(
    bytes: &mut Vec<u8>,
    path: &[u8],
    kind: EntryType,
    link: &[u8],
    data: &[u8],
    size: u64,
    (mode, owner): (u32, (u64, u64)),
) {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.0);
    header.set_gid(owner.1);
    header.set_size(size);
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// A folder with an empty rootfs, a place for archives, and files outside that must stay as they are.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("rootfs")).unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/victim"), "untouched").unwrap();
        Self { folder }
    }

    fn rootfs(&self, path: &str) -> PathBuf {
        self.folder.path().join("rootfs").join(path)
    }

    fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.rootfs(path)).unwrap()
    }

    fn unpack_with(&self, bytes: &[u8], limits: &ImageLimits) -> Result<Unpacked, ImageError> {
        let archive = self.folder.path().join("archive");
        fs::write(&archive, bytes).unwrap();
        let answer = unpack(&archive, &self.rootfs(""), limits, &mut |_| {});
        assert_eq!(fs::read_to_string(self.outside().join("victim")).unwrap(), "untouched");
        let mut left: Vec<_> = fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["archive", "outside", "rootfs"], "something appeared beside the rootfs");
        assert_eq!(fs::read_dir(self.outside()).unwrap().count(), 1);
        answer
    }

    fn unpack(&self, bytes: &[u8]) -> Result<Unpacked, ImageError> {
        self.unpack_with(bytes, &ImageLimits::default())
    }

    fn refused(&self, entries: &[Entry]) -> Refusal {
        match self.unpack(&tar_of(entries)) {
            Err(ImageError::Refused { refusal, .. }) => refusal,
            other => panic!("{other:?}"),
        }
    }
}

/// Blobs of an image layout in the making.
#[derive(Default)]
struct Layout {
    blobs: Vec<(String, Vec<u8>)>,
}

impl Layout {
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> serde_json::Value {
        let digest = digest_of(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        self.blobs.push((format!("blobs/{}", digest.replace(':', "/")), bytes));
        descriptor
    }

    /// Adds an image whose layers are these (as stored, as unpacked); its manifest's descriptor.
    fn image(&mut self, config: serde_json::Value, layers: &[(Vec<u8>, Vec<u8>)]) -> serde_json::Value {
        let diff_ids: Vec<_> = layers.iter().map(|(_, unpacked)| digest_of(unpacked)).collect();
        let document = json!({ "architecture": oci::architecture(), "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = self.add("application/vnd.oci.image.config.v1+json", document.to_string().into_bytes());
        let media = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<_> = layers.iter().map(|(stored, _)| self.add(media, stored.clone())).collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.add("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes())
    }

    fn files(&self, manifests: &[serde_json::Value]) -> Vec<(String, Vec<u8>)> {
        let index = json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes();
        let marks =
            [("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()), ("index.json".into(), index)];
        marks.into_iter().chain(self.blobs.iter().cloned()).collect()
    }

    fn tar(&self, manifests: &[serde_json::Value]) -> Vec<u8> {
        tar_of(&self.files(manifests).iter().map(|(path, bytes)| file(path, bytes)).collect::<Vec<_>>())
    }
}

fn two_layers() -> [(Vec<u8>, Vec<u8>); 2] {
    let lower = tar_of(&[
        dir("etc/"),
        file("etc/passwd", "app:x:101:102::/:/bin/sh\n"),
        file("etc/group", "web:x:33:app\n"),
        file("gone", "lower"),
        dir("opaque/"),
        file("opaque/lower", ""),
        dir("opaque/kept/"),
        file("opaque/kept/lower", ""),
        symlink("lib", "usr/lib"),
        dir("usr/lib/"),
    ]);
    let upper = tar_of(&[
        file("opaque/kept/upper", ""),
        entry("opaque/.wh..wh..opq", EntryType::Regular),
        entry(".wh.gone", EntryType::Regular),
        entry(".wh.never-there", EntryType::Regular),
        file("lib/upper.so", "through a link of the lower layer"),
    ]);
    [(gzip(&lower), lower), (zstd_of(&upper), upper)]
}

fn sample_config() -> serde_json::Value {
    json!({ "User": "app", "Env": ["A=b"], "Entrypoint": ["/app"], "Cmd": ["serve"], "WorkingDir": "/srv",
        "ExposedPorts": { "80/tcp": {} }, "Labels": { "k": "v" }, "StopSignal": "SIGINT", "Volumes": null })
}

fn assert_two_layers(bench: &Bench, unpacked: &Unpacked) {
    assert_eq!(bench.text("lib/upper.so"), "through a link of the lower layer");
    assert!(bench.rootfs("usr/lib/upper.so").exists() && bench.rootfs("lib").is_symlink());
    for gone in ["gone", "opaque/lower", "opaque/kept/lower", ".wh.gone", "opaque/.wh..wh..opq"] {
        assert!(!bench.rootfs(gone).exists(), "{gone}");
    }
    assert!(bench.rootfs("opaque/kept/upper").exists());
    let config = &unpacked.config;
    assert_eq!(
        (config.entrypoint.as_slice(), config.cmd.as_slice()),
        (&["/app".to_owned()][..], &["serve".to_owned()][..])
    );
    assert_eq!((config.ids.uid, config.ids.gid, config.ids.additional_gids.as_slice()), (101, 102, &[33][..]));
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("app", "/srv"));
    assert_eq!(
        (config.exposed_ports.as_slice(), config.stop_signal.as_deref()),
        (&["80/tcp".to_owned()][..], Some("SIGINT"))
    );
    assert_eq!((config.labels["k"].as_str(), unpacked.layers), ("v", 2));
}

#[test]
fn an_oci_layout_unpacks_from_a_tar_packed_or_not_and_from_a_folder() {
    let mut layout = Layout::default();
    let manifest = layout.image(sample_config(), &two_layers());
    let tar = layout.tar(std::slice::from_ref(&manifest));
    for bytes in [tar.clone(), gzip(&tar), zstd_of(&tar)] {
        let bench = Bench::new();
        let unpacked = bench.unpack(&bytes).unwrap();
        assert_two_layers(&bench, &unpacked);
        assert_eq!(unpacked.digest, manifest["digest"].as_str().unwrap());
    }
    let (bench, folder) = (Bench::new(), tempfile::tempdir().unwrap());
    for (path, bytes) in layout.files(&[manifest]) {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let mut steps = Vec::new();
    let unpacked = unpack(folder.path(), &bench.rootfs(""), &ImageLimits::default(), &mut |p| steps.push(p)).unwrap();
    assert_two_layers(&bench, &unpacked);
    let last = steps.last().unwrap();
    assert_eq!((last.step, last.read), (Step::Layer { number: 2, of: 2 }, last.total));
}

#[test]
fn an_index_of_many_platforms_and_levels_leads_to_this_machines_image() {
    let mut layout = Layout::default();
    let mut other = layout.image(json!({}), &[]);
    other["platform"] = json!({ "os": "linux", "architecture": "riscv64" });
    let mut ours = layout.image(sample_config(), &two_layers());
    ours["platform"] = json!({ "os": "linux", "architecture": oci::architecture() });
    let mut descriptor = json!(null);
    let mut inner = vec![other, ours];
    for depth in 1..=INDEX_DEPTH_MAX {
        let index = json!({ "schemaVersion": 2, "manifests": inner }).to_string().into_bytes();
        descriptor = layout.add("application/vnd.oci.image.index.v1+json", index);
        inner = vec![descriptor.clone()];
        let bench = Bench::new();
        let unpacked = bench.unpack(&layout.tar(std::slice::from_ref(&descriptor)));
        match unpacked {
            Ok(unpacked) => assert_two_layers(&bench, &unpacked),
            Err(error) => assert!(depth == INDEX_DEPTH_MAX && matches!(error, ImageError::TooLarge { .. }), "{error}"),
        }
    }
    assert!(descriptor.is_object());
}

#[test]
fn a_docker_archive_unpacks_old_links_between_layers_too() {
    let [(_, lower), (_, upper)] = two_layers();
    let empty = tar_of(&[]);
    let diff_ids = [digest_of(&lower), digest_of(&empty), digest_of(&empty), digest_of(&upper)];
    let document = json!({ "architecture": oci::architecture(), "os": "linux", "config": sample_config(),
        "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = document.to_string();
    let digest = digest_of(config.as_bytes());
    let name = format!("{}.json", digest.trim_start_matches("sha256:"));
    let layers = ["a/layer.tar", "b/layer.tar", "c/layer.tar", "d/layer.tar"];
    let manifest = json!([{ "Config": name, "RepoTags": ["x:1"], "Layers": layers }]);
    let entries = [
        file("a/layer.tar", &lower),
        file("b/layer.tar", &empty),
        symlink("c/layer.tar", "../b/layer.tar"),
        file("d/layer.tar", &upper),
        file(&name, &config),
        file("manifest.json", manifest.to_string()),
    ];
    let bench = Bench::new();
    let unpacked = bench.unpack(&gzip(&tar_of(&entries))).unwrap();
    assert_eq!((unpacked.layers, unpacked.digest.as_str()), (4, digest.as_str()));
    assert_two_layers(&bench, &Unpacked { layers: 2, ..unpacked });
}

#[test]
fn a_rootfs_tar_keeps_owners_modes_links_fifos_times_and_xattrs() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattrs = vec![
        ("SCHILY.xattr.user.note".into(), b"line\nline".to_vec()),
        ("SCHILY.xattr.security.capability".into(), capability.to_vec()),
        ("SCHILY.xattr.trusted.overlay.opaque".into(), b"y".to_vec()),
    ];
    let entries = [
        Entry { mode: 0o750, owner: (7, 8), ..dir("./") },
        Entry { mode: 0o1777, ..dir("./tmp/") },
        Entry { mode: 0o4755, owner: (0, 42), xattrs, ..file("./bin/tool", "tool") },
        hard_link("./bin/same", "./bin/tool"),
        hard_link("./bin/again", "/bin/tool"),
        Entry { owner: (65_535, 65_535), ..symlink("./link", "/nowhere/at/all") },
        Entry { mode: 0o620, ..entry("./fifo", EntryType::Fifo) },
        file("/absolute", "inside"),
        entry("./dev/sda", EntryType::Block),
        entry("./dev/null", EntryType::Char),
        file("./.wh.literal", "a rootfs has no whiteouts"),
    ];
    let bench = Bench::new();
    let unpacked = bench.unpack(&zstd_of(&tar_of(&entries))).unwrap();
    let meta = |path: &str| fs::symlink_metadata(bench.rootfs(path)).unwrap();
    let mode = |path: &str| meta(path).permissions().mode() & 0o7777;
    assert_eq!((mode(""), meta("").uid(), meta("").gid()), (0o750, 7, 8));
    assert_eq!((mode("tmp"), mode("bin/tool"), mode("fifo")), (0o1777, 0o4755, 0o620));
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!((meta("bin/tool").gid(), meta("bin/tool").mtime(), meta("bin/tool").nlink()), (42, 1_000_000_000, 3));
    assert_eq!(meta("link").uid(), 65_535);
    assert_eq!(fs::read_link(bench.rootfs("link")).unwrap(), Path::new("/nowhere/at/all"));
    let xattr = |name: &str| xattr::get(bench.rootfs("bin/tool"), name).unwrap();
    assert_eq!(xattr("user.note").unwrap(), b"line\nline");
    assert_eq!(xattr("security.capability").unwrap(), capability);
    assert_eq!(xattr("trusted.overlay.opaque"), None);
    assert_eq!((bench.text("absolute"), bench.text(".wh.literal").len()), ("inside".into(), 25));
    assert!(!bench.rootfs("dev/sda").exists() && !bench.rootfs("dev/null").exists());
    assert_eq!(unpacked.warnings.len(), 3, "{:?}", unpacked.warnings);
    assert!(unpacked.warnings[1].contains("dev/sda"));
}

#[test]
fn sparse_files_and_long_names_of_gnu_tar_come_out_as_they_went_in() {
    use std::os::unix::fs::FileExt;
    let from = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    fs::create_dir(from.path().join("d".repeat(200))).unwrap();
    let sparse = fs::File::create(from.path().join(&long)).unwrap();
    sparse.write_all_at(b"begin", 1 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    for options in [["--format=gnu", "-S"], ["--format=posix", "-S"]] {
        let mut tar = std::process::Command::new("tar");
        let output = tar.args(options).arg("-C").arg(from.path()).args(["-cf", "-", "."]).output().unwrap();
        let bench = Bench::new();
        bench.unpack(&output.stdout).unwrap();
        let meta = fs::metadata(bench.rootfs(&long)).unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "the holes are holes again");
        assert_eq!(fs::read(bench.rootfs(&long)).unwrap(), fs::read(from.path().join(&long)).unwrap());
    }
}

#[test]
fn no_path_leads_out_by_dots() {
    for path in ["../victim", "a/../../victim", "a/..", "..", "/../victim"] {
        assert_eq!(Bench::new().refused(&[file(path, "owned")]), Refusal::DotDot, "{path}");
        assert_eq!(Bench::new().refused(&[file("f", ""), hard_link("l", path)]), Refusal::DotDot, "{path}");
    }
    let pax = Entry { xattrs: vec![("path".into(), b"../outside/victim".to_vec())], ..file("fine", "owned") };
    assert_eq!(Bench::new().refused(&[pax]), Refusal::DotDot);
    let nul = Entry { xattrs: vec![("path".into(), b"a\0b".to_vec())], ..file("fine", "") };
    assert_eq!(Bench::new().refused(&[nul]), Refusal::NulByte);
}

#[test]
fn no_path_leads_out_by_a_link() {
    let bench = Bench::new();
    let outside = bench.outside();
    for target in [outside.to_str().unwrap(), "../outside", "../../../../../../../../../outside"] {
        // Written through the link, linked to through it, removed through it: each stays inside.
        let bench = Bench::new();
        let written = bench.unpack(&tar_of(&[symlink("out", target), file("out/victim", "owned")]));
        assert!(written.is_err() || !bench.rootfs("out").exists() || bench.rootfs("out").is_symlink());
        let bench = Bench::new();
        let linked = [symlink("out", target), hard_link("mine", "out/victim")];
        assert_eq!(bench.refused(&linked), Refusal::HardLinkTarget, "{target}");
        // A file in the place of the link replaces the link.
        let bench = Bench::new();
        let target = format!("{target}/victim");
        bench.unpack(&tar_of(&[symlink("victim", &target), file("victim", "mine")])).unwrap();
        assert_eq!(bench.text("victim"), "mine");
        // A hard link to a link is the link itself, and writing to it replaces it.
        let bench = Bench::new();
        let entries = [symlink("a", &target), hard_link("b", "a"), file("b", "mine")];
        bench.unpack(&tar_of(&entries)).unwrap();
        assert!(bench.rootfs("a").is_symlink() && !bench.rootfs("b").is_symlink());
        // A folder in its place replaces it too.
        let bench = Bench::new();
        bench.unpack(&tar_of(&[symlink("d", "../outside"), dir("d/"), file("d/new", "")])).unwrap();
        assert!(bench.rootfs("d/new").exists());
    }
}

#[test]
fn no_whiteout_leads_out() {
    let image = |entries: &[Entry]| {
        let mut layout = Layout::default();
        let lower = tar_of(&[symlink("out", "../outside"), dir("keep/"), file("keep/file", "")]);
        let upper = tar_of(entries);
        let manifest = layout.image(json!({}), &[(gzip(&lower), lower.clone()), (gzip(&upper), upper.clone())]);
        layout.tar(&[manifest])
    };
    for name in [".wh...", ".wh..", ".wh.", "keep/.wh..."] {
        let answer = Bench::new().unpack(&image(&[entry(name, EntryType::Regular)]));
        assert!(matches!(answer, Err(ImageError::Refused { refusal: Refusal::Whiteout, .. })), "{name}: {answer:?}");
    }
    // Through a link: inside, there is nothing to remove; `Bench::unpack` looks at the victim.
    for name in ["out/.wh.victim", "out/.wh..wh..opq"] {
        let bench = Bench::new();
        bench.unpack(&image(&[entry(name, EntryType::Regular)])).unwrap();
        assert!(bench.rootfs("keep/file").exists());
    }
    // A whiteout of the link removes the link alone.
    let bench = Bench::new();
    bench.unpack(&image(&[entry(".wh.out", EntryType::Regular)])).unwrap();
    assert!(!bench.rootfs("out").is_symlink());
    // At the root, opaque hides all of the lower layers and nothing of its own.
    let bench = Bench::new();
    bench.unpack(&image(&[file("keep/own", ""), entry(".wh..wh..opq", EntryType::Regular)])).unwrap();
    assert!(bench.rootfs("keep/own").exists() && !bench.rootfs("keep/file").exists());
}

#[test]
fn the_last_of_duplicate_members_counts_whatever_it_is() {
    let bench = Bench::new();
    let entries = [
        file("a", "1"),
        file("a", "2"),
        dir("b/"),
        file("b/in", ""),
        file("b", "file"),
        file("c", ""),
        dir("c/"),
        dir("d/"),
        file("d/kept", ""),
        Entry { mode: 0o700, ..dir("d/") },
        file("e", "e"),
        hard_link("e", "e"),
    ];
    bench.unpack(&tar_of(&entries)).unwrap();
    assert_eq!((bench.text("a"), bench.text("b"), bench.text("e")), ("2".into(), "file".into(), "e".into()));
    assert!(bench.rootfs("c").is_dir() && bench.rootfs("d/kept").exists());
    assert_eq!(fs::metadata(bench.rootfs("d")).unwrap().permissions().mode() & 0o777, 0o700);
    // A hard link whose way is made by removing its own target.
    let lost = [dir("x/"), file("x/target", ""), hard_link("x", "x/target")];
    assert_eq!(Bench::new().refused(&lost), Refusal::HardLinkTarget);
}

#[test]
fn other_bad_members_are_refused_by_name() {
    let refused = |entry: Entry| Bench::new().refused(&[entry]);
    assert_eq!(refused(Entry { owner: (65_536, 0), ..file("f", "") }), Refusal::Owner);
    assert_eq!(refused(Entry { owner: (0, 1_000_000_000), ..file("f", "") }), Refusal::Owner);
    assert_eq!(refused(file(".", "")), Refusal::Root);
    assert_eq!(refused(hard_link("l", "not/there")), Refusal::HardLinkTarget);
    assert_eq!(refused(hard_link("l", ".")), Refusal::HardLinkTarget);
    assert_eq!(refused(symlink("l", "")), Refusal::LinkTarget);
    let long = Entry { xattrs: vec![("path".into(), vec![b'n'; 256])], ..file("f", "") };
    assert_eq!(refused(long), Refusal::PathTooLong);
    let deep = Entry { xattrs: vec![("path".into(), b"n/".repeat(2100))], ..file("f", "") };
    assert_eq!(refused(deep), Refusal::PathTooLong);
    let answer = Bench::new().unpack(&tar_of(&[Entry { owner: (70_000, 0), ..file("etc/x", "") }]));
    assert_eq!(
        answer.unwrap_err().to_string(),
        "`etc/x` is refused: its owner is above 65535, which a container's user namespace does not map"
    );
}

#[test]
fn what_is_cut_off_or_damaged_is_an_error() {
    let tar = tar_of(&[file("a", vec![b'x'; 5000]), file("b", "b")]);
    let packed = [gzip(&tar), zstd_of(&tar), tar.clone()];
    for whole in packed {
        for cut in [10, whole.len() / 2, whole.len() - 9] {
            let answer = Bench::new().unpack(&whole[..cut]);
            assert!(
                match &answer {
                    Err(ImageError::Damaged { .. }) => true,
                    // Ten bytes of a tar do not say what they were the beginning of.
                    Err(ImageError::Unsupported(_)) => whole == tar && cut == 10,
                    _ => whole == tar && cut > 7000,
                },
                "{cut}: {answer:?}"
            );
        }
    }
    let mut flipped = tar;
    flipped[3] ^= 1;
    assert!(matches!(Bench::new().unpack(&flipped), Err(ImageError::Damaged { .. })), "a checksum is wrong");
    assert!(matches!(Bench::new().unpack(b""), Err(ImageError::Damaged { .. })));
    assert!(matches!(Bench::new().unpack(b"\xfd7zXZ\0..."), Err(ImageError::Unsupported(_))));
}

#[test]
fn huge_claims_are_refused_before_anything_is_read() {
    let claims = |size: u64| tar_of(&[Entry { size: Some(size), ..file("huge", "") }]);
    for size in [40 << 30, u64::MAX / 2, u64::MAX] {
        let answer = Bench::new().unpack(&claims(size));
        assert!(matches!(answer, Err(ImageError::TooLarge { .. } | ImageError::Damaged { .. })), "{size}: {answer:?}");
    }
    let limits = ImageLimits { unpacked: Bytes(1000), entries: 5, layers: 1 };
    let bench = Bench::new();
    let parts = tar_of(&[file("a", [0; 600]), file("b", [0; 600])]);
    let answer = bench.unpack_with(&gzip(&parts), &limits);
    assert!(matches!(&answer, Err(ImageError::TooLarge { member, max: 1000, .. }) if member == "b"), "{answer:?}");
    let many: Vec<_> = (0..6).map(|n| file(&format!("f{n}"), "")).collect();
    let answer = Bench::new().unpack_with(&tar_of(&many), &limits);
    assert!(matches!(answer, Err(ImageError::TooLarge { max: 5, .. })), "{answer:?}");
    let mut layout = Layout::default();
    let manifest = layout.image(json!({}), &two_layers());
    let limits = ImageLimits { layers: 1, ..ImageLimits::default() };
    let answer = Bench::new().unpack_with(&layout.tar(&[manifest]), &limits);
    assert!(matches!(answer, Err(ImageError::TooLarge { max: 1, .. })), "{answer:?}");
    // A small file that unpacks to a long PAX header.
    let mut bomb = Vec::new();
    push(&mut bomb, b"pax", EntryType::XHeader, b"", &[], 2 << 20, (0, (0, 0)));
    bomb.resize(3 << 20, b'x');
    assert!(matches!(Bench::new().unpack(&gzip(&bomb)), Err(ImageError::Damaged { .. })));
}

#[test]
fn a_wrong_digest_or_size_is_told_for_every_kind_of_blob() {
    let build = || {
        let mut layout = Layout::default();
        let manifest = layout.image(sample_config(), &two_layers());
        (layout, manifest)
    };
    // Blobs in the order of `Layout::image`: config, two layers, manifest.
    for blob in 0..4 {
        let (mut layout, manifest) = build();
        let last = layout.blobs[blob].1.len() - 1;
        layout.blobs[blob].1[last] ^= 1;
        let answer = Bench::new().unpack(&layout.tar(std::slice::from_ref(&manifest)));
        let expected = matches!(answer, Err(ImageError::Digest { .. } | ImageError::Damaged { .. }));
        assert!(expected, "blob {blob}: {answer:?}");
        let (mut layout, manifest) = build();
        layout.blobs[blob].1.push(b'\n');
        let answer = Bench::new().unpack(&layout.tar(std::slice::from_ref(&manifest)));
        assert!(matches!(answer, Err(ImageError::Size { .. })), "blob {blob}: {answer:?}");
        let (mut layout, manifest) = build();
        layout.blobs.remove(blob);
        let answer = Bench::new().unpack(&layout.tar(&[manifest]));
        assert!(matches!(answer, Err(ImageError::Missing(_))), "blob {blob}: {answer:?}");
    }
    let mut layout = Layout::default();
    let [(stored, unpacked), (other, _)] = two_layers();
    let manifest = layout.image(json!({}), &[(stored, unpacked.clone()), (other, unpacked)]);
    let answer = Bench::new().unpack(&layout.tar(&[manifest]));
    assert!(matches!(answer, Err(ImageError::Digest { .. })), "the diff id is another layer's: {answer:?}");
}

#[test]
fn images_for_other_machines_and_users_that_are_not_there_are_refused() {
    let mut layout = Layout::default();
    let manifest = layout.image(json!({ "User": "nobody" }), &[]);
    let answer = Bench::new().unpack(&layout.tar(&[manifest]));
    assert!(matches!(answer, Err(ImageError::User(_))), "{answer:?}");
    let mut layout = Layout::default();
    let document = json!({ "architecture": "mips", "os": "linux", "rootfs": { "diff_ids": [] } });
    let config = layout.add("application/vnd.oci.image.config.v1+json", document.to_string().into_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [] }).to_string();
    let manifest = layout.add("application/vnd.oci.image.manifest.v1+json", manifest.into_bytes());
    let answer = Bench::new().unpack(&layout.tar(&[manifest]));
    assert!(matches!(answer, Err(ImageError::Platform { .. })), "{answer:?}");
}

#[test]
fn documents_that_are_none_are_named() {
    for (index, document) in [("[]", "index.json"), ("{\"manifests\":[]}", "index.json"), ("nonsense", "index.json")] {
        let entries = [file("oci-layout", "{}"), file("index.json", index)];
        let error = Bench::new().unpack(&tar_of(&entries)).unwrap_err();
        assert!(error.to_string().starts_with(document), "{error}");
    }
    let huge = vec![b' '; usize::try_from(DOCUMENT_BYTES_MAX).unwrap() + 1];
    let answer = Bench::new().unpack(&tar_of(&[file("oci-layout", "{}"), file("index.json", huge)]));
    assert!(matches!(answer, Err(ImageError::TooLarge { .. })), "{answer:?}");
}

#[test]
fn a_pool_that_fills_up_is_told_as_full() {
    let test = crate::sys::btrfs::testing::TestPool::new(Bytes::mib(256));
    let rootfs = test.path("images/rootfs");
    fs::create_dir_all(&rootfs).unwrap();
    // Most of the room goes first, at once, so that little has to be unpacked.
    let ballast = fs::File::create(test.path("ballast")).unwrap();
    let room = crate::sys::btrfs::space_at(&test.options.path).unwrap().available.0.saturating_sub(4 << 20);
    nix::fcntl::posix_fallocate(&ballast, 0, i64::try_from(room).unwrap()).unwrap();
    let noise: Vec<u8> = (0..1 << 20).map(|_| rand::random()).collect();
    let entries: Vec<_> = (0..40).map(|n| file(&format!("f{n}"), &noise)).collect();
    let archive = tempfile::NamedTempFile::new().unwrap();
    fs::write(archive.path(), tar_of(&entries)).unwrap();
    let answer = unpack(archive.path(), &rootfs, &ImageLimits::default(), &mut |_| {});
    assert!(matches!(answer, Err(ImageError::Full { .. })), "{answer:?}");
}
