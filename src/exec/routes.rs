//! Which file answers which path. Pure: names in, a table out.
//!
//! ```text
//!  shop/stripe.js       /shop/stripe            index.js            /
//!  shop/index.js        /shop                   [id].js             /anything, as params.id
//!  shop/[id]/pay.ts     /shop/7/pay             [...slug].js        /a, /a/b, … , as params.slug = "a/b"
//!  _lib.js  .git/x.js   nothing: libraries      [[...path]].js      /, /a, /a/b, …
//! ```
//!
//! At each part of a path a name goes before `[id]`, that before `[...slug]`, that before `[[...path]]`. Of two files for one path the
//! first answers by this order: one that is not an `index`, then `.js` before `.ts`, then by name; the other is told as a conflict.
//!
//! Invariants: what a path leads to is one of the files that were given, so that no path leads out of the folder; a part of a path is
//! decoded once; a part that is `.` or `..` or holds a slash leads nowhere.

use std::collections::{BTreeMap, BTreeSet};

use percent_encoding::percent_decode_str;

use super::run::ScriptFile;

/// Parts of a path, and of a file's place in the folder, at most.
pub const DEPTH_MAX: usize = 16;
/// Bytes of a path, at most.
pub const PATH_BYTES_MAX: usize = 2_048;
/// Bytes of one part of a file's place, at most (`NAME_MAX`, limits.h(0p)).
const NAME_BYTES_MAX: usize = 255;
/// Bytes of the name of a parameter, at most.
const PARAM_BYTES_MAX: usize = 64;
/// What the API keeps for itself below `/exec/`.
const RESERVED: [&str; 3] = ["scripts", "secrets", "logs"];
/// How files end that are evaluated, in the order in which they go before one another.
const ENDINGS: [&str; 2] = [".js", ".ts"];
/// How files may end that the API writes: what scripts can require as well.
const WRITTEN_ENDINGS: [&str; 3] = [".js", ".ts", ".json"];

/// One part of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Exactly this.
    Name(String),
    /// `[id]`: any one part.
    One(String),
    /// `[...slug]`: one part or more.
    Rest(String),
    /// `[[...path]]`: any number of parts.
    OptionalRest(String),
}

/// The same of two routes that answer the same paths, and the smaller goes first where two answer one path.
type Shape = Vec<(u8, String)>;

/// A file that is no endpoint though it looks like one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Another file answers.
    #[error("`{0}` answers the same path and goes first")]
    Conflict(ScriptFile),
    /// Brackets that are none of ours.
    #[error("`{0}` is neither a plain name nor `[name]`, `[...name]` or `[[...name]]` (a rest stands at the end)")]
    Brackets(String),
    /// `[id]/[id].js`.
    #[error("it has two parameters named `{0}`")]
    ParamTwice(String),
    /// `secrets.js`.
    #[error("`/exec/{0}` is the API's own: give it another name")]
    Reserved(String),
}

/// A name that no script's file can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a script's file is named like `shop/stripe.js`: at most 16 parts, each 1 to 255 bytes, none that begins with a dot, ending in .js, .ts or .json"
)]
pub struct FileNameError;

/// Reads the name of a script's file as a client gives it.
///
/// # Errors
/// It cannot be one: nothing that leads out of the folder can.
pub fn script_file(text: &str) -> Result<ScriptFile, FileNameError> {
    let parts: Vec<_> = text.split('/').collect();
    let sound = |part: &&str| {
        (1..=NAME_BYTES_MAX).contains(&part.len())
            && !part.starts_with('.')
            && !part.chars().any(|c| c.is_control() || c == '\\')
    };
    let fits = parts.len() <= DEPTH_MAX && text.len() <= PATH_BYTES_MAX && parts.iter().all(sound);
    let last = parts.last().copied().unwrap_or_default();
    let named = WRITTEN_ENDINGS.iter().any(|ending| last.len() > ending.len() && last.ends_with(ending));
    if fits && named { Ok(ScriptFile(text.to_owned())) } else { Err(FileNameError) }
}

/// Whether a file is evaluated, and so can be checked.
pub fn is_code(file: &ScriptFile) -> bool {
    ENDINGS.iter().any(|ending| file.0.ends_with(ending))
}

#[derive(Debug, Clone)]
struct Route {
    file: ScriptFile,
    parts: Vec<Part>,
    shape: Shape,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The file that answers.
    pub file: ScriptFile,
    /// What its brackets stand for.
    pub params: BTreeMap<String, String>,
}

/// A file as the list tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The file.
    pub file: ScriptFile,
    /// The paths it answers, as `/shop/[id]`; `None` for a library.
    pub route: Option<String>,
    /// Why it answers none, where it looks as if it should.
    pub problem: Option<Problem>,
}

