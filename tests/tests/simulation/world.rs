//! One run: a network, a server that may be lost, and its users.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_executor::device::Device;
use genie_executor::device::cpu::CpuDevice;
use genie_executor::{Config, Executor, Mode};
use genie_tests::graphs::{Tiny, tiny};
use genie_transport::connection::ClientOptions;
use genie_transport::link::sim::{Faults, Network, Rng, Sim};

use crate::register::{Moment, Register};
use crate::user::User;

/// All of virtual time that a run may take: past it, something waits for what never comes.
const LONGEST: Duration = Duration::from_secs(1800);
/// In one of so many seeds users ask for runs on tokens that are yet to come. All others are as they were before users could: what failed
/// in them once can be told by it.
const AHEAD: u64 = 4;

pub(crate) const NAMES: usize = 2;

/// Characters of a line of a story.
const LINE: usize = 240;

pub(crate) struct World {
    pub(crate) sim: Sim<Executor>,
    pub(crate) shared: Shared,
    users: Vec<User>,
    device: Arc<dyn Device>,
    began: Instant,
    /// When the server goes, and for how long.
    losses: Vec<(Instant, Duration)>,
    back: Option<Instant>,
    credits: u32,
}

/// What a run met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Met {
    pub(crate) faults: Faults,
    pub(crate) users: Asked,
}

/// What the users of a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Requests that came to an end.
    pub(crate) ended: u64,
    /// Requests that were cancelled, or of which the answer was no longer waited for.
    pub(crate) cancelled: u64,
    /// Sessions that were taken up again over another connection.
    pub(crate) resumed: u64,
    /// Requests that were under way at that moment, and were sent again.
    pub(crate) repeated: u64,
    /// Sessions that were lost with their server.
    pub(crate) sessions_lost: u64,
    /// Sets of weights that the server did not know, or not all of.
    pub(crate) sets_unknown: u64,
    /// Sets of which it gave all.
    pub(crate) sets_found: u64,
    /// Runs that ended well on a token that was not answered when they were asked for, or not yet there.
    pub(crate) ahead: u64,
}

impl Met {
    /// Each count with its name.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 21] {
        let Self { faults: f, users: u } = self;
        [
            ("connections", f.connections),
            ("refused lanes", f.refused),
            ("cuts", f.cuts),
            ("bytes lost in them", f.lost_bytes),
            ("lanes that stood still", f.stands),
            ("bulk lanes lost", f.lanes_lost),
            ("bulk lanes opened again", f.lanes_reopened),
            ("partial sends", f.partial_sends),
            ("partial receives", f.partial_receives),
            ("stalls", f.stalls),
            ("flipped bits", f.flipped_bits),
            ("overtakings", f.overtakings),
            ("servers lost", f.servers_lost),
            ("requests ended", u.ended),
            ("requests cancelled", u.cancelled),
            ("sessions resumed", u.resumed),
            ("requests repeated", u.repeated),
            ("sessions lost", u.sessions_lost),
            ("sets asked for in vain", u.sets_unknown),
            ("sets found", u.sets_found),
            ("runs ahead", u.ahead),
        ]
    }
}

/// What the users have in common.
pub(crate) struct Shared {
    pub(crate) model: Tiny,
    pub(crate) names: [Register; NAMES],
    /// Whether users offer sets of weights, and bind by spans. In odd seeds they do not: those that failed once stay what they were.
    pub(crate) sets: bool,
    /// The life of the server that is, or comes next.
    pub(crate) epoch: u64,
    /// Those of the server that was lost last, and when: an answer of its may still be on its way.
    pub(crate) lost_names: (Moment, [Register; NAMES]),
    /// Each write has a tag of its own.
    last_tag: u32,
    moment: Moment,
    told: Option<String>,
    pub(crate) asked: Asked,
}

impl Shared {
    pub(crate) fn tag(&mut self) -> u32 {
        self.last_tag += 1;
        self.last_tag
    }

    pub(crate) fn moment(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }

    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            // The bytes of a tensor are all alike: a line need not have them.
            let line = line();
            let start: String = line.chars().take(LINE).collect();
            let _ = writeln!(told, "{start}{}", if start.len() < line.len() { ".." } else { "" });
        }
    }
}

impl World {
    /// The run of this seed; `tell`: with its story.
    pub(crate) fn new(seed: u64, tell: bool) -> Self {
        let mut rng = Rng::new(seed);
        let began = Instant::now();
        let device: Arc<dyn Device> = Arc::new(CpuDevice::new(0, 1, 64 << 20).expect("a device"));
        let credits = 2 + rng.below(8) as u32;
        let service = server(&device, 1, credits);
        let mut losses: Vec<_> =
            (0..rng.below(3)).map(|_| (began + pause(&mut rng, 400), pause(&mut rng, 500))).collect();
        losses.sort();
        losses.truncate(if rng.chance(500_000) { 0 } else { 2 });
        let network = network(&mut rng);
        let mut sim = Sim::new(rng.bits(), began, network.clone(), service);
        let users = (0..1 + rng.below(3)).map(|_| {
            let options = ClientOptions {
                lease_ms: 600_000,
                reconnect_for: Duration::from_secs(3600),
                lanes: 1 + rng.below(3) as u32,
                ..ClientOptions::default()
            };
            let most = 1 + rng.below(12) as usize;
            User::new(sim.connect(options), 15 + rng.below(40) as u32, most, seed.is_multiple_of(AHEAD))
        });
        let users = users.collect();
        let shared = Shared {
            model: tiny().expect("the model is valid"),
            names: Default::default(),
            sets: seed.is_multiple_of(2),
            epoch: 1,
            lost_names: Default::default(),
            last_tag: 0,
            moment: 0,
            asked: Asked::default(),
            told: tell.then(|| {
                format!(
                    "{network:?}, {credits} credits, server losses {:?}\n",
                    losses.iter().map(|l| l.1).collect::<Vec<_>>()
                )
            }),
        };
        Self { sim, shared, users, device, began, losses, back: None, credits }
    }

