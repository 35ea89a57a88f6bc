//! Command lines of the form `--name value`, shared by the limit program and the load generator.
//!
//! Rule: every name must be known; a wrong one ends the start with the list of right ones.

use std::collections::HashMap;
use std::str::FromStr;

pub struct Options {
    values: HashMap<String, String>,
}

impl Options {
    pub fn parse(known: &[&str], arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments;
        let mut values = HashMap::new();
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").filter(|name| known.contains(name));
            let name = name.ok_or_else(|| format!("{argument} is not an option; use --{}", known.join(", --")))?;
            let value = arguments.next().ok_or_else(|| format!("--{name} needs a value after it"))?;
            values.insert(name.to_owned(), value);
        }
        Ok(Self { values })
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        let Some(value) = self.text(name) else {
            return Ok(default);
        };
        value.parse().map_err(|_| format!("--{name} {value}: a number in range is needed"))
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        Options::parse(&["port", "threads"], arguments.iter().map(|text| (*text).to_owned()))
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = parse(&["--prot", "1"]).err().unwrap_or_default();
        assert!(error.contains("--port, --threads"), "{error}");
    }

    #[test]
    fn a_number_falls_back_to_its_default_and_refuses_words() {
        let options = parse(&["--port", "many"]).expect("known name");
        assert_eq!(options.number("threads", 3), Ok(3));
        assert!(options.number::<u16>("port", 0).is_err());
    }
}
