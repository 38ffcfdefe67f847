//! Makes the table of kernels from the PTX in `ptx/`, and with feature `host` compiles the sources for this CPU.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The compute capabilities that there is PTX for, oldest first.
const TARGETS: [&str; 3] = ["75", "80", "90"];

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    for watched in ["ptx", "kernels", "host"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    let modules = modules(&root);
    fs::write(out.join("entries.rs"), entries(&root, &modules)).expect("the build directory can be written");
    #[cfg(feature = "host")]
    compile(&root, &modules);
}

/// A source file, by name, with its kernels.
struct Module {
    name: String,
    kernels: Vec<Entry>,
}

/// A kernel's name and the bytes of its one parameter.
struct Entry {
    name: String,
    bytes: usize,
}

fn modules(root: &Path) -> Vec<Module> {
    let folder = root.join("ptx").join(format!("compute_{}", TARGETS[0]));
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}; run tools/build-kernels", folder.display()));
    let mut modules: Vec<Module> = files
        .map(|file| file.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|e| e == "ptx"))
        .map(|path| {
            let name = path.file_stem().expect("it has an extension").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("PTX is text");
            Module { name, kernels: kernels(&text) }
        })
        .collect();
    modules.sort_by(|a, b| a.name.cmp(&b.name));
    modules
}

/// The entry points of a PTX text. Each takes one structure: `.param .align 8 .b8 NAME_param_0[BYTES]`.
fn kernels(ptx: &str) -> Vec<Entry> {
    let of = |entry: &str| {
        let name: String = entry.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect();
        let size = entry.split_once(&format!("{name}_param_0[")).and_then(|(_, rest)| rest.split_once(']'));
        let bytes = size.and_then(|(digits, _)| digits.parse().ok());
        Entry { bytes: bytes.unwrap_or_else(|| panic!("kernel {name} does not take one structure")), name }
    };
    ptx.split(".visible .entry ").skip(1).map(of).collect()
}

fn entries(root: &Path, modules: &[Module]) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "/// Every module of kernels.\npub static MODULES: [Module; {}] = [", modules.len());
    for module in modules {
        let ptx: String = TARGETS
            .map(|target| {
                let file = root.join(format!("ptx/compute_{target}/{}.ptx", module.name));
                format!("({target}, include_str!({:?})),", file.display().to_string())
            })
            .concat();
        let _ = writeln!(text, "    Module {{ name: {:?}, ptx: [{ptx}] }},", module.name);
    }
    text.push_str("];\n");
    for (index, module) in modules.iter().enumerate() {
        for Entry { name, bytes } in &module.kernels {
            let upper = name.to_uppercase();
            let _ = writeln!(text, "/// `{name}` of `{}.cu`.", module.name);
            let _ = write!(
                text,
                "pub(crate) static {upper}: Kernel = Kernel {{ name: {name:?}, module: {index}, bytes: {bytes}"
            );
            let host = if cfg!(feature = "host") { format!(", host: genie_host_{name}") } else { String::new() };
            let _ = writeln!(text, "{host} }};");
        }
    }
    let all = || modules.iter().flat_map(|module| &module.kernels);
    let names: String = all().map(|k| format!("&{}, ", k.name.to_uppercase())).collect();
    let _ = writeln!(text, "/// Every kernel.\npub static KERNELS: [&Kernel; {}] = [{names}];", all().count());
    if cfg!(feature = "host") {
        text.push_str(
            "// SAFETY: `host/cuda_on_host.h` defines them so, one for each kernel.\nunsafe extern \"C\" {\n",
        );
        all().for_each(|k| {
            let _ = writeln!(text, "    fn genie_host_{}(params: *const std::ffi::c_void);", k.name);
        });
        text.push_str("}\n");
    }
    text
}

#[cfg(feature = "host")]
fn compile(root: &Path, modules: &[Module]) {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(1).warnings(true).extra_warnings(true).warnings_into_errors(true);
    // As on the device, sums are fused only where the source says so. Unknown pragmas: `unroll`.
    build
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .flag("-Wno-unknown-pragmas")
        // A GPU faults on an address that is not aligned to what is read or written there; `src/host/alignment.rs` says where.
        .flag("-fsanitize=alignment")
        .flag("-fno-sanitize-recover=alignment")
        .define("GENIE_HOST", None);
    build.flag("-x").flag("c++").include(root.join("host")).include(root.join("kernels"));
    for module in modules {
        build.file(root.join("kernels").join(format!("{}.cu", module.name)));
    }
    // Tests of this crate alone launch what is in it, and other programs do not link it.
    build.file(root.join("host/selftest.cu"));
    build.compile("genie_kernels_on_host");
}