    /// Runs it to its end: the story and what it met, or what went wrong.
    pub(crate) fn run(mut self) -> Result<(String, Met), String> {
        let result = self.go().and_then(|()| {
            // What was left to be checked is checked without faults.
            self.sim.set_network(Network::calm());
            self.users.iter_mut().for_each(User::wind_up);
            self.go()
        });
        let story = self.shared.told.take().unwrap_or_default();
        match result {
            Ok(()) => Ok((story, Met { faults: self.sim.faults(), users: self.shared.asked })),
            Err(failure) => Err(format!("{failure}\n{story}")),
        }
    }

    fn go(&mut self) -> Result<(), String> {
        loop {
            let now = self.sim.now();
            self.lose_the_server(now);
            let mut busy = false;
            for user in &mut self.users {
                busy |= user.turn(&mut self.sim, &mut self.shared)?;
            }
            if !busy {
                return Ok(());
            }
            if self.sim.rng().chance(2_000) {
                let user = self.sim.rng().below(self.users.len() as u64) as usize;
                self.shared.tell(|| format!("{:?}: user {user}'s lanes are cut", now - self.began));
                self.sim.cut(self.users[user].id);
            }
            if self.sim.rng().chance(2_000) {
                let user = self.sim.rng().below(self.users.len() as u64) as usize;
                let cut = self.sim.rng().chance(700_000);
                if self.sim.break_lane(self.users[user].id, cut) {
                    let how = if cut { "is cut" } else { "stands" };
                    self.shared.tell(|| format!("{:?}: a bulk lane of user {user} {how}", now - self.began));
                }
            }
            if now - self.began > LONGEST {
                let waiting: Vec<_> = self.users.iter().map(User::describe).collect();
                return Err(format!("deadlock: after {LONGEST:?} of virtual time there wait {waiting:?}"));
            }
            let until = self.back.or(self.losses.first().map(|l| l.0)).unwrap_or(now + Duration::from_secs(1));
            self.sim.step(until.max(now + Duration::from_micros(1)));
            if let Some(service) = self.sim.service() {
                service.tick(self.sim.now());
            }
        }
    }

    fn lose_the_server(&mut self, now: Instant) {
        if self.back.is_some_and(|back| back <= now) {
            self.back = None;
            self.shared.tell(|| format!("{:?}: a server is back", now - self.began));
            let service = server(&self.device, self.shared.epoch, self.credits);
            self.sim.replace_server(Some(service));
        }
        if self.losses.first().is_some_and(|&(at, _)| at <= now) {
            let (_, pause) = self.losses.remove(0);
            self.shared.tell(|| format!("{:?}: the server is lost for {pause:?}", now - self.began));
            self.back = Some(now + pause);
            self.sim.replace_server(None);
            // Its names are gone with it.
            self.shared.epoch += 1;
            self.shared.lost_names = (self.shared.moment(), self.shared.names.clone());
            self.shared.names.iter_mut().for_each(Register::lose);
        }
    }
}

fn server(device: &Arc<dyn Device>, epoch: u64, credits: u32) -> Arc<Executor> {
    let mut config = Config::new(vec![device.clone()], epoch);
    config.mode = Mode::Inline;
    config.token_seed = Some(epoch);
    config.settings.credits = credits;
    config.settings.eager_bytes = 2048;
    config.settings.slice_bytes = 4096;
    config.default_lease = Duration::from_secs(600);
    Arc::new(Executor::new(config).expect("a server"))
}

fn network(rng: &mut Rng) -> Network {
    let mut network = Network::calm();
    let micros = |n: u64| Duration::from_micros(n);
    network.delay = (micros(rng.below(50)), micros(100 + rng.below(3000)));
    network.window = 512 << rng.below(8);
    network.split = rng.below(500_000) as u32;
    let some = |rng: &mut Rng, often: u32, most: u64| if rng.chance(often) { rng.below(most) as u32 } else { 0 };
    network.stall = some(rng, 300_000, 20_000);
    network.corrupt = some(rng, 400_000, 20_000);
    network.cut = some(rng, 600_000, 15_000);
    network.stand = some(rng, 300_000, 5_000);
    network.refuse = some(rng, 300_000, 500_000);
    network
}

fn pause(rng: &mut Rng, most_millis: u64) -> Duration {
    Duration::from_micros(rng.below(most_millis * 1000))
}
