//! `_native.Model`: a language model on the server, in a session of its own.
#![expect(clippy::too_many_arguments, reason = "Python gives them by name")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_models::remote::{RemoteModel, RemoteModelError, RemoteOptions, Sampling, Stage};
use genie_models::{ModelError, OpenOptions, TokenStream};
use genie_transport::connection::Counters;
use genie_transport::wire::Finish;
use pyo3::prelude::*;

use crate::cancel;
use crate::connect::{aside, close_aside};
use crate::dtype;
use crate::errors::{self, bad_input, in_range, lost, unreachable};
use crate::session::Session;
use crate::shared::{Stop, forks};

/// A language model on the server. One generation at a time; others wait.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Model {
    remote: Arc<Remote>,
    model: Arc<genie_models::Model>,
    /// Weights that the server had, weights sent, bytes of these.
    #[pyo3(get)]
    uploaded: (usize, usize, u64),
}

/// What is on the server. Closed with the last that refers to it: the model, or a generation that goes on without it.
struct Remote {
    /// [`forks`] when it was loaded: in a child nothing of it is touched.
    forks: u64,
    /// `None` once it is closed. Whoever generates has it.
    model: Mutex<Option<RemoteModel>>,
    counters: Arc<Counters>,
    /// Whether it is to end, which generations look at.
    closing: AtomicBool,
}

impl Remote {
    fn new(mut model: RemoteModel, forks: u64) -> Self {
        let counters = model.session().counters();
        Self { forks, model: Mutex::new(Some(model)), counters, closing: AtomicBool::new(false) }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    fn close(&self) -> PyResult<()> {
        let model = locked(&self.model).take();
        model.map_or(Ok(()), RemoteModel::close).map_err(|error| of_model(&error))
    }

    fn check(&self) -> PyResult<()> {
        if self.forks == forks() { Ok(()) } else { Err(Stop::Forked.into()) }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let model = self.model.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.forks != forks() {
            // Its socket is the parent's, too: a goodbye would end the parent's session.
            std::mem::forget(model);
        } else if let Some(model) = model {
            close_aside(move || model.close());
        }
    }
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
    #[pyo3(from_py_with = in_range)] device: u16,
    dtype: Option<&Bound<'_, PyAny>>,
    or_none: bool,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Option<Model>> {
    let dtype = dtype.map(dtype::dtype).transpose()?;
    let open = move || genie_models::Model::open(path, OpenOptions { dtype, blocks: dtype.is_none() });
    let model = match aside(py, "genie-open", open, |_| Ok(()))? {
        Ok(model) => Arc::new(model),
        Err(ModelError::Architecture(_)) if or_none => return Ok(None),
        Err(error) => return Err(bad_input(error.to_string())),
    };
    let target = session.get().shared.target.clone();
    let at = Arc::new(At::default());
    let (tell, given, forks) = (at.clone(), model.clone(), forks());
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
        let uploaded = remote.uploaded();
        Ok::<_, PyErr>((Remote::new(remote, forks), uploaded))
    };
    let look = |_: Python<'_>| {
        let total = at.total.load(Ordering::Relaxed);
        let Some(progress) = progress.filter(|_| total > 0) else { return Ok(()) };
        let what = if at.uploading.load(Ordering::Relaxed) { "uploading weights" } else { "hashing weights" };
        progress.call1((what, at.done.load(Ordering::Relaxed), total)).map(|_| ())
    };
    let (remote, uploaded) = aside(py, "genie-load", establish, look)??;
    let uploaded = (uploaded.present, uploaded.sent, uploaded.sent_bytes);
    Ok(Some(Model { remote: Arc::new(remote), model, uploaded }))
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
    fn decode(&self, #[pyo3(from_py_with = in_range)] ids: Vec<u32>) -> PyResult<String> {
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
        #[pyo3(from_py_with = in_range)] prompt: Vec<i32>,
        #[pyo3(from_py_with = in_range)] max_new: u32,
        #[pyo3(from_py_with = in_range)] stop: Vec<i32>,
        temperature: f32,
        #[pyo3(from_py_with = in_range)] top_k: u32,
        top_p: f32,
        #[pyo3(from_py_with = in_range)] seed: i64,
        text: bool,
        after: bool,
    ) -> PyResult<Tokens> {
        self.remote.check()?;
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
        Ok(Tokens { news: Mutex::new(news), stopped, forks: forks() })
    }

