//! Someone inside a container who makes system calls as root: `tests/attacker`, given its orders.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::json;

use super::daemon::{Client, Daemon, Reply};

/// Where it lies in the container.
pub const PROGRAM: &str = "/bin/attacker";

/// Where the program has memory to point to, and how much of it.
pub const ARENA: i64 = 0x7000_0000;
pub const PIECE: i64 = 64 << 10;

/// The static program, built at the first use.
pub fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacker/build");
        let output = Command::new(build).arg(env!("CARGO_TARGET_TMPDIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

/// One order; the source says what each may be.
#[derive(Debug, Clone)]
pub struct Order(String);

/// What a system call is given.
#[derive(Debug, Clone)]
pub enum Arg {
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
    /// So many bytes for the kernel to write to.
    Room(usize),
    /// The result of an earlier order, by its place.
    Result(usize),
}

impl From<i32> for Arg {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u32> for Arg {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u64> for Arg {
    fn from(number: u64) -> Self {
        Self::Number(i64::from_ne_bytes(number.to_ne_bytes()))
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&[u8]> for Arg {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

/// Between the words of an order: what no argument holds.
const BETWEEN: &str = "\u{1f}";

impl Order {
    fn new(verb: &str, numbers: &[i64], args: &[Arg]) -> Self {
        let args = args.iter().map(|arg| match arg {
            Arg::Number(number) => number.to_string(),
            Arg::Text(text) => format!("={text}"),
            Arg::Bytes(bytes) => format!("*{}", hex::encode(bytes)),
            Arg::Room(length) => format!("?{length}"),
            Arg::Result(place) => format!("${place}"),
        });
        let words = numbers.iter().map(i64::to_string).chain(args);
        Self([verb.to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(BETWEEN))
    }

    /// A system call.
    pub fn call(number: i64, args: &[Arg]) -> Self {
        Self::new("call", &[number], args)
    }

    /// The same one, until it fails.
    pub fn repeat(count: i64, number: i64, args: &[Arg]) -> Self {
        Self::new("repeat", &[count, number], args)
    }

    /// A system call as 32-bit programs make them.
    pub fn call_i386(number: i64) -> Self {
        Self::new("i386", &[number], &[])
    }

    /// Waits, holding what it has.
    pub fn hold(milliseconds: i64) -> Self {
        Self::new("hold", &[milliseconds], &[])
    }

    /// Runs a program and gives it orders; its answer's room is what it said.
    pub fn spawn(program: &str, orders: &[Self]) -> Self {
        let stdin: String = orders.iter().map(|order| format!("{}\n", order.0)).collect();
        Self::new("spawn", &[], &[program.into(), stdin.as_bytes().into()])
    }

    /// Dies of a forbidden access, as a program that would dump core.
    pub fn crash() -> Self {
        Self::new("crash", &[], &[])
    }

    /// Knocks at TCP ports; its answer's rooms are one: those that answered, two bytes each.
    pub fn knock(address: std::net::Ipv4Addr, first: u16, last: u16) -> Self {
        Self::new("knock", &[u32::from(address).into(), first.into(), last.into()], &[])
    }
}

/// A system call: `call!(SYS_openat, -100, "/etc/shadow", 0)`.
#[macro_export]
macro_rules! call {
    ($number:expr $(, $arg:expr)* $(,)?) => {
        $crate::support::attacker::Order::call($number, &[$($crate::support::attacker::Arg::from($arg)),*])
    };
}

/// What an order came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What the kernel said: a result, or minus errno.
    pub result: i64,
    /// What it wrote.
    pub rooms: Vec<Vec<u8>>,
}

impl Answer {
    fn parse(line: &str) -> Self {
        let mut words = line.split_whitespace();
        let result = words.next().unwrap().parse().unwrap();
        Self { result, rooms: words.map(|room| hex::decode(room).unwrap()).collect() }
    }

    /// The error, as a positive number.
    pub fn errno(&self) -> Option<i32> {
        (-4095..0).contains(&self.result).then(|| i32::try_from(-self.result).unwrap())
    }

    /// Of [`Order::repeat`]: what ended it; 0 for nothing.
    pub fn ended_by(&self) -> i32 {
        i32::from_be_bytes(self.rooms[0][..4].try_into().unwrap())
    }
}

/// Root in a container.
#[derive(Debug, Clone)]
pub struct Insider {
    client: Client,
    pub id: String,
}

/// How a program inside ended, beside what it answered.
#[derive(Debug)]
pub struct End {
    pub answers: Vec<Answer>,
    pub exit_code: i64,
    #[allow(dead_code, reason = "shown where a test fails")]
    pub stderr: String,
}

impl Insider {
    /// Brings the program into a container.
    pub fn enter(daemon: &Daemon, id: &str) -> Self {
        std::fs::copy(program(), daemon.rootfs(id).join(PROGRAM.trim_start_matches('/'))).unwrap();
        Self::of(daemon, id)
    }

    /// The same where the program is there already.
    pub fn of(daemon: &Daemon, id: &str) -> Self {
        Self { client: daemon.client.clone(), id: id.to_owned() }
    }

    /// Gives orders to one process; the answers to all of them.
    pub async fn obey(&self, orders: &[Order]) -> Vec<Answer> {
        let end = self.dare(orders).await;
        assert_eq!((end.exit_code, end.answers.len()), (0, orders.len()), "{end:?}");
        end.answers
    }

    /// The same where the process may be killed for it.
    pub async fn dare(&self, orders: &[Order]) -> End {
        let done = self.try_all(orders).await.data(200);
        let text = |key: &str| done[key].as_str().unwrap().to_owned();
        End {
            answers: text("stdout").lines().map(Answer::parse).collect(),
            exit_code: done["exit_code"].as_i64().unwrap(),
            stderr: text("stderr"),
        }
    }

    /// The same where the whole container may be.
    pub async fn try_all(&self, orders: &[Order]) -> Reply {
        let stdin: String = orders.iter().map(|order| format!("{}\n", order.0)).collect();
        let body = json!({ "command": [PROGRAM], "stdin": stdin });
        self.client.post(&format!("/containers/{}/exec", self.id), body).await
    }

    /// One order's answer.
    pub async fn try_to(&self, order: Order) -> Answer {
        self.obey(&[order]).await.remove(0)
    }

    /// A shell script: its output and its errors' output, however it ended.
    pub async fn sh(&self, script: &str) -> String {
        let body = json!({ "command": ["sh", "-c", script] });
        let done = self.client.post(&format!("/containers/{}/exec", self.id), body).await.data(200);
        format!("{}{}", done["stdout"].as_str().unwrap(), done["stderr"].as_str().unwrap())
    }
}
