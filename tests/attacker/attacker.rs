//! A program that makes the system calls it is told to, and says what the kernel answered: the hands of the tests that attack from
//! inside a container. It knows no attack; those are written in `tests/it/attacks`, where they can be read and checked.
//!
//! It is built as one static file (`tests/it/support/attacker.rs`), because a container has no library of ours.
//!
//! One order a line on standard input, one answer a line on standard output:
//!
//! ```text
//!  call <number> <argument>…          the result, or minus errno; then what the kernel wrote into each room, in hex
//!  i386 <number> <argument>…          the same by `int 0x80`, the way of 32-bit programs
//!  repeat <count> <number> <arg>…     how often it went well before it failed, and the first failure (0: none)
//!  knock <address> <first> <last>     how many TCP ports of an IPv4 address answer, by accepting or refusing; then which
//!  hold <milliseconds>                waits
//!  spawn =<program> *<orders>         its exit code, and what it said when it was given these orders in its turn
//!  crash                              reads from where nothing is
//!
//!  arguments: 7, -100, 0x1f   a number            =text   an address of this text, NUL-terminated
//!             $3              the result of the order on line 3, from 0
//!             *00ff           an address of these bytes    ?64     an address of so many bytes of room
//!             ^00ff           an address in the lower 2 GiB of these bytes, for `i386` and for structures: each such
//!                             argument of a line begins at the next multiple of 4096 above 0x70000000
//! ```

use std::io::{self, BufRead, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

const ARENA: usize = 0x7000_0000;
const ARENA_BYTES: usize = 16 << 12;
const PAGE_BYTES: usize = 4096;
const ARGUMENTS: usize = 6;
const SYS_MMAP: i64 = 9;

fn main() {
    // PROT_READ | PROT_WRITE; MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED.
    let arena = call(SYS_MMAP, [ARENA as i64, ARENA_BYTES as i64, 3, 0x32, -1, 0]);
    assert_eq!(arena, ARENA as i64, "no place for the arena");
    let mut results = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line.expect("standard input");
        let (result, rooms) = obey(&line, &results);
        results.push(result);
        let mut out = io::stdout().lock();
        let rooms: Vec<String> =
            rooms.iter().map(|room| room.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
        writeln!(out, "{result} {}", rooms.join(" ")).and_then(|()| out.flush()).expect("standard output");
    }
}

fn obey(line: &str, results: &[i64]) -> (i64, Vec<Vec<u8>>) {
    let mut words = line.split('\u{1f}');
    let verb = words.next().unwrap_or_default();
    let mut number = || words.next().and_then(number).expect("a number");
    match verb {
        "call" => by(call, number(), words, results),
        "i386" => by(call_i386, number(), words, results),
        "repeat" => {
            let (count, nr) = (number(), number());
            let mut buffers = Buffers::default();
            let arguments = buffers.arguments(words, results);
            let first = (0..count).map(|n| (n, call(nr, arguments))).find(|(_, result)| *result < 0);
            let (well, failure) = first.unwrap_or((count, 0));
            (well, vec![(-failure).to_be_bytes()[4..].to_vec()])
        }
        "knock" => {
            let answered = knock(number() as u32, number() as u16, number() as u16);
            (answered.len() as i64, vec![answered.iter().flat_map(|port| port.to_be_bytes()).collect()])
        }
        "hold" => {
            std::thread::sleep(Duration::from_millis(number() as u64));
            (0, vec![])
        }
        "spawn" => spawn(&words.map(|word| word[1..].to_owned()).collect::<Vec<_>>()),
        "crash" => {
            // SAFETY: none is meant: the kernel ends the process for it.
            let byte = unsafe { std::ptr::read_volatile(std::ptr::without_provenance::<u8>(8)) };
            (i64::from(byte), vec![])
        }
        other => panic!("no such order: {other}"),
    }
}

fn by<'a>(
    way: fn(i64, [i64; ARGUMENTS]) -> i64,
    nr: i64,
    words: impl Iterator<Item = &'a str>,
    results: &[i64],
) -> (i64, Vec<Vec<u8>>) {
    let mut buffers = Buffers::default();
    let arguments = buffers.arguments(words, results);
    let result = way(nr, arguments);
    (result, buffers.rooms)
}

/// What arguments point to, alive until the call is over.
#[derive(Default)]
struct Buffers {
    given: Vec<Vec<u8>>,
    rooms: Vec<Vec<u8>>,
    low: usize,
}

