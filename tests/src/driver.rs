//! The stand-in for the CUDA driver (`genie-cuda-stand-in`), as other processes find it: a folder with a library of the driver's name.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder that has the stand-in. It goes with this value.
pub struct StandIn {
    folder: TempDir,
}

impl StandIn {
    /// Makes the folder. The library was built before this program was, which depends on it.
    ///
    /// # Panics
    /// If there is no room, or the library is not where cargo puts it: beside this program, or one folder above.
    pub fn new() -> Self {
        let program = env::current_exe().expect("this program");
        let beside = program.ancestors().skip(1).take(2).map(|folder| folder.join("libgenie_cuda_stand_in.so"));
        let library = beside.into_iter().find(|path| path.is_file());
        let library = library.unwrap_or_else(|| panic!("no stand-in beside {}", program.display()));
        let folder = tempfile::tempdir().expect("room for a folder");
        for name in ["libcuda.so", "libcuda.so.1"] {
            symlink(&library, folder.path().join(name)).expect("a link");
        }
        Self { folder }
    }

    /// Variables with which a process finds it, and where it looks whether the next kernel is to fail.
    pub fn variables(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_LIBRARY_PATH", self.folder.path().to_owned()), ("GENIE_STAND_IN_FAULT", self.fault())]
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
