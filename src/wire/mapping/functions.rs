//! Functions of our own in mapping programs: `text` and `list` for fields of any type, `lower_keys` and `pivot` for
//! shapes, `json`, `cef` and `pairs` for what is packed into a text, `domain_of` and `direction` for addresses, `time`
//! for forms of time, `table` for the file's tables. They exist because every vendor
//! needs them, VRL programs cannot define functions, and a standard conversion that fails formats an error (about 1 µs)
//! only to be replaced by `""`. They look at fields and variables where these lie: a field is copied when it is the
//! result, not to be looked at.

use std::borrow::Cow;
use std::collections::BTreeSet;

use vrl::compiler::expression::Expr;
use vrl::compiler::function::{ArgumentList, Compiled, Example, Function, FunctionCompileContext, Parameter};
use vrl::compiler::state::TypeState;
use vrl::compiler::value::kind;
use vrl::compiler::{Context, Expression, FunctionExpression, Resolved, TypeDef};
use vrl::diagnostic::{DiagnosticMessage, Label};
use vrl::path::OwnedTargetPath;
use vrl::value::kind::Collection;
use vrl::value::{KeyString, ObjectMap, Value};

use super::time_function::Time;
use super::{formats, json};

/// What this file adds to the standard functions.
pub fn own() -> Vec<Box<dyn Function>> {
    vec![
        Box::new(Own { name: "text", usage: TEXT, kind: kind::BYTES, apply: text }),
        Box::new(Own { name: "list", usage: LIST, kind: kind::ARRAY, apply: list }),
        Box::new(Own { name: "lower_keys", usage: LOWER_KEYS, kind: kind::OBJECT, apply: lower_keys }),
        Box::new(Own { name: "pivot", usage: PIVOT, kind: kind::OBJECT, apply: pivot }),
        Box::new(Own { name: "domain_of", usage: DOMAIN_OF, kind: kind::BYTES | kind::NULL, apply: domain_of }),
        Box::new(Own { name: "direction", usage: DIRECTION, kind: kind::BYTES, apply: direction }),
        Box::new(Own { name: "json", usage: JSON, kind: kind::OBJECT, apply: json_object }),
        Box::new(Own { name: "cef", usage: CEF, kind: kind::OBJECT, apply: cef }),
        Box::new(Own { name: "pairs", usage: PAIRS, kind: kind::OBJECT, apply: pairs }),
        Box::new(Time),
        Box::new(Table),
    ]
}

const TEXT: &str = "The text itself, an integer or boolean as text, else an empty text; of two values the \
                    first that is not empty. Never fails.";
const LIST: &str = "The array itself, else an empty one. Never fails.";
const LOWER_KEYS: &str = "The object with all keys in lower case, at every depth.";
const PIVOT: &str = "An object from a list of {name, value} objects; the value may be value, intValue, boolValue, \
                     multiValue, multiIntValue or a name/value list of its own. Entries of another shape are left out.";
const DOMAIN_OF: &str = "The lower-case domain of an address, a URL or a domain; null if there is none.";
const DIRECTION: &str = "internal, external or unknown: whether an address or domain is the company's own.";

const JSON: &str = "The object itself, or the object that a text holds as JSON, else an empty one. Never fails.";
const CEF: &str = "The fields of a CEF line, else an empty object; custom fields also by their labels, in `custom`.";
const PAIRS: &str = "An object from a KEY=value;KEY=value list, whose values may hold semicolons.";

/// Values are tried in this order; the first present wins.
const VALUE_KEYS: [&str; 7] =
    ["value", "Value", "intValue", "boolValue", "multiValue", "multiIntValue", "multiBoolValue"];

type Apply = fn(Cow<'_, Value>, &[Value]) -> Value;

fn text(value: Cow<'_, Value>, _: &[Value]) -> Value {
    match value.as_ref() {
        Value::String(_) => value.into_owned(),
        Value::Bytes(_) => value.to_str_lossy().map_or(Value::Null, Value::from),
        Value::Integer(number) => Value::from(number.to_string()),
        Value::Boolean(flag) => Value::from(if *flag { "true" } else { "false" }),
        _ => Value::from(""),
    }
}

fn list(value: Cow<'_, Value>, _: &[Value]) -> Value {
    if value.is_array() { value.into_owned() } else { Value::Array(Vec::new()) }
}

fn lower_keys(value: Cow<'_, Value>, _: &[Value]) -> Value {
    match value.into_owned() {
        Value::Object(map) => Value::Object(lower(map)),
        _ => Value::Object(ObjectMap::new()),
    }
}

/// All keys in lower case, at every depth; of two that become one, the later in the order of the originals wins.
pub fn lower(map: ObjectMap) -> ObjectMap {
    map.into_iter().map(lower_key).collect()
}

/// Depth is bounded by the JSON reader.
fn lower_key((key, value): (KeyString, Value)) -> (KeyString, Value) {
    (KeyString::from(key.as_str().to_lowercase()), lower_inside(value))
}

fn lower_inside(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(lower(map)),
        Value::Array(items) => Value::Array(items.into_iter().map(lower_inside).collect()),
        other => other,
    }
}

