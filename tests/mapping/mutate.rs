//! Structure-aware mutations of JSON events, by seed: the same seed makes the same bytes on every machine.

use serde_json::{Map, Number, Value};

/// xorshift64*: enough to reach odd shapes, and the seed is the whole state.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// One to four changes of values, keys or order; every eighth result also has bytes damaged.
pub fn mutate(event: &Value, random: &mut Random) -> Vec<u8> {
    let mut event = event.clone();
    for _ in 0..=random.below(4) {
        let nodes = count(&event);
        change(&mut event, &mut random.below(nodes), random);
    }
    let mut bytes = serde_json::to_vec(&event).unwrap();
    if random.below(8) == 0 && !bytes.is_empty() {
        let at = random.below(bytes.len());
        match random.below(3) {
            0 => bytes.truncate(at),
            1 => bytes[at] = random.below(256) as u8,
            _ => bytes.insert(at, b"{}[]\",:\\0\0"[random.below(10)]),
        }
    }
    bytes
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// Walks to the node counted by `left` and changes it.
fn change(value: &mut Value, left: &mut usize, random: &mut Random) -> bool {
    if *left == 0 {
        reshape(value, random);
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| change(item, left, random)),
        Value::Object(map) => map.values_mut().any(|item| change(item, left, random)),
        _ => false,
    }
}

fn reshape(value: &mut Value, random: &mut Random) {
    let old = value.take();
    *value = match random.below(8) {
        0 => Value::Null,
        1 => Value::Array(vec![old.clone(), old]),
        2 => Value::Object(Map::from_iter([("value".to_owned(), old)])),
        3 => match old {
            Value::Object(mut map) if !map.is_empty() => {
                let key = map.keys().nth(random.below(map.len())).unwrap().clone();
                let item = map.remove(&key).unwrap();
                if random.below(2) == 0 {
                    map.insert(key.to_uppercase(), item);
                }
                Value::Object(map)
            }
            Value::Array(mut items) if !items.is_empty() => {
                items.rotate_left(1);
                items.pop();
                Value::Array(items)
            }
            // Bounded: a text that is the whole event may be chosen four times.
            Value::String(text) if text.len() <= 8_192 => Value::String(text.repeat(200)),
            other => other,
        },
        4 => Value::String(old.to_string()),
        _ => odd(random.below(16)),
    };
}

fn odd(n: usize) -> Value {
    let text = |t: &str| Value::String(t.to_owned());
    match n {
        0 => Value::Number(Number::from(i64::MIN)),
        1 => Value::Number(Number::from(u64::MAX)),
        2 => Number::from_f64(1e300).map_or(Value::Null, Value::Number),
        3 => Number::from_f64(-0.5).map_or(Value::Null, Value::Number),
        4 => Value::Bool(true),
        5 => text(""),
        6 => text("\0\u{200b}\u{202e}\u{fffd}"),
        7 => text("0001-01-01T00:00:00Z"),
        8 => text("2106-12-31T00:00:00Z"),
        9 => text("NAME_NOT_AVAILABLE"),
        10 => text("a@@b..c#EXT#@_"),
        11 => text(&"é".repeat(5000)),
        12 => Value::Array(Vec::new()),
        13 => Value::Object(Map::new()),
        14 => Value::Array((0..300).map(|n| serde_json::json!({ "name": n.to_string(), "value": [n] })).collect()),
        _ => Value::Number(Number::from(0)),
    }
}
