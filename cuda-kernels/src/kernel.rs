//! Kernels by name, and a launch: a kernel with its grid and parameters, checked, ready to be issued any number of times.

use bytemuck::Pod;

/// A source file's kernels, as PTX.
#[derive(Debug)]
pub struct Module {
    /// The file, without its extension.
    pub name: &'static str,
    /// PTX by compute capability (75: 7.5), oldest first.
    pub ptx: [(u32, &'static str); 3],
}

impl Module {
    /// The newest PTX that a GPU of this compute capability (75: 7.5) can run.
    pub fn ptx_for(&self, capability: u32) -> Option<&'static str> {
        self.ptx.iter().rev().find(|(needs, _)| *needs <= capability).map(|(_, text)| *text)
    }
}

/// A kernel's entry point.
#[derive(Debug)]
pub struct Kernel {
    /// The entry point's name.
    pub name: &'static str,
    /// Which of [`MODULES`] has it.
    pub module: usize,
    /// Bytes of its one parameter, a structure.
    pub bytes: usize,
    /// The same code compiled for this CPU.
    #[cfg(feature = "host")]
    pub(crate) host: unsafe extern "C" fn(*const std::ffi::c_void),
}

include!(concat!(env!("OUT_DIR"), "/entries.rs"));

/// Bytes that a kernel's parameters may take at the most.
pub(crate) const PARAMETER_BYTES: usize = 256;

/// A kernel with grid, block and parameters.
///
/// It is plain data: whoever issues it answers for the addresses in it, which the functions of [`crate::launch`] took from
/// [`crate::View`]s that they checked.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// What runs.
    pub kernel: &'static Kernel,
    /// Blocks along x, y, z; none of them is 0.
    pub grid: [u32; 3],
    /// Threads a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory a block.
    pub shared: u32,
    params: [u64; PARAMETER_BYTES / 8],
}

impl Launch {
    /// A launch of `kernel`, which takes a `P`.
    ///
    /// # Panics
    /// If the kernel takes a structure of another size: a mistake of this crate's, which any test of the kernel finds.
    pub(crate) fn new<P: Pod>(
        kernel: &'static Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: &P,
    ) -> Self {
        let bytes = bytemuck::bytes_of(params);
        assert_eq!(bytes.len(), kernel.bytes, "{} takes other parameters", kernel.name);
        let mut all = [0_u64; PARAMETER_BYTES / 8];
        bytemuck::cast_slice_mut::<u64, u8>(&mut all)[..bytes.len()].copy_from_slice(bytes);
        Self { kernel, grid, block, shared, params: all }
    }

    /// A launch whose parameters are these bytes; none if the kernel takes another number of them. For what stands in for a driver, which
    /// is given no more.
    #[cfg(feature = "host")]
    pub fn of_bytes(
        kernel: &'static Kernel,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        bytes: &[u8],
    ) -> Option<Self> {
        let mut params = [0_u64; PARAMETER_BYTES / 8];
        let to = bytemuck::cast_slice_mut::<u64, u8>(&mut params).get_mut(..kernel.bytes)?;
        (to.len() == bytes.len()).then(|| to.copy_from_slice(bytes))?;
        Some(Self { kernel, grid, block, shared, params })
    }

    /// The parameters, as the kernel reads them; aligned to 8.
    pub fn params(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.params)[..self.kernel.bytes]
    }
}
