//! Content hashes of weights, remembered between runs so that a warm start need not produce and hash every byte again.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::weights::Weight;
use crate::{ContentHash, ModelError, cache_dir};

/// Changes whenever the bytes of a weight may come out other than before for the same files.
const FORMAT: u32 = 1;

/// A file whose state changed this shortly before it was looked at may change again without its times showing it.
const SETTLED: Duration = Duration::from_secs(2);

/// A folder of remembered hashes.
///
/// An entry holds for the very same files: device, inode, size, modification and status-change times. The last cannot be
/// set by a program, so a file that was rewritten in place never passes for the old one. A lost or damaged entry costs time
/// only.
#[derive(Clone, Debug)]
pub struct HashCache {
    folder: Option<PathBuf>,
}

/// A file as it was when it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Nanoseconds since 1970, as are the next two.
    modified: i128,
    changed: i128,
    #[serde(skip)]
    looked_at: i128,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    files: Vec<Stamp>,
    weights: Vec<Known>,
}

#[derive(Serialize, Deserialize)]
struct Known {
    name: String,
    dtype: String,
    dims: Vec<u64>,
    hash: String,
}

impl HashCache {
    /// The user's: `hashes` in [`cache_dir`]; [`Self::none`] where there is no such folder.
    pub fn user() -> Self {
        Self { folder: cache_dir().map(|cache| cache.join("hashes")) }
    }

    /// In this folder, which is made when something is first stored.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// Remembers nothing.
    pub fn none() -> Self {
        Self { folder: None }
    }

    pub(crate) fn load(&self, stamps: &[Stamp], weights: &[Weight]) -> Option<Vec<ContentHash>> {
        let entry: Entry = serde_json::from_slice(&fs::read(self.path(stamps, weights)?).ok()?).ok()?;
        let same_files = entry.files.len() == stamps.len() && entry.files.iter().zip(stamps).all(|(a, b)| a.is(b));
        if entry.format != FORMAT || !same_files || entry.weights.len() != weights.len() {
            return None;
        }
        let hash = |(known, weight): (&Known, &Weight)| {
            let same =
                known.name == weight.name() && known.dtype == weight.dtype().name() && known.dims == weight.dims();
            let hash = blake3::Hash::from_hex(&known.hash).ok().filter(|_| same)?;
            Some(ContentHash(*hash.as_bytes()))
        };
        entry.weights.iter().zip(weights).map(hash).collect()
    }

    /// Best effort: what cannot be kept is computed again next time.
    pub(crate) fn store(&self, stamps: &[Stamp], weights: &[Weight], hashes: &[ContentHash]) {
        let Some(path) = self.path(stamps, weights) else { return };
        let steady = |s: &Stamp| s.is_settled() && Stamp::of(&s.path).is_ok_and(|now| now.is(s));
        if !stamps.iter().all(steady) {
            tracing::debug!("the model's files changed just now: their hashes are not kept");
            return;
        }
        let known = |(weight, hash): (&Weight, &ContentHash)| Known {
            name: weight.name().to_owned(),
            dtype: weight.dtype().name().to_owned(),
            dims: weight.dims().to_vec(),
            hash: blake3::Hash::from_bytes(hash.0).to_hex().to_string(),
        };
        let weights = weights.iter().zip(hashes).map(known).collect();
        if let Err(error) = write_whole(&path, &Entry { format: FORMAT, files: stamps.to_vec(), weights }) {
            tracing::debug!(%error, path = %path.display(), "hashes could not be kept");
        }
    }

    /// One file for each set of model files and types.
    fn path(&self, stamps: &[Stamp], weights: &[Weight]) -> Option<PathBuf> {
        let mut key = blake3::Hasher::new();
        for stamp in stamps {
            key.update(stamp.path.as_os_str().as_encoded_bytes()).update(&[0]);
        }
        for weight in weights {
            key.update(&[weight.dtype().code()]);
        }
        Some(self.folder.as_ref()?.join(format!("{}.json", &key.finalize().to_hex()[..32])))
    }
}