fn pivot(list: Cow<'_, Value>, _: &[Value]) -> Value {
    let Value::Array(entries) = list.as_ref() else { return Value::Object(ObjectMap::new()) };
    Value::Object(entries.iter().filter_map(entry).collect())
}

fn entry(value: &Value) -> Option<(KeyString, Value)> {
    let Value::Object(map) = value else { return None };
    let name = ["name", "Name"].into_iter().find_map(|key| map.get(key))?.to_key_string_lossy()?;
    let found = VALUE_KEYS.into_iter().find_map(|key| map.get(key));
    Some((name, found.cloned().unwrap_or(Value::Null)))
}

fn json_object(value: Cow<'_, Value>, _: &[Value]) -> Value {
    if value.is_object() {
        return value.into_owned();
    }
    let parsed = value.to_str().and_then(|text| json::parse_event(text.as_bytes(), json::Keys::AsWritten).ok());
    parsed.unwrap_or_else(|| Value::Object(ObjectMap::new()))
}

fn cef(value: Cow<'_, Value>, _: &[Value]) -> Value {
    Value::Object(value.to_str().and_then(formats::cef).unwrap_or_default())
}

fn pairs(value: Cow<'_, Value>, _: &[Value]) -> Value {
    Value::Object(value.to_str().map(formats::pairs).unwrap_or_default())
}

fn domain_of(value: Cow<'_, Value>, _: &[Value]) -> Value {
    value.to_str().and_then(domain).map_or(Value::Null, Value::from)
}

fn direction(value: Cow<'_, Value>, company: &[Value]) -> Value {
    let Some(domain) = value.to_str().and_then(domain) else { return Value::from("unknown") };
    if company.is_empty() {
        return Value::from("unknown");
    }
    let covers = |own: &str| domain == own || domain.strip_suffix(own).is_some_and(|front| front.ends_with('.'));
    let internal = company.iter().filter_map(Value::to_str).any(covers);
    Value::from(if internal { "internal" } else { "external" })
}

/// `User@Mail.Example.COM`, `https://mail.example.com:443/x` and `mail.example.com.` give `mail.example.com`.
fn domain(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let text = text.split(['/', '?', '#']).next()?;
    let text = text.rsplit('@').next()?.split(':').next()?;
    let text = text.trim_end_matches(['.', '>']);
    let valid = text.contains('.') && !text.starts_with('.') && !text.contains(char::is_whitespace);
    (valid && text.len() <= 253).then(|| text.to_lowercase())
}

#[derive(Clone, Copy, Debug)]
struct Own {
    name: &'static str,
    usage: &'static str,
    kind: u16,
    apply: Apply,
}

impl Function for Own {
    fn identifier(&self) -> &'static str {
        self.name
    }

    fn usage(&self) -> &'static str {
        self.usage
    }

    fn category(&self) -> &'static str {
        "Type"
    }

    fn return_kind(&self) -> u16 {
        self.kind
    }

    fn examples(&self) -> &'static [Example] {
        &[]
    }

    fn parameters(&self) -> &'static [Parameter] {
        const PARAMETERS: &[Parameter] = &[
            Parameter::required("value", kind::ANY, "What to look at."),
            Parameter::optional("or", kind::ANY, "What to look at if the value gives an empty text."),
        ];
        if self.name == "text" { PARAMETERS } else { &PARAMETERS[..1] }
    }

    fn compile(&self, _: &TypeState, _: &mut FunctionCompileContext, arguments: ArgumentList) -> Compiled {
        let company = vrl::path::parse_target_path("%config.company_domains").expect("a constant path");
        let (value, or) = (arguments.required_expr("value"), arguments.optional("or"));
        Ok(OwnCall { value, or, own: *self, company }.as_expr())
    }
}

#[derive(Clone, Debug)]
struct OwnCall {
    value: Expr,
    or: Option<Box<dyn Expression>>,
    own: Own,
    company: OwnedTargetPath,
}

impl FunctionExpression for OwnCall {
    fn resolve(&self, ctx: &mut Context) -> Resolved {
        let result = match &self.value {
            Expr::Query(_) | Expr::Variable(_) if is_in_place(&self.value) => {
                (self.own.apply)(in_place(&self.value, ctx), self.company_domains(ctx))
            }
            other => {
                let value = other.resolve(ctx)?;
                (self.own.apply)(Cow::Owned(value), self.company_domains(ctx))
            }
        };
        match &self.or {
            Some(or) if result.to_str() == Some("") => Ok((self.own.apply)(Cow::Owned(or.resolve(ctx)?), &[])),
            _ => Ok(result),
        }
    }

    fn type_def(&self, _: &TypeState) -> TypeDef {
        match self.own.name {
            "pivot" | "lower_keys" | "json" | "cef" | "pairs" => TypeDef::object(Collection::any()),
            "list" => TypeDef::array(Collection::any()),
            "domain_of" => TypeDef::bytes().or_null(),
            _ => TypeDef::bytes(),
        }
    }
}

