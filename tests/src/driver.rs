//! The stand-ins for the CUDA driver, cuBLASLt and NVML (`genie-cuda-stand-in` and those beside it), as other processes find them: a folder
//! with libraries of their names.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// cuBLASLt's name.
pub const PRODUCTS: &str = "libcublasLt.so.13";
/// NVML's name.
pub const MANAGEMENT: &str = "libnvidia-ml.so.1";

/// The names that a stand-in's library goes by.
const LIBRARIES: [(&str, &str); 4] =
    [("libcuda.so", "cuda"), ("libcuda.so.1", "cuda"), (PRODUCTS, "cublaslt"), (MANAGEMENT, "nvml")];

/// A folder that has the stand-ins. It goes with this value.
pub struct StandIn {
    folder: TempDir,
}

impl StandIn {
    /// Makes the folder. The libraries were built before this program was, which depends on them.
    ///
    /// # Panics
    /// If there is no room, or a library is not where cargo puts it: beside this program, or one folder above.
    pub fn new() -> Self {
        let new = Self { folder: tempfile::tempdir().expect("room for a folder") };
        LIBRARIES.into_iter().for_each(|(name, of)| new.link(name, of));
        new
    }

    fn link(&self, name: &str, of: &str) {
        let program = env::current_exe().expect("this program");
        let file = format!("libgenie_{of}_stand_in.so");
        let library = program.ancestors().skip(1).take(2).map(|folder| folder.join(&file)).find(|path| path.is_file());
        let library = library.unwrap_or_else(|| panic!("no {file} beside {}", program.display()));
        symlink(library, self.path().join(name)).expect("a link");
    }

    /// The machine has no such library.
    ///
    /// # Panics
    /// If it has none.
    pub fn without(self, name: &str) -> Self {
        fs::remove_file(self.path().join(name)).expect("a link");
        self
    }

    /// The library is there, and has none of its functions.
    ///
    /// # Panics
    /// If it is not there.
    pub fn emptied(self, name: &str) -> Self {
        let other = if name == PRODUCTS { "nvml" } else { "cublaslt" };
        let new = self.without(name);
        new.link(name, other);
        new
    }

    /// Variables with which a process finds them, and where they look for what is to happen, and write what did.
    pub fn variables(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("LD_LIBRARY_PATH", self.path().to_owned()),
            ("GENIE_STAND_IN_FAULT", self.fault()),
            ("GENIE_STAND_IN_PRODUCTS_DONE", self.path().join("products")),
            ("GENIE_STAND_IN_BUSY", self.path().join("busy")),
        ]
    }

    /// A line for each product that cuBLASLt's stand-in did: types of factors and result, sizes, what it did besides.
    pub fn products(&self) -> Vec<String> {
        let lines = fs::read_to_string(self.path().join("products")).unwrap_or_default();
        lines.lines().map(str::to_owned).collect()
    }

    /// From now on the GPUs are as busy as this, in percent, with commas between them.
    ///
    /// # Panics
    /// If there is no room.
    pub fn set_busy(&self, percents: &str) {
        // As one: it is read meanwhile.
        let whole = self.path().join("next busy");
        fs::write(&whole, percents).expect("room for a few numbers");
        fs::rename(whole, self.path().join("busy")).expect("a name");
    }

    /// Makes the next kernel on this GPU fail, in whatever process has this stand-in.
    ///
    /// # Panics
    /// If there is no room.
    pub fn fail_next_kernel(&self, gpu: u32) {
        // As one: it must not be found before it says which.
        let whole = self.folder.path().join("next");
        fs::write(&whole, gpu.to_string()).expect("room for a number");
        fs::rename(whole, self.fault()).expect("a name");
    }

    /// Whether a kernel is still to fail.
    pub fn is_to_fail(&self) -> bool {
        self.fault().exists()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn fault(&self) -> PathBuf {
        self.folder.path().join("fault")
    }
}

impl Default for StandIn {
    fn default() -> Self {
        Self::new()
    }
}
