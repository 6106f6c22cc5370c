//! The BTRFS and loop-device ioctls this crate needs, each behind a safe function over a borrowed descriptor.
//!
//! Layouts and numbers are those of `linux/btrfs.h`, `linux/btrfs_tree.h` and `linux/loop.h`; the sizes are checked at
//! compile time, because the size is part of an ioctl's number. Nothing here decides anything.
#![allow(unsafe_code)] // ioctl(2) takes a raw pointer; this is the only file of the driver that needs it.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `BTRFS_IOCTL_MAGIC`.
const MAGIC: u64 = 0x94;
/// Longest name of a subvolume that fits `btrfs_ioctl_vol_args_v2`, less its NUL byte.
pub const NAME_BYTES_MAX: usize = 4039;
/// `BTRFS_SUBVOL_RDONLY`: the flag of a read-only subvolume.
const SUBVOL_RDONLY: u64 = 1 << 1;
/// `BTRFS_SUBVOL_SPEC_BY_ID`: destroy by id and not by name (Linux 5.7).
const SUBVOL_SPEC_BY_ID: u64 = 1 << 4;
/// `BTRFS_QGROUP_LIMIT_MAX_RFER`: the limit on referenced bytes is set.
pub const LIMIT_MAX_RFER: u64 = 1;
/// `BTRFS_FIRST_FREE_OBJECTID`: inode of every subvolume's root folder, and the first id of a subvolume.
pub const FIRST_FREE_OBJECTID: u64 = 256;
/// Bytes of answers a tree search may give at once.
const SEARCH_BYTES: usize = 16 * 1024;

const fn ioc(direction: u64, number: u64, size: usize) -> libc::Ioctl {
    ((direction << 30) | ((size as u64) << 16) | (MAGIC << 8) | number) as libc::Ioctl
}
const fn iow<T>(number: u64) -> libc::Ioctl {
    ioc(1, number, size_of::<T>())
}
const fn ior<T>(number: u64) -> libc::Ioctl {
    ioc(2, number, size_of::<T>())
}
const fn iowr<T>(number: u64) -> libc::Ioctl {
    ioc(3, number, size_of::<T>())
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_BYTES_MAX + 1],
}
const _: () = assert!(size_of::<VolArgs>() == 4096);

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct InoLookup {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}
const _: () = assert!(size_of::<InoLookup>() == 4096);

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct QuotaCtl {
    cmd: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct QgroupCreate {
    create: u64,
    qgroupid: u64,
}

/// `struct btrfs_ioctl_qgroup_assign_args`.
#[repr(C)]
struct QgroupAssign {
    assign: u64,
    src: u64,
    dst: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct QgroupLimit {
    qgroupid: u64,
    flags: u64,
    max_rfer: u64,
    max_excl: u64,
    rsv_rfer: u64,
    rsv_excl: u64,
}

/// `struct btrfs_ioctl_search_key`: an interval of keys of one tree.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SearchKey {
    pub tree_id: u64,
    pub min_objectid: u64,
    pub max_objectid: u64,
    pub min_offset: u64,
    pub max_offset: u64,
    pub min_transid: u64,
    pub max_transid: u64,
    pub min_type: u32,
    pub max_type: u32,
    pub nr_items: u32,
    pub unused: u32,
    pub unused1: [u64; 4],
}

/// `struct btrfs_ioctl_search_args_v2` with room for its answers. The number is made from the struct without them.
#[repr(C)]
struct SearchArgs {
    key: SearchKey,
    buf_size: u64,
    buf: [u8; SEARCH_BYTES],
}
const SEARCH_HEADER: usize = size_of::<SearchKey>() + size_of::<u64>();
const _: () = assert!(SEARCH_HEADER == 112);

/// One item a tree search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub objectid: u64,
    pub offset: u64,
    pub kind: u32,
    pub data: Vec<u8>,
}

