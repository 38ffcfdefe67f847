//! The header is what the declarations say.

use std::path::Path;

/// In the order in which the header has them.
const SOURCES: [&str; 9] =
    ["status", "session", "memory", "tensor", "graph", "program", "generate", "pending", "model"];

/// `GENIE_WRITE_HEADER=1 cargo test -p genie-c --test header` writes it anew.
#[test]
fn the_header_is_the_declarations() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("the configuration can be read");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join(format!("src/{source}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().expect("cbindgen understands the declarations").write(&mut made);
    let made = String::from_utf8(made).expect("it is text");
    let path = root.join("include/genie.h");
    if std::env::var_os("GENIE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("it can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("the header is there");
    assert!(
        made == committed,
        "{} is not what the declarations say: GENIE_WRITE_HEADER=1 cargo test -p genie-c --test header",
        path.display()
    );
    let entries = made.matches("genie_error *error);").count();
    assert!(entries > 40, "{entries} functions");
}
