//! The keyword arguments of an op, as PyTorch calls them.

use genie_graph::DType;
use serde_json::{Map, Value};

use crate::error::Failure;

/// By name. What an op does not take was refused before it is called.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kwargs(pub(crate) Map<String, Value>);

/// A number as Python has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Bool(bool),
    Int(i64),
    Float(f64),
}

impl Kwargs {
    /// From a field of a form: JSON, or `True`, `(1, 2)` and words as Python has them.
    pub(crate) fn set_text(&mut self, name: &str, text: &str) -> Result<(), Failure> {
        let text = text.trim();
        let listed = || {
            let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).unwrap_or(text);
            let inner = inner.trim_end().strip_suffix(',').unwrap_or(inner);
            if inner.trim().is_empty() {
                return (inner != text).then(|| Value::Array(Vec::new()));
            }
            let numbers: Option<Vec<i64>> = inner.split(',').map(|word| word.trim().parse().ok()).collect();
            numbers.filter(|_| inner != text || inner.contains(',')).map(Value::from)
        };
        // As Python writes them, and JSON does not: .5, 1., +2.
        let number = || text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from);
        let value = match text {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            text => match serde_json::from_str(text).ok().or_else(listed).or_else(number) {
                Some(value) => value,
                None => Value::from(text),
            },
        };
        self.add(name, value)
    }

    /// Of an object, each of them.
    pub(crate) fn set_all(&mut self, object: Map<String, Value>) -> Result<(), Failure> {
        object.into_iter().try_for_each(|(name, value)| self.add(&name, value))
    }

    fn add(&mut self, name: &str, value: Value) -> Result<(), Failure> {
        match self.0.insert(name.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(Failure::fields(format!("'{name}' is given twice"))),
        }
    }

    /// What is given, and is not None.
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn typed<T>(&self, name: &str, what: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>, Failure> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let read = read(value);
        read.map(Some).ok_or_else(|| Failure::fields(format!("'{name}' must be {what}")))
    }

    pub(crate) fn int(&self, name: &str) -> Result<Option<i64>, Failure> {
        self.typed(name, "an integer", Value::as_i64)
    }

    /// A dimension, counted from either end.
    pub(crate) fn axis(&self, name: &str) -> Result<Option<i32>, Failure> {
        self.typed(name, "a dimension", |value| value.as_i64().and_then(|axis| axis.try_into().ok()))
    }

    pub(crate) fn float(&self, name: &str) -> Result<Option<f64>, Failure> {
        Ok(self.number(name)?.map(|number| match number {
            Number::Bool(value) => f64::from(u8::from(value)),
            Number::Int(value) => value as f64,
            Number::Float(value) => value,
        }))
    }

    /// A number; `inf` and `nan`, which JSON has not, are words.
    pub(crate) fn number(&self, name: &str) -> Result<Option<Number>, Failure> {
        self.typed(name, "a number", |value| match value {
            Value::Bool(value) => Some(Number::Bool(*value)),
            Value::String(word) => word.parse().ok().filter(|number: &f64| !number.is_finite()).map(Number::Float),
            value => value.as_i64().map(Number::Int).or_else(|| value.as_f64().map(Number::Float)),
        })
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Failure> {
        let flag = self.typed(name, "true or false", |value| match value.as_i64() {
            Some(number @ (0 | 1)) => Some(number == 1),
            _ => value.as_bool(),
        });
        Ok(flag?.unwrap_or(false))
    }

    pub(crate) fn word(&self, name: &str) -> Result<Option<&str>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(word)) => Ok(Some(word)),
            Some(_) => Err(Failure::fields(format!("'{name}' must be a word"))),
        }
    }

    /// One integer or a list of them.
    pub(crate) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, Failure> {
        self.typed(name, "an integer or a list of integers", |value| match value {
            Value::Array(all) => all.iter().map(Value::as_i64).collect(),
            one => one.as_i64().map(|one| vec![one]),
        })
    }

    /// A number for rows and one for columns, or one for both.
    pub(crate) fn pair(&self, name: &str) -> Result<Option<[u32; 2]>, Failure> {
        let what = "one or two integers that are not negative";
        self.typed(name, what, |value| {
            let one = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
            match value {
                Value::Array(all) => match all.as_slice() {
                    [both] => one(both).map(|n| [n, n]),
                    [rows, columns] => Some([one(rows)?, one(columns)?]),
                    _ => None,
                },
                both => one(both).map(|n| [n, n]),
            }
        })
    }

    /// An element type, by PyTorch's name or by ours.
    pub(crate) fn dtype(&self, name: &str) -> Result<Option<DType>, Failure> {
        let what = "one of float32, float16, bfloat16, int64, int32, uint8 and bool";
        self.typed(name, what, |value| {
            let word = value.as_str()?;
            let word = word.strip_prefix("torch.").unwrap_or(word);
            Some(match word {
                "float32" | "float" => DType::F32,
                "float16" | "half" => DType::F16,
                "bfloat16" => DType::BF16,
                "int64" | "long" => DType::I64,
                "int32" | "int" => DType::I32,
                "uint8" => DType::U8,
                other => DType::from_name(other)?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Kwargs {
        let mut kwargs = Kwargs::default();
        kwargs.set_text("x", text).unwrap();
        kwargs
    }

    #[test]
    fn values_are_read_as_python_and_json_write_them() {
        assert_eq!(of("-1").axis("x"), Ok(Some(-1)));
        assert_eq!(of("[0, 1]").ints("x"), Ok(Some(vec![0, 1])));
        assert_eq!(of("(0, 1)").ints("x"), Ok(Some(vec![0, 1])));
        assert_eq!(of("(3,)").ints("x"), Ok(Some(vec![3])));
        assert_eq!(of("2,3").ints("x"), Ok(Some(vec![2, 3])));
        assert_eq!(of("5").ints("x"), Ok(Some(vec![5])));
        assert_eq!((of("()").ints("x"), of("[]").ints("x")), (Ok(Some(vec![])), Ok(Some(vec![]))));
        for (text, number) in [
            (".5", Number::Float(0.5)),
            ("1.", Number::Float(1.0)),
            ("-inf", Number::Float(f64::NEG_INFINITY)),
            ("9007199254740993", Number::Int(9_007_199_254_740_993)),
            ("True", Number::Bool(true)),
            ("2.0", Number::Float(2.0)),
        ] {
            assert_eq!(of(text).number("x"), Ok(Some(number)), "{text}");
        }
        assert_eq!((of("1").flag("x"), of("0").flag("x")), (Ok(true), Ok(false)));
        assert_eq!(
            (of("True").flag("x"), of("false").flag("x"), of("None").flag("x")),
            (Ok(true), Ok(false), Ok(false))
        );
        assert_eq!(of("1e-5").float("x"), Ok(Some(1e-5)));
        assert_eq!(of("tanh").word("x"), Ok(Some("tanh")));
        assert_eq!(of("torch.bfloat16").dtype("x"), Ok(Some(DType::BF16)));
        assert_eq!(of("\"f16\"").dtype("x"), Ok(Some(DType::F16)));
        assert_eq!(of("3").pair("x"), Ok(Some([3, 3])));
        assert_eq!(of("[1, 2]").pair("x"), Ok(Some([1, 2])));
    }

    #[test]
    fn values_of_another_kind_are_refused() {
        assert!(of("1.5").int("x").is_err() && of("one").float("x").is_err() && of("2").flag("x").is_err());
        assert!(of("[1, 2.5]").ints("x").is_err() && of("-1").pair("x").is_err() && of("[1, 2, 3]").pair("x").is_err());
        assert!(
            of("float64").dtype("x").is_err() && of("99999999999").axis("x").is_err() && of("1").word("x").is_err()
        );
        assert!(of("1").set_text("x", "2").is_err());
    }
}