/// Calls an ioctl whose argument is a plain struct that the kernel reads, writes, or both.
fn call<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<i32> {
    // SAFETY: `argument` is a live, exclusive reference to a #[repr(C)] struct of exactly the size encoded in
    // `request` (the tree search: at least `buf_size` more bytes), so the kernel stays inside it.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Calls an ioctl whose argument is a number, or none.
fn call_number(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the requests this is used with take no pointer.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn vol_args(name: &[u8]) -> io::Result<Box<VolArgs>> {
    let mut args = Box::new(VolArgs { fd: 0, transid: 0, flags: 0, unused: [0; 4], name: [0; NAME_BYTES_MAX + 1] });
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) || name.contains(&b'/') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    args.name[..name.len()].copy_from_slice(name);
    Ok(args)
}

/// `BTRFS_IOC_SUBVOL_CREATE_V2`: makes `name` in the folder `parent`.
pub fn subvolume_create(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let mut args = vol_args(name)?;
    call(parent, iow::<VolArgs>(24), args.as_mut()).map(drop)
}

/// `BTRFS_IOC_SNAP_CREATE_V2`: makes `name` in `parent` a snapshot of the subvolume `source`.
pub fn snapshot_create(parent: BorrowedFd<'_>, name: &[u8], source: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let mut args = vol_args(name)?;
    args.fd = i64::from(source.as_raw_fd());
    args.flags = if read_only { SUBVOL_RDONLY } else { 0 };
    call(parent, iow::<VolArgs>(23), args.as_mut()).map(drop)
}

/// `BTRFS_IOC_SNAP_DESTROY_V2` by name.
pub fn subvolume_destroy(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let mut args = vol_args(name)?;
    call(parent, iow::<VolArgs>(63), args.as_mut()).map(drop)
}

/// `BTRFS_IOC_SNAP_DESTROY_V2` by id: no path that a tenant could have made is walked.
pub fn subvolume_destroy_by_id(pool: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args = vol_args(b"-")?;
    args.flags = SUBVOL_SPEC_BY_ID;
    args.name = [0; NAME_BYTES_MAX + 1];
    args.name[..8].copy_from_slice(&id.to_ne_bytes());
    call(pool, iow::<VolArgs>(63), args.as_mut()).map(drop)
}

/// Opens the root folder of a subvolume by its id, without a path (`name_to_handle_at(2)`'s BTRFS handle).
pub fn open_by_id(pool: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    /// `struct file_handle` with BTRFS's `struct btrfs_fid` up to its generation; 0 there means: any.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        objectid: u64,
        root: u64,
        generation: u32,
    }
    /// `FILEID_BTRFS_WITHOUT_PARENT` and the bytes of such a handle.
    const KIND: i32 = 0x4d;
    const BYTES: u32 = 20;
    let mut handle = Handle { bytes: BYTES, kind: KIND, objectid: FIRST_FREE_OBJECTID, root: id, generation: 0 };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: `handle` is laid out as `struct file_handle` with `bytes` bytes behind its header and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, pool.as_raw_fd(), &raw mut handle, flags) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BTRFS_IOC_SUBVOL_SETFLAGS`.
pub fn set_read_only(subvolume: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let mut flags = if read_only { SUBVOL_RDONLY } else { 0 };
    call(subvolume, iow::<u64>(26), &mut flags).map(drop)
}

/// `BTRFS_IOC_INO_LOOKUP` of the root folder: the id of the subvolume that `fd` lies in.
pub fn subvolume_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut args = Box::new(InoLookup { treeid: 0, objectid: FIRST_FREE_OBJECTID, name: [0; 4080] });
    call(fd, iowr::<InoLookup>(18), args.as_mut())?;
    Ok(args.treeid)
}

/// `BTRFS_IOC_QUOTA_CTL` with command 4: simple quotas on (Linux 6.7; older ones answer `EINVAL`).
pub fn quota_enable_simple(pool: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = QuotaCtl { cmd: 4, status: 0 };
    call(pool, iowr::<QuotaCtl>(40), &mut args).map(drop)
}

/// `BTRFS_IOC_QUOTA_CTL` with command 1: classic quotas on. Only the tests need it.
#[cfg(test)]
pub fn quota_enable_classic(pool: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = QuotaCtl { cmd: 1, status: 0 };
    call(pool, iowr::<QuotaCtl>(40), &mut args).map(drop)
}

/// `BTRFS_IOC_QUOTA_CTL` with command 2: quotas off. Only the tests need it.
#[cfg(test)]
pub fn quota_disable(pool: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = QuotaCtl { cmd: 2, status: 0 };
    call(pool, iowr::<QuotaCtl>(40), &mut args).map(drop)
}

/// `BTRFS_IOC_QGROUP_CREATE`: makes or removes a quota group.
pub fn qgroup_create(pool: BorrowedFd<'_>, qgroup: u64, create: bool) -> io::Result<()> {
    let mut args = QgroupCreate { create: u64::from(create), qgroupid: qgroup };
    call(pool, iow::<QgroupCreate>(42), &mut args).map(drop)
}

/// `BTRFS_IOC_QGROUP_ASSIGN`: makes `child` a member of `parent`.
pub fn qgroup_assign(pool: BorrowedFd<'_>, child: u64, parent: u64) -> io::Result<()> {
    let mut args = QgroupAssign { assign: 1, src: child, dst: parent };
    call(pool, iow::<QgroupAssign>(41), &mut args).map(drop)
}

/// `BTRFS_IOC_QGROUP_LIMIT`: sets the limit on referenced bytes; `None` lifts it.
pub fn qgroup_limit(pool: BorrowedFd<'_>, qgroup: u64, limit: Option<u64>) -> io::Result<()> {
    let mut args = QgroupLimit {
        qgroupid: qgroup,
        flags: LIMIT_MAX_RFER,
        // The kernel's word for "clear this limit" is all ones.
        max_rfer: limit.unwrap_or(u64::MAX),
        max_excl: 0,
        rsv_rfer: 0,
        rsv_excl: 0,
    };
    call(pool, ior::<QgroupLimit>(43), &mut args).map(drop)
}

/// `BTRFS_IOC_TREE_SEARCH_V2`: the items whose keys lie in the interval, at most 16 KiB of them.
pub fn tree_search(pool: BorrowedFd<'_>, key: SearchKey) -> io::Result<Vec<Item>> {
    /// `struct btrfs_ioctl_search_header`.
    const HEADER: usize = 32;
    let mut args = Box::new(SearchArgs { key, buf_size: SEARCH_BYTES as u64, buf: [0; SEARCH_BYTES] });
    args.key.max_transid = u64::MAX;
    call(pool, ioc(3, 17, SEARCH_HEADER), args.as_mut())?;
    let mut rest = &args.buf[..];
    let mut items = Vec::new();
    for _ in 0..args.key.nr_items {
        let Some((header, behind)) = rest.split_at_checked(HEADER) else { break };
        let len = u32_at(header, 28) as usize;
        let Some((data, next)) = behind.split_at_checked(len) else { break };
        items.push(Item {
            objectid: u64_at(header, 8),
            offset: u64_at(header, 16),
            kind: u32_at(header, 24),
            data: data.to_vec(),
        });
        rest = next;
    }
    Ok(items)
}

/// Little-endian number at a place of an item; 0 where the item is too short.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// `BTRFS_IOC_START_SYNC` and `BTRFS_IOC_WAIT_SYNC`: returns when what was done before is on disk. Unlike `BTRFS_IOC_SYNC` it
/// does not write out every tenant's dirty pages; and the transaction thread, once poked, wakes the cleaner.
pub fn commit(pool: BorrowedFd<'_>) -> io::Result<()> {
    let mut transid = 0u64;
    call(pool, ior::<u64>(24), &mut transid)?;
    call(pool, iow::<u64>(22), &mut transid).map(drop)
}

/// `BTRFS_IOC_SYNC`: everything on disk, counters of the quota tree too. Wakes the cleaner also where no transaction is open.
pub fn sync(pool: BorrowedFd<'_>) -> io::Result<()> {
    call_number(pool, ioc(0, 8, 0), 0).map(drop)
}

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<LoopInfo>() == 232);

impl LoopInfo {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// `LO_FLAGS_AUTOCLEAR` and `LO_FLAGS_DIRECT_IO`.
const LOOP_AUTOCLEAR: u32 = 4;
const LOOP_DIRECT_IO: u32 = 16;

/// `LOOP_CTL_GET_FREE`: the number of a loop device that is free at this moment.
pub fn loop_free_number(control: BorrowedFd<'_>) -> io::Result<i32> {
    call_number(control, 0x4C82, 0)
}

/// `LOOP_CONFIGURE`: backs a free loop device with a file. It frees itself when its last user is gone.
pub fn loop_configure(device: BorrowedFd<'_>, file: &File, direct_io: bool) -> io::Result<()> {
    let mut info = LoopInfo::EMPTY;
    info.flags = LOOP_AUTOCLEAR | if direct_io { LOOP_DIRECT_IO } else { 0 };
    let fd = u32::try_from(file.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    call(device, 0x4C0A, &mut LoopConfig { fd, block_size: 0, info, reserved: [0; 8] }).map(drop)
}

/// `LOOP_GET_STATUS64`: device and inode of the file behind a loop device; `None` where it is free.
pub fn loop_backing(device: BorrowedFd<'_>) -> io::Result<Option<(u64, u64)>> {
    let mut info = LoopInfo::EMPTY;
    match call(device, 0x4C05, &mut info) {
        Ok(_) => Ok(Some((info.device, info.inode))),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}
