//! One layer over another: a table of keys, each of which replaces the value below.

use serde::Deserialize as _;
use toml::{Table, Value};

use super::{Config, ConfigError};

impl Config {
    /// These keys over the present ones. `origin` is what errors call them.
    pub(super) fn with_text(&self, text: &str, origin: &str) -> Result<Self, ConfigError> {
        let layer = text.parse::<Table>().map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            ConfigError::Syntax {
                origin: origin.into(),
                line: text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1,
                reason: one_line(error.message()),
            }
        })?;
        self.with(layer).map_err(|(key, reason)| ConfigError::Value { origin: origin.into(), key, reason })
    }

    /// As [`Config::with_text`], of what is a table already. An error is a key, and what is wrong with it.
    pub(super) fn with(&self, layer: Table) -> Result<Self, (String, String)> {
        let mut all = Table::try_from(self).map_err(|error| (String::new(), one_line(&error.to_string())))?;
        if let Some(key) = layer.keys().find(|key| !all.contains_key(*key)) {
            return Err((key.clone(), "There is no such key".into()));
        }
        all.extend(layer);
        let mut track = serde_path_to_error::Track::new();
        let merged = serde_path_to_error::Deserializer::new(Value::Table(all), &mut track);
        let config =
            Self::deserialize(merged).map_err(|error| (track.path().to_string(), one_line(error.message())))?;
        config.validate().map_err(|(key, reason)| (key.into(), reason))?;
        Ok(config)
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
