//! Descriptions of Debian packages: what the long one says, the synopsis says in a line.

use std::io::BufRead;
use std::path::Path;

use super::{Files, Job, Report, files, shown};
use crate::error::{DataError, Result};
use crate::hash;
use crate::io;
use crate::line::{Split, TaskLine};

/// Words of the shortest description that is worth summarising.
const SHORTEST: usize = 30;
/// What is asked.
const PROMPT: &str = "Describe the package in one short line.";

/// Turns apt's `Packages` and `Translation-en` files (deb822, plain or `.gz`) into `synopsis` tasks `package:NAME`.
///
/// Packages of one source share the first paragraph of their description, which therefore decides the split. Left out: what
/// has no long description in the file, fewer than 30 words, or a description seen before.
pub fn packages(job: &mut Job<'_>) -> Result<Report> {
    let found = files::below(job.inputs, |_| true)?;
    let mut files = Files::create(job.output)?;
    for split in Split::ALL {
        for file in &found {
            let mut reader = io::open(&file.path)?;
            while let Some(package) = Package::read(&mut *reader, &file.path)? {
                if package.split(job.seed) == split {
                    add(&mut files, split, package)?;
                    files.report.read += 1;
                    (job.progress)(files.report.read, None);
                }
            }
        }
    }
    if files.report.tasks.is_empty() {
        let remedy = "give Translation-en files of /var/lib/apt/lists (`apt-get -o Acquire::Languages=en update` makes \
                      them; unpack .lz4 with lz4cat), or the output of `apt-cache dumpavail`";
        return Err(DataError::Nothing { expected: "long package descriptions", inputs: shown(job.inputs), remedy });
    }
    files.commit()
}

fn add(files: &mut Files, split: Split, package: Package) -> Result<()> {
    if package.long.split_whitespace().count() < SHORTEST {
        files.report.drop("fewer than 30 words");
    } else if files.is_new(&package.long) {
        let id = format!("package:{}", package.name);
        let (task, prompt) = ("synopsis".to_owned(), PROMPT.to_owned());
        let (context, answer) = (package.long, Some(package.synopsis));
        files.task(split, TaskLine { id, task, context, prompt, answer, ..Default::default() })?;
    }
    Ok(())
}

/// One paragraph of a deb822 file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Package {
    name: String,
    synopsis: String,
    long: String,
}

impl Package {
    /// The next paragraph; `None` at the end.
    fn read(reader: &mut dyn BufRead, path: &Path) -> Result<Option<Self>> {
        let (mut package, mut any, mut in_description, mut line) = (Self::default(), false, false, Vec::new());
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line).map_err(DataError::io(path))?;
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            match (length == 0 || text.is_empty(), any) {
                (true, true) => return Ok(Some(package)),
                (true, false) if length == 0 => return Ok(None),
                (true, false) => continue,
                (false, _) => any = true,
            }
            if let Some(continuation) = text.strip_prefix(' ') {
                if in_description {
                    package.add(continuation);
                }
                continue;
            }
            let (field, value) = text.split_once(':').unwrap_or((text, ""));
            in_description = matches!(field, "Description" | "Description-en");
            match field {
                "Package" => value.trim().clone_into(&mut package.name),
                _ if in_description => value.trim().clone_into(&mut package.synopsis),
                _ => {}
            }
        }
    }

    /// A line of the long description; a lone full stop is a blank one.
    fn add(&mut self, line: &str) {
        if !self.long.is_empty() {
            self.long.push('\n');
        }
        self.long.push_str(if line.trim() == "." { "" } else { line });
    }

    fn split(&self, seed: u64) -> Split {
        let first = self.long.split("\n\n").next().unwrap_or_default();
        Split::of_hash(hash::sequence(&[seed, hash::sequence(&hash::word_hashes(first))]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Lines;
    use crate::line::Line;

    const FILE: &str = "Package: teapot\nVersion: 1\nDescription-md5: 00\nDescription-en: brews tea\n \
        Teapot brews tea of many kinds in the background, keeps it warm for as long as somebody is at work,\n and says \
        when it is ready.\n .\n It knows green tea, black tea and herbs, and it never serves coffee to anybody at \
        all.\n\n\nPackage: short\nDescription: too short\n A word.\n\nPackage: teapot-dbg\nDescription: brews tea\n \
        Teapot brews tea of many kinds in the background, keeps it warm for as long as somebody is at work,\n and says \
        when it is ready.\n .\n It knows green tea, black tea and herbs, and it never serves coffee to anybody at all.\n";

    #[test]
    fn long_descriptions_become_contexts_and_synopses_answers() {
        let dir = tempfile::tempdir().unwrap();
        let (inputs, output) = ([dir.path().join("Translation-en")], dir.path().join("out"));
        std::fs::write(&inputs[0], FILE).unwrap();
        let progress = &mut |_, _| {};
        let report = packages(&mut Job {
            inputs: &inputs,
            output: &output,
            seed: 0,
            summarize: "",
            question: str::to_owned,
            progress,
        })
        .unwrap();
        assert_eq!((report.read, report.tasks.values().sum::<u64>()), (3, 1));
        assert_eq!(report.dropped, [("duplicate", 1), ("fewer than 30 words", 1)].into());
        let split = report.tasks.keys().next().unwrap();
        let path = output.join(format!("{}-tasks.jsonl", split.name()));
        let Line::Task(task) = Lines::open(&path).unwrap().next().unwrap().unwrap() else { panic!() };
        assert_eq!((task.id.as_str(), task.answer.as_deref()), ("package:teapot", Some("brews tea")));
        assert!(task.context.contains("when it is ready.\n\nIt knows green tea"), "{}", task.context);
    }

    #[test]
    fn a_file_without_descriptions_says_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (inputs, output) = ([dir.path().join("Packages")], dir.path().join("out"));
        std::fs::write(&inputs[0], "Package: a\nDescription: short only\n").unwrap();
        let progress = &mut |_, _| {};
        let mut job =
            Job { inputs: &inputs, output: &output, seed: 0, summarize: "", question: str::to_owned, progress };
        let error = packages(&mut job).unwrap_err().to_string();
        assert!(error.contains("Translation-en"), "{error}");
    }

    #[test]
    fn packages_of_one_family_are_in_one_split() {
        let package = |second: &str| Package { long: format!("First paragraph.\n\n{second}"), ..Default::default() };
        assert_eq!(package("Library.").split(3), package("Headers.").split(3));
    }
}
