//! Names formats that are not text, by their first bytes or their extension, and says how to make text of them.

use std::path::Path;

use e2llm_api::v1::RowError;
use e2llm_api::{ErrorCode, row_error};

/// A format that has to be converted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// With its article: "a PDF".
    pub(super) name: &'static str,
    /// What to do; `FILE` stands for the file's name.
    remedy: &'static str,
    code: ErrorCode,
}

impl Format {
    const fn new(name: &'static str, remedy: &'static str) -> Self {
        Self { name, remedy, code: ErrorCode::UnsupportedFormat }
    }

    /// The row error of the file `shown`.
    pub(super) fn error(self, shown: &str) -> RowError {
        let remedy = self.remedy.replace("FILE", shown);
        row_error(self.code, format!("{shown} is {}; {remedy}", self.name))
    }
}

const PDF: Format = Format::new("a PDF", "convert it with `pdftotext FILE FILE.txt`");
const HTML: Format = Format::new("HTML", "convert it with `pandoc -f html -t plain FILE -o FILE.txt`");
const DOCX: Format = Format::new("a Word document", "convert it with `pandoc -t plain FILE -o FILE.txt`");
const OPEN_DOCUMENT: Format = Format::new("an OpenDocument file", "convert it with `pandoc -t plain FILE -o FILE.txt`");
const EPUB: Format = Format::new("an EPUB", "convert it with `pandoc -t plain FILE -o FILE.txt`");
const SHEET: Format = Format::new("a spreadsheet", "export the text column as JSON Lines of {\"id\", \"text\"}");
const SLIDES: Format = Format::new("a presentation", "export it as plain text");
const OLD_OFFICE: Format =
    Format::new("an old Office file", "convert it with `libreoffice --headless --convert-to txt:Text FILE`");
const RTF: Format = Format::new("an RTF document", "convert it with `pandoc -f rtf -t plain FILE -o FILE.txt`");
const POSTSCRIPT: Format = Format::new("PostScript", "convert it with `ps2ascii FILE FILE.txt`");
const ZIP: Format = Format::new("a zip archive", "unpack it with `unzip FILE -d FILE.d` and name the directory");
const TAR: Format = Format::new("a tar archive", "unpack it with `tar -xf FILE` and name the directory");
const GZIP: Format = Format::new("gzip-compressed", "unpack it with `gunzip -k FILE` (a tar archive: `tar -xzf FILE`)");
const ZSTD: Format = Format::new("zstd-compressed", "unpack it with `unzstd FILE` (a tar archive: `tar -xf FILE`)");
const XZ: Format = Format::new("xz-compressed", "unpack it with `unxz -k FILE` (a tar archive: `tar -xJf FILE`)");
const BZIP2: Format =
    Format::new("bzip2-compressed", "unpack it with `bunzip2 -k FILE` (a tar archive: `tar -xjf FILE`)");
const SEVEN_ZIP: Format = Format::new("a 7z archive", "unpack it with `7z x FILE` and name the directory");
const IMAGE: Format = Format::new("an image", "read its text with `tesseract FILE FILE` and use FILE.txt");
const MEDIA: Format = Format::new("audio or video", "transcribe it to a text file first");
pub(super) const PARQUET: Format =
    Format::new("a Parquet file", "name the file itself as an input: its rows are documents");
const JSON: Format =
    Format::new("JSON", "make JSON Lines of {\"id\", \"text\"} of it, such as with `jq -c '.[]' FILE`");
const JSON_LINES: Format = Format::new("JSON Lines", "name the file itself as an input: its rows are documents");
const PROGRAM: Format = Format::new("a program or database, not text", "leave it out");
const UTF_16: Format = Format {
    name: "UTF-16 text",
    remedy: "convert it with `iconv -f UTF-16 -t UTF-8 FILE -o FILE.txt`",
    code: ErrorCode::NotUtf8,
};
const OTHER: Format = Format::new(
    "not a text or Markdown file by its name",
    "if it is plain text, name it on the command line or rename it to FILE.txt",
);

