//! `time(value, form, zone)`: the time forms that are not ISO 8601, declared once in the mapping and never guessed from
//! a record. It never fails: a text that is not of the form is handed on as it is, so that ISO 8601 (a relay may have
//! rewritten the field) is still read, and anything else ends as `signal.bad_time`. Next: `when.rs`.

use vrl::compiler::function::{ArgumentList, Compiled, Example, Function, FunctionCompileContext, Parameter};
use vrl::compiler::state::TypeState;
use vrl::compiler::value::kind;
use vrl::compiler::{Context, Expression, FunctionExpression, Resolved, TypeDef};
use vrl::diagnostic::{DiagnosticMessage, Label};
use vrl::value::Value;

use super::when::{self, Form};

/// The function.
#[derive(Clone, Copy, Debug)]
pub struct Time;

/// A literal that names no form or no zone.
#[derive(Debug)]
struct BadLiteral(&'static str);

impl std::fmt::Display for BadLiteral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadLiteral {}

impl DiagnosticMessage for BadLiteral {
    fn code(&self) -> usize {
        0
    }

    fn labels(&self) -> Vec<Label> {
        Vec::new()
    }
}

fn refused(why: &'static str) -> Box<dyn DiagnosticMessage> {
    Box::new(BadLiteral(why))
}

impl Function for Time {
    fn identifier(&self) -> &'static str {
        "time"
    }

    fn usage(&self) -> &'static str {
        "Milliseconds since 1970 of a time in a declared form: s, ms, us, ns, iso, or a pattern such as \
         \"%d/%m/%Y %I:%M:%S %p\". A text of another form is handed on; nothing gives null. Never fails."
    }

    fn category(&self) -> &'static str {
        "Type"
    }

    fn return_kind(&self) -> u16 {
        kind::INTEGER | kind::BYTES | kind::NULL
    }

    fn examples(&self) -> &'static [Example] {
        &[]
    }

    fn parameters(&self) -> &'static [Parameter] {
        const PARAMETERS: &[Parameter] = &[
            Parameter::required("value", kind::ANY, "The time as the vendor writes it."),
            Parameter::required("form", kind::BYTES, "s, ms, us, ns, iso, or a pattern."),
            Parameter::optional("zone", kind::BYTES, "Offset of times that name none, such as \"+05:30\"; else UTC."),
        ];
        PARAMETERS
    }

    fn compile(&self, state: &TypeState, _: &mut FunctionCompileContext, arguments: ArgumentList) -> Compiled {
        let form = arguments.required_literal("form", state)?.to_string_lossy().into_owned();
        let form = Form::parse(&form).ok_or_else(|| refused("`form` must be s, ms, us, ns, iso, or a pattern"))?;
        let zone_min = match arguments.optional_literal("zone", state)? {
            None => 0,
            Some(zone) => when::offset_minutes(&zone.to_string_lossy())
                .ok_or_else(|| refused("`zone` must be an offset such as \"+05:30\""))?,
        };
        Ok(TimeCall { value: arguments.required("value"), form, zone_min }.as_expr())
    }
}

#[derive(Clone, Debug)]
struct TimeCall {
    value: Box<dyn Expression>,
    form: Form,
    zone_min: i64,
}

impl FunctionExpression for TimeCall {
    fn resolve(&self, ctx: &mut Context) -> Resolved {
        let value = self.value.resolve(ctx)?;
        let ms = match &value {
            Value::Integer(number) => self.form.of_number(*number),
            Value::Float(number) => self.form.of_float(number.into_inner()),
            Value::Timestamp(time) => Some(time.timestamp_millis()),
            other => match other.to_str().map(str::trim) {
                Some("") | None => return Ok(Value::Null),
                Some(text) => self.form.of_text(text, self.zone_min),
            },
        };
        Ok(match (ms, &value) {
            (Some(ms), _) => Value::Integer(ms),
            (None, Value::Bytes(_) | Value::String(_)) => value,
            (None, _) => Value::from("unreadable"),
        })
    }

    fn type_def(&self, _: &TypeState) -> TypeDef {
        TypeDef::integer().or_bytes().or_null()
    }
}