impl OwnCall {
    fn company_domains<'c>(&self, ctx: &'c Context) -> &'c [Value] {
        if self.own.name != "direction" {
            return &[];
        }
        ctx.target().target_get(&self.company).ok().flatten().and_then(Value::as_array).unwrap_or(&[])
    }
}

/// Whether the expression names something that exists already: a field or a variable, or a part of one.
fn is_in_place(expression: &Expr) -> bool {
    match expression {
        Expr::Variable(_) => true,
        Expr::Query(query) => query.is_external() || query.variable_ident().is_some(),
        _ => false,
    }
}

/// What such an expression names; null if it is not there.
fn in_place<'c>(expression: &Expr, ctx: &'c Context) -> Cow<'c, Value> {
    const NOTHING: &Value = &Value::Null;
    let found = match expression {
        Expr::Variable(variable) => ctx.state().variable(variable.ident()),
        Expr::Query(query) => match (query.external_path(), query.variable_ident()) {
            (Some(path), _) => ctx.target().target_get(path).ok().flatten(),
            (None, Some(variable)) => ctx.state().variable(variable).and_then(|value| value.get(query.path())),
            (None, None) => None,
        },
        _ => None,
    };
    Cow::Borrowed(found.unwrap_or(NOTHING))
}

/// Names of a file's tables, known while its program is compiled.
#[derive(Clone, Debug, Default)]
pub struct TableNames(pub BTreeSet<String>);

/// `table("name", key)`.
#[derive(Clone, Copy, Debug)]
struct Table;

/// A table that the file does not have.
#[derive(Debug)]
struct NoTable {
    name: String,
    known: Vec<String>,
}

impl std::fmt::Display for NoTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the file has no table {:?}; it has {:?}", self.name, self.known)
    }
}

impl std::error::Error for NoTable {}

impl DiagnosticMessage for NoTable {
    fn code(&self) -> usize {
        0
    }

    fn labels(&self) -> Vec<Label> {
        Vec::new()
    }
}

impl Function for Table {
    fn identifier(&self) -> &'static str {
        "table"
    }

    fn usage(&self) -> &'static str {
        "The text that a table of this file has for a key, else an empty text. Never fails."
    }

    fn category(&self) -> &'static str {
        "Type"
    }

    fn return_kind(&self) -> u16 {
        kind::BYTES
    }

    fn examples(&self) -> &'static [Example] {
        &[]
    }

    fn parameters(&self) -> &'static [Parameter] {
        const PARAMETERS: &[Parameter] = &[
            Parameter::required("name", kind::BYTES, "Which table."),
            Parameter::required("key", kind::ANY, "What to look up."),
        ];
        PARAMETERS
    }

    fn compile(&self, state: &TypeState, ctx: &mut FunctionCompileContext, arguments: ArgumentList) -> Compiled {
        let name = arguments.required_literal("name", state)?.to_string_lossy().into_owned();
        let known = ctx.get_external_context::<TableNames>().cloned().unwrap_or_default().0;
        if !known.contains(&name) {
            return Err(Box::new(NoTable { name, known: known.into_iter().collect() }));
        }
        let table = vrl::path::parse_target_path(&format!("%tables.\"{name}\"")).expect("a quoted name");
        Ok(TableCall { table, key: arguments.required_expr("key") }.as_expr())
    }
}

#[derive(Clone, Debug)]
struct TableCall {
    table: OwnedTargetPath,
    key: Expr,
}

impl FunctionExpression for TableCall {
    fn resolve(&self, ctx: &mut Context) -> Resolved {
        let key = self.key.resolve(ctx)?;
        let table = ctx.target().target_get(&self.table).ok().flatten().and_then(Value::as_object);
        let found = table.and_then(|table| table.get(key.to_str()?));
        Ok(found.cloned().unwrap_or_else(|| Value::from("")))
    }

    fn type_def(&self, _: &TypeState) -> TypeDef {
        TypeDef::bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_and_directions() {
        let company = [Value::from("example.com")];
        for (text, expect, way) in [
            ("A.B@Example.COM", Some("example.com"), "internal"),
            ("https://user:pw@eu.example.com:443/a?b@c.org", Some("eu.example.com"), "internal"),
            ("notexample.com", Some("notexample.com"), "external"),
            ("Someone <x@mail.test>", Some("mail.test"), "external"),
            ("example.com.", Some("example.com"), "internal"),
            ("localhost", None, "unknown"),
            ("", None, "unknown"),
        ] {
            assert_eq!(
                domain_of(Cow::Owned(Value::from(text)), &[]),
                expect.map_or(Value::Null, Value::from),
                "{text}"
            );
            assert_eq!(direction(Cow::Owned(Value::from(text)), &company), Value::from(way), "{text}");
        }
        assert_eq!(direction(Cow::Owned(Value::from("example.com")), &[]), Value::from("unknown"));
        assert_eq!(direction(Cow::Owned(Value::Integer(1)), &company), Value::from("unknown"));
    }
}