/// The first bytes of formats that are not text.
const MAGIC: &[(&[u8], Format)] = &[
    (b"%PDF-", PDF),
    (b"%!PS", POSTSCRIPT),
    (b"{\\rtf", RTF),
    (b"\x1f\x8b", GZIP),
    (b"\x28\xb5\x2f\xfd", ZSTD),
    (b"\xfd7zXZ\0", XZ),
    (b"BZh", BZIP2),
    (b"7z\xbc\xaf\x27\x1c", SEVEN_ZIP),
    (b"\x89PNG\r\n\x1a\n", IMAGE),
    (b"\xff\xd8\xff", IMAGE),
    (b"GIF87a", IMAGE),
    (b"GIF89a", IMAGE),
    (b"II*\0", IMAGE),
    (b"MM\0*", IMAGE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", OLD_OFFICE),
    (b"PAR1", PARQUET),
    (b"OggS", MEDIA),
    (b"ID3", MEDIA),
    (b"fLaC", MEDIA),
    (b"\x7fELF", PROGRAM),
    (b"SQLite format 3\0", PROGRAM),
    (b"GGUF", PROGRAM),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
];

/// The format of a file that begins with `head`, if it is one that is not text.
pub(super) fn foreign(head: &[u8]) -> Option<Format> {
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Some(inside_zip(head));
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some(TAR);
    }
    if head.get(4..8) == Some(b"ftyp") || (head.starts_with(b"RIFF") && head.get(8..12) != Some(b"WEBP")) {
        // The four length bytes before `ftyp`, and after `RIFF`, are binary; text there is only text.
        let length = if head.starts_with(b"RIFF") { head.get(4..8) } else { head.get(..4) };
        return length.is_some_and(|bytes| bytes.contains(&0)).then_some(MEDIA);
    }
    if head.starts_with(b"RIFF") {
        return Some(IMAGE);
    }
    let magic = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, format)| *format);
    // "BZh" and "ID3" are letters: text may begin with them, but the byte after them is then no version.
    let is_text = |format: Format| match format {
        BZIP2 => !head.get(4..7).is_some_and(|block| block == b"1AY" || block == b"\x17\x72\x45"),
        MEDIA => !head.iter().take(16).any(|byte| *byte < 9),
        PARQUET | PROGRAM => !head.iter().take(16).any(|byte| *byte < 9 || *byte >= 0x80),
        _ => false,
    };
    magic.filter(|format| !is_text(*format)).or_else(|| is_html(head).then_some(HTML))
}

fn inside_zip(head: &[u8]) -> Format {
    let holds = |name: &[u8]| head.windows(name.len()).any(|window| window == name);
    if holds(b"application/epub+zip") {
        EPUB
    } else if holds(b"application/vnd.oasis.opendocument") {
        OPEN_DOCUMENT
    } else if holds(b"word/") {
        DOCX
    } else if holds(b"xl/") {
        SHEET
    } else if holds(b"ppt/") {
        SLIDES
    } else {
        ZIP
    }
}

/// A whole HTML document. A tag alone is not enough: Markdown may begin with one.
fn is_html(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let start = head.trim_start_matches('\u{feff}').trim_start();
    if start.starts_with("<?xml") {
        return start.contains("<html");
    }
    let after = start.strip_prefix("<html").and_then(|rest| rest.chars().next());
    start.starts_with("<!doctype html") || after.is_some_and(|c| c == '>' || c.is_whitespace())
}

/// What a file's name says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extension {
    /// Text or Markdown, or a name without an extension such as `README`.
    Text,
    /// Documents, one per line.
    JsonLines,
    /// A format that has to be converted.
    Foreign(Format),
    /// Anything else.
    Unknown,
}

impl Extension {
    /// By the last extension, in any case.
    pub(super) fn of(path: &Path) -> Self {
        let Some(extension) = path.extension() else { return Extension::Text };
        let format = match extension.to_string_lossy().to_ascii_lowercase().as_str() {
            "txt" | "text" | "md" | "markdown" | "mdown" | "mkd" | "rst" | "adoc" | "asciidoc" | "org" => {
                return Extension::Text;
            }
            "jsonl" | "ndjson" => return Extension::JsonLines,
            "pdf" => PDF,
            "htm" | "html" | "xhtml" => HTML,
            "docx" => DOCX,
            "odt" | "odp" | "ods" => OPEN_DOCUMENT,
            "epub" => EPUB,
            "doc" | "xls" | "ppt" => OLD_OFFICE,
            "xlsx" => SHEET,
            "pptx" => SLIDES,
            "rtf" => RTF,
            "ps" => POSTSCRIPT,
            "zip" => ZIP,
            "tar" => TAR,
            "gz" | "tgz" => GZIP,
            "zst" => ZSTD,
            "xz" => XZ,
            "bz2" => BZIP2,
            "7z" => SEVEN_ZIP,
            "png" | "jpg" | "jpeg" | "gif" | "tif" | "tiff" | "webp" | "bmp" => IMAGE,
            "mp3" | "mp4" | "ogg" | "flac" | "wav" | "webm" | "mkv" => MEDIA,
            "parquet" => PARQUET,
            "json" => JSON,
            _ => return Extension::Unknown,
        };
        Extension::Foreign(format)
    }

