//! JSON as hook files are read elsewhere: Go's `encoding/json` takes a known
//! field in any case, takes `null` for an absent one, and passes over what it
//! does not know. A field that is there twice is refused: which one counts is
//! not worth knowing.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::file::FileError;

/// A value, with the members of an object in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    /// A number without fraction and exponent.
    Whole(i64),
    /// Any other number.
    Number(f64),
    Text(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl Json {
    pub(super) fn parse(text: &[u8]) -> Result<Self, FileError> {
        serde_json::from_slice(text).map_err(|error| FileError::NotJson(error.to_string()))
    }
}

struct AnyJson;

impl<'de> Visitor<'de> for AnyJson {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Whole(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        // What is beyond is beyond any limit that a field has.
        Ok(Json::Whole(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyJson)
    }
}

/// A value, and the name of the field that it is of.
#[derive(Debug, Clone)]
pub(super) struct Field<'j> {
    name: String,
    value: &'j Json,
}

impl<'j> Field<'j> {
    /// The whole of a file.
    pub(super) fn whole(value: &'j Json) -> Self {
        Self { name: String::new(), value }
    }

    pub(super) fn wrong(&self, reason: impl Into<String>) -> FileError {
        let name = if self.name.is_empty() { "the file" } else { &self.name };
        FileError::Field { field: name.to_owned(), reason: reason.into() }
    }

    fn child(&self, name: &str, value: &'j Json) -> Self {
        let name = if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) };
        Self { name, value }
    }

    fn members(&self) -> Result<&'j [(String, Json)], FileError> {
        match self.value {
            Json::Object(members) => Ok(members),
            _ => Err(self.wrong("this is no object { }")),
        }
    }

    /// The field of this name, unless it is null.
    pub(super) fn get(&self, name: &str) -> Result<Option<Self>, FileError> {
        let mut named = self.members()?.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let Some((_, value)) = named.next() else { return Ok(None) };
        let child = self.child(name, value);
        if named.next().is_some() {
            return Err(child.wrong("it is there twice"));
        }
        Ok((*value != Json::Null).then_some(child))
    }

    /// What is read of the field of this name, if it is there.
    pub(super) fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&Self) -> Result<T, FileError>,
    ) -> Result<Option<T>, FileError> {
        self.get(name)?.map(|field| read(&field)).transpose()
    }

    /// The names of fields that are not among `known`.
    pub(super) fn unknown(&self, known: &[&str]) -> Result<Vec<String>, FileError> {
        let members = self.members()?.iter().map(|(name, value)| (name, self.child(name, value)));
        let unknown = members.filter(|(name, _)| !known.iter().any(|known| known.eq_ignore_ascii_case(name)));
        Ok(unknown.map(|(_, field)| field.name).collect())
    }

    pub(super) fn text(&self) -> Result<&'j str, FileError> {
        match self.value {
            Json::Text(text) if text.contains('\0') => Err(self.wrong("no text may contain a zero byte")),
            Json::Text(text) => Ok(text),
            _ => Err(self.wrong("this is no text")),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, FileError> {
        match self.value {
            Json::Bool(value) => Ok(*value),
            _ => Err(self.wrong("this is neither true nor false")),
        }
    }

    pub(super) fn whole_number(&self) -> Result<i64, FileError> {
        match self.value {
            Json::Whole(value) => Ok(*value),
            _ => Err(self.wrong("this is no whole number")),
        }
    }

    /// Any number.
    pub(super) fn number(&self) -> Result<f64, FileError> {
        match self.value {
            // Beyond 2^53 it is inexact, and beyond every limit.
            Json::Whole(value) => Ok(i32::try_from(*value).map_or(f64::MAX, f64::from)),
            Json::Number(value) => Ok(*value),
            _ => Err(self.wrong("this is no number")),
        }
    }

    pub(super) fn list(&self) -> Result<Vec<Self>, FileError> {
        let Json::List(values) = self.value else { return Err(self.wrong("this is no list [ ]")) };
        let numbered = values.iter().enumerate();
        Ok(numbered.map(|(at, value)| Self { name: format!("{}[{at}]", self.name), value }).collect())
    }

    pub(super) fn texts(&self) -> Result<Vec<String>, FileError> {
        self.list()?.iter().map(|item| item.text().map(str::to_owned)).collect()
    }

    /// The members of an object whose names are data.
    pub(super) fn pairs(&self) -> Result<Vec<(&'j str, Self)>, FileError> {
        let members = self.members()?;
        let mut pairs: Vec<(&str, Self)> = Vec::with_capacity(members.len());
        for (name, value) in members {
            let pair = Self { name: format!("{}[{name:?}]", self.name), value };
            if pairs.iter().any(|(known, _)| known == name) {
                return Err(pair.wrong("it is there twice"));
            }
            pairs.push((name, pair));
        }
        Ok(pairs)
    }
}
