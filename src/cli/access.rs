//! `tenantry access`.

use std::io::{BufRead, Read};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{Context, resolve};

/// What is shown of who may open a URL.
const FIELDS: [&str; 3] = ["default", "groups", "permissions"];

/// Who may open a container's URL.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show who may open a container's URL
    #[command(after_help = "Examples:\n  tenantry access show acme\n  tenantry access show acme --json")]
    Show(One),
    /// Let in whoever knows a user's password; it is read from standard input
    #[command(
        after_help = "Examples:\n  tenantry access password acme staff --user ada <password.txt\n  openssl rand -base64 18 | tee /dev/stderr | tenantry access password acme staff --user ada"
    )]
    Password {
        #[command(flatten)]
        of: Group,
        /// The user's name
        #[arg(long)]
        user: String,
        /// `-` reads it from standard input; a list of processes is no place for a password
        #[arg(long, default_value = "-", value_parser = ["-"])]
        password: String,
    },
    /// Let in whoever has a token; it is read from standard input
    #[command(
        after_help = "Examples:\n  tenantry access token acme ci <token.txt                     Authorization: Bearer …\n  tenantry access token acme ci --header X-Api-Key <token.txt\n  tenantry access token acme preview --param key <token.txt    https://…/?key=…\n  tenantry access token acme app --cookie door <token.txt"
    )]
    Token {
        #[command(flatten)]
        of: Group,
        #[command(flatten)]
        place: Place,
    },
    /// Let in whoever has a JSON Web Token signed by a key
    #[command(
        after_help = "Examples:\n  tenantry access jwt acme users --algorithm RS256 --key login.pem --claim iss=https://login.example --claim aud=acme\n  tenantry access jwt acme users --algorithm HS256 --key - --source cookie:session <key.txt"
    )]
    Jwt {
        #[command(flatten)]
        of: Group,
        /// How tokens are signed
        #[arg(long, value_parser = ["HS256", "RS256", "ES256"])]
        algorithm: String,
        /// The file with the key: the public one as PEM or JWK, or the shared one; `-` reads it from standard input
        #[arg(long, value_name = "FILE")]
        key: String,
        /// Where tokens stand, as cookie:NAME, header:NAME or param:NAME, up to 4 times; left out: header:Authorization
        #[arg(long = "source", value_name = "PLACE")]
        sources: Vec<String>,
        /// What tokens have to claim, up to 16 times; true, false and numbers are taken as such
        #[arg(long = "claim", value_name = "NAME=VALUE")]
        claims: Vec<String>,
    },
    /// Let in whoever comes from some networks
    #[command(after_help = "Example:\n  tenantry access ip acme office 192.0.2.0/24 2001:db8::/32")]
    Ip {
        #[command(flatten)]
        of: Group,
        /// Networks, at most 64
        #[arg(required = true, value_name = "NETWORK")]
        ranges: Vec<String>,
    },
    /// Set what becomes of whom no group knows
    #[command(after_help = "Example:\n  tenantry access default acme deny")]
    Default {
        #[command(flatten)]
        one: One,
        /// Whether they are let in
        #[arg(value_parser = ["allow", "deny"])]
        policy: String,
    },
    /// Replace everything by a document: {"default": …, "groups": {…}, "permissions": {…}}
    #[command(
        after_help = "Examples:\n  tenantry access set acme --file access.json\n  echo '{\"groups\":{\"office\":{\"type\":\"ip\",\"range\":\"192.0.2.0/24\"}},\"permissions\":{\"office\":{\"http\":8080}}}' | tenantry access set acme"
    )]
    Set {
        #[command(flatten)]
        one: One,
        /// The document; `-` reads it from standard input
        #[arg(long, default_value = "-", value_name = "FILE")]
        file: String,
    },
    /// Remove a group; the default stays
    #[command(visible_alias = "rm", after_help = "Example:\n  tenantry access remove acme ci")]
    Remove {
        #[command(flatten)]
        of: Group,
    },
    /// Let everybody in again
    #[command(after_help = "Example:\n  tenantry access clear acme")]
    Clear(One),
}

/// One container.
#[derive(Debug, Args)]
pub struct One {
    /// Name or id
    container: String,
    /// Its project: alias or id; left out: the only one there is
    #[arg(long)]
    project: Option<String>,
}

/// A group of one container.
#[derive(Debug, Args)]
pub struct Group {
    #[command(flatten)]
    one: One,
    /// The group's name; one that is there is replaced
    group: String,
}

/// Where a token stands.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Place {
    /// A header; left out: Authorization
    #[arg(long, value_name = "NAME")]
    header: Option<String>,
    /// A cookie
    #[arg(long, value_name = "NAME")]
    cookie: Option<String>,
    /// A parameter of the URL
    #[arg(long, value_name = "NAME")]
    param: Option<String>,
}

/// What is asked for: method, path below the permissions, body.
type Call<'a> = (&'a One, Method, String, Option<Value>);

