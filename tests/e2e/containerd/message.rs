//! Messages of Protocol Buffers that were received, read by field number.

use super::grpc::take_varint;

/// A message that was received.
#[derive(Debug, Default)]
pub struct Message(Vec<(u64, Value)>);

#[derive(Debug)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Message {
    pub fn parse(mut encoded: &[u8]) -> Self {
        let mut fields = Vec::new();
        while !encoded.is_empty() {
            let tag = take_varint(&mut encoded);
            let value = match tag & 7 {
                0 => Value::Number(take_varint(&mut encoded)),
                2 => {
                    let length = usize::try_from(take_varint(&mut encoded)).unwrap();
                    let (value, rest) = encoded.split_at(length);
                    encoded = rest;
                    Value::Bytes(value.to_vec())
                }
                other => panic!("wire type {other}"),
            };
            fields.push((tag >> 3, value));
        }
        Self(fields)
    }

    /// The messages of a repeated field.
    pub fn all(&self, field: u64) -> Vec<Self> {
        self.bytes(field).map(Self::parse).collect()
    }

    /// A field's message, or an empty one.
    pub fn get(&self, field: u64) -> Self {
        self.bytes(field).next().map(Self::parse).unwrap_or_default()
    }

    pub fn text(&self, field: u64) -> String {
        self.bytes(field).next().map(|value| String::from_utf8(value.to_vec()).unwrap()).unwrap_or_default()
    }

    /// A field's number; 0, if it is missing.
    pub fn number(&self, field: u64) -> u64 {
        let mut numbers = self.0.iter().filter_map(|(number, value)| match value {
            Value::Number(value) if *number == field => Some(*value),
            _ => None,
        });
        numbers.next().unwrap_or_default()
    }

    fn bytes(&self, field: u64) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter_map(move |(number, value)| match value {
            Value::Bytes(value) if *number == field => Some(value.as_slice()),
            _ => None,
        })
    }
}
