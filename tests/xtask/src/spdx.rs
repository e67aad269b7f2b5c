//! SPDX licence expressions: as much of the grammar as crates use.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

/// Whether `expression` can be satisfied with the `allowed` licences alone.
///
/// # Errors
/// If the expression is malformed.
pub(crate) fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    let verdict = parser.any()?;
    match parser.words.first() {
        None => Ok(verdict),
        Some(word) => bail!("`{word}` is out of place in licence `{expression}`"),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a BTreeSet<String>,
}

impl<'a> Parser<'a> {
    /// Alternatives joined by OR, which binds least.
    fn any(&mut self) -> Result<bool> {
        let mut verdict = self.all()?;
        while self.take("OR") {
            verdict |= self.all()?;
        }
        Ok(verdict)
    }

    fn all(&mut self) -> Result<bool> {
        let mut verdict = self.one()?;
        while self.take("AND") {
            verdict &= self.one()?;
        }
        Ok(verdict)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let verdict = self.any()?;
            if !self.take(")") {
                bail!("a parenthesis is not closed");
            }
            return Ok(verdict);
        }
        let licence = self.name()?;
        if !self.take("WITH") {
            return Ok(self.allowed.contains(licence));
        }
        // An exception only adds permissions, so the licence alone suffices too.
        let exception = self.name()?;
        Ok(self.allowed.contains(licence) || self.allowed.contains(&format!("{licence} WITH {exception}")))
    }

    fn name(&mut self) -> Result<&'a str> {
        match self.words {
            [word, rest @ ..] if !["AND", "OR", "WITH", "(", ")"].contains(word) => {
                self.words = rest;
                Ok(word)
            }
            _ => bail!("a licence is missing before {:?}", self.words.first().unwrap_or(&"the end")),
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str) -> Result<bool> {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into();
        satisfied(expression, &allowed)
    }

    #[test]
    fn one_allowed_alternative_is_enough() {
        assert!(check("GPL-3.0 OR MIT").unwrap());
        assert!(check("MIT/Apache-2.0").unwrap());
        assert!(!check("GPL-3.0 OR AGPL-3.0").unwrap());
    }

    #[test]
    fn every_part_of_a_conjunction_must_be_allowed() {
        assert!(check("(MIT OR GPL-2.0) AND Unicode-3.0").unwrap());
        assert!(!check("MIT AND GPL-2.0").unwrap());
    }

    #[test]
    fn and_binds_tighter_than_or() {
        assert!(check("MIT OR GPL-2.0 AND GPL-3.0").unwrap());
        assert!(!check("(MIT OR GPL-2.0) AND GPL-3.0").unwrap());
    }

    #[test]
    fn an_exception_adds_permissions() {
        assert!(check("Apache-2.0 WITH LLVM-exception").unwrap());
        assert!(!check("GPL-2.0 WITH Classpath-exception-2.0").unwrap());
    }

    #[test]
    fn malformed_expressions_are_errors_not_permissions() {
        for expression in ["", "MIT OR", "(MIT", "MIT)", "MIT Apache-2.0", "AND", "MIT WITH"] {
            assert!(check(expression).is_err(), "{expression:?}");
        }
    }
}