impl Stamp {
    /// Looks at a file.
    pub(crate) fn of(path: &Path) -> Result<Self, ModelError> {
        let path = path.canonicalize().map_err(ModelError::io(path))?;
        let meta = fs::metadata(&path).map_err(ModelError::io(&path))?;
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            path,
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: nanos(meta.mtime(), meta.mtime_nsec()),
            changed: nanos(meta.ctime(), meta.ctime_nsec()),
            looked_at: i128::try_from(now.as_nanos()).unwrap_or(0),
        })
    }

    /// Whether it is the same file in the same state.
    fn is(&self, other: &Self) -> bool {
        let state = |s: &Self| (s.device, s.inode, s.bytes, s.modified, s.changed);
        self.path == other.path && state(self) == state(other)
    }

    /// By the status-change time, as every write sets it and nothing else can: the modification time of an unpacked file may
    /// lie in the future.
    fn is_settled(&self) -> bool {
        let settled = SETTLED.as_nanos() as i128;
        self.looked_at - self.changed >= settled
    }
}

/// Nobody ever reads half a file: it is written beside its place, then renamed.
fn write_whole(path: &Path, entry: &Entry) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder)?;
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    let text = serde_json::to_vec(entry)?;
    let mut file = fs::File::create(&beside)?;
    let done = file.write_all(&text).and_then(|()| fs::rename(&beside, path));
    if done.is_err() {
        // Nothing more can be done about it.
        let _ = fs::remove_file(&beside);
    }
    done
}

#[cfg(test)]
mod tests {
    use genie_graph::DType;

    use super::*;
    use crate::{Gpt2Config, synthetic};

    /// As if the file had been looked at long after it was written.
    fn settled(path: &Path) -> Vec<Stamp> {
        let mut stamp = Stamp::of(path).unwrap();
        stamp.looked_at += 10_000_000_000;
        vec![stamp]
    }

    #[test]
    fn an_entry_holds_for_the_very_same_files_and_weights() {
        let folder = tempfile::tempdir().unwrap();
        let cache = HashCache::at(folder.path().join("hashes"));
        let file = folder.path().join("model");
        fs::write(&file, "one").unwrap();
        let weights =
            |dtype| synthetic::random_gpt2(Gpt2Config::of(1, 1, 8), 1, dtype).unwrap().weights()[1..].to_vec();
        let (wide, narrow) = (weights(DType::F32), weights(DType::F16));
        let hashes: Vec<_> = wide.iter().map(Weight::hash).collect();

        let stamps = settled(&file);
        assert_eq!(cache.load(&stamps, &wide), None);
        cache.store(&stamps, &wide, &hashes);
        assert_eq!(cache.load(&stamps, &wide), Some(hashes.clone()));
        assert_eq!(cache.load(&stamps, &narrow), None);
        assert_eq!(cache.load(&stamps, &wide[1..]), None);

        // The same length and, by the file's owner's doing, the same modification time: but another status-change time.
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        let changed = || Stamp::of(&file).unwrap().changed;
        let before = changed();
        // File systems tell the time by a clock that ticks now and then.
        while changed() == before {
            fs::write(&file, "two").unwrap();
            fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        }
        assert_eq!(cache.load(&settled(&file), &wide), None);
        // What was hashed before the change is not stored after it.
        cache.store(&stamps, &wide, &hashes);
        assert_eq!(cache.load(&settled(&file), &wide), None);
    }

    #[test]
    fn a_file_that_may_still_change_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let cache = HashCache::at(folder.path().join("hashes"));
        let file = folder.path().join("model");
        fs::write(&file, "one").unwrap();
        let mut stamps = settled(&file);
        stamps[0].looked_at = stamps[0].changed + 1_000_000_000;
        cache.store(&stamps, &[], &[]);
        assert_eq!(cache.load(&stamps, &[]), None);
    }

    #[test]
    fn a_modification_time_in_the_future_does_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let cache = HashCache::at(folder.path().join("hashes"));
        let file = folder.path().join("model");
        let future = SystemTime::now() + Duration::from_secs(1_000_000);
        fs::File::create(&file).unwrap().set_modified(future).unwrap();
        cache.store(&settled(&file), &[], &[]);
        assert_eq!(cache.load(&settled(&file), &[]), Some(Vec::new()));
    }

    #[test]
    fn damaged_entries_and_unwritable_folders_cost_time_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model");
        fs::write(&file, "one").unwrap();
        let stamps = settled(&file);
        let cache = HashCache::at(folder.path());
        fs::write(cache.path(&stamps, &[]).unwrap(), "{\"format\":1,").unwrap();
        assert_eq!(cache.load(&stamps, &[]), None);
        let nowhere = HashCache::at(file.join("not-a-folder"));
        nowhere.store(&stamps, &[], &[]);
        assert_eq!(nowhere.load(&stamps, &[]), None);
        assert_eq!(HashCache::none().load(&stamps, &[]), None);
    }
}
