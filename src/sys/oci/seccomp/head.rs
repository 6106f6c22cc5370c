//! What stands before the compiled profile: the verdicts that the OCI form cannot give.
//!
//! * System calls newer than the profile give `ENOSYS`, so that libraries fall back as on an old kernel; `EPERM`, the answer to
//!   what is known and refused, breaks them.
//! * Some calls are refused by an argument. The OCI form has no "all but these", and it compares all 64 bits where the kernel
//!   takes 32 of what is an `int` to it: a bit above would get past such a refusal. Here only those 32 are looked at.
//!
//! Each [`Rule`] becomes a block that either returns or falls through to the next one; behind the last comes the compiled program.

use super::INSTRUCTION_BYTES;

/// The first system call that the profile knows nothing of (468 and 469 are `file_getattr` and `file_setattr`).
pub const SYSCALL_UNKNOWN_MIN: u32 = 470;
/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// `__X32_SYSCALL_BIT` of `asm/unistd.h`.
pub const X32_BIT: u32 = 0x4000_0000;
/// `SECCOMP_RET_ERRNO`.
pub const RETURN_ERRNO: u32 = 0x0005_0000;
/// The call is refused.
const EPERM: u32 = RETURN_ERRNO | libc::EPERM as u32;
/// The call does not seem to exist.
const ENOSYS: u32 = RETURN_ERRNO | libc::ENOSYS as u32;
/// The call is not made, and seems to have gone well.
const NOTHING: u32 = RETURN_ERRNO;

/// `BPF_LD | BPF_W | BPF_ABS`: a word of `struct seccomp_data` into the accumulator.
pub const LOAD_WORD: u16 = 0x20;
/// `BPF_RET | BPF_K`.
pub const RETURN: u16 = 0x06;
/// The other operations in use, `linux/bpf_common.h`.
pub mod opcodes {
    /// `BPF_JMP | BPF_JA`.
    pub const JUMP: u16 = 0x05;
    /// `BPF_JMP | BPF_JEQ | BPF_K`.
    pub const JUMP_EQUAL: u16 = 0x15;
    /// `BPF_JMP | BPF_JGE | BPF_K`.
    pub const JUMP_NOT_BELOW: u16 = 0x35;
    /// `BPF_ALU | BPF_AND | BPF_K`.
    pub const AND: u16 = 0x54;
}
use opcodes::{AND, JUMP, JUMP_EQUAL, JUMP_NOT_BELOW};

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;

/// The half of an argument that the kernel takes where it wants an `int`.
const fn low(argument: u32) -> u32 {
    16 + 8 * argument
}

const fn high(argument: u32) -> u32 {
    low(argument) + 4
}

/// A verdict for a system call all of whose conditions hold.
struct Rule {
    call: i64,
    conditions: &'static [Condition],
    verdict: u32,
}

/// Whether a word of the call's data, masked, is or is not a value.
struct Condition {
    offset: u32,
    mask: u32,
    value: u32,
    is: bool,
}

const fn is(offset: u32, value: u32) -> Condition {
    Condition { offset, mask: u32::MAX, value, is: true }
}

const fn is_not(offset: u32, value: u32) -> Condition {
    Condition { offset, mask: u32::MAX, value, is: false }
}

const fn ioctl(conditions: &'static [Condition]) -> Rule {
    Rule { call: libc::SYS_ioctl, conditions, verdict: EPERM }
}

const fn setsockopt(conditions: &'static [Condition]) -> Rule {
    Rule { call: libc::SYS_setsockopt, conditions, verdict: EPERM }
}

const REQUEST: u32 = low(1);
const LEVEL: u32 = low(1);
const OPTION: u32 = low(2);
const SOL_SOCKET: u32 = libc::SOL_SOCKET as u32;

