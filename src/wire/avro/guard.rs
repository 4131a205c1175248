//! What a foreign schema must satisfy before a parser sees it. A registry is another team's service: a schema that
//! is recursive, deep, huge when expanded, or whose list elements take no bytes would let a small record cost
//! unbounded time.

use std::collections::BTreeMap;

use serde_json::Value;

/// Largest schema, in bytes.
pub const SCHEMA_BYTES_MAX: usize = 256 << 10;
/// Deepest nesting of types.
pub const SCHEMA_DEPTH_MAX: usize = 32;
/// Most types after every name is replaced by its definition.
pub const SCHEMA_NODES_MAX: usize = 20_000;

/// Why a schema is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    #[error("the schema is larger than 256 KiB")]
    Size,
    #[error("the schema is not json")]
    Json,
    #[error("the schema is nested deeper than 32")]
    Depth,
    #[error("the schema has more than 20000 types")]
    Nodes,
    #[error("the schema contains itself")]
    Recursive,
    #[error("a list of the schema has elements without bytes")]
    ZeroWidth,
    #[error("the schema names a type that it does not define")]
    Name,
}

/// What a type costs when every name is replaced by its definition.
#[derive(Clone, Copy)]
struct Cost {
    depth: usize,
    nodes: usize,
    /// Fewest bytes of a value.
    bytes: usize,
}

const LEAF: Cost = Cost { depth: 1, nodes: 1, bytes: 1 };

#[derive(Default)]
struct Walk {
    /// Full name to cost; `None` while the type is being defined.
    named: BTreeMap<String, Option<Cost>>,
}

/// Checks the text of a schema.
pub fn check(text: &str) -> Result<(), GuardError> {
    if text.len() > SCHEMA_BYTES_MAX {
        return Err(GuardError::Size);
    }
    let schema: Value = serde_json::from_str(text).map_err(|_| GuardError::Json)?;
    Walk::default().visit(&schema, "", 0).map(|_| ())
}

impl Walk {
    fn visit(&mut self, schema: &Value, namespace: &str, depth: usize) -> Result<Cost, GuardError> {
        if depth >= SCHEMA_DEPTH_MAX {
            return Err(GuardError::Depth);
        }
        let cost = match schema {
            Value::String(name) => self.name(name, namespace)?,
            Value::Array(branches) => self.union(branches, namespace, depth)?,
            Value::Object(object) => match object.get("type").ok_or(GuardError::Json)? {
                Value::String(kind) => match kind.as_str() {
                    "record" | "error" => self.record(schema, namespace, depth)?,
                    "array" => self.list(&schema["items"], namespace, depth)?,
                    // A map's element has a key, so it is never without bytes.
                    "map" => one_more(self.visit(&schema["values"], namespace, depth + 1)?),
                    "enum" => self.define(schema, namespace, LEAF),
                    "fixed" => {
                        let bytes = schema["size"].as_u64().ok_or(GuardError::Json)? as usize;
                        self.define(schema, namespace, Cost { bytes, ..LEAF })
                    }
                    name => self.name(name, namespace)?,
                },
                inner => self.visit(inner, namespace, depth + 1)?,
            },
            _ => return Err(GuardError::Json),
        };
        if depth + cost.depth > SCHEMA_DEPTH_MAX {
            return Err(GuardError::Depth);
        }
        if cost.nodes > SCHEMA_NODES_MAX { Err(GuardError::Nodes) } else { Ok(cost) }
    }

    fn name(&self, name: &str, namespace: &str) -> Result<Cost, GuardError> {
        match name {
            "null" => return Ok(Cost { bytes: 0, ..LEAF }),
            "boolean" | "int" | "long" | "bytes" | "string" => return Ok(LEAF),
            "float" => return Ok(Cost { bytes: 4, ..LEAF }),
            "double" => return Ok(Cost { bytes: 8, ..LEAF }),
            _ => {}
        }
        let found = self.named.get(&full_name(name, namespace)).or_else(|| self.named.get(name));
        found.ok_or(GuardError::Name)?.ok_or(GuardError::Recursive)
    }

