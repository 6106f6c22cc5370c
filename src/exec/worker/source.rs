//! A script's text made into what the engine takes: types stripped, wrapped where it is not a module. Lines stay where they are.
//!
//! TypeScript is stripped in place, each type replaced by as much blank, so that line and column are the author's. What has a meaning
//! at run time (`enum`, `namespace`, parameter properties) is refused with its place, as Node does.

use std::cell::RefCell;
use std::rc::Rc;

use swc_common::errors::{DiagnosticBuilder, Emitter, HANDLER, Handler};
use swc_common::{FileName, SourceMap};
use swc_ts_fast_strip::{Mode, Options, operate};

use crate::exec::run::{Place, RunError, ScriptFile};

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The script: a function's body, with `return` and `await`.
    Script,
    /// A file that is required: a function's body.
    Library,
    /// An ES module.
    Module,
}

impl Shape {
    /// What stands before the first line.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Script => "(async function script(req, res, metadata, shared, console, require, module, exports) {",
            Self::Library => "(function library(module, exports, require) {",
            Self::Module => "",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Script | Self::Library => "\n})",
            Self::Module => "",
        }
    }
}

/// Whether a text that does not parse as a function's body may be a module: some line begins with `import` or `export`.
pub fn looks_like_module(file: &str, text: &str) -> bool {
    let begins = |line: &str, word: &str| {
        line.strip_prefix(word)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$'))
    };
    let says = |line: &str| {
        (begins(line, "export") && !line.starts_with("export.") && !line.starts_with("export("))
            || (begins(line, "import") && !line.starts_with("import(") && !line.starts_with("import."))
    };
    file.ends_with(".mjs") || file.ends_with(".mts") || text.lines().any(|line| says(line.trim_start()))
}

/// The text as the engine takes it.
///
/// # Errors
/// TypeScript that does not parse, or cannot be stripped.
pub fn prepare(file: &str, text: &str, shape: Shape) -> Result<String, RunError> {
    // A line that names an interpreter is for a shell.
    let text = text.strip_prefix("#!").map_or_else(|| text.to_owned(), |rest| format!("//{rest}"));
    let whole = format!("{}{text}{}", shape.prefix(), shape.suffix());
    if file.ends_with(".ts") || file.ends_with(".mts") { strip(file, whole, shape) } else { Ok(whole) }
}

/// What the other parser says of a text that the engine's does not take: that one tells the line, and no column that helps.
pub fn better(file: &str, text: &str, shape: Shape) -> Option<RunError> {
    strip(file, format!("{}{text}{}", shape.prefix(), shape.suffix()), shape).err()
}

/// What the parser complained of: the first thing is what matters.
#[derive(Clone, Default)]
struct First(Rc<RefCell<Option<(u32, u32, String)>>>, Rc<SourceMap>);

impl Emitter for First {
    fn emit(&mut self, diagnostic: &mut DiagnosticBuilder<'_>) {
        let at = diagnostic.span.primary_span().map(|span| self.1.lookup_char_pos(span.lo));
        let (line, column) = at.map_or((0, 0), |at| (at.line as u32, at.col.0 as u32 + 1));
        self.0.borrow_mut().get_or_insert_with(|| (line, column, diagnostic.message()));
    }
}

fn strip(file: &str, text: String, shape: Shape) -> Result<String, RunError> {
    let map = Rc::new(SourceMap::default());
    let first = First(Rc::default(), Rc::clone(&map));
    let handler = Handler::with_emitter(true, false, Box::new(first.clone()));
    let options = Options {
        module: Some(shape == Shape::Module),
        filename: Some(FileName::Custom(file.to_owned()).to_string()),
        mode: Mode::StripOnly,
        ..Options::default()
    };
    let stripped = HANDLER.set(&handler, || operate(&map, &handler, text, options));
    stripped.map(|output| output.code).map_err(|error| {
        let found = first.0.borrow_mut().take();
        let (line, column, message) = found.unwrap_or((0, 0, error.message));
        RunError::Syntax { place: place(file, line, column, shape), message }
    })
}

/// A place in what the engine was given, as the author has it.
pub fn place(file: &str, line: u32, column: u32, shape: Shape) -> Place {
    let shift = if line == 1 { shape.prefix().len() as u32 } else { 0 };
    Place { file: ScriptFile(file.to_owned()), line, column: column.saturating_sub(shift).max(u32::from(column > 0)) }
}

