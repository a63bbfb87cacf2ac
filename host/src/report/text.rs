//! Text that comes from outside (file names, labels, reasons) made safe to show.

use std::fmt::Write;

/// The text with all that does not show, or shows as something else, spelt out as `\u{..}`: control
/// characters, the marks that turn the direction of writing (Unicode Bidirectional Algorithm, 2),
/// and what XML 1.0 does not allow.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let invisible = matches!(
            c,
            '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        );
        if c.is_control() || turns || invisible {
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// [`visible`] text for HTML and XML, within elements and within quoted attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_turns_or_hides_text_is_spelt_out() {
        assert_eq!(visible("a\u{202e}gpj.exe\n\u{1b}[2J"), "a\\u{202e}gpj.exe\\u{a}\\u{1b}[2J");
        assert_eq!(visible("süß 猫 שלום"), "süß 猫 שלום");
        assert_eq!(escape("<b a='\"&'>"), "&lt;b a=&#39;&quot;&amp;&#39;&gt;");
    }

    proptest! {
        #[test]
        fn any_text_is_text_to_an_xml_parser(text: String) {
            let xml = format!("<a b=\"{0}\" c='{0}'>{0}</a>", escape(&text));
            let document = roxmltree::Document::parse(&xml).unwrap();
            let element = document.root_element();
            let wanted = visible(&text);
            prop_assert_eq!(element.children().count(), usize::from(!wanted.is_empty()));
            prop_assert_eq!(element.text().unwrap_or(""), &wanted);
            prop_assert_eq!(element.attribute("b"), Some(wanted.as_str()));
            prop_assert_eq!(element.attribute("c"), Some(wanted.as_str()));
        }
    }
}