/// The folder's routes.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// In the order in which they are tried.
    routes: Vec<Route>,
    listed: Vec<Listed>,
}

impl Routes {
    /// The table of a folder's files, each with `/` between its parts.
    pub fn new(files: impl IntoIterator<Item = ScriptFile>) -> Self {
        let mut table = Self::default();
        let mut candidates = Vec::new();
        for file in files {
            match read(&file) {
                None => table.listed.push(Listed { file, route: None, problem: None }),
                Some(Err(problem)) => table.listed.push(Listed { file, route: None, problem: Some(problem) }),
                Some(Ok(parts)) => candidates.push(Route { shape: shape(&parts), file, parts }),
            }
        }
        candidates.sort_by(|a, b| (&a.shape, rank(&a.file)).cmp(&(&b.shape, rank(&b.file))));
        for route in candidates {
            let first = table.routes.last().filter(|first| first.shape == route.shape);
            let problem = first.map(|first| Problem::Conflict(first.file.clone()));
            let shown = problem.is_none().then(|| show(&route.parts));
            table.listed.push(Listed { file: route.file.clone(), route: shown, problem: problem.clone() });
            if problem.is_none() {
                table.routes.push(route);
            }
        }
        table.listed.sort_by(|a, b| a.file.cmp(&b.file));
        table
    }

    /// What answers a path, as it stands in a URL.
    pub fn resolve(&self, path: &str) -> Option<Found> {
        let parts = path_parts(path)?;
        self.routes.iter().find_map(|route| {
            let params = fits(&route.parts, &parts)?;
            Some(Found { file: route.file.clone(), params })
        })
    }

    /// Every file, by name.
    pub fn listed(&self) -> &[Listed] {
        &self.listed
    }

    /// Every file that answers.
    pub fn endpoints(&self) -> impl Iterator<Item = &ScriptFile> {
        self.routes.iter().map(|route| &route.file)
    }
}

/// The parts of a path; `None` where it can lead nowhere. One slash at its end makes no difference.
fn path_parts(path: &str) -> Option<Vec<String>> {
    let bare = path.strip_prefix('/').unwrap_or(path);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    if bare.is_empty() {
        return Some(Vec::new());
    }
    if bare.len() > PATH_BYTES_MAX || bare.split('/').count() > DEPTH_MAX {
        return None;
    }
    bare.split('/').map(decoded).collect()
}

fn decoded(part: &str) -> Option<String> {
    let text = percent_decode_str(part).decode_utf8().ok()?;
    let sound = !(text.is_empty() || text == "." || text == "..");
    (sound && !text.chars().any(|c| c.is_control() || c == '/' || c == '\\')).then(|| text.into_owned())
}

/// The parts of a file's route; `None` for a library.
fn read(file: &ScriptFile) -> Option<Result<Vec<Part>, Problem>> {
    let bare = ENDINGS.iter().find_map(|ending| file.0.strip_suffix(ending))?;
    if bare.split('/').any(|part| part.is_empty() || part.starts_with(['_', '.'])) || bare.ends_with(".d") {
        return None;
    }
    let mut names: Vec<_> = bare.split('/').collect();
    if names.last() == Some(&"index") {
        names.pop();
    }
    Some(parts_of(&names))
}

