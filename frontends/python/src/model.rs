//! `_native.Model`: a language model on the server, in a session of its own.
#![expect(clippy::too_many_arguments, reason = "Python gives them by name")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use genie_models::remote::{RemoteModel, RemoteModelError, RemoteOptions, Sampling, Stage};
use genie_models::{ModelError, OpenOptions, TokenStream};
use genie_transport::wire::Finish;
use pyo3::prelude::*;

use crate::connect::aside;
use crate::dtype;
use crate::errors::{self, bad_input, lost};
use crate::session::Session;

/// A language model on the server. One generation at a time; others wait.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Model {
    remote: Arc<Mutex<Option<RemoteModel>>>,
    model: Arc<genie_models::Model>,
    /// Weights that the server had, weights sent, bytes of these.
    #[pyo3(get)]
    uploaded: (usize, usize, u64),
}

/// What an upload is at, for whoever shows it.
#[derive(Default)]
struct At {
    uploading: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
}

/// Brings a model to the server that a session is on. `None`, if `or_none`, for an architecture that is not known. `progress` gets what is
/// being done, bytes done, and bytes in all.
#[pyfunction]
#[pyo3(signature = (session, path, *, device=0, dtype=None, or_none=false, progress=None))]
pub(crate) fn load_model(
    py: Python<'_>,
    session: &Bound<'_, Session>,
    path: PathBuf,
    device: u16,
    dtype: Option<&Bound<'_, PyAny>>,
    or_none: bool,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<Model>> {
    let dtype = dtype.map(dtype::dtype).transpose()?;
    let opened = genie_models::Model::open(path, OpenOptions { dtype, blocks: dtype.is_none() });
    let model = match opened {
        Ok(model) => Arc::new(model),
        Err(ModelError::Architecture(_)) if or_none => return Ok(None),
        Err(error) => return Err(bad_input(error.to_string())),
    };
    let target = session.get().shared.target.clone();
    let (at, unwanted) = (Arc::new(At::default()), Arc::new(AtomicBool::new(false)));
    let (tell, stop, given) = (at.clone(), unwanted.clone(), model.clone());
    let establish = move || {
        let session = target.connect()?;
        let options = RemoteOptions { device, ..RemoteOptions::default() };
        let watch = |stage| {
            let (uploading, done, total) = match stage {
                Stage::Hashing(done, total) => (false, done, total),
                Stage::Uploading(done, total) => (true, done, total),
            };
            tell.uploading.store(uploading, Ordering::Relaxed);
            tell.done.store(done, Ordering::Relaxed);
            tell.total.store(total, Ordering::Relaxed);
        };
        let remote = RemoteModel::establish(session, given, &options, watch).map_err(|error| of_model(&error))?;
        if stop.load(Ordering::Acquire) {
            remote.close().map_err(|error| of_model(&error))?;
            return Err(lost("nobody waited for the model"));
        }
        Ok(remote)
    };
    let look = |_: Python<'_>| {
        let total = at.total.load(Ordering::Relaxed);
        let Some(progress) = progress.filter(|_| total > 0) else { return Ok(()) };
        let what = if at.uploading.load(Ordering::Relaxed) { "uploading weights" } else { "hashing weights" };
        progress.call1((what, at.done.load(Ordering::Relaxed), total)).map(|_| ())
    };
    let established = aside(py, "genie-load", establish, look);
    unwanted.store(established.is_err(), Ordering::Release);
    let remote = established??;
    let uploaded = remote.uploaded();
    let uploaded = (uploaded.present, uploaded.sent, uploaded.sent_bytes);
    Ok(Some(Model { remote: Arc::new(Mutex::new(Some(remote))), model, uploaded }))
}

#[pymethods]
impl Model {
    #[getter]
    fn name(&self) -> &str {
        self.model.name()
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.model.weight_bytes()
    }

    /// How many tokens it sees at the most.
    #[getter]
    fn max_positions(&self) -> u64 {
        self.model.config().max_positions()
    }

