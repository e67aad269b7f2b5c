//! The text of an HTML page: its main part, without tags, navigation and scripts.

use html5gum::{DefaultEmitter, EndTag, StartTag, Token, Tokenizer};

/// Elements whose content is no text of the document.
const SKIPPED: [&str; 14] = [
    "script", "style", "head", "nav", "footer", "template", "svg", "noscript", "button", "select", "textarea", "form",
    "math", "iframe",
];
/// Elements that begin and end a line.
const LINES: [&str; 11] = ["li", "dt", "dd", "tr", "br", "hr", "caption", "summary", "address", "figcaption", "option"];
/// Elements that are paragraphs.
const PARAGRAPHS: [&str; 20] = [
    "p",
    "div",
    "section",
    "article",
    "main",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "dl",
    "table",
    "pre",
    "blockquote",
    "aside",
    "details",
    "figure",
];

/// What was found on a page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Paragraphs with blank lines between them.
    pub(super) text: String,
    /// Letters and digits of it.
    pub(super) letters: usize,
    /// Those within links.
    pub(super) linked: usize,
}

/// Reads a page. Of pages that mark their main part (`<main>`, `role="main"`), that alone.
pub(super) fn page(html: &str) -> Page {
    let mut emitter = DefaultEmitter::default();
    emitter.naively_switch_states(true);
    let mut reader = Reader::default();
    // Reading from memory cannot fail, and a page may have any syntax.
    for token in Tokenizer::new_with_emitter(html, emitter).flatten() {
        match token {
            Token::StartTag(tag) => reader.start(&tag),
            Token::EndTag(tag) => reader.end(&tag),
            Token::String(text) => reader.text(&String::from_utf8_lossy(&text)),
            Token::Comment(_) | Token::Doctype(_) | Token::Error(_) => {}
        }
        if reader.done {
            break;
        }
    }
    let Reader { mut page, .. } = reader;
    page.text = tidy(&page.text);
    page
}

/// An element and how many of its name are open within it.
struct Open {
    name: Vec<u8>,
    depth: usize,
}

#[derive(Default)]
struct Reader {
    page: Page,
    skipped: Option<Open>,
    main: Option<Open>,
    pre: usize,
    links: usize,
    done: bool,
}

impl Reader {
    fn start(&mut self, tag: &StartTag<()>) {
        let name = tag.name.as_slice();
        if let Some(open) = &mut self.skipped {
            open.depth += usize::from(open.name == name);
            // The end tag of a head may be left out.
            if !(name == b"body" && open.name == b"head") {
                return;
            }
            self.skipped = None;
        }
        if let Some(open) = &mut self.main {
            open.depth += usize::from(open.name == name);
        } else if name == b"main" || attribute(tag, b"role") == b"main" {
            self.page = Page::default();
            self.main = Some(Open { name: name.to_vec(), depth: 1 });
        }
        // Sphinx marks each heading with a link to itself that says ¶.
        let is_banner = name == b"header" && self.main.is_none();
        if is_banner || is_one_of(name, &SKIPPED) || attribute(tag, b"class") == b"headerlink" {
            // Of the skipped ones, only drawings and formulas can close themselves.
            if tag.self_closing && matches!(name, b"svg" | b"math") {
                return;
            }
            self.skipped = Some(Open { name: name.to_vec(), depth: 1 });
            return;
        }
        self.pre += usize::from(name == b"pre");
        self.links += usize::from(name == b"a");
        self.around(name);
        if name == b"li" {
            self.page.text.push_str("- ");
        }
    }

    fn end(&mut self, tag: &EndTag<()>) {
        let name = tag.name.as_slice();
        if let Some(open) = &mut self.skipped {
            open.depth -= usize::from(open.name == name);
            if open.depth == 0 {
                self.skipped = None;
            }
            return;
        }
        self.pre -= usize::from(name == b"pre" && self.pre > 0);
        self.links -= usize::from(name == b"a" && self.links > 0);
        self.around(name);
        if let Some(open) = &mut self.main {
            open.depth -= usize::from(open.name == name);
            self.done = open.depth == 0;
        }
    }

