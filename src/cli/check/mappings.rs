//! The mappings of configured sources: do they compile, and do their own examples hold?

#[cfg(feature = "vrl")]
use std::path::Path;

use super::{MappingLine, ProblemLine};
use crate::config::Config;
#[cfg(feature = "vrl")]
use crate::config::Source;
#[cfg(feature = "vrl")]
use crate::wire::mapping::{Mapping, check_examples, parse_examples};

/// Checks every configured source.
#[cfg(feature = "vrl")]
pub fn check(config: &Config) -> (Vec<MappingLine>, Vec<ProblemLine>) {
    let (mut lines, mut problems) = (Vec::new(), Vec::new());
    for source in &config.map.sources {
        match one(source) {
            Ok((line, differences)) => {
                lines.push(line);
                let fix = "correct the mapping, or what its example expects";
                problems.extend(differences.iter().map(|d| problem(source, d, fix)));
            }
            Err(message) => problems.push(problem(source, &message, "correct the mapping, or `map.sources`")),
        }
    }
    (lines, problems)
}

/// Without the mapping language no source can be mapped.
#[cfg(not(feature = "vrl"))]
pub fn check(config: &Config) -> (Vec<MappingLine>, Vec<ProblemLine>) {
    let fix = "use a binary built with the feature `vrl`, or map elsewhere and leave `map.sources` empty";
    let problems =
        config.map.sources.iter().map(|source| ProblemLine::of_file(&source.mapping, "no mappings in this build", fix));
    (Vec::new(), problems.collect())
}

/// The mapping's line and the examples that do not hold. Examples lie beside the mapping, in `<name>.test.toml`.
#[cfg(feature = "vrl")]
fn one(source: &Source) -> Result<(MappingLine, Vec<String>), String> {
    let path = Path::new(&source.mapping);
    let mut mapping = Mapping::load(path).map_err(|e| e.to_string())?;
    let mut line = MappingLine {
        source: source.name.clone(),
        topic: source.topic.clone(),
        mapping: mapping.id_at_hash().to_owned(),
        examples: 0,
    };
    let beside = path.with_extension("test.toml");
    if !beside.exists() {
        return Ok((line, Vec::new()));
    }
    let file = beside.display().to_string();
    let text = std::fs::read_to_string(&beside).map_err(|e| format!("could not read {file}: {e}"))?;
    let (config, examples) = parse_examples(&file, &text).map_err(|e| e.to_string())?;
    mapping = mapping.with_config(&config);
    line.examples = examples.len();
    Ok((line, check_examples(&mut mapping, &examples)))
}

#[cfg(feature = "vrl")]
fn problem(source: &Source, message: &str, fix: &str) -> ProblemLine {
    ProblemLine::of_file(&source.mapping, message, fix)
}