    /// Why a file found in a directory is not a document; `None` if its name says text.
    pub(super) fn refusal(self) -> Option<Format> {
        match self {
            Extension::Text => None,
            Extension::JsonLines => Some(JSON_LINES),
            Extension::Foreign(format) => Some(format),
            Extension::Unknown => Some(OTHER),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar() -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..5].copy_from_slice(b"a.txt");
        head[257..262].copy_from_slice(b"ustar");
        head
    }

    #[test]
    fn every_foreign_format_is_named_with_its_remedy() {
        let cases: [(&[u8], &str, &str); 20] = [
            (b"%PDF-1.7\n", "a PDF", "pdftotext"),
            (b"<!DOCTYPE html>\n<html>", "HTML", "pandoc"),
            (b"\xef\xbb\xbf\n <HTML lang=en>", "HTML", "pandoc"),
            (b"<?xml version=\"1.0\"?>\n<html xmlns=\"x\">", "HTML", "pandoc"),
            (b"PK\x03\x04....word/document.xml", "a Word document", "pandoc"),
            (b"PK\x03\x04....mimetypeapplication/epub+zip", "an EPUB", "pandoc"),
            (b"PK\x03\x04....xl/workbook.xml", "a spreadsheet", "JSON Lines"),
            (b"PK\x03\x04....a.txt", "a zip archive", "unzip"),
            (b"\x1f\x8b\x08\x00", "gzip", "gunzip"),
            (b"\x28\xb5\x2f\xfd\x00", "zstd", "unzstd"),
            (b"\xfd7zXZ\0", "xz", "unxz"),
            (b"BZh91AY&SY", "bzip2", "bunzip2"),
            (&tar(), "a tar archive", "tar -xf"),
            (b"\x89PNG\r\n\x1a\n", "an image", "tesseract"),
            (b"\xff\xd8\xff\xe0", "an image", "tesseract"),
            (b"RIFF\x10\0\0\0WEBPVP8", "an image", "tesseract"),
            (b"\0\0\0\x18ftypmp42", "audio or video", "transcribe"),
            (b"{\\rtf1\\ansi", "an RTF", "pandoc"),
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office", "libreoffice"),
            (b"PAR1\x15\x04", "a Parquet", "itself as an input"),
        ];
        for (head, name, remedy) in cases {
            let format = foreign(head).unwrap_or_else(|| panic!("{name} was taken for text"));
            let error = format.error("dir/x");
            assert_eq!(error.code, "UNSUPPORTED_FORMAT");
            assert!(error.message.contains(name) && error.message.contains(remedy), "{}", error.message);
            assert!(error.message.starts_with("dir/x is "), "{}", error.message);
        }
    }

    #[test]
    fn utf_16_is_named_as_an_encoding() {
        let error = foreign(b"\xff\xfeh\0i\0").unwrap().error("x");
        assert_eq!(error.code, "NOT_UTF8");
        assert!(error.message.contains("iconv -f UTF-16"), "{}", error.message);
    }

    #[test]
    fn texts_that_look_a_little_like_formats_are_texts() {
        let texts: [&str; 12] = [
            "",
            "plain",
            "# Title",
            "<div align=center>logo</div>\n# Readme",
            "BZh is a prefix",
            "ID3 tags explained",
            "<html-like> is not a tag",
            "PAR1 and PAR2 files",
            "GGUF is a file format",
            "RIFF is a file format",
            "the ftyp box",
            "<?xml version=\"1.0\"?><book/>",
        ];
        for text in texts {
            assert_eq!(foreign(text.as_bytes()), None, "{text}");
        }
        assert_eq!(foreign("BOMs are fine".as_bytes()), None);
    }

    #[test]
    fn names_decide_what_a_directory_offers() {
        for name in ["a.txt", "a.MD", "README", "x/y.markdown", "a.rst"] {
            assert_eq!(Extension::of(Path::new(name)).refusal(), None, "{name}");
        }
        for (name, part) in [("a.pdf", "pdftotext"), ("a.jsonl", "itself as an input"), ("a.py", "a.py.txt")] {
            let error = Extension::of(Path::new(name)).refusal().unwrap().error(name);
            assert!(error.message.contains(part), "{}", error.message);
        }
    }
}
