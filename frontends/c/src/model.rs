//! Language models from files.

use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use genie_models::remote::{RemoteModel, RemoteOptions, Sampling};
use genie_models::{Model, OpenOptions, TokenStream};
use genie_transport::wire::Finish;

use crate::arguments::{Place, device, optional, optional_place, text};
use crate::generate::{genie_finish, of};
use crate::handles::Table;
use crate::session::{genie_connect_options, open};
use crate::status::{Failure, entry, genie_error, genie_status};

/// A language model on a server, in a session of its own. Freed by `genie_model_free`.
pub struct genie_model {
    _opaque: [u8; 0],
}

/// How text is made. All zeros make none; begin with `= {0}`, and say `max_new`.
#[repr(C)]
pub struct genie_text_options {
    /// Tokens to make, at the most.
    pub max_new: u32,
    /// Not 0: the prompt is what a user says, and is put into the model's chat template.
    pub chat: u32,
    /// 0: always the likeliest token; above, the larger the more even the choice.
    pub temperature: f32,
    /// Choose among the likeliest tokens that together have this probability; 0: among all.
    pub top_p: f32,
    /// Choose among so many of the likeliest tokens; 0: among all.
    pub top_k: u32,
    /// Zero.
    pub reserved: u32,
    /// The same seed gives the same text.
    pub seed: i64,
}

/// Is called with the next piece of the text, UTF-8, whole characters, on the thread that called generate. `text` is valid until it
/// returns. Returns whether there shall be more. It must return: no longjmp, no exception; and it must not use the same model.
pub type genie_on_text = Option<unsafe extern "C" fn(text: *const c_char, user: *mut c_void) -> bool>;

/// `None` once it is freed by one thread while another waits for it.
static MODELS: Table<Mutex<Option<RemoteModel>>> = Table::new(10, "genie_model");

/// Opens a model's files (a `.gguf` file, a `.safetensors` file beside its `config.json`, or a folder with both), and brings it to `device` of
/// the server at `uri`: weights that the server has are not sent. It has a session of its own, with these options (which may be NULL),
/// and builds again by itself what a restart of the server takes from it. All strings are read before it returns. `*model` is the
/// caller's, to be freed by `genie_model_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_model_load(
    uri: *const c_char,
    options: *const genie_connect_options,
    path: *const c_char,
    device: u32,
    model: *mut *mut genie_model,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, path) = unsafe { (Place::new(model, "model")?, text(path, "path")?) };
        let device = self::device(device)?;
        // Blocks stay as they lie in the file: what the command line does, too.
        let model = Model::open(Path::new(path), OpenOptions { blocks: true, ..OpenOptions::default() })?;
        // Before anything is sent: a model without a tokenizer can be used from `genie_generate` alone.
        model.tokenizer()?;
        // SAFETY: the header's rules for what is read.
        let session = unsafe { open(uri, options) }?;
        let options = RemoteOptions { device, ..RemoteOptions::default() };
        let remote = RemoteModel::establish(session, Arc::new(model), &options, |_| {})?;
        place.set(MODELS.add(Mutex::new(Some(remote)))?);
        Ok(())
    })
}

/// Goes on with `prompt` (which is not called back with), in a context of its own. `on_text` sees pieces as they come; `user` is passed on as it
/// is. `*finish` (which may be NULL) says why it ended. One thread at a time generates with a model, others wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_model_generate(
    model: *const genie_model,
    prompt: *const c_char,
    options: *const genie_text_options,
    on_text: genie_on_text,
    user: *mut c_void,
    finish: *mut genie_finish,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, prompt, options) = unsafe {
            (
                optional_place(finish, "finish")?,
                text(prompt, "prompt")?,
                optional(options, "options")?.ok_or_else(|| Failure::argument("options is NULL: say max_new"))?,
            )
        };
        let on_text = on_text.ok_or_else(|| Failure::argument("on_text is NULL"))?;
        let sampling = sampling(options)?;
        let remote = MODELS.get(model)?;
        let mut remote = remote.lock().unwrap_or_else(PoisonError::into_inner);
        let remote = remote.as_mut().ok_or_else(Failure::closed)?;
        let say = |piece: &str| {
            // A 0 would end it for whoever reads it.
            let piece = CString::new(piece.replace('\0', "\u{fffd}"));
            // SAFETY: the caller's function, called as the header says; the text lives until it returns.
            piece.is_ok_and(|piece| unsafe { on_text(piece.as_ptr(), user) })
        };
        let ended = write(remote, prompt, options, sampling, say)?;
        if let Some(place) = place {
            place.set(of(ended));
        }
        Ok(())
    })
}

fn sampling(options: &genie_text_options) -> Result<Sampling, Failure> {
    let genie_text_options { temperature, top_p, top_k, reserved, seed, .. } = *options;
    let top_p = if top_p == 0.0 { 1.0 } else { top_p };
    let known = (0.0..=100.0).contains(&temperature) && top_p > 0.0 && top_p <= 1.0;
    if !known {
        return Err(Failure::argument("temperature is from 0 to 100, top_p from 0 to 1"));
    }
    if reserved != 0 {
        return Err(Failure::argument("genie_text_options.reserved is not zero: begin with `= {0}`"));
    }
    Ok(Sampling { temperature, top_k: top_k.into(), top_p, seed })
}

fn write(
    remote: &mut RemoteModel,
    prompt: &str,
    options: &genie_text_options,
    sampling: Sampling,
    mut say: impl FnMut(&str) -> bool,
) -> Result<Finish, Failure> {
    let model = remote.model().clone();
    let tokenizer = model.tokenizer()?;
    let encoded = if options.chat != 0 { tokenizer.encode_chat(prompt)? } else { tokenizer.encode(prompt)? };
    let tokens = ids(&encoded)?;
    let stop = ids(tokenizer.eos_ids())?;
    // What goes on with the prompt may begin with a space; an answer in a chat is a text of its own.
    let mut stream: TokenStream = if options.chat != 0 { tokenizer.stream() } else { tokenizer.stream_after(&encoded) };
    let mut context = remote.context(sampling)?;
    let mut wanted = true;
    let ended = remote.generate(&mut context, &tokens, options.max_new, &stop, |token| {
        // The token that ends a text is no part of it.
        let id = u32::try_from(token).ok().filter(|_| !stop.contains(&token));
        let piece = id.and_then(|id| stream.push(id));
        wanted = wanted && piece.is_none_or(|piece| say(&piece));
        wanted
    });
    let forgotten = remote.forget(context);
    let ended = ended?;
    if let Some(rest) = stream.finish().filter(|_| wanted) {
        say(&rest);
    }
    forgotten?;
    Ok(ended)
}

fn ids(ids: &[u32]) -> Result<Vec<i32>, Failure> {
    let outside = |_| Failure::new(genie_status::GENIE_ERROR_MODEL, "a token's number does not fit 31 bits");
    ids.iter().map(|&id| i32::try_from(id).map_err(outside)).collect()
}

/// Frees a model, and ends its session: the server keeps its weights for as long as it has room. Waits for a generate that goes on.
/// `model` is freed whatever the result. NULL is nothing, and is GENIE_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_model_free(model: *mut genie_model, error: *mut genie_error) -> genie_status {
    entry(error, || {
        if model.is_null() {
            return Ok(());
        }
        let remote = MODELS.remove(model)?;
        let remote = remote.lock().unwrap_or_else(PoisonError::into_inner).take();
        remote.map_or(Ok(()), |remote| Ok(remote.close()?))
    })
}