    /// Ends its session, and a generation that is in progress after its next token. A server that does not answer within `patience`
    /// seconds ends it with its lease.
    #[pyo3(signature = (patience=None))]
    fn close(&self, py: Python<'_>, patience: Option<f64>) -> PyResult<()> {
        self.remote.check()?;
        // Before anything else: the thread that closes it may come late.
        self.remote.closing.store(true, Ordering::Release);
        let (remote, began) = (self.remote.clone(), Instant::now());
        let look = |_: Python<'_>| match patience {
            Some(patience) if began.elapsed().as_secs_f64() > patience => Err(unreachable(
                "the server did not answer in time: the model's session ends with its lease".to_owned(),
            )),
            _ => Ok(()),
        };
        aside(py, "genie-closing", move || remote.close(), look)?
    }

    /// Bytes sent and received so far, headers included.
    fn traffic(&self) -> PyResult<(u64, u64)> {
        self.remote.check()?;
        if self.remote.is_closing() {
            return Err(closed());
        }
        let Counters { up, down, .. } = &*self.remote.counters;
        Ok((up.load(Ordering::Relaxed), down.load(Ordering::Relaxed)))
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
    remote: Arc<Remote>,
    stopped: Arc<AtomicBool>,
    tell: Sender<News>,
    stream: Option<TokenStream>,
    stop: Vec<i32>,
}

impl Work {
    fn run(mut self, prompt: &[i32], max_new: u32, sampling: Sampling) {
        let remote = self.remote.clone();
        let mut model = locked(&remote.model);
        let finish = match model.as_mut().filter(|_| !remote.is_closing()) {
            Some(model) => self.generate(model, prompt, max_new, sampling).map_err(|error| of_model(&error)),
            None => Err(closed()),
        };
        drop(model);
        // What was cut short must not look whole.
        let finish = finish.and_then(|finish| finish.ok_or_else(closed));
        let rest = self.stream.as_mut().and_then(TokenStream::finish);
        // Whoever asked may have gone.
        let _ = self.tell.send(News::End(finish, rest));
    }

    /// `None` if the model was closed meanwhile.
    fn generate(
        &mut self,
        model: &mut RemoteModel,
        prompt: &[i32],
        max_new: u32,
        sampling: Sampling,
    ) -> Result<Option<Finish>, RemoteModelError> {
        let mut context = model.context(sampling)?;
        let Self { remote, stopped, tell, stream, stop } = self;
        let mut cut = false;
        let each = |token: i32| {
            // The token that ends a text is no part of it.
            let said = stream.as_mut().filter(|_| !stop.contains(&token));
            let text = said.and_then(|stream| stream.push(u32::try_from(token).ok()?));
            let heard = tell.send(News::Token(token, text)).is_ok();
            cut = remote.is_closing();
            heard && !cut && !stopped.load(Ordering::Acquire)
        };
        let finish = model.generate(&mut context, prompt, max_new, stop, each);
        model.forget(context)?;
        Ok(match finish? {
            Finish::Stop if cut => None,
            finish => Some(finish),
        })
    }
}

/// Tokens of a generation, as they come. Stops it when it is dropped.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Tokens {
    news: Mutex<Receiver<News>>,
    stopped: Arc<AtomicBool>,
    /// [`forks`] when it began: in a child nobody makes any.
    forks: u64,
}

type Next = (Option<i32>, Option<String>, Option<&'static str>);

#[pymethods]
impl Tokens {
    /// A token, text that became certain with it, and with the last of it why it ended.
    fn next(&self, py: Python<'_>) -> PyResult<Next> {
        if self.forks != forks() {
            return Err(Stop::Forked.into());
        }
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
                Err(RecvTimeoutError::Timeout) => cancel::check(py)?,
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
