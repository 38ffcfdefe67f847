//! The C library as a user has it: installed by `tools/install-c`, found by pkg-config, and used by the examples.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::model;
use crate::support::{Certificate, Server, good};

/// Where it is installed, once for all tests of this process.
static INSTALLED: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let prefix = tempfile::tempdir().expect("there is room");
    let archive = archive();
    let mut command = Command::new(root().join("tools/install-c"));
    command.arg("--prefix").arg(prefix.path()).arg("--archive").arg(archive);
    done(&mut command);
    prefix
});

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn examples() -> PathBuf {
    root().join("examples/c")
}

/// What cargo has built of genie-c for this test, which depends on it.
fn archive() -> PathBuf {
    let here = std::env::current_exe().expect("this program is a file");
    let folder = here.parent().expect("it is in a folder");
    let is_archive = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name == "libgenie.a" || (name.starts_with("libgenie-") && name.ends_with(".a"))
    };
    let all = folder.read_dir().expect("it can be read").map(|entry| entry.expect("it can be read").path());
    // Others are of other features, or of an earlier compiler: this test's own was built last.
    let age = |path: &PathBuf| path.metadata().and_then(|m| m.modified()).expect("it has a time");
    all.filter(is_archive).max_by_key(age).expect("cargo has built the archive")
}

/// Runs a command that must end well; its standard output.
fn done(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{out}\n{err}");
    out
}

/// A line for the shell, with pkg-config told where the library is.
fn shell(line: &str, folder: &Path) -> String {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", line]).current_dir(folder);
    done(command.env("PKG_CONFIG_PATH", INSTALLED.path().join("lib/pkgconfig")).env("PREFIX", INSTALLED.path()))
}

const STRICT: &str = "-std=c99 -Wall -Wextra -Werror -pedantic";

/// Compiles an example by pkg-config's words into a folder.
fn compile(name: &str, into: &Path) -> PathBuf {
    let more = if name == "threads" { "-pthread" } else { "" };
    let out = into.join(name);
    let line = format!(
        "cc {STRICT} {more} {name}.c -o {} $(pkg-config --cflags --libs genie) -Wl,-rpath,$(pkg-config --variable=libdir genie)",
        out.display()
    );
    shell(&line, &examples());
    out
}

fn run(program: &Path, arguments: &[&str]) -> String {
    done(Command::new(program).args(arguments))
}

/// Every file of examples/c, compiled strictly and run against a server in a process of its own.
#[test]
fn the_examples_run() {
    let server = Server::start();
    let folder = tempfile::tempdir().expect("there is room");
    let tiny = tempfile::tempdir().expect("there is room");
    model::write(tiny.path());
    model::write_tokenizer(tiny.path());
    let model = tiny.path().display().to_string();
    let expected: [(&str, &[&str], &[&str]); 7] = [
        ("hello", &[], &["6 numbers came back, the last is 6"]),
        ("program", &[], &["the first is cpu:0", "relu gave 6 and 0", "kept 8 bytes, the first number is 6"]),
        ("generate", &[], &["as many as asked for: ", "\nstopped: ", "\nstop token: "]),
        ("chat", &[&model, "Once"], &["\n"]),
        ("errors", &[], &["use after free: a genie_tensor was freed before", "0 failure(s)"]),
        ("threads", &[], &["8 threads, 25 rounds, 0 failure(s)"]),
        ("transport", &[], &["16 MB there and back, sent"]),
    ];
    let sources: BTreeSet<String> = examples()
        .read_dir()
        .expect("it can be read")
        .map(|entry| {
            let path = entry.expect("it can be read").path();
            path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
        })
        .collect();
    let names = expected.iter().map(|(name, ..)| *name).chain(["secure"]).map(str::to_owned).collect();
    assert_eq!(sources, names, "each example is run here, or below");
    for (name, more, said) in expected {
        let arguments: Vec<&str> = [server.uri.as_str()].into_iter().chain(more.iter().copied()).collect();
        let out = run(&compile(name, folder.path()), &arguments);
        for words in said {
            assert!(out.contains(words), "{name}: {out}");
        }
        if name == "chat" {
            assert_eq!(out.trim_end_matches('\n').chars().count(), 32, "a token is a character: {out}");
        }
    }
}

/// A token and an authority are named by the options, and without the token nobody is let in.
#[test]
fn tokens_and_certificates_are_options() {
    let (tls, folder) = (Certificate::new(), tempfile::tempdir().expect("there is room"));
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (tokens, client) = (path("tokens"), path("client"));
    good(&["token", "new", "alice", "--tokens", &tokens, "--client", &client]);
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| tls.path(name));
    let files = ["--device", "cpu", "--tokens", &tokens, "--tls-cert", &cert, "--tls-key", &key];
    let server = Server::at("tcps://127.0.0.1:0", &files);
    let out = run(&compile("secure", folder.path()), &[&server.uri, &ca, &client]);
    assert!(out.contains("genie_connect_options.token_file") && out.contains("with one: there and back in"), "{out}");
}

