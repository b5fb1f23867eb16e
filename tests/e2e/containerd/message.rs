//! Messages of Protocol Buffers, written and read by field number.

pub fn message(fields: &[Vec<u8>]) -> Vec<u8> {
    fields.concat()
}

pub fn text(field: u8, value: &str) -> Vec<u8> {
    bytes(field, value.as_bytes())
}

pub fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    [varint(u64::from(field) << 3 | 2), varint(value.len().try_into().unwrap()), value.to_vec()].concat()
}

pub fn number(field: u8, value: u64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    while value >= 0x80 {
        encoded.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    encoded.push(u8::try_from(value).unwrap());
    encoded
}

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

    /// A field's text, which must be there.
    pub fn text(&self, field: u64) -> String {
        let value = self.bytes(field).next().unwrap_or_else(|| panic!("field {field} is missing: {self:?}"));
        String::from_utf8(value.to_vec()).unwrap()
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

/// Takes a number off the front.
fn take_varint(message: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = message[0];
        *message = &message[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return value;
        }
    }
}
