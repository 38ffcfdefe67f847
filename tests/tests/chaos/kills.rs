//! SIGKILL at any moment: the other side finds out, ends what was under way once, and gives back all that it held for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use genie_tests::child::patience;
use genie_tests::churn::{Churn, NAMES, Rng, is_whole};
use genie_tests::holdings::Holdings;
use genie_transport::client::{ClientError, blocking};
use genie_transport::wire::ErrorCode;

use crate::place::Place;
use crate::roles::{MOST, options, server, survivor, victim};

/// Kills of each side, where `GENIE_CHAOS_KILLS` does not say how many.
const KILLS: u64 = 100;
/// After so many, what the other side holds is what it must hold after all of them.
const WARM: u64 = 10;
/// What must happen has happened within this time, or never will.
const LONGEST: Duration = Duration::from_secs(30);
/// A client is back at work within this time of the next server's beginning, but for few times on a machine that is busy.
const QUICK: Duration = Duration::from_secs(2);
/// A kill comes within this many microseconds of the beginning of the work.
const SPREAD: u64 = 25_000;

/// Where the moments come from; another number tries others.
fn seed() -> u64 {
    let seed = std::env::var("GENIE_CHAOS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_121);
    println!("GENIE_CHAOS_SEED={seed} tries the same moments again");
    seed
}

/// How often to kill: fewer times where every process takes its time to start.
fn kills() -> u64 {
    std::env::var("GENIE_CHAOS_KILLS").ok().and_then(|s| s.parse().ok()).unwrap_or(KILLS).max(WARM + 1)
}

fn pause(rng: &mut Rng) -> Duration {
    Duration::from_micros(rng.below(SPREAD))
}

fn stat(session: &mut blocking::Session, name: &str) -> u64 {
    let stats = session.stats().expect("the server answers");
    stats.iter().find(|(n, _)| n == name).map_or_else(|| panic!("no {name}"), |(_, value)| *value)
}

/// The server is as it was before its clients came: everything is given back but what others may still find by name or content.
fn settles(watch: &mut blocking::Session) {
    let mut sessions = 0;
    let alone = patience(LONGEST, |_| {
        sessions = stat(watch, "genie_sessions");
        (sessions == 2).then_some(())
    });
    // This one, and one that has nothing.
    assert!(alone.is_some(), "{sessions} sessions are still there: their clients are dead, and their leases over");
    assert_eq!(stat(watch, "genie_handles"), 0);
    assert_eq!(stat(watch, "genie_session_bytes"), 0);
    let weights = stat(watch, "genie_weight_bytes") + stat(watch, "genie_named_bytes");
    let mut used = 0;
    let returned = patience(LONGEST, |_| {
        let device = &watch.devices().expect("the server answers")[0];
        used = device.total_bytes - device.free_bytes;
        // Blocks are rounded up.
        (used <= weights + (64 << 10) * 16).then_some(())
    });
    assert!(returned.is_some(), "{used} bytes of the device are taken, for {weights} bytes of weights and names");
}

/// What a killed client has named is whole, or not there.
fn nothing_half(session: &mut blocking::Session, steps: &AtomicU64) -> Result<(), ClientError> {
    for name in NAMES {
        steps.fetch_add(1, Ordering::Relaxed);
        match session.lookup(name) {
            Ok(tensor) => {
                steps.fetch_add(1, Ordering::Relaxed);
                is_whole(&session.get(&tensor)?);
                steps.fetch_add(1, Ordering::Relaxed);
                session.free(tensor.handle)?;
            }
            Err(ClientError::Remote(error)) if error.code == ErrorCode::NoSuchName => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What comes of work none of whose steps takes longer than anything may; `None`: one hangs, on a thread that is left behind. How
/// long all of them take is the machine's affair.
fn bounded<T: Send + 'static>(steps: &AtomicU64, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, done) = channel();
    // Nobody may wait for it any more.
    std::thread::spawn(move || drop(sender.send(work())));
    loop {
        let before = steps.load(Ordering::Relaxed);
        let came = patience(LONGEST, |tick| match done.recv_timeout(tick) {
            Ok(done) => Some(Some(done)),
            Err(RecvTimeoutError::Timeout) => (steps.load(Ordering::Relaxed) != before).then_some(None),
            Err(RecvTimeoutError::Disconnected) => panic!("it panicked: see above"),
        })?;
        if came.is_some() {
            return came;
        }
    }
}

/// What a process that is connected holds.
fn holdings(pid: u32, scheme: &str) -> Holdings {
    let held = Holdings::of(pid);
    // Where nothing is counted for what is there, nothing would ever be found that was left.
    let domains = held.verbs.get("pd").copied().unwrap_or(0);
    assert!(
        scheme != "rdma" || domains > 0,
        "no protection domain of process {pid}, which is connected: {:?}",
        held.verbs
    );
    held
}

pub(crate) fn clients_are_killed(scheme: &str) {
    let kills = kills();
    let place = Place::of(scheme);
    let (server, uri) = server(&place, &place.listen, 1, None);
    let connect = || {
        blocking::Session::connect(&uri.parse().expect("an address"), options(&place.certificates)).expect("a session")
    };
    let (mut watch, mut other) = (connect(), connect());
    let mut churn = Churn::new(seed(), MOST);
    let mut rng = Rng::new(seed());
    let mut before = None;
    let mut at_work = 0;
    for kill in 1..=kills {
        let mut victim = victim(&place, &uri, rng.draw());
        victim.hear("ready", LONGEST);
        let mut begun = Instant::now();
        let mut heard = stat(&mut watch, "genie_requests_total");
        // Every other one has begun before its moment comes: where processes wait long for a core, few of the rest may have.
        if kill.is_multiple_of(2) {
            let begins = patience(LONGEST, |_| {
                // The questions are requests, too.
                heard += 1;
                (stat(&mut watch, "genie_requests_total") > heard).then_some(())
            });
            assert!(begins.is_some(), "kill {kill}: the client does not begin its work");
            begun = Instant::now();
        }
        let pause = pause(&mut rng);
        std::thread::sleep(pause.saturating_sub(begun.elapsed()));
        victim.kill();
        // This question is one, and only the victim has asked others. Once it has begun, something of it is under way all the time.
        at_work += u64::from(stat(&mut watch, "genie_requests_total") > heard + 1);
        // Nobody else is disturbed, and nothing half of it can be seen.
        let steps = churn.steps();
        let looked = steps.clone();
        let undisturbed = move || {
            let done = churn.burst(&mut other).and_then(|()| nothing_half(&mut other, &looked));
            (churn, other, done)
        };
        let done;
        (churn, other, done) = bounded(&steps, undisturbed)
            .unwrap_or_else(|| panic!("kill {kill}, {pause:?} into the work: the other client hangs"));
        done.unwrap_or_else(|error| panic!("kill {kill}, {pause:?} into the work: {error}"));
        // A client of this kind answers nothing between its calls: silent for half a minute, it would be taken for dead.
        assert_eq!(
            stat(&mut watch, "genie_refused_memory_total"),
            0,
            "a client that died has reached for what it may not"
        );
        if kill == WARM || kill == kills {
            churn.let_go(&mut other).expect("the server is there");
            assert_eq!(other.sessions_lost(), 0);
            // What it shares with the server goes with it.
            other.close().expect("the server is there");
            other = connect();
            settles(&mut watch);
            let now = || Holdings::of(server.pid());
            let Some(before) = &before else {
                before = Some(holdings(server.pid(), scheme));
                continue;
            };
            let mut more = None;
            let returned = patience(LONGEST, |_| {
                more = now().more_than(before, kills - WARM);
                more.is_none().then_some(())
            });
            assert!(returned.is_some(), "after {kills} kills the server holds more than after {WARM}: {more:?}");
        }
    }
    assert_eq!(watch.sessions_lost(), 0);
    println!("{at_work} of {kills} clients died at work");
    assert!(at_work > kills / 4, "most of the clients died before they had begun: {at_work} of {kills} at work");
}

pub(crate) fn servers_are_killed(scheme: &str) {
    let kills = kills();
    let place = Place::of(scheme);
    let (mut alive, uri) = server(&place, &place.listen, 1, None);
    let mut client = survivor(&place, &uri, seed());
    client.hear("ready", LONGEST);
    let mut rng = Rng::new(seed());
    let mut before: Option<Holdings> = None;
    let (mut failures, mut quick) = (0, 0);
    for kill in 1..=kills {
        client.tell("work");
        client.hear("working", LONGEST);
        let pause = pause(&mut rng);
        std::thread::sleep(pause);
        alive.kill();
        (alive, _) = server(&place, &uri, 1 + kill, None);
        let back = Instant::now();
        let said = client.hear("recovered after", LONGEST);
        let took = back.elapsed();
        println!("kill {kill}, {pause:?} into the work: {said}, {took:?} after the next began");
        quick += u64::from(took < QUICK);
        failures += u64::from(!said.starts_with('0'));
        if kill == WARM {
            before = Some(holdings(client.pid(), scheme));
        }
    }
    let mut more = None;
    // Lanes that were under way to the last server are given up in their time.
    let returned = patience(LONGEST, |_| {
        more = before.as_ref().and_then(|before| Holdings::of(client.pid()).more_than(before, kills - WARM));
        more.is_none().then_some(())
    });
    assert!(returned.is_some(), "after {kills} servers the client holds more than after {WARM}: {more:?}");
    assert!(failures > kills / 4, "most of the servers died when nothing was under way: {failures}");
    assert!(quick > kills / 2, "the client was back at work within {QUICK:?} only {quick} times of {kills}");
}