fn parts_of(names: &[&str]) -> Result<Vec<Part>, Problem> {
    let mut parts = Vec::with_capacity(names.len());
    let mut params = BTreeSet::new();
    for (at, name) in names.iter().enumerate() {
        let part = part(name).ok_or_else(|| Problem::Brackets((*name).to_owned()))?;
        let is_last = at + 1 == names.len();
        match &part {
            Part::Name(name) if at == 0 && RESERVED.contains(&name.as_str()) => {
                return Err(Problem::Reserved(name.clone()));
            }
            Part::Rest(_) | Part::OptionalRest(_) if !is_last => return Err(Problem::Brackets((*name).to_owned())),
            Part::One(param) | Part::Rest(param) | Part::OptionalRest(param) if !params.insert(param.clone()) => {
                return Err(Problem::ParamTwice(param.clone()));
            }
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

fn part(name: &str) -> Option<Part> {
    let between = |open: &str, close: &str| name.strip_prefix(open)?.strip_suffix(close);
    let made = |make: fn(String) -> Part, param: &str| is_param(param).then(|| make(param.to_owned()));
    if let Some(param) = between("[[...", "]]") {
        return made(Part::OptionalRest, param);
    }
    if let Some(param) = between("[...", "]") {
        return made(Part::Rest, param);
    }
    if let Some(param) = between("[", "]") {
        return made(Part::One, param);
    }
    (!name.contains(['[', ']'])).then(|| Part::Name(name.to_owned()))
}

fn is_param(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && name.len() <= PARAM_BYTES_MAX && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn shape(parts: &[Part]) -> Shape {
    let one = |part: &Part| match part {
        Part::Name(name) => (0, name.clone()),
        Part::One(_) => (1, String::new()),
        Part::Rest(_) => (2, String::new()),
        Part::OptionalRest(_) => (3, String::new()),
    };
    parts.iter().map(one).collect()
}

/// Which of two files of one shape goes first.
fn rank(file: &ScriptFile) -> (bool, usize, &str) {
    let name = file.0.rsplit('/').next().unwrap_or_default();
    let is_index = ENDINGS.iter().any(|ending| name.strip_suffix(ending) == Some("index"));
    let ending = ENDINGS.iter().position(|ending| name.ends_with(ending)).unwrap_or(ENDINGS.len());
    (is_index, ending, &file.0)
}

fn show(parts: &[Part]) -> String {
    let one = |part: &Part| match part {
        Part::Name(name) => name.clone(),
        Part::One(param) => format!("[{param}]"),
        Part::Rest(param) => format!("[...{param}]"),
        Part::OptionalRest(param) => format!("[[...{param}]]"),
    };
    format!("/{}", parts.iter().map(one).collect::<Vec<_>>().join("/"))
}

/// What the parameters stand for where a route answers a path.
fn fits(route: &[Part], path: &[String]) -> Option<BTreeMap<String, String>> {
    let mut params = BTreeMap::new();
    let mut left = path;
    for part in route {
        match part {
            Part::Name(name) => left = left.split_first().filter(|(first, _)| *first == name)?.1,
            Part::One(param) => {
                let (first, rest) = left.split_first()?;
                params.insert(param.clone(), first.clone());
                left = rest;
            }
            Part::Rest(_) if left.is_empty() => return None,
            Part::Rest(param) | Part::OptionalRest(param) => {
                params.insert(param.clone(), left.join("/"));
                left = &[];
            }
        }
    }
    left.is_empty().then_some(params)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(files: &[&str]) -> Routes {
        Routes::new(files.iter().map(|file| ScriptFile((*file).to_owned())))
    }

    fn to(table: &Routes, path: &str) -> String {
        table.resolve(path).map_or("-".into(), |found| {
            let params = found.params.iter().map(|(name, value)| format!(" {name}={value}")).collect::<String>();
            format!("{}{params}", found.file)
        })
    }

    #[test]
    fn files_answer_their_paths() {
        let table =
            routes(&["index.js", "a.js", "shop/index.ts", "shop/[id].js", "shop/[id]/pay.ts", "docs/[...s].js"]);
        for (path, want) in [
            ("", "index.js"),
            ("/", "index.js"),
            ("/a", "a.js"),
            ("a/", "a.js"),
            ("/a.js", "-"),
            ("/a//", "-"),
            ("/shop", "shop/index.ts"),
            ("/shop/7", "shop/[id].js id=7"),
            ("/shop/7/pay", "shop/[id]/pay.ts id=7"),
            ("/shop/7/other", "-"),
            ("/docs", "-"),
            ("/docs/a/b", "docs/[...s].js s=a/b"),
            ("/shop/index", "shop/[id].js id=index"),
        ] {
            assert_eq!(to(&table, path), want, "{path}");
        }
    }

    #[test]
    fn a_name_goes_before_one_before_a_rest_before_an_optional_rest() {
        let all = ["[[...p]].js", "[...s].js", "[id].js", "a.js", "x/[[...p]].js", "x/b.js", "[id]/b.js"];
        let table = routes(&all);
        assert_eq!(to(&table, "/a"), "a.js");
        assert_eq!(to(&table, "/b"), "[id].js id=b");
        assert_eq!(to(&table, "/b/c"), "[...s].js s=b/c");
        assert_eq!(to(&table, "/"), "[[...p]].js p=");
        assert_eq!(to(&table, "/x/b"), "x/b.js");
        assert_eq!(to(&table, "/y/b"), "[id]/b.js id=y");
        assert_eq!(to(&table, "/x"), "x/[[...p]].js p=");
        assert_eq!(to(&routes(&["x/[[...p]].js", "x.js"]), "/x"), "x.js");
    }

    #[test]
    fn libraries_answer_nothing() {
        let table = routes(&["_lib.js", "_x/a.js", ".git/a.js", ".a.js", "a.json", "a.d.ts", "readme.md", "a/_b.ts"]);
        for path in ["/_lib", "/_x/a", "/.git/a", "/a", "/a.json", "/a.d", "/a/_b"] {
            assert_eq!(to(&table, path), "-", "{path}");
        }
        assert!(table.listed().iter().all(|one| one.route.is_none() && one.problem.is_none()));
    }

    #[test]
    fn of_two_files_for_one_path_one_answers_and_the_other_is_told() {
        let table = routes(&["a/index.js", "a.ts", "a.js", "[name].js", "[id].js"]);
        assert_eq!(to(&table, "/a"), "a.js");
        assert_eq!(to(&table, "/b"), "[id].js id=b");
        let problem = |file: &str| table.listed().iter().find(|one| one.file.0 == file).unwrap().problem.clone();
        assert_eq!(problem("a.ts"), Some(Problem::Conflict(ScriptFile("a.js".into()))));
        assert_eq!(problem("a/index.js"), Some(Problem::Conflict(ScriptFile("a.js".into()))));
        assert_eq!(problem("[name].js"), Some(Problem::Conflict(ScriptFile("[id].js".into()))));
        assert_eq!(problem("a.js"), None);
    }

    #[test]
    fn what_cannot_be_a_route_is_told() {
        let table =
            routes(&["[a].x.js", "[...s]/a.js", "[id]/[id].js", "secrets.js", "logs/a.js", "[].js", "[a-b].js"]);
        assert!(table.endpoints().next().is_none());
        assert!(table.listed().iter().all(|one| one.problem.is_some()), "{table:?}");
        assert_eq!(to(&routes(&["a/secrets.js"]), "/a/secrets"), "a/secrets.js");
    }

    #[test]
    fn a_part_is_decoded_once_and_leads_nowhere_else() {
        let table = routes(&["[id].js", "a b.js"]);
        assert_eq!(to(&table, "/a%20b"), "a b.js");
        assert_eq!(to(&table, "/%2561"), "[id].js id=%61");
        for bad in ["/..", "/%2e%2e", "/.", "/a%2fb", "/a%00", "/%ff", "/a%5cb", "/a%0ab"] {
            assert_eq!(to(&table, bad), "-", "{bad}");
        }
        assert_eq!(to(&routes(&["[...s].js"]), &"/a".repeat(DEPTH_MAX + 1)), "-");
        assert_eq!(to(&routes(&["[...s].js"]), &format!("/{}", "a".repeat(PATH_BYTES_MAX + 1))), "-");
    }

    #[test]
    fn a_files_name_stays_in_the_folder() {
        for good in ["a.js", "shop/[id].ts", "_lib/x.json", "[[...all]].js", "ä b.js"] {
            assert!(script_file(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "a.txt", ".js", "../a.js", "a/../b.js", "/a.js", "a//b.js", ".x/a.js", "a\\b.js", "a\n.js"]
        {
            assert!(script_file(bad).is_err(), "{bad}");
        }
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-c]{1,2}",
            Just("[id]".into()),
            Just("[...s]".into()),
            Just("[[...p]]".into()),
            Just("index".into())
        ]
    }

    fn files() -> impl Strategy<Value = Vec<String>> {
        let file = (proptest::collection::vec(name(), 1..4), prop_oneof![Just(".js"), Just(".ts")]);
        proptest::collection::vec(file.prop_map(|(parts, ending)| parts.join("/") + ending), 0..12)
    }

    proptest! {
        #[test]
        fn a_path_leads_to_a_given_file_whatever_the_order(files in files(), path in "(/[a-c%.2e]{0,3}){0,4}") {
            let forward = Routes::new(files.iter().cloned().map(ScriptFile));
            let backward = Routes::new(files.iter().rev().cloned().map(ScriptFile));
            let found = forward.resolve(&path);
            prop_assert_eq!(&found, &backward.resolve(&path));
            if let Some(found) = found {
                prop_assert!(files.contains(&found.file.0));
                prop_assert!(found.params.values().all(|value| !value.split('/').any(|part| part == "..")));
            }
        }

        #[test]
        fn a_static_file_answers_its_own_path(parts in proptest::collection::vec("[a-c]{1,3}", 1..4), others in files()) {
            let file = parts.join("/") + ".js";
            let all = others.iter().cloned().chain([file.clone()]).map(ScriptFile);
            let found = Routes::new(all).resolve(&format!("/{}", parts.join("/"))).unwrap();
            prop_assert_eq!(found.file.0, file);
        }

        #[test]
        fn no_text_is_too_odd(path in ".{0,60}", name in ".{0,40}") {
            let _ = Routes::new([ScriptFile(format!("{name}.js"))]).resolve(&path);
            if let Ok(file) = script_file(&name) {
                prop_assert!(!file.0.split('/').any(|part| part == ".." || part.is_empty()));
            }
        }
    }
}
