//! What a template may call: Jinja2's filters and tests where minijinja's differ, the globals of transformers, and limits.

use super::clock::strftime;
use super::python::{self, Json, kind};
use super::rewrite::{ASSISTANT, EACH, PRINT, TEXT};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Instructions and 64-byte pieces of text that a rendering may cost.
const FUEL: u64 = 1_000_000;
/// Macros and blocks in each other.
const DEEPEST: usize = 100;
/// Stands before and behind what a `{% generation %}` block wrote. Noncharacters: no text has them.
pub(super) const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];
/// The variable with the moment of the rendering, in seconds since 1970.
pub(super) const NOW: &str = "_now";

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

/// An environment without templates.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(DEEPEST);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(method);
    env.set_formatter(write);
    env.add_function("raise_exception", |message: &Value| Err::<Value, _>(invalid(python::text(message)?)));
    env.add_function("strftime_now", strftime_now);
    env.add_test("iterable", |value: &Value| !matches!(kind(value), "NoneType" | "bool" | "int" | "float" | "object"));
    env.add_test("sequence", |value: &Value| matches!(kind(value), "str" | "list" | "dict"));
    env.add_test("callable", |value: &Value| matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined));
    env.add_filter(ASSISTANT, |inside: &str| format!("{}{inside}{}", MARKS[0], MARKS[1]));
    env.add_filter(EACH, checked);
    env.add_filter(PRINT, |value: &Value| python::text(value).map(Value::from_safe_string));
    env.add_filter(TEXT, python::text);
    env.add_filter("string", python::text);
    env.add_filter("trim", trim);
    env.add_filter("join", join);
    let length = |value: &Value| match value.kind() {
        ValueKind::Undefined => Ok(0),
        _ => value.len().ok_or_else(|| invalid(format!("object of type '{}' has no len()", kind(value)))),
    };
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("tojson", tojson);
    env.add_filter("sort", sort);
    generators(&mut env);
    Ok(env)
}

/// Writes a value; where a text is added to a safe one, with what HTML reserves escaped.
fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = python::text(value)?;
    if value.is_safe() || matches!(state.auto_escape(), AutoEscape::None) {
        return Ok(out.write_str(&text)?);
    }
    for c in text.chars() {
        match c {
            '&' => out.write_str("&amp;")?,
            '<' => out.write_str("&lt;")?,
            '>' => out.write_str("&gt;")?,
            '"' => out.write_str("&#34;")?,
            '\'' => out.write_str("&#39;")?,
            other => out.write_str(other.encode_utf8(&mut [0; 4]))?,
        }
    }
    Ok(())
}

/// Filters whose result has no length and cannot be indexed.
fn generators(env: &mut Environment<'static>) {
    type Attribute = std::borrow::Cow<'static, str>;
    let lazy = |values: Vec<Value>| Value::make_one_shot_iterator(values.into_iter());
    type Args = Rest<ValueOrKwargs>;
    env.add_filter("map", move |state: &mut State, v: Value, args: Args| filters::map(state, filled(v)?, args).map(lazy));
    env.add_filter("select", move |state: &mut State, v: Value, test: Option<String>, args: Args| {
        filters::select(state, filled(v)?, test.map(Attribute::Owned), args).map(lazy)
    });
    env.add_filter("reject", move |state: &mut State, v: Value, test: Option<String>, args: Args| {
        filters::reject(state, filled(v)?, test.map(Attribute::Owned), args).map(lazy)
    });
    env.add_filter("selectattr", move |state: &mut State, v: Value, name: String, test: Option<String>, args: Args| {
        filters::selectattr(state, filled(v)?, name.into(), test.map(Attribute::Owned), args).map(lazy)
    });
    env.add_filter("rejectattr", move |state: &mut State, v: Value, name: String, test: Option<String>, args: Args| {
        filters::rejectattr(state, filled(v)?, name.into(), test.map(Attribute::Owned), args).map(lazy)
    });
}

/// What a filter goes over: nothing where there is nothing.
fn filled(value: Value) -> Result<Value, Error> {
    if value.is_true() { checked(value) } else { Ok(Value::from(Vec::<Value>::new())) }
}

/// What can be iterated, as it is.
fn checked(value: Value) -> Result<Value, Error> {
    match kind(&value) {
        name @ ("NoneType" | "bool" | "int" | "float" | "object") => Err(invalid(format!("'{name}' object is not iterable"))),
        _ => Ok(value),
    }
}