impl Command {
    fn call(&self, read: impl Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Call<'_>> {
        let put = |of: &Group, kind: &str| format!("/groups/{}/{kind}", of.group);
        Ok(match self {
            Self::Show(one) => (one, Method::GET, String::new(), None),
            Self::Clear(one) => (one, Method::DELETE, String::new(), None),
            Self::Remove { of } => (&of.one, Method::DELETE, format!("/groups/{}", of.group), None),
            Self::Default { one, policy } => {
                (one, Method::PATCH, "/default".into(), Some(json!({ "default": policy })))
            }
            Self::Set { one, file } => {
                let document = serde_json::from_str(&read(file)?).context("the document is not JSON")?;
                (one, Method::PUT, String::new(), Some(document))
            }
            Self::Password { of, user, password } => {
                let body = json!({ "username": user, "password": first_line(&read(password)?) });
                (&of.one, Method::PUT, put(of, "password"), Some(body))
            }
            Self::Token { of, place } => {
                let (kind, name) = place.named();
                let body = json!({ kind: name, "value": first_line(&read("-")?) });
                (&of.one, Method::PUT, put(of, "token"), Some(body))
            }
            Self::Jwt { of, algorithm, key, sources, claims } => {
                let text = read(key)?;
                let secret = if algorithm == "HS256" { first_line(&text) } else { text.as_str() };
                let mut body = json!({ "algorithm": algorithm, "secret": secret, "claims": wanted(claims)? });
                if !sources.is_empty() {
                    body["sources"] = json!(sources);
                }
                (&of.one, Method::PUT, put(of, "jwt"), Some(body))
            }
            Self::Ip { of, ranges } => (&of.one, Method::PUT, put(of, "ip"), Some(json!({ "range": ranges }))),
        })
    }
}

impl Place {
    fn named(&self) -> (&'static str, &str) {
        match (&self.header, &self.cookie, &self.param) {
            (_, Some(name), _) => ("cookie", name),
            (_, _, Some(name)) => ("param", name),
            (header, ..) => ("header", header.as_deref().unwrap_or("Authorization")),
        }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn wanted(claims: &[String]) -> anyhow::Result<Map<String, Value>> {
    let claim = |text: &String| {
        let (name, value) = text.split_once('=').with_context(|| format!("`{text}` is not NAME=VALUE"))?;
        let plain = serde_json::from_str(value).ok().filter(|value: &Value| value.is_boolean() || value.is_number());
        Ok((name.to_owned(), plain.unwrap_or_else(|| json!(value))))
    };
    claims.iter().map(claim).collect()
}

/// A file, or where it is `-` standard input: all of it, or a terminal's one line.
fn content(file: &str) -> anyhow::Result<String> {
    use std::io::IsTerminal;
    if file != "-" {
        return std::fs::read_to_string(file).with_context(|| format!("`{file}` does not read"));
    }
    let mut text = String::new();
    let mut input = std::io::stdin().lock();
    let read = if input.is_terminal() { input.read_line(&mut text) } else { input.read_to_string(&mut text) };
    read.context("standard input does not read")?;
    Ok(text)
}

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let (one, method, below, body) = command.call(content)?;
    let id = resolve::container(context, &one.container, one.project.as_deref()).await?;
    let request = context.client.request(method, &format!("/containers/{id}/proxy/permissions{below}"));
    let data = context.client.send(body.iter().fold(request, |request, body| request.json(body))).await?;
    context.out.one(&data, &FIELDS)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn call(line: &str) -> (Method, String, Option<Value>) {
        let command = Line::try_parse_from(line.split(' ')).unwrap().command;
        let read = |_: &str| Ok("secret\nmore\n".to_owned());
        let (_, method, path, body) = command.call(read).unwrap();
        (method, path, body)
    }

    #[test]
    fn each_command_is_one_call() {
        let put = |path: &str, body| (Method::PUT, path.to_owned(), Some(body));
        assert_eq!(
            call("access password acme staff --user ada"),
            put("/groups/staff/password", json!({ "username": "ada", "password": "secret" }))
        );
        assert_eq!(
            call("access token acme ci"),
            put("/groups/ci/token", json!({ "header": "Authorization", "value": "secret" }))
        );
        assert_eq!(
            call("access token acme ci --param key"),
            put("/groups/ci/token", json!({ "param": "key", "value": "secret" }))
        );
        let claims = json!({ "iss": "https://x", "admin": true, "n": 3, "v": "null" });
        let jwt =
            json!({ "algorithm": "ES256", "secret": "secret\nmore\n", "claims": claims, "sources": ["cookie:a"] });
        let line = "access jwt acme users --algorithm ES256 --key k.pem --source cookie:a --claim iss=https://x --claim admin=true --claim n=3 --claim v=null";
        assert_eq!(call(line), put("/groups/users/jwt", jwt));
        assert_eq!(
            call("access ip acme office 10.0.0.0/8 ::1"),
            put("/groups/office/ip", json!({ "range": ["10.0.0.0/8", "::1"] }))
        );
        assert_eq!(
            call("access default acme deny"),
            (Method::PATCH, "/default".into(), Some(json!({ "default": "deny" })))
        );
        assert_eq!(call("access rm acme ci"), (Method::DELETE, "/groups/ci".into(), None));
        assert!(Line::try_parse_from("access token acme ci --param a --cookie b".split(' ')).is_err());
        assert!(Line::try_parse_from("access password acme staff --user ada --password hunter2".split(' ')).is_err());
    }
}