impl Buffers {
    fn arguments<'a>(&mut self, words: impl Iterator<Item = &'a str>, results: &[i64]) -> [i64; ARGUMENTS] {
        let mut arguments = [0; ARGUMENTS];
        for (place, word) in arguments.iter_mut().zip(words) {
            *place = self.argument(word, results);
        }
        arguments
    }

    fn argument(&mut self, word: &str, results: &[i64]) -> i64 {
        let (kind, rest) = word.split_at_checked(1).expect("an argument");
        match kind {
            "=" => Self::keep(&mut self.given, [rest.as_bytes(), &[0]].concat()),
            "*" => Self::keep(&mut self.given, bytes(rest)),
            "?" => Self::keep(&mut self.rooms, vec![0; number(rest).expect("a length") as usize]),
            "$" => results[number(rest).expect("a line") as usize],
            "^" => self.keep_low(&bytes(rest)),
            _ => number(word).expect("a number"),
        }
    }

    fn keep(list: &mut Vec<Vec<u8>>, bytes: Vec<u8>) -> i64 {
        list.push(bytes);
        list.last_mut().map_or(0, |bytes| bytes.as_mut_ptr() as i64)
    }

    fn keep_low(&mut self, bytes: &[u8]) -> i64 {
        let at = ARENA + self.low;
        self.low += bytes.len().next_multiple_of(PAGE_BYTES).max(PAGE_BYTES);
        assert!(self.low <= ARENA_BYTES, "too many low arguments");
        // SAFETY: the arena is mapped, writable, ours alone, and long enough.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        at as i64
    }
}

fn spawn(words: &[String]) -> (i64, Vec<Vec<u8>>) {
    let mut child = Command::new(&words[0]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program");
    // Dropped behind the last byte: the end of its orders.
    child.stdin.take().expect("its input").write_all(&bytes(&words[1])).expect("its orders");
    let output = child.wait_with_output().expect("its end");
    (i64::from(output.status.code().unwrap_or(-1)), vec![output.stdout])
}

/// Ports from which anything came back, a refusal too, within a moment of the last knock of their lot.
fn knock(address: u32, first: u16, last: u16) -> Vec<u16> {
    const AT_ONCE: usize = 1000;
    const MOMENT_MS: i64 = 100;
    const SYS_CLOSE: i64 = 3;
    const SYS_POLL: i64 = 7;
    const SYS_SOCKET: i64 = 41;
    const SYS_CONNECT: i64 = 42;
    /// SOCK_STREAM | SOCK_NONBLOCK.
    const KIND: i64 = 1 | 0x800;
    /// POLLOUT | POLLERR | POLLHUP.
    const EVENTS: u16 = 4 | 8 | 16;
    let mut answered = Vec::new();
    for ports in (first..=last).collect::<Vec<_>>().chunks(AT_ONCE) {
        // `struct pollfd` each: a descriptor, what is waited for, what came.
        let mut polled: Vec<[u8; 8]> = Vec::new();
        for port in ports {
            let socket = call(SYS_SOCKET, [2, KIND, 0, 0, 0, 0]);
            let name = [&2u16.to_ne_bytes()[..], &port.to_be_bytes(), &address.to_be_bytes(), &[0; 8]].concat();
            let result = call(SYS_CONNECT, [socket, name.as_ptr() as i64, name.len() as i64, 0, 0, 0]);
            // EINPROGRESS; all else is an answer at once, but for those of the own kernel: no way, not permitted.
            if result != -115 && ![-101, -113, -1].contains(&result) {
                answered.push(*port);
            }
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&(socket as i32).to_ne_bytes());
            entry[4..6].copy_from_slice(&4u16.to_ne_bytes());
            polled.push(entry);
        }
        std::thread::sleep(Duration::from_millis(MOMENT_MS as u64));
        call(SYS_POLL, [polled.as_mut_ptr() as i64, polled.len() as i64, 0, 0, 0, 0]);
        for (port, entry) in ports.iter().zip(&polled) {
            let came = u16::from_ne_bytes([entry[6], entry[7]]) & EVENTS != 0;
            if came && is_an_answer(i64::from(i32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]))) {
                answered.push(*port);
            }
            call(SYS_CLOSE, [i64::from(i32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]])), 0, 0, 0, 0, 0]);
        }
    }
    answered.dedup();
    answered
}

/// Whether a socket that is ready has been accepted or refused (ECONNREFUSED, ECONNRESET), and not only told that there is no way.
fn is_an_answer(socket: i64) -> bool {
    let (mut error, mut length) = (0i32, 4u32);
    // getsockopt(SOL_SOCKET, SO_ERROR)
    call(55, [socket, 1, 4, &raw mut error as i64, &raw mut length as i64, 0]);
    matches!(error, 0 | 104 | 111)
}

fn number(word: &str) -> Option<i64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(|number| number as i64),
        None => word.parse().ok(),
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).expect("hex")).collect()
}

fn call(nr: i64, a: [i64; ARGUMENTS]) -> i64 {
    let result;
    // SAFETY: that is what the tests ask for; what a call breaks is this process's own.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") nr => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// Five arguments of 32 bits.
fn call_i386(nr: i64, a: [i64; ARGUMENTS]) -> i64 {
    let result: i32;
    // SAFETY: as above. Rust keeps `rbx` for itself, so it is put back.
    unsafe {
        std::arch::asm!("push rbx", "mov ebx, {first:e}", "int 0x80", "pop rbx", first = in(reg) a[0],
            inlateout("eax") nr as i32 => result, in("ecx") a[1], in("edx") a[2], in("esi") a[3], in("edi") a[4],
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _);
    }
    i64::from(result)
}