    fn around(&mut self, name: &[u8]) {
        if is_one_of(name, &PARAGRAPHS) {
            self.page.text.push_str("\n\n");
        } else if is_one_of(name, &LINES) && !self.page.text.ends_with('\n') {
            self.page.text.push('\n');
        } else if matches!(name, b"td" | b"th") && !self.page.text.ends_with(['\n', ' ']) {
            self.page.text.push(' ');
        }
    }

    fn text(&mut self, text: &str) {
        if self.skipped.is_some() {
            return;
        }
        let letters = text.chars().filter(|c| c.is_alphanumeric()).count();
        self.page.letters += letters;
        self.page.linked += if self.links > 0 { letters } else { 0 };
        if self.pre > 0 {
            self.page.text.push_str(text);
            return;
        }
        for c in text.chars() {
            let c = if c.is_whitespace() { ' ' } else { c };
            if c != ' ' || !self.page.text.ends_with([' ', '\n']) {
                self.page.text.push(c);
            }
        }
    }
}

fn attribute<'t>(tag: &'t StartTag<()>, name: &[u8]) -> &'t [u8] {
    tag.attributes.get(name).map_or(b"", |value| value.value.as_slice())
}

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|known| known.as_bytes() == name)
}

/// No white space at line ends, one blank line at most, none at the ends of the text.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blank = 0;
    for line in text.lines().map(str::trim_end) {
        // A list item whose text is a paragraph of its own.
        if line.is_empty() || line == "-" {
            blank += 1;
            continue;
        }
        if !out.is_empty() {
            out.push_str(if blank > 0 { "\n\n" } else { "\n" });
        }
        blank = 0;
        out.push_str(line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_scripts_and_navigation_are_gone_and_entities_are_characters() {
        let html = "<!doctype html><html><head><title>T</title><style>p{}</style></head><body><nav><a href=x>Up</a></nav>\
                    <h1>Heads &amp; tails</h1><p>One\n  line,\n<em>two</em> words.<p>Next<script>if (a<b) {'</p>'}</script>.</body>";
        assert_eq!(page(html).text, "Heads & tails\n\nOne line, two words.\n\nNext.");
    }

    #[test]
    fn the_main_part_is_taken_where_a_page_marks_it() {
        let html = "<div>menu</div><div role=main><h1>A<a class=headerlink>¶</a></h1><div>inner</div>end</div><div>after</div>";
        assert_eq!(page(html).text, "A\n\ninner\n\nend");
        assert_eq!(page("x<main>y</main>z").text, "y");
    }

    #[test]
    fn preformatted_text_keeps_its_lines_and_lists_are_lines() {
        let html =
            "<pre>a\n  b</pre><ul><li>one</li><li><p>two</p></li></ul><table><tr><td>1<td>2</tr><tr><td>3</tr></table>";
        assert_eq!(page(html).text, "a\n  b\n\n- one\n\ntwo\n\n1 2\n3");
    }

    #[test]
    fn a_head_without_an_end_and_a_drawing_that_closes_itself_hide_nothing() {
        assert_eq!(page("<head><title>T</title><body>x<svg/>y<p>z").text, "xy\n\nz");
        assert_eq!(page("<header>Site</header><main><header>Title</header>text</main>").text, "Titletext");
    }

    #[test]
    fn letters_within_links_are_counted() {
        let found = page("<p>abcd <a href=x>efg</a></p>");
        assert_eq!((found.letters, found.linked), (7, 3));
    }

    #[test]
    fn broken_markup_is_no_error() {
        for html in ["</p></a></pre>", "<", "<script>", "<main></div></main></main>", "&#xffffffff;&nope;", "<li><svg>"]
        {
            page(html);
        }
    }
}
