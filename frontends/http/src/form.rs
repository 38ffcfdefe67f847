//! Multipart forms, in place: what a part holds stays where the body was read to.
//!
//! Ours, and not a library's: those for streams hold what they have not understood yet, and look at all of it again with each piece.

use bytes::Bytes;
use memchr::memmem;

use crate::error::Failure;

/// Parts of one form.
const MAX_PARTS: usize = 256;
/// Bytes of the headers of one part.
const MAX_HEADERS: usize = 4096;
/// Characters of a boundary, as RFC 2046 has it.
const MAX_BOUNDARY: usize = 70;

/// A part of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// It has the name of a file.
    pub(crate) is_file: bool,
    pub(crate) data: Bytes,
}

impl Part {
    /// What it holds, as text.
    pub(crate) fn text(&self) -> Result<&str, Failure> {
        let text = std::str::from_utf8(&self.data);
        text.map_err(|_| Failure::fields(format!("the field '{}' is not UTF-8 text", self.name)))
    }
}

/// The boundary that a content type names.
///
/// # Errors
/// 415: it is no multipart form.
pub(crate) fn boundary(content_type: Option<&str>) -> Result<String, Failure> {
    let none = || {
        let detail = "the body must be a form (multipart/form-data), as curl -F and an HTML form send it";
        Failure::new(axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
    };
    let (kind, parameters) = content_type.and_then(|text| text.split_once(';')).ok_or_else(none)?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return Err(none());
    }
    let found = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
    });
    let fits = |boundary: &&str| {
        (1..=MAX_BOUNDARY).contains(&boundary.len()) && boundary.bytes().all(|b| (b' '..0x7f).contains(&b))
    };
    found.filter(fits).map(str::to_owned).ok_or_else(none)
}

/// The parts of a body.
///
/// # Errors
/// 400: it is no form with this boundary.
pub(crate) fn parts(body: &Bytes, boundary: &str) -> Result<Vec<Part>, Failure> {
    let bad = |reason: &str| Failure::bad(format!("the form is damaged: {reason}"));
    let line = format!("\r\n--{boundary}");
    let finder = memmem::Finder::new(line.as_bytes());
    // The first may have nothing before it, not even the end of a line.
    let mut rest = match body.strip_prefix(b"--").and_then(|rest| rest.strip_prefix(boundary.as_bytes())) {
        Some(rest) => rest,
        None => finder
            .find(body)
            .and_then(|at| body.get(at + line.len()..))
            .ok_or_else(|| bad("its boundary is missing"))?,
    };
    let mut parts = Vec::new();
    loop {
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        // White space may follow a boundary.
        let padded = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).take(MAX_HEADERS).count();
        rest = rest
            .get(padded..)
            .and_then(|rest| rest.strip_prefix(b"\r\n"))
            .ok_or_else(|| bad("a boundary has no end"))?;
        let most = rest.get(..MAX_HEADERS + 4).unwrap_or(rest);
        let end = memmem::find(most, b"\r\n\r\n").ok_or_else(|| bad("the headers of a part have no end"))?;
        let (headers, data) = rest.split_at_checked(end + 4).ok_or_else(|| bad("a part is cut short"))?;
        let length = finder.find(data).ok_or_else(|| bad("its last boundary is missing: it is cut short"))?;
        let (data, after) = data.split_at_checked(length).ok_or_else(|| bad("a part is cut short"))?;
        if parts.len() >= MAX_PARTS {
            return Err(Failure::fields(format!("the form has more than {MAX_PARTS} parts")));
        }
        let (name, is_file) = disposition(headers).ok_or_else(|| bad("a part does not say its name"))?;
        parts.push(Part { name, is_file, data: body.slice_ref(data) });
        rest = after.get(line.len()..).ok_or_else(|| bad("a boundary is cut short"))?;
    }
}

/// The name that the headers of a part give, and whether they name a file.
fn disposition(headers: &[u8]) -> Option<(String, bool)> {
    // The name of a file may be in any character set.
    let text = String::from_utf8_lossy(headers);
    let value = text.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then(|| value.trim())
    })?;
    let (kind, _) =
        value.split_at_checked("form-data".len()).filter(|(kind, _)| kind.eq_ignore_ascii_case("form-data"))?;
    let mut rest = value.get(kind.len()..)?;
    let (mut name, mut is_file) = (None, false);
    while let Some(parameter) = rest.trim_start().strip_prefix(';') {
        let (key, value) = parameter.split_once('=')?;
        let (value, after) = match value.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = value.find(';').unwrap_or(value.len());
                let (value, after) = value.split_at_checked(end)?;
                (value.trim().to_owned(), after)
            }
        };
        let key = key.trim();
        if key.eq_ignore_ascii_case("name") {
            name = Some(value);
        } else if key.eq_ignore_ascii_case("filename") || key.eq_ignore_ascii_case("filename*") {
            is_file = true;
        }
        rest = after;
    }
    Some((name?, is_file))
}

