//! Running sessions, and reading what came out.

use genie_executor::device::{DeviceError, HostTensor, Row};

use crate::support::{Runner, Session};

impl Runner {
    /// Runs all sessions as one batch, each with the tokens that it was fed.
    pub(crate) fn step(&self, sessions: &mut [&mut Session], wanted: u64) -> Result<(), DeviceError> {
        let mut rows: Vec<Row<'_>> = sessions.iter_mut().map(|s| s.row(wanted)).collect();
        self.program.run(&self.weights, &mut rows)
    }

    /// Runs one session over these tokens; the last one's logits.
    pub(crate) fn feed(&self, session: &mut Session, tokens: &[i32]) -> Vec<f32> {
        session.feed(tokens);
        self.step(&mut [session], u64::MAX).unwrap();
        session.logits()
    }
}

impl Session {
    pub(crate) fn token(&self) -> i32 {
        i32::from_le_bytes(self.outputs[0].data[..4].try_into().unwrap())
    }

    pub(crate) fn logits(&self) -> Vec<f32> {
        floats(&self.outputs[1])
    }
}

pub(crate) fn floats(tensor: &HostTensor) -> Vec<f32> {
    tensor.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}
