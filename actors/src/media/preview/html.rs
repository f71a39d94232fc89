//! What a page says of itself, read tag by tag: no tree is built, whatever the page nests.

use std::cell::RefCell;

use html5ever::{
    Attribute,
    buffer_queue::BufferQueue,
    tendril::StrTendril,
    tokenizer::{
        Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer,
        states::{Rawtext, Rcdata, ScriptData},
    },
};

/// Text that is read of what a page shows, in bytes.
const TEXT_MAX: usize = 4096;

/// The longest title and heading, in bytes.
const TITLE_MAX: usize = 2048;

/// Statements that a page makes of itself, at most.
const STATEMENTS_MAX: usize = 200;

/// The longest statement, in bytes.
const STATEMENT_MAX: usize = 8192;

/// Bytes that are given to the tokenizer at a time.
const PIECE: usize = 16 << 10;

/// Elements that hold nothing that a reader reads first.
const SKIPPED: [&str; 14] = [
    "aside", "button", "canvas", "dialog", "footer", "form", "header", "nav", "noscript", "object", "select",
    "svg", "template", "video",
];

/// What a page says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Document {
    /// Names or properties of `meta` elements, in lower case, with their contents.
    pub(super) statements: Vec<(String, String)>,
    /// The title.
    pub(super) title: String,
    /// The first heading.
    pub(super) heading: String,
    /// The beginning of the text.
    pub(super) text: String,
    /// Where relative URLs begin, if the page says so.
    pub(super) base: Option<String>,
    /// Where the site says what it says for those who embed the page.
    pub(super) oembed: Option<String>,
    /// The image that stands for the page.
    pub(super) image: Option<String>,
}

/// Reads a page.
pub(super) fn read(text: &str) -> Document {
    let tokenizer = Tokenizer::new(Sink::default(), html5ever::tokenizer::TokenizerOpts::default());
    let input = BufferQueue::default();
    let mut rest = text;
    while !rest.is_empty() && !tokenizer.sink.0.borrow().is_enough() {
        let mut length = rest.len().min(PIECE);
        while !rest.is_char_boundary(length) {
            length -= 1;
        }
        let (piece, after) = rest.split_at(length);
        rest = after;
        input.push_back(StrTendril::from_slice(piece));
        let _ = tokenizer.feed(&input); // no script ever blocks it
    }
    tokenizer.end();
    tokenizer.sink.0.into_inner().document
}

/// Where text goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Text,
    Title,
    Heading,
    /// Scripts, styles and the like.
    Nowhere,
}

#[derive(Default)]
struct Sink(RefCell<State>);

#[derive(Default)]
struct State {
    document: Document,
    place: Place,
    /// How deep it is in elements that are skipped.
    skipped: usize,
    in_body: bool,
}

impl TokenSink for Sink {
    type Handle = ();

    fn process_token(&self, token: Token, _: u64) -> TokenSinkResult<()> {
        let mut state = self.0.borrow_mut();
        match token {
            Token::TagToken(tag) => state.tag(&tag),
            Token::CharacterTokens(text) => {
                state.text(&text);
                TokenSinkResult::Continue
            }
            _ => TokenSinkResult::Continue,
        }
    }
}

impl State {
    fn is_enough(&self) -> bool {
        self.in_body && self.document.text.len() >= TEXT_MAX
    }

    fn tag(&mut self, tag: &Tag) -> TokenSinkResult<()> {
        let name = &*tag.name;
        let is_start = tag.kind == TagKind::StartTag;
        if SKIPPED.contains(&name) && !tag.self_closing {
            self.skipped = if is_start { self.skipped + 1 } else { self.skipped.saturating_sub(1) };
        }
        let raw = match name {
            "title" | "textarea" => Some(Rcdata),
            "script" => Some(ScriptData),
            "style" | "xmp" | "iframe" | "noembed" | "noframes" => Some(Rawtext),
            _ => None,
        };
        self.place = match name {
            "title" if is_start && self.skipped == 0 && self.document.title.is_empty() => Place::Title,
            "h1" if is_start && self.skipped == 0 && self.document.heading.is_empty() => Place::Heading,
            _ if raw.is_some() => {
                if is_start {
                    Place::Nowhere
                } else {
                    Place::Text
                }
            }
            "h1" => Place::Text,
            _ => self.place,
        };
        if is_start {
            self.start(name, &tag.attrs);
        }
        // Words of different elements do not stick together.
        self.text(" ");
        match raw {
            Some(kind) if is_start => TokenSinkResult::RawData(kind),
            _ => TokenSinkResult::Continue,
        }
    }

