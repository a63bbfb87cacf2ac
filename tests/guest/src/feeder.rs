//! Shows pictures on a node, one of them again and again until the test asks for another.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::node::{Node, OUTPUT, Output};

/// A thread that shows pictures.
pub struct Feeder {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<()>>,
}

struct Shared {
    pictures: Vec<Vec<u8>>,
    shown: AtomicUsize,
    /// How many times it was handed to the driver.
    played: AtomicUsize,
    end: AtomicBool,
}

impl Feeder {
    /// Starts with the first picture; it is on its way when this returns.
    pub fn start(
        path: &str,
        fourcc: &[u8; 4],
        width: u32,
        height: u32,
        pictures: Vec<Vec<u8>>,
    ) -> io::Result<Self> {
        if pictures.is_empty() {
            return Err(io::Error::other("no pictures"));
        }
        let node = Node::open(path)?;
        let set = node.set_format(OUTPUT, fourcc, width, height)?;
        let wanted = format!("{} {width}x{height}", String::from_utf8_lossy(fourcc));
        if set != wanted {
            return Err(io::Error::other(format!("{path} takes {set} instead of {wanted}")));
        }
        let shared = Arc::new(Shared {
            pictures,
            shown: AtomicUsize::new(0),
            played: AtomicUsize::new(0),
            end: AtomicBool::new(false),
        });
        let thread = if node.driver()? == "vivid" {
            let mut player = Player::new(node, &shared)?;
            // One round: the node now shows the first picture.
            for _ in 0..player.output.buffers() {
                player.step(&shared)?;
            }
            let shared = shared.clone();
            thread::spawn(move || player.run(&shared))
        } else {
            let mut node = node;
            node.write(&shared.pictures[0])?;
            let shared = shared.clone();
            thread::spawn(move || write(&mut node, &shared))
        };
        Ok(Self { shared, thread })
    }

    /// Shows another picture from now on.
    pub fn show(&self, index: usize) -> io::Result<()> {
        if index >= self.shared.pictures.len() {
            return Err(io::Error::other("no such picture"));
        }
        if self.thread.is_finished() {
            return Err(io::Error::other("the feeder has failed"));
        }
        self.shared.shown.store(index, Ordering::Release);
        self.shared.played.store(0, Ordering::Release);
        Ok(())
    }

    /// How many times the picture has been handed to the driver, give or take one.
    pub fn played(&self) -> usize {
        self.shared.played.load(Ordering::Acquire)
    }

    /// Ends it, and tells why it had ended before.
    pub fn end(self) -> io::Result<()> {
        self.shared.end.store(true, Ordering::Release);
        self.thread.join().map_err(|_| io::Error::other("the feeder panicked"))?
    }
}

impl Shared {
    fn shown(&self) -> usize {
        self.shown.load(Ordering::Acquire)
    }

    fn ended(&self) -> bool {
        self.end.load(Ordering::Acquire)
    }
}

/// Plays on vivid, which takes no `write`.
struct Player {
    output: Output,
    /// Which picture each buffer holds.
    held: Vec<usize>,
}

impl Player {
    fn new(node: Node, shared: &Shared) -> io::Result<Self> {
        let mut output = Output::new(node)?;
        for index in 0..output.buffers() {
            output.fill(index, &shared.pictures[0])?;
            output.queue(index, shared.pictures[0].len())?;
        }
        output.start()?;
        let held = vec![0; output.buffers() as usize];
        Ok(Self { output, held })
    }

    fn step(&mut self, shared: &Shared) -> io::Result<()> {
        let buffer = self.output.dequeue()?;
        let shown = shared.shown();
        let picture = &shared.pictures[shown];
        // Copying costs the emulated machine much.
        if std::mem::replace(&mut self.held[buffer as usize], shown) != shown {
            self.output.fill(buffer, picture)?;
        }
        self.output.queue(buffer, picture.len())?;
        shared.played.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn run(&mut self, shared: &Shared) -> io::Result<()> {
        while !shared.ended() {
            self.step(shared)?;
        }
        Ok(())
    }
}

/// Plays on v4l2loopback, at 25 pictures a second.
fn write(node: &mut Node, shared: &Shared) -> io::Result<()> {
    while !shared.ended() {
        thread::sleep(Duration::from_millis(40));
        node.write(&shared.pictures[shared.shown()])?;
        shared.played.fetch_add(1, Ordering::Release);
    }
    Ok(())
}
