"""What every program wrote, whole, in one compressed file beside the page, which has last lines alone: `zcat PAGE.log.gz`. What goes wrong on
a machine that one has for minutes is understood later, from this."""

import gzip
import threading

# Of one stream of one program, at each end; what lies between is left out.
MOST_CHARACTERS = 400_000
# Of the file: it is carried away from where it was written.
MOST_BYTES = 12_000_000

_lock = threading.Lock()
_path = None


def begin(path):
    """Everything goes there from now on, behind what an earlier call left."""
    global _path
    _path = path


def add(title, **texts):
    """A paragraph for each text that is not empty. Each call is whole in itself: a run that is killed loses nothing."""
    said = [f"==== {title}\n", *(f"---- {name}\n{trimmed(text)}\n" for name, text in texts.items() if text.strip()), "\n"]
    with _lock:
        if _path is None or (_path.exists() and _path.stat().st_size > MOST_BYTES):
            return
        try:
            with gzip.open(_path, "ab") as file:
                file.write("".join(said).encode(errors="replace"))
        except OSError as error:
            print(f"gpu-check: {_path}: {error}", flush=True)


def trimmed(text):
    if len(text) <= 2 * MOST_CHARACTERS:
        return text.rstrip("\n")
    left_out = len(text) - 2 * MOST_CHARACTERS
    return f"{text[:MOST_CHARACTERS]}\n[{left_out} characters are left out here]\n{text[-MOST_CHARACTERS:]}"