/// `sort(reverse=False, case_sensitive=False, attribute=None)`.
fn sort(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (reverse, case, attribute, kwargs): (Option<Value>, Option<Value>, Option<Value>, Kwargs) = from_args(&args)?;
    let given = [("reverse", reverse), ("case_sensitive", case), ("attribute", attribute)];
    let named =
        kwargs.args().map(|name| Ok((name.to_string(), kwargs.get::<Value>(name)?))).collect::<Result<Vec<_>, Error>>()?;
    let positional = given.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?)));
    let all: Kwargs = positional.chain(named).filter(|(_, value)| !value.is_none()).collect();
    filters::sort(state, checked(value)?, all)
}

fn trim(value: &Value, chars: Option<String>) -> Result<String, Error> {
    let text = python::text(value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
        None => text.trim().to_string(),
    })
}

fn join(state: &mut State, value: Value, between: Option<String>, kwargs: Kwargs) -> Result<String, Error> {
    let attribute: Option<Value> = kwargs.get("attribute")?;
    let between = between.map_or_else(|| kwargs.get::<Option<String>>("d"), |d| Ok(Some(d)))?.unwrap_or_default();
    kwargs.assert_all_used()?;
    let mut out = String::new();
    for (i, item) in checked(value)?.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(name) => item.get_item(name)?,
            None => item,
        };
        let item = python::text(&item)?;
        // What grows is paid for before it does.
        state.consume_fuel(1 + ((between.len() + item.len()) / 64) as u64)?;
        out.push_str(if i > 0 { &between } else { "" });
        out.push_str(&item);
    }
    Ok(out)
}

/// transformers' own: `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Positional = (Option<Value>, Option<Value>, Option<Value>, Option<Value>, Kwargs);
    let args = args.into_values();
    let (ascii, indent, separators, sorted, kwargs): Positional = from_args(&args)?;
    let or = |given: Option<Value>, name: &str| given.map_or_else(|| kwargs.get::<Option<Value>>(name), |v| Ok(Some(v)));
    let given = |value: Option<Value>| value.filter(|v| !v.is_none());
    let (ascii, sorted) = (or(ascii, "ensure_ascii")?, or(sorted, "sort_keys")?);
    let indent = given(or(indent, "indent")?).map(usize::try_from).transpose()?;
    let separators = given(or(separators, "separators")?).map(|v| v.try_iter().map(Vec::from_iter)).transpose()?;
    kwargs.assert_all_used()?;
    if indent.is_some_and(|n| n > 64) {
        return Err(invalid("tojson: indent: wanted at most 64, got more"));
    }
    let (between, colon) = match separators.as_deref() {
        Some([between, colon]) => (between.to_string(), colon.to_string()),
        Some(_) => return Err(invalid("tojson: separators: wanted two, got another number")),
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let flag = |value: Option<Value>| value.is_some_and(|v| v.is_true());
    let text = Json { indent, between, colon, sorted: flag(sorted), ascii: flag(ascii) }.dump(value)?;
    state.consume_fuel((text.len() / 64) as u64)?;
    Ok(text)
}

fn strftime_now(state: &mut State, format: &str) -> Result<String, Error> {
    let now = state.lookup(NOW).and_then(|v| u64::try_from(v).ok()).unwrap_or(0);
    strftime(format, now).map_err(|text| invalid(format!("strftime_now: {text}")))
}

/// Python's methods; those that minijinja-contrib lacks first.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name) {
        (Some(text), "removeprefix" | "removesuffix") => {
            let (affix,): (&str,) = from_args(args)?;
            let rest = if name == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            Ok(Value::from(rest.unwrap_or(text)))
        }
        (Some(text), "rsplit") => {
            let (between, most): (&str, Option<i64>) = from_args(args)?;
            if between.is_empty() {
                return Err(invalid("rsplit: wanted a separator, got an empty one"));
            }
            let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX - 1);
            let mut parts: Vec<&str> = text.rsplitn(most + 1, between).collect();
            parts.reverse();
            Ok(parts.into_iter().map(Value::from).collect())
        }
        (Some(text), "split") if args.is_empty() => Ok(text.split_whitespace().map(Value::from).collect()),
        (Some(between), "join") => {
            let (values,): (Value,) = from_args(args)?;
            join(state, values, Some(between.into()), Kwargs::from_iter(std::iter::empty::<(&str, Value)>())).map(Value::from)
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}