    fn union(&mut self, branches: &[Value], namespace: &str, depth: usize) -> Result<Cost, GuardError> {
        let mut total = LEAF;
        for branch in branches {
            let cost = self.visit(branch, namespace, depth + 1)?;
            total.depth = total.depth.max(cost.depth + 1);
            total.nodes = total.nodes.saturating_add(cost.nodes);
        }
        Ok(total)
    }

    fn list(&mut self, items: &Value, namespace: &str, depth: usize) -> Result<Cost, GuardError> {
        let cost = self.visit(items, namespace, depth + 1)?;
        if cost.bytes == 0 { Err(GuardError::ZeroWidth) } else { Ok(one_more(cost)) }
    }

    fn record(&mut self, schema: &Value, namespace: &str, depth: usize) -> Result<Cost, GuardError> {
        let (name, namespace) = names(schema, namespace);
        self.named.insert(name.clone(), None);
        let mut total = Cost { bytes: 0, ..LEAF };
        for field in schema["fields"].as_array().ok_or(GuardError::Json)? {
            let cost = self.visit(&field["type"], &namespace, depth + 1)?;
            total.depth = total.depth.max(cost.depth + 1);
            total.nodes = total.nodes.saturating_add(cost.nodes);
            total.bytes = total.bytes.saturating_add(cost.bytes);
        }
        self.named.insert(name, Some(total));
        Ok(total)
    }

    fn define(&mut self, schema: &Value, namespace: &str, cost: Cost) -> Cost {
        self.named.insert(names(schema, namespace).0, Some(cost));
        cost
    }
}

fn one_more(inner: Cost) -> Cost {
    Cost { depth: inner.depth + 1, nodes: inner.nodes.saturating_add(1), bytes: 1 }
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

/// The full name of a definition and the namespace inside it.
fn names(schema: &Value, outer: &str) -> (String, String) {
    let name = schema["name"].as_str().unwrap_or_default();
    let full = full_name(name, schema["namespace"].as_str().unwrap_or(outer));
    let namespace = full.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
    (full, namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costly_schemas_are_refused() {
        let nested = |depth: usize| {
            let open = r#"{"type":"array","items":"#.repeat(depth);
            format!("{open}\"long\"{}", "}".repeat(depth))
        };
        let doubling = (0..20).fold(r#"{"type":"record","name":"R0","fields":[{"name":"a","type":"long"}]}"#.to_owned(), |inner, n| {
            format!(r#"{{"type":"record","name":"R{}","fields":[{{"name":"a","type":{inner}}},{{"name":"b","type":"R{n}"}}]}}"#, n + 1)
        });
        let cases = [
            (
                r#"{"type":"record","name":"A","namespace":"n","fields":[{"name":"a","type":["null","n.A"]}]}"#
                    .to_owned(),
                Err(GuardError::Recursive),
            ),
            (
                r#"{"type":"record","name":"A","fields":[{"name":"a","type":{"type":"array","items":"A"}}]}"#
                    .to_owned(),
                Err(GuardError::Recursive),
            ),
            (r#"{"type":"array","items":"null"}"#.to_owned(), Err(GuardError::ZeroWidth)),
            (
                r#"{"type":"array","items":{"type":"record","name":"E","fields":[]}}"#.to_owned(),
                Err(GuardError::ZeroWidth),
            ),
            (r#"{"type":"array","items":{"type":"fixed","name":"F","size":0}}"#.to_owned(), Err(GuardError::ZeroWidth)),
            (r#"{"type":"array","items":"Nowhere"}"#.to_owned(), Err(GuardError::Name)),
            (r#"{"type":"record","name":"A"}"#.to_owned(), Err(GuardError::Json)),
            ("[".repeat(10_000), Err(GuardError::Json)),
            (" ".repeat(SCHEMA_BYTES_MAX + 1), Err(GuardError::Size)),
            (nested(31), Ok(())),
            (nested(32), Err(GuardError::Depth)),
            (doubling, Err(GuardError::Nodes)),
        ];
        for (text, expect) in cases {
            assert_eq!(check(&text), expect, "{}", &text[..text.len().min(200)]);
        }
    }
}
