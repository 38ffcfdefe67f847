//! Writes GGUF files for tests.

use genie_transport::memory::Region;

/// A file in the making.
#[derive(Clone, Default)]
pub(crate) struct FileWriter {
    entries: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl FileWriter {
    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.entry(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.entry(key, 7, &[value.into()])
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.entry(key, 8, &string(value))
    }

    pub(crate) fn texts(self, key: &str, values: &[&str]) -> Self {
        let items: Vec<_> = values.iter().flat_map(|v| string(v)).collect();
        self.array(key, 8, values.len(), &items)
    }

    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> Self {
        let items: Vec<_> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 5, values.len(), &items)
    }

    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> Self {
        let items: Vec<_> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 6, values.len(), &items)
    }

    fn array(self, key: &str, element: u32, count: usize, items: &[u8]) -> Self {
        let head = [&element.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.entry(key, 9, &[&head[..], items].concat())
    }

    pub(crate) fn entry(mut self, key: &str, ty: u32, value: &[u8]) -> Self {
        self.entries.push((key.to_owned(), [&ty.to_le_bytes()[..], value].concat()));
        self
    }

    /// Dimensions outermost first.
    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], ty: u32, data: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), ty, data));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            file.extend(string(key));
            file.extend(value);
        }
        let mut data = Vec::new();
        for (name, dims, ty, bytes) in &self.tensors {
            file.extend(string(name));
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().rev().for_each(|d| file.extend(d.to_le_bytes()));
            file.extend(ty.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        [file, data].concat()
    }

    pub(crate) fn region(&self) -> Region {
        Region::copy_of(&self.bytes())
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
