//! How a key is read from a flag or a file and written back: one implementation per type a key can have.

use serde_json::Value;
use std::path::PathBuf;

/// How many words a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// `--flag`, `--flag false`, `--no_flag`.
    Switch,
    /// `--key value`.
    One,
    /// `--key a b c`.
    Many,
}

/// What a shell may offer for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// One of these.
    Words(&'static [&'static str]),
    /// Files and folders.
    Path,
    /// Nothing.
    Free,
}

/// The type of a key. Words of the command line arrive as JSON strings, those of [`Arity::Many`] as an array of them.
pub trait Field: Sized {
    /// Words of its flag.
    const ARITY: Arity;
    /// What a shell may offer.
    const HINT: Hint = Hint::Free;
    /// What a user is told is wanted.
    fn wanted() -> String;
    /// None where the value has another type or is out of range.
    fn read(value: &Value) -> Option<Self>;
    /// The reverse of `read`.
    fn write(&self) -> Value;
}

impl Field for bool {
    const ARITY: Arity = Arity::Switch;
    const HINT: Hint = Hint::Words(&["true", "false"]);
    fn wanted() -> String {
        "true or false".into()
    }
    fn read(value: &Value) -> Option<bool> {
        match value {
            Value::Bool(b) => Some(*b),
            Value::String(s) => match s.to_ascii_lowercase().as_str() {
                "true" | "yes" | "1" => Some(true),
                "false" | "no" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }
    fn write(&self) -> Value {
        (*self).into()
    }
}

/// Whole numbers: a number, a number in quotes, or a float without a fraction (`1e3`).
fn whole(value: &Value) -> Option<i128> {
    let float = |f: f64| (f.fract() == 0.0 && f.abs() < 9e15).then_some(f as i128);
    match value {
        Value::Number(n) => {
            n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from)).or_else(|| n.as_f64().and_then(float))
        }
        Value::String(s) => s.parse::<i128>().ok().or_else(|| s.parse::<f64>().ok().and_then(float)),
        _ => None,
    }
}

macro_rules! whole_field {
    ($($kind:ty: $wanted:literal),+) => {$(
        impl Field for $kind {
            const ARITY: Arity = Arity::One;
            fn wanted() -> String {
                $wanted.into()
            }
            fn read(value: &Value) -> Option<$kind> {
                <$kind>::try_from(whole(value)?).ok()
            }
            fn write(&self) -> Value {
                (*self).into()
            }
        }
    )+};
}
whole_field!(u32: "a whole number from 0 to 4294967295", u64: "a whole number from 0", i64: "a whole number");

impl Field for f64 {
    const ARITY: Arity = Arity::One;
    fn wanted() -> String {
        "a number".into()
    }
    fn read(value: &Value) -> Option<f64> {
        let number = match value {
            Value::Number(n) => n.as_f64(),
            Value::String(s) => s.parse().ok(),
            _ => None,
        };
        number.filter(|f: &f64| f.is_finite())
    }
    fn write(&self) -> Value {
        (*self).into()
    }
}

impl Field for String {
    const ARITY: Arity = Arity::One;
    fn wanted() -> String {
        "a text".into()
    }
    fn read(value: &Value) -> Option<String> {
        match value {
            Value::String(s) => Some(s.clone()),
            Value::Number(n) => Some(n.to_string()),
            _ => None,
        }
    }
    fn write(&self) -> Value {
        self.as_str().into()
    }
}

impl Field for PathBuf {
    const ARITY: Arity = Arity::One;
    const HINT: Hint = Hint::Path;
    fn wanted() -> String {
        "a path".into()
    }
    fn read(value: &Value) -> Option<PathBuf> {
        String::read(value).filter(|s| !s.is_empty()).map(PathBuf::from)
    }
    fn write(&self) -> Value {
        self.to_string_lossy().into()
    }
}

impl<T: Field> Field for Option<T> {
    const ARITY: Arity = T::ARITY;
    const HINT: Hint = T::HINT;
    fn wanted() -> String {
        T::wanted()
    }
    fn read(value: &Value) -> Option<Option<T>> {
        if value.is_null() { Some(None) } else { T::read(value).map(Some) }
    }
    fn write(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::write)
    }
}

impl<T: Field> Field for Vec<T> {
    const ARITY: Arity = Arity::Many;
    const HINT: Hint = T::HINT;
    fn wanted() -> String {
        format!("a list, each {}", T::wanted())
    }
    fn read(value: &Value) -> Option<Vec<T>> {
        match value {
            Value::Array(items) => items.iter().map(T::read).collect(),
            Value::Null => Some(Vec::new()),
            one => T::read(one).map(|v| vec![v]),
        }
    }
    fn write(&self) -> Value {
        Value::Array(self.iter().map(T::write).collect())
    }
}