/// What stands before the closing quote, and what follows it. A backslash is one, but before a quote or another.
fn unquote(text: &str) -> Option<(String, &str)> {
    let (mut value, mut rest) = (String::new(), text);
    loop {
        let (before, mark) = rest.split_at_checked(rest.find(['\\', '"'])?)?;
        value.push_str(before);
        if let Some(after) = mark.strip_prefix('"') {
            return Some((value, after));
        }
        let after = mark.strip_prefix('\\')?;
        rest = match after.strip_prefix('"') {
            // A path of Windows that ends in a backslash.
            Some(end) if is_end(end) => {
                value.push('\\');
                return Some((value, end));
            }
            Some(rest) => {
                value.push('"');
                rest
            }
            None => {
                value.push('\\');
                after.strip_prefix('\\').unwrap_or(after)
            }
        };
    }
}

/// Whether a parameter has ended here: nothing follows, or another does.
fn is_end(rest: &str) -> bool {
    let begins = |text: &str, name: &str| text.get(..name.len()).is_some_and(|text| text.eq_ignore_ascii_case(name));
    let rest = rest.trim_start();
    let next = rest.strip_prefix(';').map(str::trim_start);
    rest.is_empty() || next.is_some_and(|next| begins(next, "name=") || begins(next, "filename"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &str) -> Result<Vec<(String, bool, String)>, Failure> {
        let body = Bytes::from(text.replace('\n', "\r\n"));
        let all = parts(&body, "B")?;
        Ok(all.into_iter().map(|p| (p.name, p.is_file, String::from_utf8(p.data.to_vec()).unwrap())).collect())
    }

    #[test]
    fn parts_come_as_they_were_sent() {
        let text = "--B\nContent-Disposition: form-data; name=\"operation\"\n\nrelu\n--B  \nContent-Type: x/y\n\
                    content-disposition: form-data; name=f; filename=\"a \\\"b\\\".pt\"\n\nx\n--A\n\n--B--\nafter";
        let part = |name: &str, file, data: &str| (name.to_owned(), file, data.replace('\n', "\r\n"));
        assert_eq!(form(text).unwrap(), [part("operation", false, "relu"), part("f", true, "x\n--A\n")]);
        assert_eq!(form(&format!("before\n{text}")).unwrap().len(), 2);
        for (disposition, name) in [
            (r#"Form-Data; NAME="x"; FileName="C:\x\y.pt""#, "x"),
            (r#"form-data; filename="C:\x\"; name="x""#, "x"),
            (r#"form-data; name="x"; filename="C:\x\""#, "x"),
            (r#"form-data; name="a\"b\\c\d"; filename=y"#, r#"a"b\c\d"#),
        ] {
            let text = format!("--B\nContent-Disposition: {disposition}\n\n1\n--B--");
            assert_eq!(form(&text).unwrap(), [part(name, true, "1")], "{disposition}");
        }
        let latin = b"--B\r\nContent-Disposition: form-data; name=x; filename=\"\xe9.pt\"\r\n\r\n1\r\n--B--";
        assert_eq!(parts(&Bytes::from_static(latin), "B").unwrap()[0].name, "x");
        assert_eq!(form("--B--").unwrap(), []);
        let empty = "--B\nContent-Disposition: form-data; name=\"x\"\n\n\n--B--\n";
        assert_eq!(form(empty).unwrap(), [part("x", false, "")]);
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let name = "Content-Disposition: form-data; name=\"x\"\n\n";
        for bad in [
            String::new(),
            "--A--".to_owned(),
            "--B".to_owned(),
            "--B\n".to_owned(),
            format!("--Bx\n{name}1\n--B--"),
            format!("--B\n{name}1"),
            format!("--B\n{name}1\n--B"),
            "--B\nContent-Type: x\n\n1\n--B--".to_owned(),
            "--B\nContent-Disposition: form-data; name=\"x\n\n1\n--B--".to_owned(),
            "--B\nContent-Disposition: attachment; name=\"x\"\n\n1\n--B--".to_owned(),
            format!("--B\nX: {}\n{name}1\n--B--", "y".repeat(MAX_HEADERS)),
        ] {
            assert_eq!(form(&bad).unwrap_err().status, 400, "{bad}");
        }
        let many = format!("--B\n{name}1\n").repeat(MAX_PARTS + 1) + "--B--";
        assert_eq!(form(&many).unwrap_err().status, 422);
    }

    #[test]
    fn boundaries_are_read_from_the_content_type() {
        let of = |text| boundary(Some(text)).ok();
        assert_eq!(of("multipart/form-data; boundary=----abc").as_deref(), Some("----abc"));
        assert_eq!(of("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\"").as_deref(), Some("a b"));
        for bad in [
            "multipart/form-data",
            "text/plain; boundary=x",
            "multipart/form-data; boundary=",
            "multipart/form-data; x=y",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(of(&format!("multipart/form-data; boundary={}", "x".repeat(71))), None);
        assert_eq!(boundary(None).unwrap_err().status, 415);
    }
}