/// One thread is in `genie_finish_put` when another frees the request; the server stands still meanwhile.
const FREES_WHILE_ANOTHER_FINISHES: &str = r#"
#define _GNU_SOURCE
#include <genie.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static genie_pending *pending;
static volatile int finished, freed;
/* The threads, as the kernel numbers them. */
static volatile long finisher, freer;

static void *finish(void *status)
{
    genie_tensor *tensor;
    finisher = syscall(SYS_gettid);
    *(genie_status *)status = genie_finish_put(pending, &tensor, NULL);
    finished = 1;
    return NULL;
}

static void *let_go(void *status)
{
    freer = syscall(SYS_gettid);
    *(genie_status *)status = genie_pending_free(pending, NULL);
    freed = 1;
    return NULL;
}

/* Until the thread sleeps in its call, or has ended. */
static void wait_for(const volatile long *thread)
{
    const struct timespec a_moment = {.tv_nsec = 5000000};
    for (;;) {
        char path[64], state = 0;
        FILE *stat;
        nanosleep(&a_moment, NULL);
        if (*thread == 0)
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%ld/stat", *thread);
        stat = fopen(path, "r");
        if (stat == NULL)
            return;
        const int got = fscanf(stat, "%*d %*s %c", &state);
        fclose(stat);
        if (got == 1 && state == 'S')
            return;
    }
}

int main(int argc, char **argv)
{
    const uint64_t size = 64 << 20;
    genie_session *session;
    genie_status statuses[2];
    pthread_t threads[2];
    const pid_t server = argc > 2 ? atoi(argv[2]) : 0;
    if (server == 0 || genie_connect(argv[1], NULL, &session, NULL) != GENIE_OK)
        return 2;
    unsigned char *data = calloc(1, size);
    kill(server, SIGSTOP);
    if (genie_start_put(session, GENIE_U8, 1, &size, data, NULL, &pending, NULL) != GENIE_OK)
        return 3;
    pthread_create(&threads[0], NULL, finish, &statuses[0]);
    wait_for(&finisher);
    pthread_create(&threads[1], NULL, let_go, &statuses[1]);
    wait_for(&freer);
    printf("while it is sent: finished %d, freed %d\n", finished, freed);
    kill(server, SIGCONT);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    printf("then: %d %d\n", statuses[0], statuses[1]);
    free(data);
    return genie_close(session, NULL) != GENIE_OK;
}
"#;

/// `genie_pending_free` said that a put's memory was the caller's again while another thread still waited for the put: it was being sent.
#[test]
fn the_memory_of_a_put_is_back_when_its_request_is_freed() {
    let folder = tempfile::tempdir().expect("there is room");
    std::fs::write(folder.path().join("frees.c"), FREES_WHILE_ANOTHER_FINISHES).expect("there is room");
    let line = format!(
        "cc {STRICT} -pthread frees.c -o frees $(pkg-config --cflags --libs genie) -Wl,-rpath,$(pkg-config --variable=libdir genie)"
    );
    shell(&line, folder.path());
    let server = Server::start();
    let out = run(&folder.path().join("frees"), &[&server.uri, &server.pid().to_string()]);
    assert_eq!(out, "while it is sent: finished 0, freed 0\nthen: 0 0\n");
}

/// Over shared memory a put from registered memory is passed, not sent, and gets arrive there, too.
#[test]
fn registered_memory_is_passed() {
    let folder = tempfile::tempdir().expect("there is room");
    let socket = format!("shm://{}/genie.sock", folder.path().display());
    let server = Server::at(&socket, &["--device", "cpu", "--threads", "2"]);
    for (name, words) in
        [("transport", "16 MB there and back, passed"), ("hello", "6 numbers came back"), ("threads", "0 failure(s)")]
    {
        let out = run(&compile(name, folder.path()), &[&server.uri]);
        assert!(out.contains(words), "{out}");
    }
}

