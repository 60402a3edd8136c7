//! JSON files read strictly: a key that stands twice is refused at any depth, and every error names file, field, wanted, got.

use crate::{Error, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::path::Path;

/// An object of a JSON file. A field that is absent and one that is null read the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object<'a> {
    path: &'a Path,
    /// `rope_parameters` for an object inside another.
    inside: Option<&'a str>,
    map: &'a Map<String, Value>,
}

/// The text of a file.
pub(crate) fn read(path: &Path) -> Result<String> {
    let failed = |source| Error::Runtime(runtime::Error::File { path: path.to_path_buf(), action: "read", source });
    String::from_utf8(std::fs::read(path).map_err(failed)?).map_err(|e| {
        Error::file(path, format!("wanted UTF-8 text, got the byte 0x{:02x} at {}", first_bad(&e), e.utf8_error().valid_up_to()))
    })
}

fn first_bad(e: &std::string::FromUtf8Error) -> u8 {
    e.as_bytes().get(e.utf8_error().valid_up_to()).copied().unwrap_or_default()
}

/// Parses one JSON object; anything else at the top, and anything after it, is an error.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Map<String, Value>> {
    if text.starts_with("version https://git-lfs") {
        return Err(lfs_pointer(path));
    }
    match serde_json::from_str(text) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(Strict(other)) => Err(Error::file(path, format!("wanted a JSON object, got {}", got(Some(&other))))),
        Err(e) => Err(Error::file(path, format!("not valid JSON: {e}"))),
    }
}

/// The fault of a file that `git clone` left as a pointer.
pub(crate) fn lfs_pointer(path: &Path) -> Error {
    let text = "this is a git-LFS pointer of a few lines, not the file itself; fetch it with `git lfs pull` or download it again";
    Error::file(path, text)
}

/// A value as an error shows it: cut at 60 characters.
pub(crate) fn got(value: Option<&Value>) -> String {
    let Some(value) = value else { return "nothing".into() };
    let text = value.to_string();
    let cut = text.char_indices().nth(60).map_or(text.len(), |(i, _)| i);
    if cut < text.len() { format!("{}…", &text[..cut]) } else { text }
}

impl<'a> Object<'a> {
    pub(crate) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Object<'a> {
        Object { path, inside: None, map }
    }

    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// `file: field: wanted .., got ..`
    pub(crate) fn wrong(&self, field: &str, wanted: impl std::fmt::Display) -> Error {
        let inside = self.inside.map(|name| format!("{name}.")).unwrap_or_default();
        Error::file(self.path, format!("{inside}{field}: wanted {wanted}, got {}", got(self.map.get(field))))
    }

    fn read<T>(&self, field: &str, wanted: impl std::fmt::Display, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(field).map(|v| read(v).ok_or_else(|| self.wrong(field, wanted))).transpose()
    }

    /// An integer in `least..=most`; a float without a fraction (`8.0`) counts as one.
    pub(crate) fn integer(&self, field: &str, least: u64, most: u64) -> Result<Option<usize>> {
        let whole = |x: f64| (x >= 0.0 && x <= most as f64 && x.fract() == 0.0).then_some(x as u64);
        let read = |v: &Value| v.as_u64().or_else(|| v.as_f64().and_then(whole)).filter(|x| (least..=most).contains(x));
        self.read(field, format_args!("an integer from {least} to {most}"), |v| read(v).and_then(|x| usize::try_from(x).ok()))
    }

    /// A finite number.
    pub(crate) fn number(&self, field: &str) -> Result<Option<f64>> {
        self.read(field, "a finite number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    pub(crate) fn boolean(&self, field: &str) -> Result<Option<bool>> {
        self.read(field, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>> {
        self.read(field, "a string", Value::as_str)
    }

    pub(crate) fn texts(&self, field: &str) -> Result<Option<Vec<&'a str>>> {
        self.read(field, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A token id or a list of them.
    pub(crate) fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|x| u32::try_from(x).ok());
        let read = |v: &Value| v.as_array().map_or_else(|| id(v).map(|x| vec![x]), |list| list.iter().map(id).collect());
        Ok(self.read(field, "a token id (0 or more) or a list of them", read)?.unwrap_or_default())
    }

    pub(crate) fn id(&self, field: &str) -> Result<Option<u32>> {
        self.read(field, "a token id (0 or more)", |v| v.as_u64().and_then(|x| u32::try_from(x).ok()))
    }

    pub(crate) fn object(&self, field: &'a str) -> Result<Option<Object<'a>>> {
        let map = self.read(field, "an object", Value::as_object)?;
        Ok(map.map(|map| Object { path: self.path, inside: Some(field), map }))
    }
}

/// A JSON value in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Strict, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> std::result::Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(v.into()))
    }
    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(v)) = seq.next_element()? {
            list.push(v);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let Strict(v) = access.next_value()?;
            if map.contains_key(&key) {
                return Err(serde::de::Error::custom(format_args!("the key {key:?} stands twice")));
            }
            map.insert(key, v);
        }
        Ok(Value::Object(map))
    }
}
