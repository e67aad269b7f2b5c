//! What the protos keep to, beyond what protox checks.

/// One line per breach: package, and an unspecified zero in every enum.
pub(crate) fn breaches(path: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    if !text.lines().any(|line| line.trim() == "package e2llm.v1;") {
        breaches.push(format!("{path}: the package is e2llm.v1"));
    }
    let words: Vec<&str> = code(text);
    let enums = words.windows(2).filter(|pair| pair[0] == "enum").map(|pair| pair[1]);
    for name in enums {
        let zero = format!("{}_UNSPECIFIED", shouting(name));
        if !words.contains(&zero.as_str()) {
            breaches.push(format!("{path}: enum {name} needs {zero} = 0, so that an absent value is not a choice"));
        }
    }
    breaches
}

/// Words of the file without its comments.
fn code(text: &str) -> Vec<&str> {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).filter(|w| !w.is_empty()).collect()
}

/// `JobState` to `JOB_STATE`.
fn shouting(name: &str) -> String {
    let mut shouted = String::new();
    for (n, c) in name.chars().enumerate() {
        if c.is_uppercase() && n > 0 {
            shouted.push('_');
        }
        shouted.extend(c.to_uppercase());
    }
    shouted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enum_without_an_unspecified_zero_is_a_breach() {
        let head = "package e2llm.v1;\n";
        let good = format!("{head}enum JobState {{ JOB_STATE_UNSPECIFIED = 0; JOB_STATE_DONE = 1; }}");
        let bad = format!("{head}enum JobState {{ JOB_STATE_DONE = 0; }} // JOB_STATE_UNSPECIFIED");
        assert!(breaches("a.proto", &good).is_empty());
        assert_eq!(breaches("a.proto", &bad).len(), 1);
    }

    #[test]
    fn another_package_is_a_breach() {
        assert_eq!(breaches("a.proto", "package other.v1;").len(), 1);
    }
}