/// The first `(file:line:column)` of a stack that is the author's.
pub fn place_in(stack: &str) -> Option<(String, u32, u32)> {
    stack.lines().find_map(|line| {
        let at = line.trim().trim_start_matches("at ").trim_end_matches(')');
        let at = at.rsplit_once('(').map_or(at, |(_, at)| at);
        let (rest, column) = at.rsplit_once(':')?;
        let (file, row) = rest.rsplit_once(':')?;
        let own = !file.starts_with(super::PRELUDE) && !file.is_empty();
        own.then_some((file.to_owned(), row.parse().ok()?, column.parse().ok()?))
    })
}

/// A stack as the author would write it: without our own lines, and columns of first lines where they are in the file. `wrapped` is
/// the script's file, where it is a function's body; what else it names is a library's, or a module that stands as it is.
pub fn own_stack(stack: &str, wrapped: Option<&str>) -> String {
    let inside = format!("({}", super::PRELUDE);
    let lines = stack.lines().filter(|line| !line.contains(&inside) && !line.contains("(native)"));
    lines.map(|line| shift_column(line.trim(), wrapped)).collect::<Vec<_>>().join("\n")
}

fn shift_column(line: &str, wrapped: Option<&str>) -> String {
    let moved = || {
        let (head, column) = line.strip_suffix(')')?.rsplit_once(':')?;
        let column: usize = column.parse().ok()?;
        let file = head.rsplit_once('(')?.1.strip_suffix(":1")?;
        let shape = if wrapped == Some(file) { Shape::Script } else { Shape::Library };
        // Within the prefix there is nothing of an author's: the file is a module.
        let column = column.checked_sub(shape.prefix().len()).filter(|column| *column > 0)?;
        Some(format!("{head}:{column})"))
    };
    moved().unwrap_or_else(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_go_and_every_line_and_column_stays() {
        let text = "interface A { n: number }\nconst a: A = { n: 1 };\nreturn a.n as number;\n";
        let code = prepare("x.ts", text, Shape::Script).unwrap();
        let lines: Vec<&str> = code.lines().collect();
        assert_eq!(lines[1].find("{ n: 1 }"), Some("const a: A = ".len()));
        assert_eq!(lines[2].trim_end().trim_end_matches([';', ' ']), "return a.n");
        assert_eq!(
            prepare("x.js", "return 1", Shape::Script).unwrap(),
            format!("{}return 1\n}})", Shape::Script.prefix())
        );
    }

    #[test]
    fn what_cannot_be_stripped_is_told_with_its_place() {
        let wrong = |text: &str| match prepare("x.ts", text, Shape::Script).unwrap_err() {
            RunError::Syntax { place, message } => (place.line, place.column, message),
            other => panic!("{other}"),
        };
        let (line, column, message) = wrong("const a = 1;\n  enum E { A }\n");
        assert_eq!((line, column), (2, 3), "{message}");
        let (line, column, _) = wrong("let a: = 1;\n");
        assert_eq!((line, column), (1, 8));
    }

    #[test]
    fn a_module_is_known_by_its_lines() {
        assert!(looks_like_module("x.js", "// a\nexport default (req, res) => 1"));
        assert!(looks_like_module("x.js", "  import a from './a.js'"));
        assert!(looks_like_module("x.mjs", "1"));
        for text in ["exports.a = 1", "const a = await import('./a.js')", "importThings()", "return 'export default'"] {
            assert!(!looks_like_module("x.js", text), "{text}");
        }
    }

    #[test]
    fn a_stack_tells_the_authors_places() {
        let column = Shape::Script.prefix().len() + 7;
        let stack = format!(
            "    at f (shop/x.js:3:9)\n    at script (shop/x.js:1:{column})\n    at run (tenantry:main:60:5)\n    at g (native)\n"
        );
        assert_eq!(own_stack(&stack, Some("shop/x.js")), "at f (shop/x.js:3:9)\nat script (shop/x.js:1:7)");
        assert_eq!(place_in(&stack), Some(("shop/x.js".into(), 3, 9)));
        assert_eq!(place_in("    at x.js:4:2\n"), Some(("x.js".into(), 4, 2)));
        assert_eq!(place_in("    at tenantry:main:4:2\n"), None);
    }
}