/// The header in C and C++, and what the shared library shows: the header's functions, under the version, and nothing else.
#[test]
fn the_library_shows_what_the_header_says() {
    let folder = tempfile::tempdir().expect("there is room");
    std::fs::write(folder.path().join("h.c"), "#include <genie.h>\n#include <genie.h>\nint main(void) { return 0; }\n")
        .expect("there is room");
    shell(&format!("cc {STRICT} $(pkg-config --cflags genie) -c h.c -o h.o"), folder.path());
    shell(
        "cp h.c h.cc; c++ -std=c++11 -Wall -Wextra -Werror -pedantic \
           $(pkg-config --cflags genie) -c h.cc -o h.o",
        folder.path(),
    );
    shell("c++ -std=c++17 -Wall -Wextra -Werror -pedantic $(pkg-config --cflags genie) -c h.cc -o h.o", folder.path());

    let header = std::fs::read_to_string(INSTALLED.path().join("include/genie.h")).expect("it is installed");
    let library = INSTALLED.path().join("lib/libgenie.so");
    let shown = done(Command::new("nm").args(["-D", "--defined-only", "--with-symbol-versions"]).arg(&library));
    let shown: BTreeSet<_> = shown.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)).collect();
    let wanted: BTreeSet<_> = functions(&header).map(|name| format!("{name}@@GENIE_0.1")).collect();
    assert!(wanted.len() > 45, "{wanted:?}");
    let mut wanted: BTreeSet<_> = wanted.iter().map(String::as_str).collect();
    // The version's own.
    wanted.insert("GENIE_0.1");
    assert_eq!(shown, wanted);
    let soname = done(Command::new("readelf").arg("-d").arg(&library));
    assert!(soname.contains("soname: [libgenie.so.0]"), "{soname}");
}

/// The functions that a header declares: a name and a parenthesis at the beginning of a declaration.
fn functions(header: &str) -> impl Iterator<Item = &str> {
    let code = header.lines().filter(|line| !line.starts_with([' ', '/', '#', '}']) && !line.starts_with("typedef"));
    code.filter_map(|line| {
        let before = line.split_once('(')?.0;
        let name = before.rsplit([' ', '*']).next()?;
        name.starts_with("genie_").then_some(name)
    })
}

/// The archive, linked by pkg-config's words for it, with the compiler's checks of memory around the example. Leaks are looked for,
/// too: nothing that C frees stays.
#[test]
fn memory_is_used_as_it_should_be() {
    let folder = tempfile::tempdir().expect("there is room");
    std::fs::write(folder.path().join("none.c"), "int main(void) { return 0; }\n").expect("there is room");
    let can = Command::new("bash")
        .args(["-c", "cc -fsanitize=address none.c -o none && ./none"])
        .current_dir(folder.path())
        .output()
        .expect("bash starts");
    let server = Server::start();
    let checked = can.status.success();
    if !checked {
        println!("without -fsanitize=address, which this compiler has not: {}", String::from_utf8_lossy(&can.stderr));
    }
    let checks = if checked { "-fsanitize=address -fno-omit-frame-pointer -g" } else { "" };
    for name in ["errors", "threads", "transport", "program"] {
        let out = folder.path().join(name);
        let archive = "$(pkg-config --variable=libdir genie)/libgenie.a";
        let libraries = "$(pkg-config --libs --static genie | sed -E 's/-L[^ ]+|-lgenie//g')";
        let line = format!(
            "cc {STRICT} {checks} -pthread {name}.c $(pkg-config --cflags genie) {archive} {libraries} -o {}",
            out.display()
        );
        shell(&line, &examples());
        run(&out, &[&server.uri]);
    }
}

/// The commands of the guide, as they stand there, but for the server's address; and its program is the example.
#[test]
fn the_guide_is_true() {
    let guide = std::fs::read_to_string(root().join("docs/guide/c.md")).expect("the guide is there");
    let program = std::fs::read_to_string(examples().join("hello.c")).expect("the example is there");
    assert!(guide.contains(&program), "docs/guide/c.md shows examples/c/hello.c");
    let server = Server::start();
    let folder = tempfile::tempdir().expect("there is room");
    std::fs::write(folder.path().join("hello.c"), program).expect("there is room");
    let commands: Vec<_> = guide.lines().filter(|line| line.starts_with("cc ") || line.starts_with("./")).collect();
    assert!(commands.len() >= 2 && commands.iter().any(|line| line.contains("tcp://127.0.0.1:7070")), "{commands:?}");
    let mut out = String::new();
    for command in commands.iter().take_while(|line| !line.contains("transport")) {
        out.push_str(&shell(&command.replace("tcp://127.0.0.1:7070", &server.uri), folder.path()));
    }
    assert!(out.contains("6 numbers came back"), "{out}");
    // What the guide says of ops is what the library knows.
    let ops = std::fs::read_to_string(root().join("frontends/c/src/ops.rs")).expect("the source is there");
    let arms = ops.lines().take_while(|line| !line.starts_with("const"));
    for name in arms.filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" => ")) {
        assert!(
            name.0 == "input" || guide.contains(&format!("`{}`", name.0)),
            "docs/guide/c.md does not list {}",
            name.0
        );
    }
}
