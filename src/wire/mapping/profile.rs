//! The determinism profile: which functions a mapping may call. Whatever reads a clock, a random source, the
//! environment or the network is absent at compile time, so a program that would not replay does not load.
//! Record time (`%kafka.timestamp`) stands in for `now`. Next: `functions.rs`, what we add.

use vrl::compiler::function::{ArgumentList, Compiled, Example, Function, FunctionCompileContext, Parameter, closure};
use vrl::compiler::state::TypeState;

use super::functions;

/// Functions no mapping may call. The syslog, klog, authorization and grok parsers read the clock for a missing year
/// or zone; `parse_cef` keeps custom fields in a hash map, so which of two equal labels wins differs between runs
/// (our `cef` stands in for it).
pub const DENIED: [&str; 21] = [
    "now",
    "uuid_v4",
    "uuid_v7",
    "random_bool",
    "random_bytes",
    "random_float",
    "random_int",
    "get_env_var",
    "get_hostname",
    "get_timezone_name",
    "dns_lookup",
    "reverse_dns",
    "http_request",
    "log",
    "parse_syslog",
    "parse_klog",
    "parse_linux_authorization",
    "parse_grok",
    "parse_groks",
    "validate_json_schema",
    "parse_cef",
];

/// Functions whose output can be a thousand times their input: a 1 MiB record must not become gigabytes.
pub const UNBOUNDED: [&str; 6] = ["decode_gzip", "decode_lz4", "decode_snappy", "decode_zlib", "decode_zstd", "range"];

/// Every function a program may call.
pub fn functions() -> Vec<Box<dyn Function>> {
    let allowed = |name: &str| !DENIED.contains(&name) && !UNBOUNDED.contains(&name);
    let standard = vrl::stdlib::all().into_iter().filter(|f| allowed(f.identifier()));
    let mut all: Vec<_> = standard.filter_map(without_zone).collect();
    all.extend(functions::own());
    all
}

/// Takes the `timezone` argument away: `"local"` is the machine's zone, and zones are the deployment's, not a
/// mapping's. Without it both functions use the program's zone, which is UTC.
fn without_zone(function: Box<dyn Function>) -> Option<Box<dyn Function>> {
    let parameters = function.parameters();
    match parameters.iter().position(|p| p.keyword == "timezone") {
        None => Some(function),
        Some(at) if at + 1 == parameters.len() => Some(Box::new(WithoutZone { inner: function })),
        Some(_) => None,
    }
}

#[derive(Debug)]
struct WithoutZone {
    inner: Box<dyn Function>,
}

impl Function for WithoutZone {
    fn identifier(&self) -> &'static str {
        self.inner.identifier()
    }

    fn usage(&self) -> &'static str {
        self.inner.usage()
    }

    fn category(&self) -> &'static str {
        self.inner.category()
    }

    fn return_kind(&self) -> u16 {
        self.inner.return_kind()
    }

    fn pure(&self) -> bool {
        self.inner.pure()
    }

    fn examples(&self) -> &'static [Example] {
        &[]
    }

    fn compile(&self, state: &TypeState, ctx: &mut FunctionCompileContext, arguments: ArgumentList) -> Compiled {
        self.inner.compile(state, ctx, arguments)
    }

    fn parameters(&self) -> &'static [Parameter] {
        let parameters = self.inner.parameters();
        &parameters[..parameters.len() - 1]
    }

    fn closure(&self) -> Option<closure::Definition> {
        self.inner.closure()
    }
}