    fn start(&mut self, name: &str, attributes: &[Attribute]) {
        let value = |wanted: &str| {
            let attribute = attributes.iter().find(|attribute| &*attribute.name.local == wanted)?;
            Some(attribute.value.trim()).filter(|value| !value.is_empty() && value.len() <= STATEMENT_MAX)
        };
        let document = &mut self.document;
        match name {
            "meta" => {
                let name = value("property").or_else(|| value("name")).or_else(|| value("itemprop"));
                if let (Some(name), Some(content)) = (name, value("content"))
                    && document.statements.len() < STATEMENTS_MAX
                {
                    document.statements.push((name.to_ascii_lowercase(), content.to_owned()));
                }
            }
            "base" if document.base.is_none() => document.base = value("href").map(ToOwned::to_owned),
            "link" => {
                let rel = value("rel").unwrap_or_default().to_ascii_lowercase();
                let is = |wanted| rel.split_ascii_whitespace().any(|rel| rel == wanted);
                let kind = value("type").unwrap_or_default();
                if is("alternate") && ["application/json+oembed", "text/json+oembed"].contains(&kind) {
                    document.oembed = document.oembed.take().or(value("href").map(ToOwned::to_owned));
                } else if is("image_src") {
                    document.image = document.image.take().or(value("href").map(ToOwned::to_owned));
                }
            }
            "body" => self.in_body = true,
            _ => {}
        }
    }

    fn text(&mut self, text: &str) {
        let (place, max) = match self.place {
            Place::Title => (&mut self.document.title, TITLE_MAX),
            Place::Heading => (&mut self.document.heading, TITLE_MAX),
            Place::Text if self.skipped == 0 => (&mut self.document.text, TEXT_MAX),
            Place::Text | Place::Nowhere => return,
        };
        for letter in text.chars() {
            if place.len() >= max {
                return;
            }
            match letter {
                letter if !letter.is_whitespace() => place.push(letter),
                _ if place.is_empty() || place.ends_with(' ') => {}
                _ => place.push(' '),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_page_says_is_found_wherever_it_is() {
        let document = read(
            "<!DOCTYPE html><html><head><title>Tea &amp;\n cake</title><base href=/base/>\
             <meta property='OG:Title' content=' A title '><meta name=description content='Described'>\
             <meta content=no-name><meta property=og:empty content=''>\
             <link rel='alternate nofollow' type='application/json+oembed' href='/oembed?a&amp;b'>\
             <link rel=image_src href=tea.png><style>p { content: '<h1>' }</style>\
             <script>var a = '<title>no</title>';</script></head>\
             <body><svg><title>icon</title></svg><nav>Menu<h1>Not this</h1></nav><h1>Tea <b>time</b></h1>\
             <p>First&nbsp;words.</p><p>More <i>words</i>.<noscript>No script!</noscript></body>",
        );
        let said = [("og:title", "A title"), ("description", "Described")];
        assert_eq!(document.statements, said.map(|(name, text)| (name.to_owned(), text.to_owned())));
        assert_eq!((document.title.trim(), document.heading.trim()), ("Tea & cake", "Tea time"));
        assert_eq!(document.text.trim(), "First words. More words .");
        assert_eq!(document.base.as_deref(), Some("/base/"));
        assert_eq!(document.oembed.as_deref(), Some("/oembed?a&b"));
        assert_eq!(document.image.as_deref(), Some("tea.png"));
    }

    #[test]
    fn no_page_is_too_deep_or_too_long_or_too_broken() {
        let deep = "<div><nav>".repeat(200_000);
        assert_eq!(read(&deep), Document::default());
        let long = format!("<title>{}</title><body>{}", "t".repeat(100_000), "é ".repeat(100_000));
        let document = read(&long);
        assert!(document.title.len() <= TITLE_MAX && document.text.len() <= TEXT_MAX + 4);
        let many = "<meta name=a content=b>".repeat(10_000);
        assert_eq!(read(&many).statements.len(), STATEMENTS_MAX);
        for broken in
            ["", "<", "<title>", "<meta property='og:title", "</nav></nav>text", "\0<!--", "<script>"]
        {
            read(broken);
        }
    }
}