    /// The token ids of a text; with `chat`, laid out as a conversation.
    #[pyo3(signature = (text, chat=false))]
    fn encode(&self, text: &str, chat: bool) -> PyResult<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        let ids = if chat { tokenizer.encode_chat(text) } else { tokenizer.encode(text) };
        ids.map_err(|error| bad_input(error.to_string()))
    }

    /// The text of token ids.
    fn decode(&self, ids: Vec<u32>) -> PyResult<String> {
        self.tokenizer()?.decode(&ids).map_err(|error| bad_input(error.to_string()))
    }

    /// Token ids that end a text.
    #[getter]
    fn end_ids(&self) -> Vec<u32> {
        // A model without a tokenizer says no such thing.
        self.model.tokenizer().map(|tokenizer| tokenizer.eos_ids().to_vec()).unwrap_or_default()
    }

    /// Begins to make tokens. `after`: the text goes on from the prompt's last character.
    #[pyo3(signature = (prompt, max_new, *, stop, temperature, top_k, top_p, seed, text, after))]
    fn generate(
        &self,
        prompt: Vec<i32>,
        max_new: u32,
        stop: Vec<i32>,
        temperature: f32,
        top_k: u32,
        top_p: f32,
        seed: i64,
        text: bool,
        after: bool,
    ) -> PyResult<Tokens> {
        if !((0.0..=100.0).contains(&temperature) && top_p > 0.0 && top_p <= 1.0) {
            return Err(bad_input("temperature is from 0 to 100, top_p above 0 and up to 1"));
        }
        let sampling = Sampling { temperature, top_k: top_k.into(), top_p, seed };
        let stream = if text {
            let ids: Vec<u32> = prompt.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
            let tokenizer = self.tokenizer()?;
            Some(if after { tokenizer.stream_after(&ids) } else { tokenizer.stream() })
        } else {
            None
        };
        let (tell, news) = mpsc::channel();
        let stopped = Arc::new(AtomicBool::new(false));
        let work = Work { remote: self.remote.clone(), stopped: stopped.clone(), tell, stream, stop };
        std::thread::Builder::new()
            .name("genie-generate".into())
            .spawn(move || work.run(&prompt, max_new, sampling))?;
        Ok(Tokens { news: Mutex::new(news), stopped })
    }

    /// Ends its session, after the generation that is in progress.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let remote = locked(&self.remote).take();
            remote.map_or(Ok(()), RemoteModel::close).map_err(|error| of_model(&error))
        })
    }

    /// Bytes sent and received so far, headers included.
    fn traffic(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        py.detach(|| match locked(&self.remote).as_mut() {
            Some(remote) => Ok(remote.session().traffic()),
            None => Err(closed()),
        })
    }
}

impl Model {
    fn tokenizer(&self) -> PyResult<&genie_models::Tokenizer> {
        self.model.tokenizer().map_err(|error| bad_input(error.to_string()))
    }
}

fn closed() -> PyErr {
    lost("this model was closed: load it again; the server may still have its weights")
}

fn of_model(error: &RemoteModelError) -> PyErr {
    match error {
        RemoteModelError::Client(error) => errors::client(error),
        RemoteModelError::LostAgain(_) => lost(&error.to_string()),
        _ => bad_input(error.to_string()),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a generation tells.
enum News {
    Token(i32, Option<String>),
    End(PyResult<Finish>, Option<String>),
}

/// A generation, on its thread.
struct Work {
    remote: Arc<Mutex<Option<RemoteModel>>>,
    stopped: Arc<AtomicBool>,
    tell: Sender<News>,
    stream: Option<TokenStream>,
    stop: Vec<i32>,
}

impl Work {
    fn run(mut self, prompt: &[i32], max_new: u32, sampling: Sampling) {
        let remote = self.remote.clone();
        let mut remote = locked(&remote);
        let finish = match remote.as_mut() {
            Some(remote) => self.generate(remote, prompt, max_new, sampling).map_err(|error| of_model(&error)),
            None => Err(closed()),
        };
        let rest = self.stream.as_mut().and_then(TokenStream::finish);
        // Whoever asked may have gone.
        let _ = self.tell.send(News::End(finish, rest));
    }

    fn generate(
        &mut self,
        remote: &mut RemoteModel,
        prompt: &[i32],
        max_new: u32,
        sampling: Sampling,
    ) -> Result<Finish, RemoteModelError> {
        let mut context = remote.context(sampling)?;
        let Self { stopped, tell, stream, stop, .. } = self;
        let each = |token: i32| {
            // The token that ends a text is no part of it.
            let said = stream.as_mut().filter(|_| !stop.contains(&token));
            let text = said.and_then(|stream| stream.push(u32::try_from(token).ok()?));
            tell.send(News::Token(token, text)).is_ok() && !stopped.load(Ordering::Acquire)
        };
        let finish = remote.generate(&mut context, prompt, max_new, stop, each);
        remote.forget(context)?;
        finish
    }
}

/// Tokens of a generation, as they come. Stops it when it is dropped.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Tokens {
    news: Mutex<Receiver<News>>,
    stopped: Arc<AtomicBool>,
}

type Next = (Option<i32>, Option<String>, Option<&'static str>);

#[pymethods]
impl Tokens {
    /// A token, text that became certain with it, and with the last of it why it ended.
    fn next(&self, py: Python<'_>) -> PyResult<Next> {
        loop {
            let heard = py.detach(|| locked(&self.news).recv_timeout(Duration::from_millis(100)));
            match heard {
                Ok(News::Token(token, text)) => return Ok((Some(token), text, None)),
                Ok(News::End(finish, rest)) => {
                    let finish = match finish? {
                        Finish::Stop => "stop",
                        Finish::Length => "length",
                    };
                    return Ok((None, rest, Some(finish)));
                }
                Err(RecvTimeoutError::Timeout) => py.check_signals()?,
                Err(RecvTimeoutError::Disconnected) => return Err(lost("this generation has ended")),
            }
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
    }
}