/// In the order in which they are tried.
const RULES: &[Rule] = &[
    // Types into a terminal, or into a console.
    ioctl(&[is(REQUEST, 0x5412)]), // TIOCSTI
    ioctl(&[is(REQUEST, 0x541c)]), // TIOCLINUX
    // Loads line disciplines, which nobody needs and many had holes in.
    ioctl(&[is(REQUEST, 0x5423)]), // TIOCSETD
    // Load modules of bridges and VLANs before they ask who wants it.
    ioctl(&[is(REQUEST, 0x8940)]), // SIOCGIFBR
    ioctl(&[is(REQUEST, 0x8941)]), // SIOCSIFBR
    ioctl(&[is(REQUEST, 0x8982)]), // SIOCGIFVLAN
    ioctl(&[is(REQUEST, 0x8983)]), // SIOCSIFVLAN
    ioctl(&[is(REQUEST, 0x89a0)]), // SIOCBRADDBR
    ioctl(&[is(REQUEST, 0x89a1)]), // SIOCBRDELBR
    // Everything of BTRFS's own but to share extents between files. A nested subvolume is in no snapshot; a rootfs that its tenant
    // turned read-only or marked as received can be neither started nor copied; and the rest tells of the pool or works on it.
    ioctl(&[
        Condition { offset: REQUEST, mask: 0xff00, value: 0x9400, is: true },
        is_not(REQUEST, 0x4004_9409), // FICLONE
        is_not(REQUEST, 0x4020_940d), // FICLONERANGE
        is_not(REQUEST, 0xc018_9436), // FIDEDUPERANGE
    ]),
    // Programs on sockets are compiled into memory that counts against no container and has one bound for the whole host; at
    // the bound no container could load its seccomp filter.
    setsockopt(&[is(LEVEL, SOL_SOCKET), is(OPTION, libc::SO_ATTACH_FILTER as u32)]),
    setsockopt(&[is(LEVEL, SOL_SOCKET), is(OPTION, libc::SO_ATTACH_BPF as u32)]),
    setsockopt(&[is(LEVEL, SOL_SOCKET), is(OPTION, libc::SO_ATTACH_REUSEPORT_CBPF as u32)]),
    setsockopt(&[is(LEVEL, SOL_SOCKET), is(OPTION, libc::SO_ATTACH_REUSEPORT_EBPF as u32)]),
    // The limit of core dumps is 1 byte, the only value at which the kernel starts no program of the host's (core(5), "Piping core
    // dumps to a program"); 0 would start it. Programs that set it mean "no dump", which they have.
    Rule { call: libc::SYS_setrlimit, conditions: &[is(low(0), libc::RLIMIT_CORE)], verdict: NOTHING },
    Rule {
        call: libc::SYS_prlimit64,
        conditions: &[is(low(1), libc::RLIMIT_CORE), is_not(low(2), 0)],
        verdict: NOTHING,
    },
    Rule {
        call: libc::SYS_prlimit64,
        conditions: &[is(low(1), libc::RLIMIT_CORE), is_not(high(2), 0)],
        verdict: NOTHING,
    },
];

/// One classic BPF instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

const fn op(code: u16, jump_true: u8, jump_false: u8, k: u32) -> Instruction {
    Instruction { code, jump_true, jump_false, k }
}

impl Rule {
    /// Falls through where the call is another or a condition does not hold.
    fn block(&self) -> Vec<Instruction> {
        let mut block = vec![op(RETURN, 0, 0, self.verdict)];
        for condition in self.conditions.iter().rev() {
            let past = block.len() as u8;
            let (jump_true, jump_false) = if condition.is { (0, past) } else { (past, 0) };
            block.insert(0, op(JUMP_EQUAL, jump_true, jump_false, condition.value));
            if condition.mask != u32::MAX {
                block.insert(0, op(AND, 0, 0, condition.mask));
            }
            block.insert(0, op(LOAD_WORD, 0, 0, condition.offset));
        }
        let past = block.len() as u8;
        block.splice(0..0, [op(LOAD_WORD, 0, 0, OFFSET_NUMBER), op(JUMP_EQUAL, 0, past, self.call as u32)]);
        block
    }
}

/// The head, as the bytes of an array of `sock_filter`. Every path that does not return ends right behind it.
pub fn program() -> Vec<u8> {
    let rules: Vec<Instruction> = RULES.iter().flat_map(Rule::block).collect();
    let mut program = vec![
        op(LOAD_WORD, 0, 0, OFFSET_ARCH),
        op(JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        // The compiled program ends it.
        op(JUMP, 0, 0, rules.len() as u32 + 5),
        op(LOAD_WORD, 0, 0, OFFSET_NUMBER),
        op(JUMP_NOT_BELOW, 2, 0, X32_BIT),
        op(JUMP_NOT_BELOW, 0, 2, SYSCALL_UNKNOWN_MIN),
        op(RETURN, 0, 0, ENOSYS),
        op(RETURN, 0, 0, EPERM),
    ];
    program.extend(rules);
    program.iter().flat_map(|instruction| encode(*instruction)).collect()
}

fn encode(instruction: Instruction) -> [u8; INSTRUCTION_BYTES] {
    let (code, k) = (instruction.code.to_ne_bytes(), instruction.k.to_ne_bytes());
    [code[0], code[1], instruction.jump_true, instruction.jump_false, k[0], k[1], k[2], k[3]]
}
