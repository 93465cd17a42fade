//! How the values of Ray's settings are written in its environment variables and in its JSON.

use serde_json::Value;

/// A type that a setting of Ray's can have.
pub(super) trait FromSetting: Sized {
    /// What a text or JSON value of the type looks like, for an error.
    const EXPECTED: &'static str;
    /// From an environment variable.
    fn from_text(text: &str) -> Option<Self>;
    /// From the cluster's JSON.
    fn from_json(json: &Value) -> Option<Self>;
    /// For people.
    fn to_text(&self) -> String;
}

impl FromSetting for bool {
    const EXPECTED: &'static str = "true or false";

    /// Ray takes every text but "true" and "1" for false.
    fn from_text(text: &str) -> Option<Self> {
        Some(text.eq_ignore_ascii_case("true") || text == "1")
    }

    fn from_json(json: &Value) -> Option<Self> {
        json.as_bool()
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

macro_rules! whole_numbers {
    ($($kind:ty, $expected:literal;)*) => {$(
        impl FromSetting for $kind {
            const EXPECTED: &'static str = $expected;

            fn from_text(text: &str) -> Option<Self> {
                text.trim_start().parse().ok()
            }

            fn from_json(json: &Value) -> Option<Self> {
                match (json.as_i64(), json.as_u64(), json.as_f64()) {
                    (Some(n), _, _) => n.try_into().ok(),
                    (_, Some(n), _) => n.try_into().ok(),
                    // Python writes a computed whole number as 5.0. Above 2^53 such a number isn't exact.
                    (_, _, Some(n)) if n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0 => (n as i64).try_into().ok(),
                    _ => None,
                }
            }

            fn to_text(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

whole_numbers! {
    i32, "a whole number of 32 bits";
    u32, "a whole number of 32 bits, not negative";
    i64, "a whole number of 64 bits";
    u64, "a whole number of 64 bits, not negative";
}

impl FromSetting for f64 {
    const EXPECTED: &'static str = "a number";

    fn from_text(text: &str) -> Option<Self> {
        text.trim_start().parse().ok().filter(|n: &f64| n.is_finite())
    }

    fn from_json(json: &Value) -> Option<Self> {
        json.as_f64()
    }

    fn to_text(&self) -> String {
        self.to_string()
    }
}

impl FromSetting for String {
    const EXPECTED: &'static str = "a string";

    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn from_json(json: &Value) -> Option<Self> {
        json.as_str().map(str::to_owned)
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

impl FromSetting for Vec<String> {
    const EXPECTED: &'static str = "strings, separated by commas (in JSON: an array of strings)";

    fn from_text(text: &str) -> Option<Self> {
        Some(text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect())
    }

    fn from_json(json: &Value) -> Option<Self> {
        match json {
            Value::String(text) => Self::from_text(text),
            Value::Array(items) => items.iter().map(String::from_json).collect(),
            _ => None,
        }
    }

    fn to_text(&self) -> String {
        format!("{:?}", self.join(","))
    }
}
